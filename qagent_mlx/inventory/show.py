"""Search results as plain values, for whatever shows them."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.text import query_key
from .external_engines import shop_search
from .search import HybridSearch
from .types import Explanation, Filters, Search

if TYPE_CHECKING:
    pass


def search_products(
    shop: Shop,
    query: str,
    k: int = 10,
    *,
    filters: Filters | None = None,
    as_of: datetime | None = None,
    search: Search | None = None,
    explain: bool = False,
) -> list[dict[str, Any]]:
    """At most ``k`` products for a query: product_id, title, score, price, in_stock, brand.

    Args:
        shop: Read only is enough.
        query: What somebody would type.
        k: How many products.
        filters: Applied before ranking, to prices and stock of the moment.
        as_of: Clicks, prices and stock as they were then.
        search: An open search of the shop; its own engine or the built-in one by default.
        explain: Add ``why``: ``sides`` (words, vectors, clicks: rank, score, adds), ``words``
            (typed, matched, how, score) and ``borrowed`` (similar queries).

    Raises:
        QAgentError: the query has neither letters nor digits, or the shop's own engine was
            asked to explain.
    """
    if not query_key(query):
        raise QAgentError(f"{query!r} has no letters or digits; nothing to search for")
    search = search or shop_search(shop)
    catalog = search.catalog
    rows = catalog.rows_of()
    found = []
    reasons: dict[str, dict[str, Any]] = {}
    if explain:
        if not isinstance(search, HybridSearch):
            raise QAgentError("the shop's own search engine can't say why; leave out --explain")
        explained = search.explain(query, k, as_of, filters)
        hits = [reason.hit for reason in explained]
        reasons = {r.hit.product_id: _why(r) for r in explained}
    else:
        hits = search.search([query], k, [as_of], filters)[0]
    for hit in hits:
        row = rows[hit.product_id]
        price, in_stock = catalog.state(row, as_of)
        found.append(
            {
                "product_id": hit.product_id,
                "title": catalog.titles[row],
                "score": round(hit.score, 6),
                "price": None if math.isnan(price) else price,
                "in_stock": in_stock,
                "brand": catalog.brands[row],
                **({"why": reasons[hit.product_id]} if explain else {}),
            }
        )
    return found


def _why(reason: Explanation) -> dict[str, Any]:
    sides = {
        name: {"rank": s.rank, "score": round(s.score, 4), "adds": round(s.adds, 6)}
        for name, s in reason.sides.items()
    }
    words = [{**asdict(word), "score": round(word.score, 4)} for word in reason.words]
    return {"sides": sides, "words": words, "borrowed": list(reason.borrowed)}
