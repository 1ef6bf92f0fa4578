"""How much a user's events weigh for the nodes of the interest graph: brands, categories, words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ..shop.config import MemoryConfig
from .event_log import (
    CART,
    CLICK,
    DAY,
    PURCHASE,
    SEARCH,
    VIEW,
    Event,
    EventLog,
    History,
    ProductFacts,
)
from .user_state import Interest

MAX_INTERESTS = 8  # of each kind
_MOST_HALVINGS = 500.0  # from a weight's time to another's, before all are scaled down

Node = tuple[str, str]  # kind and name


class InterestWeights:
    """The weights of the nodes of one user's interest graph, as events are counted in order.

    ``weights`` are of kind and name, all of one time that moves on by itself: only their shares
    mean something.
    """

    def __init__(self, config: MemoryConfig) -> None:
        self._of_event = _event_weights(config)
        self._of_search = config.weight_search
        self._half_life = DAY * config.half_life_days
        self._time: int | None = None
        self.weights: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def _factor(self, at: int) -> float:
        """What a weight of a moment counts now, where one of `_time` counts 1."""
        if self._time is None:
            self._time = at
        halvings = (at - self._time) / self._half_life
        if halvings > _MOST_HALVINGS:
            for names in self.weights.values():
                for name in names:
                    names[name] *= 2.0**-halvings
            self._time, halvings = at, 0.0
        return 2.0**halvings

    def add_product(self, event: Event, product: str, facts: ProductFacts) -> None:
        """Count what an event says of a product's brand, category and so on."""
        weight = self._of_event[event.type] * self._factor(event.at)
        for kind, name in _product_nodes(event, product, facts):
            names = self.weights[kind]
            names[name] = names.get(name, 0.0) + weight

    def add_search(self, log: EventLog, search: Event, times: int) -> None:
        """Count the words of a search, or that more came of it."""
        wording = log.wordings.get(search.query_key or "")
        if wording is None:
            return
        weight, names = times * self._of_search * self._factor(search.at), self.weights["term"]
        for term in wording.terms:
            names[term] = names.get(term, 0.0) + weight

    def interests(self, at: int) -> list[Interest]:
        """The strongest interests at a moment that is no earlier than what was counted."""
        decay = 2.0 ** (((self._time or at) - at) / self._half_life)
        return strongest_interests(
            {
                (kind, name): weight * decay
                for kind, names in self.weights.items()
                for name, weight in names.items()
            }
        )


def _event_weights(config: MemoryConfig) -> dict[int, float]:
    return {
        VIEW: config.weight_view,
        CLICK: config.weight_click,
        CART: config.weight_cart,
        PURCHASE: config.weight_purchase,
    }


def _product_nodes(event: Event, product: str, facts: ProductFacts) -> Iterator[Node]:
    """The nodes that an event with a product touches."""
    if facts.leaf:
        yield "category", facts.leaf
    if facts.department:
        yield "department", facts.department
    if facts.brand:
        yield "brand", facts.brand
    if band := facts.band(event.at):
        yield "price", band
    yield "product", product
    for value in facts.attributes:
        if value:
            yield "attribute", value


def touches(history: History, config: MemoryConfig) -> Iterator[tuple[int, Node, float]]:
    """Each touch of a node of the user's interest graph: session_id, node and weight.

    The weight of an event halves each half-life.
    """
    weights = _event_weights(config)
    half_life = -DAY * config.half_life_days
    for event in history.events:
        facts = history.products.get(event.product_id or "")
        if facts is None or event.type == SEARCH or event.product_id is None:
            continue
        weight = weights[event.type] * 2.0 ** ((history.at - event.at) / half_life)
        for node in _product_nodes(event, event.product_id, facts):
            yield event.session_id, node, weight
    for search in history.searches:
        weight = config.weight_search * (1 + search.outcome)
        weight *= 2.0 ** ((history.at - search.event.at) / half_life)
        wording = history.wordings.get(search.event.query_key or "")
        for term in wording.terms if wording else ():
            yield search.event.session_id, ("term", term), weight


def strongest_interests(weights: Mapping[Node, float]) -> list[Interest]:
    """The heaviest nodes of each kind, at most `MAX_INTERESTS`."""
    kinds: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (kind, name), weight in weights.items():
        kinds[kind].append((name, weight))
    interests = []
    for kind, nodes in sorted(kinds.items()):
        total = sum(weight for _, weight in nodes) or 1.0  # all may be too old to count
        # Sums differ in their last digits; what is equal must stay equal.
        order = sorted((-round(weight / total, 12), name, weight) for name, weight in nodes)
        for _, name, weight in order[:MAX_INTERESTS]:
            interests.append(Interest(kind, name, weight, weight / total))
    return interests
