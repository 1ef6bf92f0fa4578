"""Loads what profiles are made of: stored states where they are valid, computed ones elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby, pairwise

import duckdb
import msgspec
import numpy as np

from ..shop.config import MemoryConfig
from . import shop_tables
from .candidate_finder import CandidateFinder
from .candidates import Candidates
from .event_log import EventLog, History, start_of_day, users_condition
from .neighbours import NO_NEIGHBOURS, Needs, needs, neighbours
from .repurchase import just_bought, lately_bought
from .state_builder import StateBuilder
from .statistics_cache import NO_FACTS, StatisticsCache, Trend
from .store import MemoryStore, StoreState
from .types import Moment, UserMemory
from .user_state import UserState

_SECONDS_A_DAY = 86_400
BLOCK = 1000  # moments whose candidates are computed at once, or more of one day


class MemoryLoader:
    """Loads users' memory from a shop's database; follows new events where memory is stored.

    ``statistics`` are those that another loader of the same database has read already. A database
    that is read only, or ``settled``, stays as it is for as long as this loader is used.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: MemoryConfig,
        statistics: StatisticsCache | None = None,
        settled: bool = False,
    ) -> None:
        self.connection, self.config, self._settled = connection, config, settled
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

    def candidates(
        self, moments: Sequence[Moment]
    ) -> Iterator[tuple[list[int], Candidates, np.ndarray]]:
        """The candidates at many moments of the past, from the log, some days at a time.

        Yields the numbers of the moments in ``moments``, their candidates one after the other, and
        the first row of each.
        """
        self.prepare()
        states = self._computed_states(moments, whole=False)
        order = sorted(range(len(moments)), key=lambda number: moments[number].at)
        days = groupby(order, key=lambda number: start_of_day(moments[number].as_of))
        block: list[int] = []
        for _, of_day in days:
            block += of_day
            if len(block) >= BLOCK:
                yield self._block(moments, states, block)
                self.statistics.forget()  # later blocks are of later days
                block = []
        if block:
            yield self._block(moments, states, block)

    def _block(
        self, moments: Sequence[Moment], states: Sequence[UserState], numbers: list[int]
    ) -> tuple[list[int], Candidates, np.ndarray]:
        table, starts, _ = self._candidates(
            [moments[n] for n in numbers], [states[n] for n in numbers]
        )
        return numbers, table, starts

    def history(self, moment: Moment) -> History:
        """The user's events before a moment."""
        self.prepare()
        log, histories = self._read_log({moment.user_id})
        return histories.get(moment.user_id, History([], log, 0)).before(moment.at)

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
                if self._settled or self._is_readonly():
                    self._fixed = state
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

    def _read_log(self, users: set[str], once: bool = False) -> tuple[EventLog, dict[str, History]]:
        """The users' whole histories, with how their queries are worded, and the log of these."""
        log = EventLog(self.connection)
        histories = log.read(users, once)
        log.read_wordings(histories.values())
        return log, histories

    def _computed_states(self, moments: Sequence[Moment], whole: bool = True) -> list[UserState]:
        """The state at each moment, from the log; see `StateBuilder.state` for ``whole``."""
        states: dict[int, UserState] = {}
        if not moments:
            return []
        log, histories = self._read_log({m.user_id for m in moments}, once=not whole)
        asked: dict[str, list[int]] = defaultdict(list)
        for number, moment in enumerate(moments):
            asked[moment.user_id].append(number)
        for user, numbers in asked.items():
            builder = StateBuilder(log, self.config)
            events = iter(histories[user].events) if user in histories else iter(())
            following = next(events, None)
            for number in sorted(numbers, key=lambda n: moments[n].at):
                at = moments[number].at
                while following is not None and following.at < at:
                    builder.add(following)
                    following = next(events, None)
                states[number] = builder.state(at, whole)
        return [states[number] for number in range(len(moments))]

    def _with_candidates(
        self, moments: Sequence[Moment], states: Sequence[UserState]
    ) -> list[UserMemory]:
        """Add what the shop knew at the start of each moment's day and hour."""
        table, starts, needed = self._candidates(moments, states)
        strengths: list[dict[str, float]] = [{} for _ in moments]
        columns = (needed.moments, needed.leaves, needed.strengths)
        for number, leaf, strength in zip(*(c.tolist() for c in columns), strict=True):
            strengths[number][leaf] = strength
        bounds = pairwise(starts.tolist())
        return [
            UserMemory(
                table[start:end],
                state,
                just_bought(state.bought, self.statistics.day(moment.as_of).cycles),
                strengths[number],
            )
            for number, (moment, state, (start, end)) in enumerate(
                zip(moments, states, bounds, strict=True)
            )
        ]

    def _candidates(
        self, moments: Sequence[Moment], states: Sequence[UserState]
    ) -> tuple[Candidates, np.ndarray, Needs]:
        """The candidates of all moments, the first row of each, and what is needed then."""
        statistics, own_only = self.statistics, self.config.own_only
        starts = [start_of_day(moment.as_of) for moment in moments]
        sources: dict[datetime, set[str]] = defaultdict(set)
        categories: dict[datetime, set[str]] = defaultdict(set)
        bought: dict[datetime, set[str]] = defaultdict(set)
        for start, state in zip(starts, states, strict=True):
            sources[start].update(source.key for source in state.sources)
            categories[start].update(state.engaged)
            bought[start].update(lately_bought(state.bought))
        statistics.vocabulary.learn(query.key for state in states for query in state.queries)
        statistics.read("returns", categories)
        known = {start: statistics.day(start) for start in sources}
        days = [known[start] for start in starts]
        near, trends = NO_NEIGHBOURS, [dict[str, Trend]() for _ in moments]
        if not own_only:
            statistics.read("followers", sources)
            near = neighbours(states, days, statistics.vocabulary)
            trends = statistics.trends(moment.as_of for moment in moments)
        finder = CandidateFinder(states, starts, trends, near, statistics.vocabulary)
        queries = finder.queries()
        statistics.read("facts", queries)
        for start, keys in queries.items():
            if not known[start].whole:
                facts = known[start].facts
                leaves = {facts.get(key, NO_FACTS).leaf for key in keys}
                bought[start] |= {leaf for leaf in leaves if leaf}
        statistics.read("cycles", {s: b for s, b in bought.items() if not known[s].whole})
        needed = needs(states, days)
        return finder.table(known, needed, own_only), finder.starts, needed
