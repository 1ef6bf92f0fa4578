"""What the shop knew at the start of a day and of an hour, read from the database once.

Followers, facts of queries and cycles of categories are those of the start of a day, trends those
of the start of an hour: they are the same for all users. A day is read key by key for the few
that ask, and whole once many have asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import duckdb
import numpy as np

from ..shop.config import MemoryConfig
from . import shop_tables
from .event_log import Wording, read_wordings, start_of_day, start_of_hour
from .popular_kinds import popular_kinds
from .public_queries import PublicQueries
from .sql import sql
from .store import StoreState

MAX_PARTIAL_READS = 24  # of a day, before all of it is read
MAX_DAYS = MAX_HOURS = 40
MAX_WHOLE_DAYS = 2  # some 50 MB each for a million events
SOME = 0.05  # of a category's purchases, see `Cycle.soonest`
MIN_PURCHASES = 20  # of a category, before anything is said of it

KINDS = ("plain", "brand", "attribute")  # of wordings


class Trend(NamedTuple):
    """A query that is searched now: its shares of the shop's searches, and its rank from 1."""

    share: float
    longer_share: float
    short_share: float
    rank: int


class Followers(NamedTuple):
    """What users search after a source, as columns: vocabulary ids, P(query), days until then."""

    ids: np.ndarray
    probability: np.ndarray
    delay: np.ndarray


class QueryFacts(NamedTuple):
    """What became of a query."""

    leaf: str | None = None  # the category that it mostly leads to
    searches: float = 0.0
    engagements: float = 0.0  # searches that led to one
    top_engagements: float = 0.0  # with the product that it mostly leads to
    top_ten_engagements: float = 0.0
    top_product: str | None = None
    followed: float = 0.0  # sessions that searched it with success and were followed by another
    repeated: float = 0.0  # of these, by one that searched it again


class Cycle(NamedTuple):
    """How often a category is bought again, and after how many days; NaN where it is unknown.

    ``soonest``: the days in which `SOME` of its buyers bought it again, infinite where fewer did.
    """

    probability: float = np.nan
    days: float = np.nan
    soonest: float = np.nan


class Returns(NamedTuple):
    """What users came back for: categories, P(category), mean and deviation of ln days."""

    leaves: list[str]
    probability: np.ndarray
    pace: np.ndarray
    spread: np.ndarray


@dataclass(slots=True)
class DayStatistics:
    """What was known at the start of a day; keys that are missing have not been read yet."""

    log_end: datetime | None  # the end of the log that it was read from
    followers: dict[str, Followers] = field(default_factory=dict)  # by source
    facts: dict[str, QueryFacts] = field(default_factory=dict)  # by query key
    cycles: dict[str, Cycle] = field(default_factory=dict)  # by leaf category
    returns: dict[str, Returns] = field(default_factory=dict)  # by category engaged with
    popular: tuple[str, ...] | None = None  # kinds of products; None: not read yet
    partial_reads: int = 0
    whole: bool = False  # all keys that were known have been read


class _Statistic(NamedTuple):
    """How a field of `DayStatistics` is read."""

    key: str  # the column of its keys
    table: str  # with all keys
    unknown: Any  # the value of a key of which nothing was known
    make: Callable[..., Any]  # the value from the columns beside key and day


NO_FOLLOWERS = Followers(np.empty(0, np.int64), np.empty(0), np.empty(0))
NO_FACTS, NO_CYCLE = QueryFacts(), Cycle()
NO_RETURNS = Returns([], np.empty(0), np.empty(0), np.empty(0))
_STATISTICS = {
    "followers": _Statistic("source", "steps", NO_FOLLOWERS, Followers),
    "facts": _Statistic("query_key", "spellings", NO_FACTS, QueryFacts),
    "cycles": _Statistic("leaf", "cycles", NO_CYCLE, Cycle),
    "returns": _Statistic(
        "category", "returns", NO_RETURNS, lambda leaves, *x: Returns(leaves, *map(np.array, x))
    ),
}


class Vocabulary:
    """Queries as numbers, with how each is worded."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.ids: dict[str, int] = {}  # query key -> its number
        self.keys: list[str] = []  # and back
        self.wordings: list[Wording] = []
        self.terms: list[frozenset[str]] = []
        self.modifiers: dict[str, int] = {}
        self._kinds: list[int] = []
        self._modifiers: list[int] = []
        self._arrays = np.empty(0, np.int64), np.empty(0, np.int64)

    def learn(self, keys: Iterable[str]) -> None:
        """Number these queries; those that nobody has searched stay unknown."""
        fresh = set(keys) - self.ids.keys()
        if not fresh:
            return
        for key, wording in read_wordings(self._connection, fresh):
            self.ids[key] = len(self.keys)
            self.keys.append(key)
            self.wordings.append(wording)
            self.terms.append(frozenset(wording.terms))
            self._kinds.append(KINDS.index(wording.kind))
            self._modifiers.append(
                -1
                if wording.modifier is None
                else self.modifiers.setdefault(wording.modifier, len(self.modifiers))
            )

    def key_ranks(self, ids: np.ndarray) -> np.ndarray:
        """The place of each query in the order of their keys, among these: (ids,)."""
        distinct, query_of = np.unique(ids, return_inverse=True)
        keys = [self.keys[i] for i in distinct.tolist()]
        ranks = np.empty(len(keys), np.int64)
        ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
        return ranks[query_of]

    def kinds_and_modifiers(self) -> tuple[np.ndarray, np.ndarray]:
        """For each query: the index of its kind in `KINDS`, and its modifier's number or -1."""
        if len(self._arrays[0]) < len(self.keys):
            self._arrays = np.array(self._kinds), np.array(self._modifiers)
        return self._arrays


class StatisticsCache:
    """Reads and keeps the statistics of days and hours, from the tables about the whole shop."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection, self._config = connection, config
        self._state = StoreState()
        self._clear()

    def _clear(self) -> None:
        self.vocabulary = Vocabulary(self._connection)
        self.public = PublicQueries(self._connection, self._config)
        self._days: dict[datetime, DayStatistics] = {}
        self._hours: dict[datetime, tuple[datetime | None, dict[str, Trend]]] = {}

    def follow(self, state: StoreState) -> None:
        """Drop what is outdated, and what is too much to keep.

        Called before a batch is answered and never within, as a batch may need many days at once.
        """
        if len(self._days) > MAX_DAYS:
            self._days.clear()
        for start in sorted(s for s, day in self._days.items() if day.whole)[:-MAX_WHOLE_DAYS]:
            del self._days[start]
        if len(self._hours) > MAX_HOURS:
            self._hours.clear()
        before, self._state = self._state, state
        if (before.fingerprint, before.days_version) != (state.fingerprint, state.days_version):
            self._clear()
        elif before.hours_version != state.hours_version:
            self._hours.clear()
        if before.log_end != state.log_end:
            self.public.forget_private()

    def forget(self) -> None:
        """Drop days and hours that will not be asked for again."""
        self._days.clear()
        self._hours.clear()

    def _is_fresh(self, log_end: datetime | None, start: datetime) -> bool:
        """Whether nothing before ``start`` can have come since the log ended at ``log_end``."""
        return log_end == self._state.log_end or (log_end is not None and log_end >= start)

    def day(self, moment: datetime) -> DayStatistics:
        """What was known at the start of a moment's day, as far as it has been read."""
        start = start_of_day(moment)
        day = self._days.get(start)
        if day is None or not self._is_fresh(day.log_end, start):
            day = self._days[start] = DayStatistics(self._state.log_end)
        return day

    def read_all(self, moment: datetime) -> None:
        """Read all of a moment's day and hour: what a server does before it is asked."""
        self.trends([moment])
        if self._config.own_only:
            self.popular([moment])
        day = self.day(moment)
        if day.whole:
            return
        keys = self._connection.execute("SELECT query_key FROM spellings").fetchall()
        self.vocabulary.learn(key for (key,) in keys)
        for name, statistic in _STATISTICS.items():
            distinct = f"SELECT DISTINCT {statistic.key}, $day::TIMESTAMP AS day"
            self._read(name, f"{distinct} FROM {statistic.table}", {"day": start_of_day(moment)})
        day.whole = True

    def read(self, name: str, wanted: Mapping[datetime, set[str]]) -> None:
        """Read a field of `DayStatistics` for the keys of some days, where it is not there yet."""
        keys: list[str] = []
        days: list[datetime] = []
        for start, asked in wanted.items():
            day = self.day(start)
            missing = set() if day.whole else asked - getattr(day, name).keys()
            if not missing:
                continue
            day.partial_reads += 1
            if day.partial_reads > MAX_PARTIAL_READS:
                self.read_all(start)
                continue
            keys += missing
            days += [start] * len(missing)
        if not keys:
            return
        key_column, _, unknown, _ = _STATISTICS[name]
        query = f"SELECT unnest($keys) AS {key_column}, unnest($days)::TIMESTAMP AS day"
        self._read(name, query, {"keys": keys, "days": days})
        for start, key in zip(days, keys, strict=True):
            getattr(self._days[start], name).setdefault(key, unknown)

    def _read(self, name: str, wanted: str, values: dict[str, Any]) -> None:
        """Read a field for the keys and days that the query ``wanted`` selects."""
        if name == "followers":  # by far the most: read as columns
            self._read_followers(wanted, values)
            return
        make = _STATISTICS[name].make
        query = sql(name, wanted=wanted, share=SOME, evidence=MIN_PURCHASES)
        for key, day, *row in self._connection.execute(query, values).fetchall():
            getattr(self._days[day], name)[key] = make(*row)

    def _read_followers(self, wanted: str, values: dict[str, Any]) -> None:
        steps, count = "steps", "sum(s.closeness) / 6"
        if swing := self._config.swing:
            steps = f"""(SELECT source, query_key, known, closeness / 6 AS weight, delay FROM steps
                UNION ALL SELECT source, query_key, known, {swing} * vouched, NULL FROM swing)"""
            count = "round(sum(s.weight), 9)"
        query = sql("followers", wanted=wanted, steps=steps, count=count)
        columns = self._connection.execute(query, values).fetchnumpy()
        keys, sources, days = (np.ma.getdata(columns[n]) for n in ("query_key", "source", "day"))
        if not len(keys):
            return
        self.vocabulary.learn(keys)
        ids = np.fromiter((self.vocabulary.ids[key] for key in keys), np.int64, len(keys))
        probability = np.ma.getdata(columns["p"]).astype(float)
        delay = np.ma.filled(np.ma.asarray(columns["delay"]).astype(float), np.nan)
        new = np.flatnonzero((sources[1:] != sources[:-1]) | (days[1:] != days[:-1])) + 1
        for start, stop in pairwise([0, *new.tolist(), len(keys)]):
            rows = slice(start, stop)
            day = self._days[days[start].astype("datetime64[us]").item()]
            day.followers[sources[start]] = Followers(ids[rows], probability[rows], delay[rows])

    def popular(self, moments: Iterable[datetime]) -> dict[datetime, tuple[str, ...]]:
        """The kinds of products that the shop's users went for before the moments' days."""
        days = {start: self.day(start) for start in map(start_of_day, moments)}
        missing = [start for start, day in days.items() if day.popular is None]
        for start, kinds in popular_kinds(self._connection, missing, self._config).items():
            days[start].popular = kinds
        return {start: day.popular or () for start, day in days.items()}

    def trends(self, moments: Iterable[datetime]) -> list[dict[str, Trend]]:
        """What the shop searched before the start of each moment's hour, the most first."""
        hours = list(map(start_of_hour, moments))
        missing = {
            hour
            for hour in hours
            if hour not in self._hours or not self._is_fresh(self._hours[hour][0], hour)
        }
        if missing:
            self._hours |= {hour: (self._state.log_end, {}) for hour in missing}
            query = sql(
                "trends",
                hourly=shop_tables.counted_hours(self._config),
                window=round(self._config.trend_days * 24),
                short=max(1, round(self._config.trend_days * 6)),
                long=round(self._config.trend_long_days * 24),
            )
            rows = self._connection.execute(query, {"hours": sorted(missing)}).fetchall()
            for hour, key, *trend in rows:
                self._hours[hour][1][key] = Trend(*trend)
            self.vocabulary.learn(key for hour in missing for key in self._hours[hour][1])
        return [self._hours[hour][1] for hour in hours]
