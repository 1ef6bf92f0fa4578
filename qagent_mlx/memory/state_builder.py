"""Computes a user's state from the user's events, the oldest first.

A `StateBuilder` follows a user's log and tells the state at any moment on the way, so that many
moments of one user cost little more than the last of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from statistics import median

from ..shop.config import MemoryConfig
from .event_log import (
    BOUGHT,
    CLICK,
    DAY,
    PURCHASE,
    SEARCH,
    Event,
    EventLog,
    History,
    PastSearch,
    ProductFacts,
)
from .interest_weights import InterestWeights
from .user_state import Activity, EngagedProduct, OwnQuery, RecentProduct, Source, UserState

MAX_SOURCES = 8  # of the last searches with success, and without, that lead to neighbours
MAX_ENGAGED = 200  # of the last products engaged with that candidates are compared with
MAX_QUERIES = 500
MAX_PRODUCTS = 40  # of the last products that the search tool marks


def user_state(history: History, config: MemoryConfig) -> UserState:
    """A user's state at the moment of a history, by the weights of ``config``."""
    builder = StateBuilder(history.log, config)
    for event in history.events:
        builder.add(event)
    return builder.state(history.at)


@dataclass(slots=True)
class _Asked:
    """A query that the user has searched; ``search`` is the last time."""

    text: str
    search: PastSearch
    searches: int = 0
    best_outcome: int = 0


@dataclass(slots=True)
class _Seen:
    """A product that the user looked at; ``event`` is the last time."""

    facts: ProductFacts
    event: Event
    bought: bool = False
    engaged_at: int | None = None  # in microseconds since 1970


class StateBuilder:
    """Follows one user's events.

    Args:
        log: Knows the events' products and, where they have been read, the queries' wordings.
        config: How events weigh.
    """

    def __init__(self, log: EventLog, config: MemoryConfig) -> None:
        self._log = log
        self._weigher = InterestWeights(config)
        self._events = self._purchases = 0
        self._last: Event | None = None
        self._sessions: set[int] = set()
        self._purchase_of: dict[int, int] = {}  # session -> its first purchase
        # What was done last comes last.
        self._queries: dict[str, _Asked] = {}
        self._products: dict[str, _Seen] = {}
        self._bought: dict[str, int] = {}  # category -> last purchase
        self._open: dict[int, PastSearch] = {}  # the searches of the last session
        # Those of the sessions before, with success and without.
        self._successes: deque[PastSearch] = deque(maxlen=MAX_SOURCES)
        self._failures: deque[PastSearch] = deque(maxlen=MAX_SOURCES)
        self._unsearched: dict[int, PastSearch] = {}  # see `History.successes`
        self._kinds: Counter[str] = Counter()  # searches by kind of wording
        self._modifiers: Counter[str] = Counter()

    def add(self, event: Event) -> None:
        """Follow the next event."""
        if self._last is not None and event.session_id != self._last.session_id:
            for search in self._open.values():
                (self._successes if search.outcome else self._failures).append(search)
            self._open.clear()
        self._events += 1
        self._sessions.add(event.session_id)
        self._last = event
        if event.type == SEARCH:
            self._add_search(event)
            return
        if event.type == PURCHASE:
            self._purchases += 1
            self._purchase_of.setdefault(event.session_id, event.at)
        if event.type >= CLICK:
            self._add_engagement(event)
        facts = self._log.products.get(event.product_id or "")
        if facts is not None and event.product_id is not None:
            self._add_product(event, event.product_id, facts)

    def _add_search(self, event: Event) -> None:
        search = self._open[event.event_id] = PastSearch(event)
        key = event.query_key or ""
        asked = self._queries.pop(key, None) or _Asked("", search)
        asked.text, asked.search = event.query or "", search
        asked.searches += 1
        self._queries[key] = asked
        # None where the shop's tables are older than the search.
        if wording := self._log.wordings.get(key):
            self._kinds[wording.kind] += 1
            if wording.modifier is not None:
                self._modifiers[wording.modifier] += 1 + asked.best_outcome
        self._weigher.add_search(self._log, event, 1)

    def _add_engagement(self, event: Event) -> None:
        search = None if event.search_id is None else self._open.get(event.search_id)
        if search is not None:
            before = search.outcome
            search.add(event)
            asked = self._queries[search.event.query_key or ""]
            better = search.outcome - asked.best_outcome
            if better > 0:
                asked.best_outcome = search.outcome
                wording = self._log.wordings.get(search.event.query_key or "")
                if wording and wording.modifier is not None:
                    self._modifiers[wording.modifier] += asked.searches * better
            if search.outcome > before:
                self._weigher.add_search(self._log, search.event, search.outcome - before)
        if not self._queries and event.product_id is not None:
            first = PastSearch(event._replace(query_key=None))
            self._unsearched.setdefault(event.session_id, first).add(event)

    def _add_product(self, event: Event, product: str, facts: ProductFacts) -> None:
        seen = self._products.pop(product, None) or _Seen(facts, event)
        seen.event = event
        if event.type >= CLICK:
            seen.engaged_at = event.at
        if event.type == PURCHASE:
            seen.bought = True
            if facts.leaf:
                self._bought[facts.leaf] = event.at
        self._products[product] = seen
        self._weigher.add_product(event, product, facts)

    def state(self, at: int, whole: bool = True) -> UserState:
        """The state at a moment, in microseconds since 1970, after all events that were added.

        Without ``whole`` it lacks what no candidate depends on: interests, recent products and
        activity.
        """
        if self._last is None:
            return UserState()
        queries = [
            OwnQuery(
                key,
                asked.text,
                asked.searches,
                asked.best_outcome,
                asked.search.outcome,
                (at - asked.search.event.at) / DAY,
            )
            for key, asked in islice(reversed(self._queries.items()), MAX_QUERIES)
        ]
        kinds = sorted(_shares(self._kinds).items(), key=lambda item: (-item[1], item[0]))
        successes = list(islice(self._latest(with_success=True), MAX_SOURCES))
        return UserState(
            queries=queries,
            sources=self._sources(at, successes),
            bought=_ages(at, sorted(self._bought.items())),
            engaged=self._engaged_categories(at, successes),
            engaged_products=self._engaged_products(at),
            recent_products=self._recent_products(at) if whole else [],
            wording=dict(kinds),
            taste=_taste(self._weigher.weights),
            typed=dict(sorted(_shares(self._modifiers).items())),
            interests=self._weigher.interests(at) if whole else [],
            activity=self._activity(at) if whole else None,
        )

    def _latest(self, with_success: bool) -> Iterator[PastSearch]:
        """The latest searches with success, or those without, the last one first."""
        if with_success and not self._queries:
            return iter(list(self._unsearched.values())[: -MAX_SOURCES - 1 : -1])
        now = (s for s in reversed(self._open.values()) if bool(s.outcome) == with_success)
        return chain(now, reversed(self._successes if with_success else self._failures))

    def _sources(self, at: int, successes: Sequence[PastSearch]) -> list[Source]:
        """The sources of neighbours, sorted by key; the later the search, the heavier."""
        sources: dict[str, Source] = {}

        def add(key: str, weight: float, age: float) -> None:
            source = sources.setdefault(key, Source(key, weight, age))
            source.weight, source.age = max(source.weight, weight), min(source.age, age)

        for number, search in enumerate(successes, 1):
            weight, age = 0.8**number, (at - search.event.at) / DAY
            if leaf := self._log.leaf(search.product_id):
                add(f"c:{leaf}", weight * (1.0 if search.outcome == BOUGHT else 0.4), age)
            if search.event.query_key is not None:
                add(f"q:{search.event.query_key}", 0.5 * weight, age)
            add(f"p:{search.product_id}", 0.2 * weight, age)
        for number, search in enumerate(islice(self._latest(with_success=False), MAX_SOURCES), 1):
            age = (at - search.event.at) / DAY
            add(f"r:{search.event.query_key}", 0.6 * 0.8**number, age)
        return sorted(sources.values(), key=lambda source: source.key)

    def _engaged_categories(self, at: int, successes: Sequence[PastSearch]) -> dict[str, float]:
        """The categories of the last searches with success: days since the last time."""
        times = {self._log.category_key(s): s.event.at for s in reversed(successes)}
        return _ages(at, [(key, time) for key, time in times.items() if key])

    def _engaged_products(self, at: int) -> list[EngagedProduct]:
        engaged = [
            (-seen.engaged_at, product, seen.bought)
            for product, seen in self._products.items()
            if seen.engaged_at is not None
        ]
        engaged.sort()
        return [EngagedProduct(p, bought, (at + t) / DAY) for t, p, bought in engaged[:MAX_ENGAGED]]

    def _recent_products(self, at: int) -> list[RecentProduct]:
        assert self._last is not None
        latest = sorted(self._products.items(), key=lambda item: (-item[1].event.at, item[0]))
        return [
            RecentProduct(
                product,
                seen.facts.title,
                (at - seen.event.at) / DAY,
                seen.bought,
                seen.engaged_at is not None,
                seen.event.session_id == self._last.session_id,
            )
            for product, seen in latest[:MAX_PRODUCTS]
        ]

    def _activity(self, at: int) -> Activity:
        assert self._last is not None
        times = sorted(self._purchase_of.values())
        gaps = [(later - earlier) / DAY for earlier, later in pairwise(times)]
        return Activity(
            events=self._events,
            sessions=len(self._sessions),
            purchases=self._purchases,
            days_away=(at - self._last.at) / DAY,
            purchase_gap=median(gaps) if gaps else None,
            purchase_gaps=len(gaps),
        )


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values()) or 1.0
    return {name: amount / total for name, amount in amounts.items()}


def _taste(weights: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Brands and attributes, in lower case, with their share of what the user touched."""
    taste: dict[str, float] = {}
    for kind in ("brand", "attribute"):
        words: dict[str, float] = {}
        for name, weight in weights.get(kind, {}).items():
            words[name.lower()] = words.get(name.lower(), 0.0) + weight
        for word, share in _shares(words).items():
            taste[word] = max(taste.get(word, 0.0), share)
    return dict(sorted(taste.items()))


def _ages(at: int, times: Sequence[tuple[str, int]]) -> dict[str, float]:
    return {key: (at - time) / DAY for key, time in times}
