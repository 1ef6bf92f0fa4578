"""Tells whether a shop's log before some moments, and its catalog, are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import duckdb


def log_digests(
    connection: duckdb.DuckDBPyConnection, moments: Sequence[datetime], of: str = ""
) -> list[str]:
    """A digest for each moment of all events and product states before it, and of products' texts.

    Args:
        connection: Of the shop.
        moments: Whatever comes at or after one does not change its digest.
        of: What else the digests shall stand for.
    """
    events = _columns(connection, "events", moments)
    history = _columns(connection, "product_history", moments)
    ((texts,),) = connection.execute(
        "SELECT bit_xor(hash(product_id, title, brand, category, attributes)) FROM products"
    ).fetchall()
    # DuckDB may hash otherwise in another version.
    common = repr((duckdb.__version__, texts, of))
    return [
        hashlib.sha256(f"{common}{one}{other}".encode()).hexdigest()[:16]
        for one, other in zip(events, history, strict=True)
    ]


def _columns(
    connection: duckdb.DuckDBPyConnection, table: str, moments: Sequence[datetime]
) -> list[tuple[int, int]]:
    """The number of a table's rows before each moment, and their hashes put together."""
    if not moments:
        return []
    sums = ", ".join(
        f"count(*) FILTER (x.ts < ${i}), bit_xor(hash(x)) FILTER (x.ts < ${i})"
        for i in range(1, len(moments) + 1)
    )
    (row,) = connection.execute(f"SELECT {sums} FROM {table} x", list(moments)).fetchall()
    return list(zip(row[::2], row[1::2], strict=True))
