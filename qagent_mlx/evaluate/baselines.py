"""Recommenders without a language model: what a policy has to beat.

Each answers from the searches before a case's ``as_of`` and from nothing else. The log is
read once, sorted by time; the cases are then answered in order of time, while the counts
of what was searched so far grow along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..shop import Shop
from ..text import query_key
from .metrics import Ranking

if TYPE_CHECKING:
    from ..train.environment import Example

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


@dataclass(frozen=True)
class SearchLog:
    """All searches of a shop, by time: n of them, by any user, of K distinct queries.

    Queries and users are numbered in order of their text, so that searches which come later
    never change how two earlier queries compare.
    """

    times: np.ndarray  # (n,) datetime64[us]
    queries: np.ndarray  # (n,) number of the query
    users: np.ndarray  # (n,) number of the user
    sessions: np.ndarray  # (n,) the session's id
    texts: np.ndarray  # (n,) the query as it was typed
    spellings: np.ndarray  # (K,) each query as it was first typed
    user_numbers: dict[str, int]
    own: np.ndarray  # (n,) places in the arrays above, by user and then by time
    spans: np.ndarray  # (users + 1,) where each user's part of `own` starts

    @classmethod
    def of_shop(cls, shop: Shop) -> SearchLog:
        """A copy of the shop's searches; the database is not needed again."""
        connection = shop.connection
        columns = connection.execute(
            """SELECT ts, session_id AS session, query AS text,
                   dense_rank() OVER (ORDER BY query_key) - 1 AS query,
                   dense_rank() OVER (ORDER BY user_id) - 1 AS "user"
            FROM events WHERE type = 'search' ORDER BY ts, event_id"""
        ).fetchnumpy()
        spellings = connection.execute(
            """SELECT arg_min(query, (ts, event_id)) AS text FROM events
            WHERE type = 'search' GROUP BY query_key ORDER BY query_key"""
        ).fetchnumpy()["text"]
        users = connection.execute(
            "SELECT DISTINCT user_id FROM events WHERE type = 'search' ORDER BY user_id"
        ).fetchall()
        numbers = columns["user"].astype(np.int64)
        own = np.argsort(numbers, kind="stable")
        return cls(
            times=columns["ts"].astype("datetime64[us]"),
            queries=columns["query"].astype(np.int64),
            users=numbers,
            sessions=columns["session"].astype(np.int64),
            texts=columns["text"],
            spellings=spellings,
            user_numbers={user: i for i, (user,) in enumerate(users)},
            own=own,
            spans=np.searchsorted(numbers[own], np.arange(len(users) + 1)),
        )

    def before(self, moment: np.datetime64) -> int:
        """How many searches came before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))

    def last_of(self, user_id: str, moment: np.datetime64, k: int) -> dict[int, str]:
        """The last ``k`` distinct queries of a user before a moment, the latest first.

        Number of the query -> how the user typed it the last time.
        """
        user = self.user_numbers.get(user_id)
        if user is None:
            return {}
        mine = self.own[self.spans[user] : self.spans[user + 1]]
        mine = mine[: np.searchsorted(self.times[mine], moment, "left")]
        found: dict[int, str] = {}
        for place in mine[::-1].tolist():
            if len(found) == k:
                break
            found.setdefault(int(self.queries[place]), self.texts[place])
        return found

    def sweep(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[int, np.datetime64, np.ndarray]]:
        """The examples in order of time: place, moment, and counts so far (K,).

        The counts are one array that grows; it holds only until the next example.
        """
        moments = np.array([_moment(e.case.as_of) for e in examples], dtype="datetime64[us]")
        counts = np.zeros(len(self.spellings), dtype=np.int64)
        done = 0
        for i in np.argsort(moments, kind="stable").tolist():
            end = self.before(moments[i])
            np.add.at(counts, self.queries[done:end], 1)
            done = end
            yield i, moments[i], counts


class Popular:
    """What was searched most, ever."""

    name = "popular"

    def __init__(self, log: SearchLog) -> None:
        self._log = log

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        made = [Ranking(())] * len(examples)
        for i, _, counts in self._log.sweep(examples):
            made[i] = _ranking(self._log, _best(k, counts))
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
            made[i] = _ranking(log, _best(k, counts, recent))
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
            fill = [q for q in _best(k, counts) if q not in own]
            made[i] = _ranking(log, [*own, *fill][:k], own)
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
        self._spans = np.searchsorted(
            log.queries[source[order]], np.arange(len(log.spellings) + 1)
        )

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
            made[i] = _ranking(log, _best(k, counts, np.round(scores, 12)))
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


class TopLine:
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


def baselines(shop: Shop) -> list[System]:
    """All of them, on one copy of the shop's searches as they are now."""
    log = SearchLog.of_shop(shop)
    return [Popular(log), Trending(log), RepeatLast(log), CoOccurrence(log), TopLine()]


def _moment(as_of: datetime) -> np.datetime64:
    return np.datetime64(as_of, "us")


def _best(k: int, counts: np.ndarray, scores: np.ndarray | None = None) -> list[int]:
    """The ``k`` best queries of those searched so far: by score, then count, then number."""
    seen = np.flatnonzero(counts)
    first = counts if scores is None else scores
    if len(seen) > k:
        threshold = np.partition(first[seen], len(seen) - k)[len(seen) - k]
        seen = seen[first[seen] >= threshold]
    order = np.lexsort((seen, -counts[seen], -first[seen]))
    return [int(q) for q in seen[order[:k]]]


def _ranking(
    log: SearchLog, queries: Sequence[int], typed: dict[int, str] | None = None
) -> Ranking:
    typed = typed or {}
    return Ranking(tuple(typed.get(q) or log.spellings[q] for q in queries))
