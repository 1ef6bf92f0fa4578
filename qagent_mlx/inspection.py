"""A user's memory and the shop's search as plain values, for whatever shows them."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .errors import QAgentError
from .inventory.engines import shop_search
from .inventory.search import Explanation, Filters, HybridSearch, Search
from .memory.graph import graph
from .memory.profile import SECTIONS, CountTokens, Memory
from .memory.reader import Moment
from .memory.worth import Worth
from .policy.text_generation import open_summarizer, token_counter
from .shop.shop import Shop
from .utils.text import query_key

if TYPE_CHECKING:
    pass


def inspect_memory(
    shop: Shop,
    user: str,
    as_of: datetime | None = None,
    count: CountTokens | None = None,
    summarizer: str | None = None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """A user's profile and interest graph at a moment.

    Args:
        shop: Read only is enough.
        user: An id; somebody unknown has the memory of a new user.
        as_of: Nothing at or after it is seen; by default the moment after the log.
        count: Counts tokens; `token_counter` by default.
        summarizer: A model folder or policy that writes the identity line; off by default.
        memory: One that is open, in place of a new one with ``count`` and ``summarizer``.

    Returns:
        user, as_of, events (before the moment), tokens, raw_tokens (of the log itself),
        text, sections (name -> texts of its lines), graph.
    """

    moment = Moment(user, as_of or shop.end_of_log())
    if memory is None:
        memory = Memory(
            shop.connection, shop.config.memory, count or token_counter(shop),
            Worth.of_shop(shop), open_summarizer(shop, summarizer) if summarizer else None,
        )  # fmt: skip
    profile = memory.profiles([moment])[0]
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for line in profile.lines:
        sections[line.section].append(line.text)
    row = shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id = ? AND ts < ?", [user, moment.as_of]
    ).fetchone()
    return {
        "user": user,
        "as_of": moment.as_of.isoformat(),
        "events": row[0] if row else 0,
        "tokens": profile.tokens,
        "raw_tokens": memory.raw_tokens(moment),
        "text": profile.text,
        "sections": sections,
        "graph": graph(memory, moment),
    }


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


