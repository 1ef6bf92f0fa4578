"""What the shop knew at the start of a day and of an hour, read once and kept.

Neighbours, chances of queries and rhythms of categories are those of the start of a day,
trends those of the start of an hour: the same for all users, so one reading serves them all.
A day is read piece by piece for the few that ask, and whole once many have asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import duckdb
import numpy as np

from ..shop.config import MemoryConfig
from . import shop_statistics, store
from .event_log import Wording, read_wordings

PIECES = 24  # how often parts of a day are read before all of it is
KEPT = 40  # days, and hours, that are kept
WHOLE = 2  # of these, days that were read whole: some 50 MB each for a million events

KINDS = ("plain", "brand", "attribute")


class QueryFacts(NamedTuple):
    """What became of a query: None where nobody had searched it."""

    leaf: str | None = None  # the category that it mostly leads to
    asked: float = 0.0
    met: float = 0.0  # how often it led to an engagement
    most: float = 0.0  # of these, with the product that it mostly leads to
    ten: float = 0.0  # and with the ten that it mostly leads to
    main: str | None = None
    followed: float = 0.0  # sessions that searched it with success and were followed by another
    same: float = 0.0  # of these, how often by one that searched it again


class Trend(NamedTuple):
    """A query that is searched now, with shares of the shop's searches; place from 1."""

    share: float
    longer_share: float
    short_share: float
    place: int
    recent: float


class Followers(NamedTuple):
    """What people search after a source: ids of the vocabulary, P(query), days until then."""

    ids: np.ndarray
    chance: np.ndarray
    delay: np.ndarray


class Returns(NamedTuple):
    """What people came back for: categories, P(category), mean and deviation of ln days."""

    leaves: list[str]
    chance: np.ndarray
    pace: np.ndarray
    spread: np.ndarray


Wanted = Mapping[datetime, set[str]]  # keys, by the start of the day

NOBODY = Followers(np.empty(0, np.int64), np.empty(0), np.empty(0))
NEVER = Returns([], np.empty(0), np.empty(0), np.empty(0))
NOTHING = QueryFacts()


class Vocabulary:
    """Queries as numbers, with how each is worded."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.number: dict[str, int] = {}
        self.keys: list[str] = []
        self.wordings: list[Wording] = []
        self.bags: list[frozenset[str]] = []  # the words of each query
        self.modifiers: dict[str, int] = {}
        self._kind: list[int] = []
        self._modifier: list[int] = []
        self._arrays: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int64),) * 2

    def learn(self, keys: Iterable[str]) -> None:
        """Know these queries; those of which no search is known stay unknown."""
        fresh = set(keys) - self.number.keys()
        if not fresh:
            return
        for key, wording in read_wordings(self._connection, fresh):
            self.number[key] = len(self.keys)
            self.keys.append(key)
            self.wordings.append(wording)
            self.bags.append(frozenset(wording.terms))
            self._kind.append(KINDS.index(wording.kind))
            # The last place of a table by modifier is that of queries without one.
            self._modifier.append(
                -1
                if wording.modifier is None
                else self.modifiers.setdefault(wording.modifier, len(self.modifiers))
            )

    def worded(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each number: the place of its kind in `KINDS`, and its modifier's number or -1."""
        if len(self._arrays[0]) < len(self.keys):
            self._arrays = np.array(self._kind), np.array(self._modifier)
        return self._arrays


@dataclass(slots=True)
class DayStatistics:
    """What was known at the start of a day; keys that are missing were not read yet."""

    end: datetime | None  # the end of the log that it was read from
    followers: dict[str, Followers] = field(default_factory=dict)
    facts: dict[str, QueryFacts] = field(default_factory=dict)
    # leaf -> how often it is bought again, and after how many days
    cycles: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    returns: dict[str, Returns] = field(default_factory=dict)  # by what was engaged with
    asked: int = 0  # how often parts were read
    whole: bool = False  # then keys that are missing were unknown


class StatisticsCache:
    """Reads and keeps days and hours of one shop.

    Args:
        connection: With the tables about the whole shop, whenever something is asked.
        config: Trends' lengths, and how much Swing adds.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection, self._config = connection, config
        self._state: Mapping[str, str] = {}
        self._end: datetime | None = None
        self._forget()

    def _forget(self) -> None:
        self.vocabulary = Vocabulary(self._connection)
        self._days: dict[datetime, DayStatistics] = {}
        self._hours: dict[datetime, tuple[datetime | None, dict[str, Trend]]] = {}

    def follow(self, state: Mapping[str, str]) -> None:
        """Let go of what is no longer so, by the store's state (see `store.update`)."""
        # Here and not when a day is read: whoever is answered may need several of them.
        if len(self._days) > KEPT:
            self._days.clear()
        for start in sorted(s for s, day in self._days.items() if day.whole)[:-WHOLE]:
            del self._days[start]
        if len(self._hours) > KEPT:
            self._hours.clear()
        if state == self._state:
            return
        before, self._state = self._state, dict(state)
        self._end = store.log_end(state)
        if any(before.get(k) != state.get(k) for k in ("memory", "memory_epoch")):
            self._forget()
        elif before.get("memory_hours") != state.get("memory_hours"):
            self._hours.clear()

    def _stands(self, end: datetime | None, start: datetime) -> bool:
        """Whether nothing before ``start`` can have come since the log ended at ``end``."""
        return end == self._end or (end is not None and end >= start)

    def day(self, moment: datetime) -> DayStatistics:
        """What was known at the start of a moment's day, as far as it has been read."""
        start = start_of_day(moment)
        known = self._days.get(start)
        if known is None or not self._stands(known.end, start):
            known = self._days[start] = DayStatistics(self._end)
        return known

    # ------------------------------------------------------------ reading

    def read_all(self, moment: datetime) -> None:
        """Read all of a day and the hour: what a server does before it is asked."""
        self.trends([moment])
        day, start = self.day(moment), start_of_day(moment)
        if day.whole:
            return
        values = {"day": start}
        keys = self._connection.execute("SELECT query_key FROM spellings").fetchall()
        self.vocabulary.learn(key for (key,) in keys)
        self._read_followers("SELECT DISTINCT source, $day::TIMESTAMP AS day FROM steps", values)
        self._read_facts("SELECT query_key, $day::TIMESTAMP AS day FROM spellings", values)
        self._read_cycles("SELECT DISTINCT leaf, $day::TIMESTAMP AS day FROM cycles", values)
        self._read_returns("SELECT DISTINCT category, $day::TIMESTAMP AS day FROM returns", values)
        day.whole = True

    def followers(self, wanted: Wanted) -> None:
        """Read what follows sources at the start of days, into `Day.followers`."""
        for values in self._missing(wanted, "followers"):
            self._read_followers(_WANTED.format("source"), values)
            self._default(values, "followers", NOBODY)

    def facts(self, wanted: Wanted) -> None:
        """Read what was known of queries, into `Day.facts`."""
        for values in self._missing(wanted, "facts"):
            self._read_facts(_WANTED.format("query_key"), values)
            self._default(values, "facts", NOTHING)

    def cycles(self, wanted: Wanted) -> None:
        """Read how often categories are bought again, into `Day.cycles`."""
        for values in self._missing(wanted, "cycles"):
            self._read_cycles(_WANTED.format("leaf"), values)
            self._default(values, "cycles", (None, None))

    def returns(self, wanted: Wanted) -> None:
        """Read what people came back for after categories, into `Day.returns`."""
        for values in self._missing(wanted, "returns"):
            self._read_returns(_WANTED.format("category"), values)
            self._default(values, "returns", NEVER)

    def _missing(self, wanted: Wanted, what: str) -> list[dict[str, Any]]:
        """Keys that were not read yet and their days, as values of a query; none or one."""
        keys: list[str] = []
        days: list[datetime] = []
        for start, asked in wanted.items():
            day = self.day(start)
            missing = set() if day.whole else asked - getattr(day, what).keys()
            if not missing:
                continue
            day.asked += 1
            if day.asked > PIECES:
                self.read_all(start)
                continue
            keys += missing
            days += [start] * len(missing)
        return [{"keys": keys, "days": days}] if keys else []

    def _default(self, values: dict[str, Any], what: str, nothing: Any) -> None:
        for start, key in zip(values["days"], values["keys"], strict=True):
            getattr(self._days[start], what).setdefault(key, nothing)

    def _read_followers(self, wanted: str, values: dict[str, Any]) -> None:
        query = shop_statistics.transitions(self._config.swing, wanted)
        found = self._connection.execute(query, values).fetchnumpy()
        keys = np.ma.getdata(found["query_key"])
        if not len(keys):
            return
        self.vocabulary.learn(keys)
        number = self.vocabulary.number
        ids = np.fromiter((number[key] for key in keys), np.int64, len(keys))
        chance = np.ma.getdata(found["p"]).astype(float)
        delay = np.ma.filled(np.ma.asarray(found["delay"]).astype(float), np.nan)
        sources, days = np.ma.getdata(found["source"]), np.ma.getdata(found["day"])
        new = np.flatnonzero((sources[1:] != sources[:-1]) | (days[1:] != days[:-1])) + 1
        starts = [0, *new.tolist(), len(keys)]
        for start, stop in pairwise(starts):
            moment: datetime = days[start].astype("datetime64[us]").item()
            self._days[moment].followers[sources[start]] = Followers(
                ids[start:stop], chance[start:stop], delay[start:stop]
            )

    def _read_facts(self, wanted: str, values: dict[str, Any]) -> None:
        for key, day, *rest in self._connection.execute(
            shop_statistics.FACTS.format(wanted=wanted), values
        ).fetchall():
            self._days[day].facts[key] = QueryFacts._make(rest)

    def _read_cycles(self, wanted: str, values: dict[str, Any]) -> None:
        for leaf, day, again, gap in self._connection.execute(
            shop_statistics.RHYTHMS.format(wanted=wanted), values
        ).fetchall():
            self._days[day].cycles[leaf] = (again, gap)

    def _read_returns(self, wanted: str, values: dict[str, Any]) -> None:
        found = self._connection.execute(
            shop_statistics.RETURNS.format(wanted=wanted), values
        ).fetchall()
        for (category, day), rows in groupby(found, key=lambda row: row[:2]):
            leaves, *numbers = zip(*(row[2:] for row in rows), strict=True)
            self._days[day].returns[category] = Returns(
                list(leaves), *(np.array(column) for column in numbers)
            )

    def trends(self, moments: Iterable[datetime]) -> list[dict[str, Trend]]:
        """What the shop searched before the start of each moment's hour, the most first."""
        hours = [m.replace(minute=0, second=0, microsecond=0) for m in moments]
        missing = {
            hour
            for hour in hours
            if hour not in self._hours or not self._stands(self._hours[hour][0], hour)
        }
        if missing:
            self._hours |= {hour: (self._end, {}) for hour in missing}
            for hour, key, *rest in self._connection.execute(
                shop_statistics.trends(self._config), {"hours": sorted(missing)}
            ).fetchall():
                self._hours[hour][1][key] = Trend._make(rest)
            self.vocabulary.learn(k for h in missing for k in self._hours[h][1])
        return [self._hours[hour][1] for hour in hours]


_WANTED = "SELECT unnest($keys) AS {}, unnest($days)::TIMESTAMP AS day"


def start_of_day(moment: datetime) -> datetime:
    """Midnight before a moment."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
