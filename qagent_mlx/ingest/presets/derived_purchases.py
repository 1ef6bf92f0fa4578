"""Purchases of logs without searches, each behind a search of its product's derived query.

Ai et al. (SIGIR 2017, arXiv:1708.08123) do so with category paths. Nobody typed such a query. It
measures whether the next *kind of product* is foreseen, and every report on the shop says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from ...shop.shop import Shop
from ..derived_queries import mark_as_derived
from ..ingest import append_events
from ..report import IngestReport

PURCHASE_DELAY = timedelta(seconds=20)  # behind the derived search


class Purchase(NamedTuple):
    """A purchase, and when its product was searched for."""

    user_id: str
    product_id: str
    search_time: datetime
    is_searched: bool = True


def ingest_purchases(
    shop: Shop,
    purchases: Iterable[Purchase],
    queries: Mapping[str, str],
    how: str,
    delay: timedelta = PURCHASE_DELAY,
) -> IngestReport:
    """Store purchases, each behind a search of its product's derived query, as events."""
    events = []
    for user, product, time, is_searched in purchases:
        query = queries.get(str(product)) if is_searched else None
        if query is not None:
            events.append({"user_id": user, "time": time, "type": "search", "query": query})
        purchase = {"user_id": user, "time": time + delay, "type": "purchase"}
        events.append({**purchase, "query": query, "product_id": product})
    mark_as_derived(shop, how)
    return append_events(shop, events)
