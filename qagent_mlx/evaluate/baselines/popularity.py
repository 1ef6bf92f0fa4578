"""Baselines that count searches: of everybody, of the last days, of a category, of the user.

Popularity and repetition are hard to beat in repeated shopping (arXiv:1907.06902).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ...environment.environment import Example
from ...types import Case
from ..metrics import Ranking
from .point_in_time import EngagementBaseline, PointInTimeBaseline
from .search_log import SearchLog, SweepState


class Popular(PointInTimeBaseline):
    """The queries that were searched most, ever."""

    name = "popular"


class Trending(PointInTimeBaseline):
    """The queries that were searched most in the last days; then the most popular ever."""

    name = "trending"

    def __init__(self, log: SearchLog, days: float = 2.0) -> None:
        super().__init__(log)
        self._window = np.timedelta64(round(days * 86_400_000_000), "us")

    def _start(self, examples: Sequence[Example]) -> None:
        self._expired = np.zeros(len(self.log.spellings), dtype=np.int64)
        self._end = 0

    def _scores(self, case: Case, state: SweepState) -> np.ndarray:
        """Searches inside the window."""
        end = self.log.before(state.moment - self._window)
        np.add.at(self._expired, self.log.queries[self._end : end], 1)
        self._end = end
        return state.counts - self._expired


class RepeatLast(PointInTimeBaseline):
    """The user's own queries, the latest first; then the most popular ever."""

    name = "repeat-last"

    def _rank_case(self, case: Case, state: SweepState, k: int) -> Ranking:
        """Recommend at most ``k`` queries for one case."""
        own = self.log.last_queries(case.user_id, state.moment, k)
        scores = np.zeros(len(self.log.spellings))
        scores[list(own)] = np.arange(len(own), 0, -1)
        return self._top(k, state, scores, own)


class CategoryPopular(EngagementBaseline):
    """The most searched queries of the category that the user engages with most.

    A query belongs to the categories of the products that were chosen under it.
    """

    name = "category-popular"

    def _start(self, examples: Sequence[Example]) -> None:
        super()._start(examples)
        self._queries: dict[int, np.ndarray] = {}  # category -> engagements of each query, (K,)
        self._preferences: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def _learn(self, index: int) -> None:
        """Count an engagement for the user's category, and for its query."""
        log = self.engagements
        category, query = int(log.categories[log.products[index]]), int(log.queries[index])
        if category < 0:
            return
        self._preferences[log.users[index]][category] += log.weights[index]
        if query >= 0:
            counts = self._queries.setdefault(category, np.zeros(len(self.log.spellings)))
            counts[query] += 1

    def _scores(self, case: Case, state: SweepState) -> np.ndarray | None:
        """How often each query led to the user's top category."""
        preferences = self._preferences.get(case.user_id)
        if not preferences:
            return None
        return self._queries.get(min(preferences, key=lambda c: (-preferences[c], c)))
