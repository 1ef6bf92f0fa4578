"""Computes a user's state from the user's events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from statistics import median

from ..shop.config import MemoryConfig
from .event_log import CLICK, DAY, PURCHASE, SEARCH, VIEW, Event, ProductFacts, Wording
from .interests import Node, strongest_interests, touches
from .past_searches import BOUGHT, PastSearch, category_key, leaf_of, past_searches
from .user_state import Activity, EngagedProduct, OwnQuery, RecentProduct, Source, UserState

MAX_SOURCES = 8  # of the last searches with success, and without, that lead to neighbours
MAX_ENGAGED = 200  # of the last products engaged with that candidates are compared with
MAX_QUERIES = 500
MAX_PRODUCTS = 40  # of the last products that the search tool marks


def user_state(
    events: Sequence[Event],
    at: int,
    products: Mapping[str, ProductFacts],
    wordings: Mapping[str, Wording],
    config: MemoryConfig,
) -> UserState:
    """A user's state at a moment.

    Args:
        events: All of the user's events before the moment, the oldest first.
        at: The moment in microseconds since 1970.
        products: Facts of the products of the events.
        wordings: Wordings of the queries of the events.
        config: The weights of events, and their half-life.
    """
    if not events:
        return UserState()
    searches = past_searches(events)
    weights: dict[Node, float] = defaultdict(float)
    for _, node, weight in touches(events, searches, at, products, wordings, config):
        weights[node] += weight
    queries = _own_queries(searches, at)
    kinds: Counter[str] = Counter()
    modifiers: Counter[str] = Counter()
    for query in queries:
        # None where the shop's tables are older than the search.
        if wording := wordings.get(query.key):
            kinds[wording.kind] += query.searches
            if wording.modifier is not None:
                modifiers[wording.modifier] += query.searches * (1 + query.best_outcome)
    return UserState(
        queries=queries[:MAX_QUERIES],
        sources=_sources(searches, at, products),
        bought=_last_purchases(events, at, products),
        engaged=_engaged_categories(searches, at, products),
        engaged_products=_engaged_products(events, at, products),
        recent_products=_recent_products(events, at, products),
        wording=dict(sorted(_shares(kinds).items(), key=lambda item: (-item[1], item[0]))),
        taste=_taste(weights),
        typed=dict(sorted(_shares(modifiers).items())),
        interests=strongest_interests(weights),
        activity=_activity(events, at),
    )


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}


def _own_queries(searches: Sequence[PastSearch], at: int) -> list[OwnQuery]:
    """The user's own queries, the last searched first."""
    queries: dict[str, OwnQuery] = {}
    for search in reversed(searches):
        event, outcome = search.event, search.outcome
        key = event.query_key or ""
        if query := queries.get(key):
            query.searches += 1
            query.best_outcome = max(query.best_outcome, outcome)
        else:
            age = (at - event.at) / DAY
            queries[key] = OwnQuery(key, event.query or "", 1, outcome, outcome, age)
    return list(queries.values())


def _sources(
    searches: Sequence[PastSearch], at: int, products: Mapping[str, ProductFacts]
) -> list[Source]:
    """The sources of neighbours, sorted by key; the later the search, the heavier."""
    sources: dict[str, Source] = {}

    def add(key: str, weight: float, age: float) -> None:
        source = sources.setdefault(key, Source(key, weight, age))
        source.weight, source.age = max(source.weight, weight), min(source.age, age)

    latest = searches[::-1]
    for number, search in enumerate(islice((s for s in latest if s.outcome), MAX_SOURCES), 1):
        weight, age = 0.8**number, (at - search.event.at) / DAY
        if leaf := leaf_of(search.product_id, products):
            add(f"c:{leaf}", weight * (1.0 if search.outcome == BOUGHT else 0.4), age)
        add(f"q:{search.event.query_key}", 0.5 * weight, age)
        add(f"p:{search.product_id}", 0.2 * weight, age)
    for number, search in enumerate(islice((s for s in latest if not s.outcome), MAX_SOURCES), 1):
        add(f"r:{search.event.query_key}", 0.6 * 0.8**number, (at - search.event.at) / DAY)
    return sorted(sources.values(), key=lambda source: source.key)


def _engaged_categories(
    searches: Sequence[PastSearch], at: int, products: Mapping[str, ProductFacts]
) -> dict[str, float]:
    """The categories of the last searches with success: days since the last time."""
    ages = {
        category_key(search, products): (at - search.event.at) / DAY
        for search in [search for search in searches if search.outcome][-MAX_SOURCES:]
    }
    return {category: age for category, age in ages.items() if category}


def _taste(weights: Mapping[Node, float]) -> dict[str, float]:
    """Brands and attributes, in lower case, with their share of what the user touched."""
    words: dict[str, dict[str, float]] = {"brand": {}, "attribute": {}}
    for (kind, name), weight in weights.items():
        if kind in words:
            words[kind][name.lower()] = words[kind].get(name.lower(), 0.0) + weight
    taste: dict[str, float] = {}
    for amounts in words.values():
        for word, share in _shares(amounts).items():
            taste[word] = max(taste.get(word, 0.0), share)
    return dict(sorted(taste.items()))


def _activity(events: Sequence[Event], at: int) -> Activity:
    purchases: dict[int, int] = {}  # the first of each session
    for event in events:
        if event.type == PURCHASE:
            purchases.setdefault(event.session_id, event.at)
    gaps = [(later - earlier) / DAY for earlier, later in pairwise(sorted(purchases.values()))]
    return Activity(
        events=len(events),
        sessions=len({event.session_id for event in events}),
        purchases=sum(event.type == PURCHASE for event in events),
        days_away=(at - events[-1].at) / DAY,
        purchase_gap=median(gaps) if gaps else None,
        purchase_gaps=len(gaps),
    )


def _last_purchases(
    events: Sequence[Event], at: int, products: Mapping[str, ProductFacts]
) -> dict[str, float]:
    """Days since the user last bought something of a category."""
    ages = {
        leaf: (at - event.at) / DAY
        for event in events
        if event.type == PURCHASE and (leaf := leaf_of(event.product_id, products))
    }
    return dict(sorted(ages.items()))


def _engaged_products(
    events: Sequence[Event], at: int, products: Mapping[str, ProductFacts]
) -> list[EngagedProduct]:
    engaged: dict[str, EngagedProduct] = {}
    for event in reversed(events):  # so the first age seen is the least
        product, age = event.product_id, (at - event.at) / DAY
        if event.type >= CLICK and product is not None and product in products:
            engaged.setdefault(product, EngagedProduct(product, False, age))
            engaged[product].bought |= event.type == PURCHASE
    return sorted(engaged.values(), key=lambda p: (p.age, p.product_id, p.bought))[:MAX_ENGAGED]


def _recent_products(
    events: Sequence[Event], at: int, products: Mapping[str, ProductFacts]
) -> list[RecentProduct]:
    last_session = events[-1].session_id
    recent: dict[str, RecentProduct] = {}
    for event in reversed(events):
        product = event.product_id
        if product is None or event.type == SEARCH or product not in products:
            continue
        if product not in recent:
            title, age = products[product].title, (at - event.at) / DAY
            recent[product] = RecentProduct(product, title, False, False, False, age)
        recent[product].bought |= event.type == PURCHASE
        recent[product].engaged |= event.type != VIEW
        recent[product].in_last_session |= event.session_id == last_session
    return sorted(recent.values(), key=lambda p: (p.age, p.product_id))[:MAX_PRODUCTS]
