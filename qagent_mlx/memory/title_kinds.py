"""Kinds of products from their titles, where a catalog names no category.

They stand in for categories where a profile may hold nobody else's queries, so that memory names
kinds of products instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from ..shop.config import MemoryConfig
from ..utils.database import append_rows
from ..utils.title_words import title_kinds

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class TitleKinds:
    """How memory names products without a category.

    Attributes:
        products: How many there are.
        from_titles: Those whose kind was taken from words of their titles; of the others it names
            the beginning of the title.
        kinds: Different ones among these.
        examples: The commonest.
    """

    products: int
    from_titles: int
    kinds: int
    examples: tuple[str, ...]


def create_title_kinds(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
    """Create ``title_kinds``, which the SQL of ``goods`` reads, for this connection only."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE title_kinds (product_id VARCHAR, kind VARCHAR)"
    )
    if not _names_kinds(connection, config):
        return
    rows = connection.execute(
        "SELECT product_id, title, brand, category IS NULL FROM products ORDER BY product_id"
    ).fetchall()
    titles = {product: title for product, title, _, is_bare in rows if is_bare}
    kinds = title_kinds(titles, {product: brand for product, _, brand, _ in rows})
    append_rows(connection, "title_kinds", kinds.items())


def told_title_kinds(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig
) -> TitleKinds | None:
    """What stored memory made of products without a category; None where it names no kinds."""
    if not _names_kinds(connection, config):
        return None
    rows = connection.execute(
        """SELECT leaf, count(*) AS n FROM goods WHERE category IS NULL
        GROUP BY leaf ORDER BY n DESC, leaf"""
    ).fetchall()
    kinds = [kind for kind, _ in rows if kind is not None]
    return TitleKinds(
        sum(n for _, n in rows),
        sum(n for kind, n in rows if kind is not None),
        len(kinds),
        tuple(kinds[:EXAMPLES]),
    )


def _names_kinds(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Whether memory names kinds of products, and there are some without a category."""
    ((has_queries, has_bare),) = connection.execute(
        """SELECT EXISTS (FROM events WHERE type = 'search'),
            EXISTS (FROM products WHERE category IS NULL)"""
    ).fetchall()
    return has_bare and (config.own_only or not has_queries)
