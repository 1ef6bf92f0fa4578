"""Reads what profiles are made of: stored states where they stand, computed ones for the rest."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime

import duckdb
import numpy as np

from ..shop.config import MemoryConfig
from . import shop_statistics, store
from .candidates import candidate_keys, candidates, empty_candidates, neighbours
from .event_log import Event, EventLog, of_users
from .statistics_cache import NOTHING, StatisticsCache, start_of_day
from .types import Moment, UserMemory
from .user_state import PastSearch, UserState, searches, touches, user_state


class MemoryLoader:
    """Reads a shop's database; sees new events where memory is stored (see `store`).

    Args:
        connection: Read only is enough.
        config: How events weigh.
        knowledge: What another reader of the same database has read already.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        config: MemoryConfig,
        knowledge: StatisticsCache | None = None,
    ) -> None:
        self.connection, self.config = connection, config
        self.knowledge = knowledge or StatisticsCache(connection, config)
        self._fingerprint = store.fingerprint(config)
        self._fixed: dict[str, str] | None = None
        self._made = 0  # how often tables of this connection only were made

    def rows(self, moments: Sequence[Moment]) -> list[UserMemory]:
        """What each moment's profile is made of."""
        state = self.ready()
        states: list[UserState | None] = [None] * len(moments)
        if store.log_end(state):
            states = self._stored(moments)
        missing = [i for i, found in enumerate(states) if found is None]
        for i, made in zip(missing, self._made_states([moments[i] for i in missing]), strict=True):
            states[i] = made
        return self._assembled(moments, [s for s in states if s is not None])

    def computed(self, moments: Sequence[Moment]) -> list[UserMemory]:
        """The same as `rows`, from the log itself."""
        self.ready()
        return self._assembled(moments, list(self._made_states(moments)))

    def touches(
        self, moment: Moment
    ) -> tuple[list[tuple[int, str, str, float]], Sequence[Event], EventLog]:
        """Every touch of the user's interest graph, the events, and what is known of them."""
        self.ready()
        log = EventLog(self.connection)
        events = _before(log.of([moment.user_id]).get(moment.user_id, []), moment.at)
        asked: list[PastSearch] = searches(events)
        found = touches(events, asked, moment.at, log.goods, log.wordings, self.config)
        return list(found), events, log

    def read_all(self, as_of: datetime) -> None:
        """Read all that the shop knew on the day, so that nobody who asks has to wait for it."""
        self.ready()
        self.knowledge.read_all(as_of)

    def ready(self) -> dict[str, str]:
        """The tables about the whole shop can be read; the store's state, empty without one."""
        state = self._fixed
        if state is None:
            state = store.state(self.connection)
            if state.get("memory") == self._fingerprint:
                if self._is_readonly():
                    self._fixed = state  # nobody can change it under this connection
                if self._made:
                    shop_statistics.drop_temporary(self.connection)
                    self._made = 0
            else:
                # They are made once: without a store, a reader sees one state of the log.
                if not self._made or not shop_statistics.has_temporary(self.connection):
                    shop_statistics.prepare_shop(self.connection, bool(self.config.swing))
                    self._made += 1
                state = {"memory": f"temporary {id(self)} {self._made}"}
        self.knowledge.follow(state)
        return state

    def _is_readonly(self) -> bool:
        row = self.connection.execute(
            "SELECT readonly FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchone()
        return bool(row and row[0])

    # ------------------------------------------------------------ states

    def _stored(self, moments: Sequence[Moment]) -> list[UserState | None]:
        """The state of each moment after the user's last event, else None."""
        users = list({m.user_id for m in moments})
        where, values = of_users(users)
        found = self.connection.execute(
            f"SELECT user_id, made, state FROM profiles WHERE {where}", values
        ).fetchall()
        rows = {user: (made, packed) for user, made, packed in found}
        states: list[UserState | None] = []
        for moment in moments:
            row = rows.get(moment.user_id)
            if row is None:
                states.append(UserState())  # nobody without a row has events
            elif moment.as_of > row[0]:
                kept = UserState(**json.loads(row[1]))
                days = (moment.as_of - row[0]).total_seconds() / 86400
                states.append(kept.advance(days, self.config.half_life_days))
            else:
                states.append(None)
        return states

    def _made_states(self, moments: Sequence[Moment]) -> Iterator[UserState]:
        """Each moment's state, from the log."""
        if not moments:
            return
        log = EventLog(self.connection)
        events = log.of({m.user_id for m in moments})
        for moment in moments:
            known = _before(events.get(moment.user_id, []), moment.at)
            yield user_state(known, moment.at, log.goods, log.wordings, self.config)

    # ------------------------------------------------------------ candidates

    def _assembled(
        self, moments: Sequence[Moment], states: Sequence[UserState]
    ) -> list[UserMemory]:
        """Add what the shop knew at the start of each moment's day and hour."""
        known = self.knowledge
        days = [start_of_day(m.as_of) for m in moments]
        sources: dict[datetime, set[str]] = defaultdict(set)
        engaged: dict[datetime, set[str]] = defaultdict(set)
        for start, state in zip(days, states, strict=True):
            sources[start].update(row[0] for row in state.sources)
            engaged[start].update(row[0] for row in state.engaged)
        known.vocabulary.learn(row[0] for state in states for row in state.own)
        known.followers(sources)
        known.returns(engaged)
        day_of = {start: known.day(start) for start in sources}
        near = [
            neighbours(state, day_of[start], known.vocabulary)
            for start, state in zip(days, states, strict=True)
        ]
        trends = known.trends(m.as_of for m in moments)
        queries: dict[datetime, set[str]] = defaultdict(set)
        for start, state, mine, hour in zip(days, states, near, trends, strict=True):
            queries[start] |= candidate_keys(state, mine, hour)
            queries[start].update(row[0] for row in state.own)
        known.facts(queries)
        known.cycles(
            {
                start: {leaf for key in keys if (leaf := day.facts.get(key, NOTHING).leaf)}
                for start, keys in queries.items()
                if not (day := day_of[start]).whole
            }
        )
        return [
            UserMemory(candidates(state, mine, day_of[start], hour, known.vocabulary), state)
            for state, mine, start, hour in zip(states, near, days, trends, strict=True)
        ]


def _before(events: Sequence[Event], at: int) -> Sequence[Event]:
    return events[: bisect_left(events, at, key=lambda event: event.at)]


def concatenate_candidates(rows: Sequence[UserMemory]) -> dict[str, np.ndarray]:
    """The candidates of several moments one below the other."""
    parts = [empty_candidates(0), *(r.candidates for r in rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
