"""Queries for logs without any, derived from what was engaged with: nobody typed them.

An engagement gets a search of its product's derived query just before it, as Ai et al. (SIGIR
2017, arXiv:1708.08123) do with category paths. Such a query measures whether the next *kind of
product* is foreseen; the shop says so, and every report on it carries the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Literal, get_args

from ..errors import QAgentError
from ..memory import sessions
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from ..utils.database import append_rows
from ..utils.text import query_key, words
from ..utils.title_words import STOP_WORDS, title_queries
from .ingest import append_in_transaction, register_functions
from .report import IngestReport

Origin = Literal["categories", "titles"]
ORIGINS = {"categories": "from category paths", "titles": "from titles"}


def category_queries(categories: Mapping[str, str | None]) -> dict[str, str]:
    """Derive a query from the category path of each product (Ai et al., 2017).

    The path's levels from the second on, each word once, stop words left out, the first level
    kept where it is the only one: ``Office > Paper > Copy Paper`` gives ``paper copy``.
    """
    queries = {}
    for product, path in categories.items():
        levels = [level for level in (path or "").split(">") if words(level)]
        terms = dict.fromkeys(
            word
            for level in levels[1:] or levels
            for word in words(level)
            if word not in STOP_WORDS
        )
        if terms:
            queries[product] = " ".join(terms)
    return queries


def derive_queries(shop: Shop, origin: Origin | None = None) -> IngestReport:
    """Give a log without searches derived ones; new events of such a log get theirs the same way.

    The first click, cart or purchase of a session that has a query gets a search of it one
    second before. Every engagement bears its query, so that each of several things that were
    bought at once is found by its own search.

    Args:
        shop: Open for writing. Its stored memory is discarded until `qagent index`.
        origin: What queries are derived from; by default as before, else categories where most
            products have one, and titles where they have not.

    Raises:
        QAgentError: people typed the log's queries, or nothing was engaged with.
    """
    before = shop.config.derived_queries
    ((searches, engagements),) = shop.connection.execute(
        """SELECT count(*) FILTER (type = 'search'),
               count(*) FILTER (type IN ('click', 'cart', 'purchase')) FROM events"""
    ).fetchall()
    if searches and before is None:
        raise QAgentError(
            f"{shop.path}: queries are derived only for a log without searches, and this one has "
            f"{searches:,}"
        )
    if not engagements:
        raise QAgentError(
            f"{shop.path} holds no click, cart or purchase to derive queries from; views alone say "
            "too little: ingest them as clicks if they are all that you have"
        )
    catalog = shop.connection.execute(
        """SELECT product_id, title, brand, category,
               product_id IN (SELECT product_id FROM events WHERE type <> 'search')
        FROM products"""
    ).fetchall()
    if origin is None:
        again = [known for known in get_args(Origin) if ORIGINS[known] == before]
        has_category = [bool(category) for *_, category, engaged in catalog if engaged]
        mostly = 2 * sum(has_category) >= len(has_category)
        origin = again[0] if again else "categories" if mostly else "titles"
    if before is not None and before != ORIGINS[origin]:
        raise QAgentError(
            f"{shop.path}: its queries are derived {before}; to derive them {ORIGINS[origin]} "
            "make a new shop"
        )
    if origin == "categories":
        queries = category_queries({product: category for product, _, _, category, _ in catalog})
    else:
        queries = title_queries(
            {product: title for product, title, *_ in catalog},
            {product: brand for product, _, brand, *_ in catalog},
        )
    mark_as_derived(shop, ORIGINS[origin])
    return _store_queries(shop, queries)


def mark_as_derived(shop: Shop, how: str) -> None:
    """Save in the shop how its queries are derived, before any is stored as if it were typed."""
    shop.config = replace(shop.config, derived_queries=how)
    shop.save_config()


def _store_queries(shop: Shop, queries: Mapping[str, str]) -> IngestReport:
    """Add the queries to engagements that have none, and a search before each group of them."""
    register_functions(shop.connection)
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).discard()
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE derived (product_id VARCHAR, text VARCHAR, key VARCHAR)"
        )
        rows = ((product, text, query_key(text)) for product, text in queries.items())
        append_rows(connection, "derived", rows)
        underived = """events.type IN ('click', 'cart', 'purchase') AND events.query_key IS NULL
            AND derived.product_id = events.product_id"""
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE underived AS
            SELECT event_id, user_id, session_id, ts, text, key FROM events, derived
            WHERE {underived};
            UPDATE events SET query = derived.text, query_key = derived.key
            FROM derived WHERE {underived}"""
        )
        searches = connection.execute(
            """SELECT f.user_id, f.ts, f.text FROM underived f
            WHERE NOT EXISTS (FROM events s WHERE s.type = 'search'
                AND s.session_id = f.session_id AND s.query_key = f.key AND s.ts <= f.ts)
            QUALIFY row_number() OVER (PARTITION BY session_id, key ORDER BY ts, event_id) = 1
            ORDER BY f.ts, f.event_id"""
        ).fetchall()
        report = append_in_transaction(
            shop,
            (
                {
                    "user_id": user,
                    "time": engaged_at - timedelta(seconds=1),
                    "type": "search",
                    "query": text,
                }
                for user, engaged_at, text in searches
            ),
        )
        sessions.refresh_sessions(
            connection, shop.config.memory, "SELECT DISTINCT user_id FROM underived"
        )
        connection.execute("DROP TABLE derived; DROP TABLE underived")
    return report
