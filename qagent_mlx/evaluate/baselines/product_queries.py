"""Baselines that write queries from the products that users looked at; they need no query log.

A query is a kind of thing ("coffee beans"), or that of a brand ("elmora coffee beans"). What is
missing in a row is filled up with the kinds that the shop's users went for of late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest

import numpy as np

from ...environment.environment import Example
from ...utils.text import query_key
from ..metrics import Ranking
from .product_log import ProductLog
from .search_log import moment_of

HALF_LIFE = 14.0  # days in which an interest halves
RECENT = 5  # of the user's last products or kinds that what follows is sought for
FADE = 0.8  # weight of each against the one after it
PRIOR = 5.0  # added to what follows a kind, so that one observation proves little
MAX_PRODUCTS = 30  # of a user that are remembered
_DAY = np.timedelta64(1, "D")

Weights = dict[str, float]  # query -> weight


class ProductBaseline:
    """Recommends from the products that were looked at before each case, and from nothing else."""

    name = ""

    def __init__(self, log: ProductLog) -> None:
        self.log = log
        days = (log.times - log.times[-1]) / _DAY if len(log.times) else np.empty(0)
        # Later ones weigh more instead of the old ones fading: the order is the same.
        self._growth = np.exp2(days / HALF_LIFE).tolist()

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        self._popular: Weights = defaultdict(float)
        self._start()
        moments = [moment_of(e.case.as_of) for e in examples]
        rankings, learned = [Ranking(())] * len(examples), 0
        for index in sorted(range(len(examples)), key=lambda i: moments[i]):
            end = self.log.before(moments[index])
            for event in range(learned, end):
                weight = self.log.weights[event] * self._growth[event]
                self._popular[self.log.kinds[self.log.products[event]]] += weight
                self._learn(event, weight)
            learned = end
            rankings[index] = Ranking(self._row(examples[index].case.user_id, k))
        return rankings

    def _row(self, user: str, k: int) -> tuple[str, ...]:
        row: dict[str, str] = {}
        for query in (*self._queries(user, k), *_best(self._popular, 2 * k)):
            row.setdefault(query_key(query), query)
        row.pop("", None)
        return tuple(row.values())[:k]

    def _start(self) -> None:
        """Forget everything; called before the first case."""

    def _learn(self, event: int, weight: float) -> None:
        """Learn from one event, given by its index in the log."""
        raise NotImplementedError

    def _queries(self, user: str, k: int) -> Sequence[str]:
        """What a user is likely to want, the best first; more than ``k`` where some are equal."""
        raise NotImplementedError


class Category(ProductBaseline):
    """The kinds of things that the user looked at most, the later the more."""

    name = "category"

    def _start(self) -> None:
        self._interests: defaultdict[str, Weights] = defaultdict(lambda: defaultdict(float))

    def _learn(self, event: int, weight: float) -> None:
        query = self._texts[self.log.products[event]]
        self._interests[self.log.users[event]][query] += weight

    @property
    def _texts(self) -> list[str]:
        return self.log.kinds

    def _queries(self, user: str, k: int) -> Sequence[str]:
        return _best(self._interests.get(user, {}), k)


class BrandCategory(Category):
    """The same, each with its brand."""

    name = "brand-category"

    @property
    def _texts(self) -> list[str]:
        return self.log.names


class _Sequential(ProductBaseline):
    """Baselines that look at the user's products in order."""

    def _start(self) -> None:
        self._visits: defaultdict[str, dict[int, int]] = defaultdict(dict)  # product -> session

    def _learn(self, event: int, weight: float) -> None:
        user, product = self.log.users[event], self.log.products[event]
        session, visits = self.log.sessions[event], self._visits[user]
        if visits.get(product) != session:  # not the same product again in one session
            self._follow([p for p, at in visits.items() if at != session], product)
        visits.pop(product, None)
        visits[product] = session
        if len(visits) > MAX_PRODUCTS:
            del visits[next(iter(visits))]

    def _follow(self, earlier: Sequence[int], product: int) -> None:
        """Learn that a product came after those of earlier sessions, the latest last."""

    def _last(self, user: str) -> Iterator[int]:
        """The user's products, the latest first."""
        return reversed(self._visits.get(user, {}))


class LastViewed(_Sequential):
    """The user's last products, as their brand and what kind of thing they are."""

    name = "last-viewed"

    def _queries(self, user: str, k: int) -> Sequence[str]:
        return [self.log.names[product] for product in self._last(user)]


class NextProduct(_Sequential):
    """Item-based collaborative filtering: what users looked at in later sessions than the user's
    last products (arXiv:1301.7363), as brand and kind; products of one name count together."""

    name = "item-cf-title"

    def _start(self) -> None:
        super()._start()
        self._after: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._count: defaultdict[int, int] = defaultdict(int)

    def _follow(self, earlier: Sequence[int], product: int) -> None:
        self._count[product] += 1
        for distance, source in enumerate(reversed(earlier[-RECENT:]), 1):
            after = self._after[source]
            after[product] = after.get(product, 0.0) + 1.0 / distance

    def _queries(self, user: str, k: int) -> Sequence[str]:
        scores: Weights = defaultdict(float)
        for position, source in zip(range(RECENT), self._last(user), strict=False):
            for product, weight in self._after.get(source, {}).items():
                popularity = float(np.sqrt(self._count[source] * self._count[product]))
                scores[self.log.names[product]] += FADE**position * weight / max(popularity, 1.0)
        return _best(scores, k)


class NextCategory(_Sequential):
    """A Markov chain over kinds of things: what users looked at in the sessions after the user's
    last kinds (arXiv:1803.09587)."""

    name = "next-category"

    def _start(self) -> None:
        super()._start()
        self._after: defaultdict[str, Weights] = defaultdict(lambda: defaultdict(float))
        self._total: Weights = defaultdict(float)

    def _follow(self, earlier: Sequence[int], product: int) -> None:
        kind = self.log.kinds[product]
        sources = dict.fromkeys(self.log.kinds[p] for p in reversed(earlier))
        for distance, source in enumerate(list(sources)[:RECENT], 1):
            self._after[source][kind] += 1.0 / distance
            self._total[source] += 1.0 / distance

    def _queries(self, user: str, k: int) -> Sequence[str]:
        scores: Weights = defaultdict(float)
        sources = dict.fromkeys(self.log.kinds[p] for p in self._last(user))
        for position, source in enumerate(list(sources)[:RECENT]):
            share = FADE**position / (self._total.get(source, 0.0) + PRIOR)
            for kind, weight in self._after.get(source, {}).items():
                scores[kind] += share * weight
        return _best(scores, k)


def _best(weights: Mapping[str, float], k: int) -> list[str]:
    """The ``k`` heaviest queries; equal ones in order of their text."""
    # Sums differ in their last digits from order to order; what is equal must stay equal.
    rounded = {query: float(f"{weight:.9g}") for query, weight in weights.items()}
    return nsmallest(k, rounded, key=lambda query: (-rounded[query], query))
