"""Computes a user's state from the user's events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from statistics import median

from ..shop.config import MemoryConfig
from .event_log import BOUGHT, CART, CLICK, DAY, PURCHASE, SEARCH, VIEW, History
from .user_state import (
    Activity,
    EngagedProduct,
    Interest,
    OwnQuery,
    RecentProduct,
    Source,
    UserState,
)

MAX_SOURCES = 8  # of the last searches with success, and without, that lead to neighbours
MAX_ENGAGED = 200  # of the last products engaged with that candidates are compared with
MAX_QUERIES = 500
MAX_PRODUCTS = 40  # of the last products that the search tool marks
MAX_INTERESTS = 8  # of each kind

Node = tuple[str, str]  # of the interest graph: kind and name


def user_state(history: History, config: MemoryConfig) -> UserState:
    """A user's state at the moment of a history, by the weights of ``config``."""
    if not history.events:
        return UserState()
    weights: dict[Node, float] = defaultdict(float)
    for _, node, weight in touches(history, config):
        weights[node] += weight
    queries = _own_queries(history)
    kinds: Counter[str] = Counter()
    modifiers: Counter[str] = Counter()
    for query in queries:
        # None where the shop's tables are older than the search.
        if wording := history.wordings.get(query.key):
            kinds[wording.kind] += query.searches
            if wording.modifier is not None:
                modifiers[wording.modifier] += query.searches * (1 + query.best_outcome)
    return UserState(
        queries=queries[:MAX_QUERIES],
        sources=_sources(history),
        bought=_last_purchases(history),
        engaged=_engaged_categories(history),
        engaged_products=_engaged_products(history),
        recent_products=_recent_products(history),
        wording=dict(sorted(_shares(kinds).items(), key=lambda item: (-item[1], item[0]))),
        taste=_taste(weights),
        typed=dict(sorted(_shares(modifiers).items())),
        interests=strongest_interests(weights),
        activity=_activity(history),
    )


def touches(history: History, config: MemoryConfig) -> Iterator[tuple[int, Node, float]]:
    """Each touch of a node of the user's interest graph: session_id, node and weight.

    The weight of an event halves each half-life.
    """
    weights = {
        VIEW: config.weight_view,
        CLICK: config.weight_click,
        CART: config.weight_cart,
        PURCHASE: config.weight_purchase,
    }
    half_life = -DAY * config.half_life_days
    for event in history.events:
        facts = history.products.get(event.product_id or "")
        if facts is None or event.type == SEARCH or event.product_id is None:
            continue
        weight = weights[event.type] * 2.0 ** ((history.at - event.at) / half_life)
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


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values()) or 1.0
    return {name: amount / total for name, amount in amounts.items()}


def _own_queries(history: History) -> list[OwnQuery]:
    """The user's own queries, the last searched first."""
    queries: dict[str, OwnQuery] = {}
    for search in reversed(history.searches):
        event, outcome = search.event, search.outcome
        key = event.query_key or ""
        if query := queries.get(key):
            query.searches += 1
            query.best_outcome = max(query.best_outcome, outcome)
        else:
            age = history.age(event)
            queries[key] = OwnQuery(key, event.query or "", 1, outcome, outcome, age)
    return list(queries.values())


def _sources(history: History) -> list[Source]:
    """The sources of neighbours, sorted by key; the later the search, the heavier."""
    sources: dict[str, Source] = {}

    def add(key: str, weight: float, age: float) -> None:
        source = sources.setdefault(key, Source(key, weight, age))
        source.weight, source.age = max(source.weight, weight), min(source.age, age)

    latest = history.searches[::-1]
    for number, search in enumerate(history.successes[::-1][:MAX_SOURCES], 1):
        weight, age = 0.8**number, history.age(search.event)
        if leaf := history.leaf(search.product_id):
            add(f"c:{leaf}", weight * (1.0 if search.outcome == BOUGHT else 0.4), age)
        if search.event.query_key is not None:
            add(f"q:{search.event.query_key}", 0.5 * weight, age)
        add(f"p:{search.product_id}", 0.2 * weight, age)
    for number, search in enumerate(islice((s for s in latest if not s.outcome), MAX_SOURCES), 1):
        add(f"r:{search.event.query_key}", 0.6 * 0.8**number, history.age(search.event))
    return sorted(sources.values(), key=lambda source: source.key)


def _engaged_categories(history: History) -> dict[str, float]:
    """The categories of the last searches with success: days since the last time."""
    successes = history.successes[-MAX_SOURCES:]
    ages = {history.category_key(search): history.age(search.event) for search in successes}
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


def _activity(history: History) -> Activity:
    events = history.events
    purchases: dict[int, int] = {}  # the first of each session
    for event in events:
        if event.type == PURCHASE:
            purchases.setdefault(event.session_id, event.at)
    gaps = [(later - earlier) / DAY for earlier, later in pairwise(sorted(purchases.values()))]
    return Activity(
        events=len(events),
        sessions=len({event.session_id for event in events}),
        purchases=sum(event.type == PURCHASE for event in events),
        days_away=history.age(events[-1]),
        purchase_gap=median(gaps) if gaps else None,
        purchase_gaps=len(gaps),
    )


def _last_purchases(history: History) -> dict[str, float]:
    """Days since the user last bought something of a category."""
    ages = {
        leaf: history.age(event)
        for event in history.events
        if event.type == PURCHASE and (leaf := history.leaf(event.product_id))
    }
    return dict(sorted(ages.items()))


def _engaged_products(history: History) -> list[EngagedProduct]:
    engaged: dict[str, EngagedProduct] = {}
    for event in reversed(history.events):  # so the first age seen is the least
        product = event.product_id
        if event.type >= CLICK and product is not None and product in history.products:
            if product not in engaged:
                engaged[product] = EngagedProduct(product, False, history.age(event))
            engaged[product].bought |= event.type == PURCHASE
    return sorted(engaged.values(), key=lambda p: (p.age, p.product_id))[:MAX_ENGAGED]


def _recent_products(history: History) -> list[RecentProduct]:
    last_session = history.events[-1].session_id
    recent: dict[str, RecentProduct] = {}
    for event in reversed(history.events):
        facts = history.products.get(event.product_id or "")
        if facts is None or event.type == SEARCH or event.product_id is None:
            continue
        product = recent.get(event.product_id)
        if product is None:
            product = RecentProduct(event.product_id, facts.title, history.age(event))
            recent[event.product_id] = product
        product.bought |= event.type == PURCHASE
        product.engaged |= event.type != VIEW
        product.in_last_session |= event.session_id == last_session
    return sorted(recent.values(), key=lambda p: (p.age, p.product_id))[:MAX_PRODUCTS]
