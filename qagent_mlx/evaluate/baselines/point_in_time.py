"""The loop that baselines share: cases in order of time, each from what came before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...environment.environment import Example
from ...types import Case
from ..metrics import Ranking
from .search_log import EngagementLog, SearchLog, SweepState, top_queries


class PointInTimeBaseline:
    """Recommends from the searches before each case, and from nothing else.

    A subclass says how it scores queries. Queries with equal scores, and all of them where
    there are no scores, are ranked by how often they were searched before the case.
    """

    name = ""

    def __init__(self, log: SearchLog) -> None:
        self.log = log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings = [Ranking(())] * len(examples)
        self._start(examples)
        for state in self.log.sweep(examples):
            self._observe(state)
            rankings[state.index] = self._rank_case(examples[state.index].case, state, k)
        return rankings

    def _start(self, examples: Sequence[Example]) -> None:
        """Forget everything; called before the first case."""

    def _observe(self, state: SweepState) -> None:
        """Learn from what happened since the last case; called before each."""

    def _rank_case(self, case: Case, state: SweepState, k: int) -> Ranking:
        """Recommend at most ``k`` queries for one case."""
        return self._top(k, state, self._scores(case, state))

    def _scores(self, case: Case, state: SweepState) -> np.ndarray | None:
        """A score of each query of the log, (K,); None ranks by popularity."""
        return None

    def _top(
        self,
        k: int,
        state: SweepState,
        scores: np.ndarray | None = None,
        typed: Mapping[int, str] | None = None,
    ) -> Ranking:
        """The best queries, spelled as in ``typed`` or else as they were first typed."""
        typed = typed or {}
        queries = top_queries(k, state.counts, scores)
        return Ranking(tuple(typed.get(q) or self.log.spellings[q] for q in queries))


class EngagementBaseline(PointInTimeBaseline):
    """A baseline that also learns from the clicks, carts and purchases before each case."""

    def __init__(self, log: SearchLog, engagements: EngagementLog) -> None:
        super().__init__(log)
        self.engagements = engagements
        self._learned = 0

    def _start(self, examples: Sequence[Example]) -> None:
        """Forget everything; called before the first case."""
        self._learned = 0

    def _observe(self, state: SweepState) -> None:
        """Learn from the engagements since the last case."""
        end = self.engagements.before(state.moment)
        for index in range(self._learned, end):
            self._learn(index)
        self._learned = end

    def _learn(self, index: int) -> None:
        """Learn from one engagement, given by its index in the log."""
        raise NotImplementedError
