"""Loads what profiles are made of: stored states where they are valid, computed ones elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime

import duckdb
import msgspec

from ..shop.config import MemoryConfig
from . import shop_tables
from .candidates import candidate_keys, candidates
from .event_log import EventLog, History, start_of_day, users_condition
from .neighbours import Neighbour, needs, neighbours
from .repurchase import just_bought, lately_bought
from .state_builder import user_state
from .statistics_cache import NO_FACTS, StatisticsCache, Trend
from .store import MemoryStore, StoreState
from .types import Moment, UserMemory
from .user_state import UserState

_SECONDS_A_DAY = 86_400


class MemoryLoader:
    """Loads users' memory from a shop's database; follows new events where memory is stored.

    ``statistics`` are those that another loader of the same database has read already.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: MemoryConfig,
        statistics: StatisticsCache | None = None,
    ) -> None:
        self.connection, self.config = connection, config
        self.statistics = statistics or StatisticsCache(connection, config)
        self._store = MemoryStore(connection, config)
        self._fixed: StoreState | None = None
        self._temporary = 0  # how often temporary tables were created

    def load(self, moments: Sequence[Moment]) -> list[UserMemory]:
        """What each moment's profile is made of."""
        is_stored = self.prepare().log_end is not None
        states = self._stored_states(moments) if is_stored else [None] * len(moments)
        missing = [m for m, state in zip(moments, states, strict=True) if state is None]
        computed = iter(self._computed_states(missing))
        return self._with_candidates(moments, [state or next(computed) for state in states])

    def compute(self, moments: Sequence[Moment]) -> list[UserMemory]:
        """The same as `load`, from the log itself instead of stored states."""
        self.prepare()
        return self._with_candidates(moments, self._computed_states(moments))

    def history(self, moment: Moment) -> History:
        """The user's events before a moment."""
        self.prepare()
        (history,) = self._histories([moment])
        return history

    def read_all(self, as_of: datetime) -> None:
        """Read all that the shop knew on a moment's day, so that no request has to wait for it."""
        self.prepare()
        self.statistics.read_all(as_of)

    def prepare(self) -> StoreState:
        """Make sure that the tables about the shop can be read, and return what they stand for."""
        state = self._fixed
        if state is None:
            state = self._store.state()
            if state.fingerprint == self._store.fingerprint:
                if self._is_readonly():
                    self._fixed = state  # nobody can change it under this connection
                if self._temporary:
                    shop_tables.drop_temporary(self.connection)
                    self._temporary = 0
            else:
                # Created once: without stored memory, a loader sees one state of the log.
                if not self._temporary or not shop_tables.has_temporary(self.connection):
                    shop_tables.create_shop_tables(self.connection, "TEMP TABLE", self.config)
                    self._temporary += 1
                state = StoreState(f"temporary {id(self)} {self._temporary}")
        self.statistics.follow(state)
        return state

    def _is_readonly(self) -> bool:
        ((readonly,),) = self.connection.execute(
            "SELECT readonly FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchall()
        return bool(readonly)

    def _stored_states(self, moments: Sequence[Moment]) -> list[UserState | None]:
        """Stored states, advanced to the moments; None at moments before the user's last event."""
        where, parameters = users_condition(list({moment.user_id for moment in moments}))
        rows = self.connection.execute(
            f"SELECT user_id, made, state FROM profiles WHERE {where}", parameters
        ).fetchall()
        stored = {user: (last_event, packed) for user, last_event, packed in rows}
        states: list[UserState | None] = []
        for moment in moments:
            if moment.user_id not in stored:
                states.append(UserState())  # who is not stored has no events
                continue
            last_event, packed = stored[moment.user_id]
            if moment.as_of <= last_event:
                states.append(None)
                continue
            state = msgspec.json.decode(packed, type=UserState)
            days = (moment.as_of - last_event).total_seconds() / _SECONDS_A_DAY
            states.append(state.advance(days, self.config.half_life_days))
        return states

    def _computed_states(self, moments: Sequence[Moment]) -> list[UserState]:
        """The state at each moment, from the log."""
        return [user_state(history, self.config) for history in self._histories(moments)]

    def _histories(self, moments: Sequence[Moment]) -> Iterator[History]:
        """The user's history before each moment."""
        if moments:
            log = EventLog(self.connection)
            histories = log.read({moment.user_id for moment in moments})
            log.read_wordings(histories.values())
            for moment in moments:
                yield histories.get(moment.user_id, History([], log, 0)).before(moment.at)

    def _with_candidates(
        self, moments: Sequence[Moment], states: Sequence[UserState]
    ) -> list[UserMemory]:
        """Add what the shop knew at the start of each moment's day and hour."""
        statistics = self.statistics
        starts = [start_of_day(moment.as_of) for moment in moments]
        sources: dict[datetime, set[str]] = defaultdict(set)
        categories: dict[datetime, set[str]] = defaultdict(set)
        for start, state in zip(starts, states, strict=True):
            sources[start].update(source.key for source in state.sources)
            categories[start].update(state.engaged)
        statistics.vocabulary.learn(query.key for state in states for query in state.queries)
        statistics.read("returns", categories)
        days = {start: statistics.day(start) for start in sources}
        nearest: list[dict[str, Neighbour]] = [{} for _ in states]
        trends: list[dict[str, Trend]] = [{} for _ in states]
        own_only = self.config.own_only
        if not own_only:
            statistics.read("followers", sources)
            nearest = [
                neighbours(state, days[start], statistics.vocabulary)
                for start, state in zip(starts, states, strict=True)
            ]
            trends = statistics.trends(moment.as_of for moment in moments)
        queries: dict[datetime, set[str]] = defaultdict(set)
        for start, state, near, hour in zip(starts, states, nearest, trends, strict=True):
            queries[start] |= candidate_keys(state, near, hour)
            queries[start].update(query.key for query in state.queries)
        statistics.read("facts", queries)
        leaves = {
            start: {leaf for key in keys if (leaf := days[start].facts.get(key, NO_FACTS).leaf)}
            for start, keys in queries.items()
            if not days[start].whole
        }
        for start, state in zip(starts, states, strict=True):
            if start in leaves:
                leaves[start] |= lately_bought(state.bought).keys()
        statistics.read("cycles", leaves)
        memories = []
        for state, near, start, hour in zip(states, nearest, starts, trends, strict=True):
            day = days[start]
            needed = needs(state, day)
            table = candidates(state, near, needed, day, hour, statistics.vocabulary, own_only)
            bought = just_bought(state.bought, day.cycles)
            memories.append(UserMemory(table, state, bought, needed))
        return memories
