"""Recommenders without a language model: what a policy has to beat.

Each answers from the searches before a case's ``as_of`` and from nothing else. The log is
read once, sorted by time; the cases are then answered in order of time, while the counts
of what was searched so far grow along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...inventory.encoders.subword import Encoder
from ...inventory.index import open_index
from ...shop.shop import Shop
from ...utils.text import query_key
from ..metrics import Ranking
from .collaborative import CategoryPopular, ItemCF, Markov, Swing
from .sasrec import SasRec
from .search_log import EngagementLog, SearchLog, ranking, top_queries
from .text_similarity import BM25Similarity, DenseSimilarity

if TYPE_CHECKING:
    from ...environment.environment import Environment, Example

NEXT = 3  # how many of a user's following searches are counted as next
SOURCES = 5  # how many of a user's last queries lead to next ones
FADE = 0.8  # how much less each earlier one of them counts
PRIOR = 5.0  # added to what followed a source, so that one observation proves little


class System(Protocol):
    """Whatever recommends queries."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        ...


class Popular:
    """What was searched most, ever."""

    name = "popular"

    def __init__(self, log: SearchLog) -> None:
        self._log = log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        made = [Ranking(())] * len(examples)
        for i, _, counts in self._log.sweep(examples):
            made[i] = ranking(self._log, top_queries(k, counts))
        return made


class Trending:
    """What was searched most in the last days; the most popular ever fill up."""

    name = "trending"

    def __init__(self, log: SearchLog, days: float = 2.0) -> None:
        self._log = log
        self._window = np.timedelta64(round(days * 86_400_000_000), "us")

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        made = [Ranking(())] * len(examples)
        recent = np.zeros(len(log.spellings), dtype=np.int64)
        first = last = 0
        for i, moment, counts in log.sweep(examples):
            start, end = log.before(moment - self._window), log.before(moment)
            np.add.at(recent, log.queries[last:end], 1)
            np.subtract.at(recent, log.queries[first:start], 1)
            first, last = start, end
            made[i] = ranking(log, top_queries(k, counts, recent))
        return made


class RepeatLast:
    """The user's own queries, the latest first; the most popular ever fill up."""

    name = "repeat-last"

    def __init__(self, log: SearchLog) -> None:
        self._log = log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        made = [Ranking(())] * len(examples)
        for i, moment, counts in log.sweep(examples):
            own = log.last_of(examples[i].case.user_id, moment, k)
            fill = [q for q in top_queries(k, counts) if q not in own]
            made[i] = ranking(log, [*own, *fill][:k], own)
        return made


class CoOccurrence:
    """What other users went on to search after the queries that this user searched last.

    A query counts when it was the first, second or third search after the source (1, 1/2,
    1/3) and in a later session, since a case asks what starts the next session and not how
    a search is worded anew. It counts less the longer ago that was, and the more other
    queries this user has searched since. The most popular ever fill up.
    """

    name = "co-occurrence"

    def __init__(self, log: SearchLog, half_life_days: float = 14.0) -> None:
        self._log = log
        self._rate = np.log(2) / half_life_days
        parts = []
        for distance in range(1, NEXT + 1):
            a, b = log.own[:-distance], log.own[distance:]
            kept = (
                (log.users[a] == log.users[b])
                & (log.sessions[a] != log.sessions[b])
                & (log.queries[a] != log.queries[b])
            )
            parts.append((a[kept], b[kept], np.full(int(kept.sum()), 1 / distance)))
        source, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        # Searches are numbered by time, so this sorts each source's part by time too.
        order = np.lexsort((source, target, log.queries[source]))
        self._target, self._weight = target[order], weight[order]
        self._spans = np.searchsorted(log.queries[source[order]], np.arange(len(log.spellings) + 1))

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        made = [Ranking(())] * len(examples)
        for i, moment, counts in log.sweep(examples):
            user_id = examples[i].case.user_id
            user = log.user_numbers.get(user_id, -1)
            scores = np.zeros(len(log.spellings))
            for place, query in enumerate(log.last_of(user_id, moment, SOURCES)):
                scores += FADE**place * self._next(query, moment, user)
            made[i] = ranking(log, top_queries(k, counts, np.round(scores, 12)))
        return made

    def _next(self, query: int, moment: np.datetime64, user: int) -> np.ndarray:
        """Shares of what others searched after a query, (K,)."""
        log = self._log
        first, last = self._spans[query], self._spans[query + 1]
        last = first + np.searchsorted(self._target[first:last], log.before(moment), "left")
        target = self._target[first:last]
        days = (moment - log.times[target]) / np.timedelta64(1, "D")
        weight = self._weight[first:last] * np.exp(-self._rate * days)
        weight *= log.users[target] != user
        total = np.bincount(log.queries[target], weight, minlength=len(log.spellings))
        return np.asarray(total / (weight.sum() + PRIOR))


class MemoryRankerBaseline:
    """The lines of the user's profile in their own order: the memory without an agent."""

    name = "top-line"

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        made = []
        for example in examples:
            distinct: dict[str, str] = {}
            for query in example.profile.references:
                distinct.setdefault(query_key(query), query)
            made.append(Ranking(tuple(distinct.values())[:k]))
        return made


class BaselineData:
    """What baselines are made from, each read when one first asks for it.

    Args:
        shop: Its log as it is now.
        environment: Gives the encoder of the shop's index; without one there is no
            `DenseSimilarity`.
    """

    def __init__(self, shop: Shop, environment: Environment | None = None) -> None:
        self._shop = shop
        self._environment = environment

    @cached_property
    def log(self) -> SearchLog:
        """The shop's searches."""
        return SearchLog.of_shop(self._shop)

    @cached_property
    def engaged(self) -> EngagementLog:
        """The shop's clicks, carts and purchases."""
        return EngagementLog.of_shop(self._shop, self.log)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the shop's index, which learned from nothing after the first case."""
        if self._environment is None:
            return open_index(self._shop).encoder
        return self._environment.search.index.encoder


BASELINES: dict[str, Callable[[BaselineData], System]] = {
    "popular": lambda s: Popular(s.log),
    "trending": lambda s: Trending(s.log),
    "repeat-last": lambda s: RepeatLast(s.log),
    "category-popular": lambda s: CategoryPopular(s.log, s.engaged),
    "markov": lambda s: Markov(s.log),
    "co-occurrence": lambda s: CoOccurrence(s.log),
    "item-cf": lambda s: ItemCF(s.log, s.engaged),
    "swing": lambda s: Swing(s.log, s.engaged),
    "bm25": lambda s: BM25Similarity(s.log, s.engaged),
    "dense": lambda s: DenseSimilarity(s.log, s.engaged, s.encoder),
    "sasrec": lambda s: SasRec(s.log),
    "top-line": lambda s: MemoryRankerBaseline(),
}
SLOW = ("sasrec",)  # those that train a model: only when asked for by name


def baselines(shop: Shop, environment: Environment | None = None) -> list[System]:
    """All that answer at once, on one copy of the shop's log as it is now.

    Without an environment the dense one is left out, as it needs the shop's index.
    """
    sources = BaselineData(shop, environment)
    left_out = {*SLOW, *(() if environment is not None else ("dense",))}
    return [make(sources) for name, make in BASELINES.items() if name not in left_out]


def baseline(shop: Shop, name: str, environment: Environment | None = None) -> System:
    """One of `BASELINES`."""
    return BASELINES[name](BaselineData(shop, environment))
