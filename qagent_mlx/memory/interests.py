"""What a user is interested in: the weighted nodes of the user's interest graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ..shop.config import MemoryConfig
from .event_log import CART, CLICK, DAY, PURCHASE, SEARCH, VIEW, Event, ProductFacts, Wording
from .past_searches import PastSearch
from .user_state import Interest

MAX_INTERESTS = 8  # of each kind

Node = tuple[str, str]  # kind and name


def touches(
    events: Sequence[Event],
    searches: Sequence[PastSearch],
    at: int,
    products: Mapping[str, ProductFacts],
    wordings: Mapping[str, Wording],
    config: MemoryConfig,
) -> Iterator[tuple[int, Node, float]]:
    """Each touch of a node of the interest graph: session_id, node, weight at ``at``."""
    weights = {
        VIEW: config.weight_view,
        CLICK: config.weight_click,
        CART: config.weight_cart,
        PURCHASE: config.weight_purchase,
    }
    half_life = -DAY * config.half_life_days
    for event in events:
        facts = products.get(event.product_id or "")
        if facts is None or event.type == SEARCH or event.product_id is None:
            continue
        weight = weights[event.type] * 2.0 ** ((at - event.at) / half_life)
        session = event.session_id
        if facts.leaf:
            yield session, ("category", facts.leaf), weight
        if facts.department:
            yield session, ("department", facts.department), weight
        if facts.brand:
            yield session, ("brand", facts.brand), weight
        if band := facts.band(event.at):
            yield session, ("price", band), weight
        yield session, ("product", event.product_id), weight
        for value in facts.attributes:
            if value:
                yield session, ("attribute", value), weight
    for search in searches:
        weight = config.weight_search * (1 + search.outcome)
        weight *= 2.0 ** ((at - search.event.at) / half_life)
        wording = wordings.get(search.event.query_key or "")
        for term in wording.terms if wording else ():
            yield search.event.session_id, ("term", term), weight


def strongest_interests(weights: Mapping[Node, float]) -> list[Interest]:
    """The heaviest nodes of each kind, at most `MAX_INTERESTS`."""
    kinds: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (kind, name), weight in weights.items():
        kinds[kind].append((name, weight))
    interests = []
    for kind in sorted(kinds):
        total = sum(weight for _, weight in kinds[kind])
        # Sums differ in their last digits; what is equal must stay equal.
        order = sorted((-round(weight / total, 12), name, weight) for name, weight in kinds[kind])
        interests += [
            Interest(kind, name, weight, weight / total)
            for _, name, weight in order[:MAX_INTERESTS]
        ]
    return interests
