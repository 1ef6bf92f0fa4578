"""Baselines that count which query follows which, over all users."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ...environment.environment import Example
from ...types import Case
from .point_in_time import PointInTimeBaseline
from .search_log import SearchLog, SweepState

NEXT = 3  # searches after a query that count as following it
SOURCES = 5  # the user's last queries whose followers are counted
FADE = 0.8  # weight of each source against the one after it
PRIOR = 5.0  # added to the followers of a source, so that one observation proves little


class Markov(PointInTimeBaseline):
    """A first-order Markov chain: what followed the user's last query (arXiv:1803.09587)."""

    name = "markov"

    def _start(self, examples: Sequence[Example]) -> None:
        self._followers: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._last: dict[int, int] = {}  # user -> last query

    def _observe(self, state: SweepState) -> None:
        """Count the transitions since the last case."""
        users, queries = self.log.users[state.searches], self.log.queries[state.searches]
        for user, query in zip(users.tolist(), queries.tolist(), strict=True):
            if user in self._last:
                self._followers[self._last[user]][query] += 1
            self._last[user] = query

    def _scores(self, case: Case, state: SweepState) -> np.ndarray:
        """How often each query followed the user's last one."""
        scores = np.zeros(len(self.log.spellings))
        source = self._last.get(self.log.user_numbers.get(case.user_id, -1))
        if source is not None:
            followers = self._followers[source]
            scores[list(followers)] = list(followers.values())
        return scores


class CoOccurrence(PointInTimeBaseline):
    """What other users went on to search after the queries that this user searched last.

    Sequential rules (arXiv:1803.09587): a query counts when it was the first, second or third
    search after the source (1, 1/2, 1/3), and in a later session, since a case asks what
    starts the next session and not how a search is reworded. Older transitions count less,
    and so do sources before the user's last query.
    """

    name = "co-occurrence"

    def __init__(self, log: SearchLog, half_life_days: float = 14.0) -> None:
        super().__init__(log)
        self._rate = np.log(2) / half_life_days
        parts = []
        for distance in range(1, NEXT + 1):
            a, b = log.by_user[:-distance], log.by_user[distance:]
            follows = (
                (log.users[a] == log.users[b])
                & (log.sessions[a] != log.sessions[b])
                & (log.queries[a] != log.queries[b])
            )
            parts.append((a[follows], b[follows], np.full(int(follows.sum()), 1 / distance)))
        source, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        # Searches are numbered by time, so this sorts each source's part by time too.
        order = np.lexsort((source, target, log.queries[source]))
        self._target, self._weight = target[order], weight[order]
        self._spans = np.searchsorted(log.queries[source[order]], np.arange(len(log.spellings) + 1))

    def _scores(self, case: Case, state: SweepState) -> np.ndarray:
        """The followers of the user's last queries, as shares of each source's followers."""
        user = self.log.user_numbers.get(case.user_id, -1)
        scores = np.zeros(len(self.log.spellings))
        sources = self.log.last_queries(case.user_id, state.moment, SOURCES)
        for position, query in enumerate(sources):
            scores += FADE**position * self._followers(query, state.moment, user)
        return np.round(scores, 12)

    def _followers(self, query: int, moment: np.datetime64, user: int) -> np.ndarray:
        """Shares of what users other than this one searched after a query, (K,)."""
        log = self.log
        first, last = self._spans[query], self._spans[query + 1]
        last = first + np.searchsorted(self._target[first:last], log.before(moment), "left")
        target = self._target[first:last]
        days = (moment - log.times[target]) / np.timedelta64(1, "D")
        weight = self._weight[first:last] * np.exp(-self._rate * days)
        weight *= log.users[target] != user
        total = np.bincount(log.queries[target], weight, minlength=len(log.spellings))
        return np.asarray(total / (weight.sum() + PRIOR))
