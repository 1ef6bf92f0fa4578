"""A user's searches, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .event_log import CLICK, SEARCH, Event, ProductFacts

BOUGHT = 3  # the outcome of a search that led to a purchase


@dataclass(slots=True)
class PastSearch:
    """A search of the user, and what came of it."""

    event: Event
    outcome: int = 0  # 0 nothing, 1 click, 2 cart, 3 purchase
    product_id: str | None = None  # of the strongest engagement
    known: int | None = None  # when the first engagement came, in microseconds since 1970
    first_product: str | None = None  # of the first engagement


def past_searches(events: Sequence[Event]) -> list[PastSearch]:
    """The searches among a user's events, the oldest first."""
    searches = {event.event_id: PastSearch(event) for event in events if event.type == SEARCH}
    for event in events:
        if event.type >= CLICK and event.search_id in searches:
            search, outcome = searches[event.search_id], event.type - CLICK + 1
            if search.known is None:
                search.known, search.first_product = event.at, event.product_id
            if outcome > search.outcome:  # the earliest of the strongest
                search.outcome, search.product_id = outcome, event.product_id
    return list(searches.values())


def leaf_of(product: str | None, products: Mapping[str, ProductFacts]) -> str | None:
    """The narrowest category of a product; None where none is known."""
    facts = products.get(product or "")
    return (facts.leaf or None) if facts is not None else None


def category_key(search: PastSearch, products: Mapping[str, ProductFacts]) -> str | None:
    """The category that a search led to: ``b:`` (bought) or ``l:`` (liked) and its name."""
    leaf = leaf_of(search.product_id, products)
    return f"{'b' if search.outcome == BOUGHT else 'l'}:{leaf}" if leaf else None
