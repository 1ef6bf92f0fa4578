"""What a user's own events come to: all of a profile that does not hang on other people.

A state is made once, of the moment of the user's last event, and moved on to any later
moment: ages grow and weights halve. So it stays true for as long as the user does nothing,
whatever the day and whatever others do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from statistics import median
from typing import Any

from ..shop.config import MemoryConfig
from .event_log import CART, CLICK, PURCHASE, SEARCH, VIEW, Event, ProductFacts, Wording

SOURCES = 8  # how many of a user's last engagements lead to neighbours
KNOWN = 200  # how many of a user's last products are looked up among what queries lead to
OWN = 500  # how many of a user's last different queries are known one by one
PRODUCTS = 40  # how many of a user's last products are told to the search tool
NODES = 8  # how many nodes of each kind a profile may draw on

_DAY = 86400e6  # microseconds
_BOUGHT = 3  # a search's outcome
Rows = list[list[Any]]


@dataclass(slots=True)
class UserState:
    """Rows of plain values, so that they can be kept as JSON; ages are in days."""

    # query_key, query, times, best, last, age: the last searched first
    own: Rows = field(default_factory=list)
    sources: Rows = field(default_factory=list)  # source, weight, age
    had: Rows = field(default_factory=list)  # leaf, age: bought of a category
    engaged: Rows = field(default_factory=list)  # category (see `category_of`), age
    knows: Rows = field(default_factory=list)  # product_id, bought, age: engaged with
    wording: Rows = field(default_factory=list)  # kind, share: how the user words queries
    taste: Rows = field(default_factory=list)  # word, share: of brands or attributes
    used: Rows = field(default_factory=list)  # word, share: brands and attributes typed
    nodes: Rows = field(default_factory=list)  # kind, node, weight, share of its kind
    # events, sessions, purchases, away, gap, gaps: at most one row
    identity: Rows = field(default_factory=list)
    # product_id, bought, title, leaf, age, in_last, engaged
    products: Rows = field(default_factory=list)

    def advance(self, days: float, half_life: float) -> UserState:
        """The same, some days later; changes this one and returns it."""
        decay = 2.0 ** (-days / half_life)
        for rows, column in (
            (self.own, 5),
            (self.sources, 2),
            (self.had, 1),
            (self.engaged, 1),
            (self.knows, 2),
            (self.identity, 3),
            (self.products, 4),
        ):
            for row in rows:
                row[column] += days
        for row in self.nodes:
            row[2] *= decay
        return self


SETS = tuple(f.name for f in fields(UserState))


@dataclass(slots=True)
class PastSearch:
    """A search of the user, and what came of it: 0 nothing, 1 click, 2 cart, 3 purchase."""

    event: Event
    outcome: int = 0
    product_id: str | None = None  # the one that came of it
    known: int | None = None  # since when it is known that something came of it
    first_product: str | None = None  # what came first


def searches(events: Sequence[Event]) -> list[PastSearch]:
    """The searches among a user's events, the oldest first."""
    made = {event.event_id: PastSearch(event) for event in events if event.type == SEARCH}
    for event in events:
        if event.type >= CLICK and event.search_id in made:
            search, level = made[event.search_id], event.type - CLICK + 1
            if search.known is None:
                search.known, search.first_product = event.at, event.product_id
            if level > search.outcome:  # the earliest of the strongest
                search.outcome, search.product_id = level, event.product_id
    return list(made.values())


def leaf_of(product: str | None, goods: Mapping[str, ProductFacts]) -> str | None:
    """The narrowest category of a product, where one is known."""
    good = goods.get(product or "")
    return (good.leaf or None) if good is not None else None


def category_of(search: PastSearch, goods: Mapping[str, ProductFacts]) -> str | None:
    """The category of what came of a search: ``b:`` if it was bought, else ``l:``, and its name."""
    leaf = leaf_of(search.product_id, goods)
    return f"{'b' if search.outcome == _BOUGHT else 'l'}:{leaf}" if leaf else None


def touches(
    events: Sequence[Event],
    asked: Sequence[PastSearch],
    at: int,
    goods: Mapping[str, ProductFacts],
    wordings: Mapping[str, Wording],
    config: MemoryConfig,
) -> Iterator[tuple[int, str, str, float]]:
    """Every touch of a node of the interest graph: session_id, kind, node, weight at ``at``."""
    weights = {
        VIEW: config.weight_view,
        CLICK: config.weight_click,
        CART: config.weight_cart,
        PURCHASE: config.weight_purchase,
    }
    half = -_DAY * config.half_life_days
    for event in events:
        good = goods.get(event.product_id or "")
        if good is None or event.type == SEARCH or event.product_id is None:
            continue
        weight = weights[event.type] * 2.0 ** ((at - event.at) / half)
        session = event.session_id
        if good.leaf:
            yield session, "category", good.leaf, weight
        if good.top:
            yield session, "department", good.top, weight
        if good.brand:
            yield session, "brand", good.brand, weight
        if band := good.band(event.at):
            yield session, "price", band, weight
        yield session, "product", event.product_id, weight
        for value in good.attributes:
            if value:
                yield session, "attribute", value, weight
    for search in asked:
        weight = config.weight_search * (1 + search.outcome)
        weight *= 2.0 ** ((at - search.event.at) / half)
        wording = wordings.get(search.event.query_key or "")
        for term in wording.terms if wording else ():
            yield search.event.session_id, "term", term, weight


def heaviest(weights: Mapping[tuple[str, str], float], keep: int) -> Rows:
    """The heaviest nodes of each kind: kind, node, weight, share of the kind."""
    kinds: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (kind, node), weight in weights.items():
        kinds[kind].append((node, weight))
    made: Rows = []
    for kind in sorted(kinds):
        whole = sum(weight for _, weight in kinds[kind])
        # Sums differ in their last digits; what is equal must stay equal.
        shares = sorted(
            ((-round(weight / whole, 12), node, weight) for node, weight in kinds[kind])
        )[:keep]
        made += [[kind, node, weight, weight / whole] for _, node, weight in shares]
    return made


def user_state(
    events: Sequence[Event],
    at: int,
    goods: Mapping[str, ProductFacts],
    wordings: Mapping[str, Wording],
    config: MemoryConfig,
) -> UserState:
    """A user's state at a moment, in microseconds since 1970.

    Args:
        events: The user's, before the moment, the oldest first.
        at: Ages and weights are of this moment.
        goods: Of the products of the events.
        wordings: Of the queries of the events.
        config: How events weigh.
    """
    if not events:
        return UserState()
    asked = searches(events)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for _, kind, node, weight in touches(events, asked, at, goods, wordings, config):
        weights[kind, node] += weight
    own = _own(asked, at)
    kinds: dict[str, float] = defaultdict(float)
    modifiers: dict[str, float] = defaultdict(float)
    for key, _, times, best, *_ in own:
        wording = wordings.get(key)
        if wording is None:  # the tables about the shop were made before it was searched
            continue
        kinds[wording.kind] += times
        if wording.modifier is not None:
            modifiers[wording.modifier] += times * (1 + best)
    wanted = _shares(kinds)
    return UserState(
        own=own[:OWN],
        sources=_sources(asked, at, goods),
        engaged=_engaged(asked, at, goods),
        wording=sorted(wanted, key=lambda row: (-row[1], row[0])),
        taste=_taste(weights),
        used=sorted(_shares(modifiers)),
        nodes=heaviest(weights, NODES),
        identity=[_identity(events, at)],
        **_products(events, at, goods),
    )


def _shares(amounts: Mapping[str, float]) -> Rows:
    whole = sum(amounts.values())
    return [[name, amount / whole] for name, amount in amounts.items()]


def _own(asked: Sequence[PastSearch], at: int) -> Rows:
    """The user's own queries, the last searched first."""
    own: dict[str, list[Any]] = {}
    for search in reversed(asked):
        event = search.event
        row = own.get(event.query_key or "")
        if row is None:
            own[event.query_key or ""] = [
                event.query_key,
                event.query,
                1,
                search.outcome,
                search.outcome,
                (at - event.at) / _DAY,
            ]
        else:
            row[2] += 1
            row[3] = max(row[3], search.outcome)
    return list(own.values())


def _sources(asked: Sequence[PastSearch], at: int, goods: Mapping[str, ProductFacts]) -> Rows:
    """What of the user's past leads to neighbours, the last engagement weighing most."""
    found: dict[str, list[float]] = {}

    def add(source: str, weight: float, age: float) -> None:
        row = found.setdefault(source, [weight, age])
        row[0], row[1] = max(row[0], weight), min(row[1], age)

    led = nowhere = 0
    for search in reversed(asked):
        key, age = search.event.query_key, (at - search.event.at) / _DAY
        if search.outcome:
            led += 1
            if led > SOURCES:
                continue
            weight = 0.8**led
            if leaf := leaf_of(search.product_id, goods):
                add(f"c:{leaf}", weight * (1.0 if search.outcome == _BOUGHT else 0.4), age)
            add(f"q:{key}", 0.5 * weight, age)
            add(f"p:{search.product_id}", 0.2 * weight, age)
        else:  # and searches that led nowhere
            nowhere += 1
            if nowhere <= SOURCES:
                add(f"r:{key}", 0.6 * 0.8**nowhere, age)
        if led >= SOURCES and nowhere >= SOURCES:
            break
    return [[source, *row] for source, row in sorted(found.items())]


def _engaged(asked: Sequence[PastSearch], at: int, goods: Mapping[str, ProductFacts]) -> Rows:
    """The categories of the last engagements, each with the last time."""
    led = [search for search in asked if search.outcome][-SOURCES:]
    found = {category_of(search, goods): (at - search.event.at) / _DAY for search in led}
    return [[category, age] for category, age in found.items() if category]


def _taste(weights: Mapping[tuple[str, str], float]) -> Rows:
    """Words of brands and attributes, with their share of what the user touched."""
    words: dict[str, dict[str, float]] = {"brand": {}, "attribute": {}}
    for (kind, node), weight in weights.items():
        if kind in words:
            word = node.lower()
            words[kind][word] = words[kind].get(word, 0.0) + weight
    best: dict[str, float] = {}
    for amounts in words.values():
        for word, share in _shares(amounts):
            best[word] = max(best.get(word, 0.0), share)
    return [[word, share] for word, share in sorted(best.items())]


def _identity(events: Sequence[Event], at: int) -> list[Any]:
    bought: dict[int, int] = {}
    for event in events:
        if event.type == PURCHASE:
            bought.setdefault(event.session_id, event.at)
    visits = sorted(bought.values())
    gaps = [(b - a) / _DAY for a, b in pairwise(visits)]
    return [
        len(events),
        len({event.session_id for event in events}),
        sum(event.type == PURCHASE for event in events),
        (at - events[-1].at) / _DAY,
        median(gaps) if gaps else None,
        len(gaps),
    ]


def _products(
    events: Sequence[Event], at: int, goods: Mapping[str, ProductFacts]
) -> dict[str, Rows]:
    """``had``, ``knows`` and ``products``."""
    last = events[-1].session_id
    had: dict[str, float] = {}
    knows: dict[str, list[Any]] = {}
    products: dict[str, list[Any]] = {}
    for event in reversed(events):  # so the first age seen is the least
        product = event.product_id
        good = goods.get(product or "")
        if good is None or product is None or event.type == SEARCH:
            continue
        age, bought = (at - event.at) / _DAY, event.type == PURCHASE
        if bought and good.leaf:
            had.setdefault(good.leaf, age)
        if event.type != VIEW:
            knows.setdefault(product, [False, age])[0] |= bought
        row = products.get(product)
        if row is None:
            products[product] = [
                product,
                bought,
                good.title,
                good.leaf,
                age,
                event.session_id == last,
                event.type != VIEW,
            ]
        else:
            row[1] |= bought
            row[5] |= event.session_id == last
            row[6] |= event.type != VIEW
    known = sorted((age, product, bought) for product, (bought, age) in knows.items())[:KNOWN]
    return {
        "had": [[leaf, age] for leaf, age in sorted(had.items())],
        "knows": [[product, bought, age] for age, product, bought in known],
        "products": sorted(products.values(), key=lambda row: (row[4], row[0]))[:PRODUCTS],
    }
