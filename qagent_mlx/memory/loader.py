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
from .candidates import blank, candidates, neighbours, wanted
from .event_log import Event, Log, of_users
from .statistics_cache import NOTHING, Knowledge, start_of_day
from .types import Moment, Rows
from .user_state import Search, State, searches, state_of, touches


class Reader:
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
        knowledge: Knowledge | None = None,
    ) -> None:
        self.connection, self.config = connection, config
        self.knowledge = knowledge or Knowledge(connection, config)
        self._fingerprint = store.fingerprint(config)
        self._fixed: dict[str, str] | None = None
        self._made = 0  # how often tables of this connection only were made

    def rows(self, moments: Sequence[Moment]) -> list[Rows]:
        """What each moment's profile is made of."""
        state = self.ready()
        states: list[State | None] = [None] * len(moments)
        if store.ended(state):
            states = self._stored(moments)
        missing = [i for i, found in enumerate(states) if found is None]
        for i, made in zip(missing, self._made_states([moments[i] for i in missing]), strict=True):
            states[i] = made
        return self._assembled(moments, [s for s in states if s is not None])

    def computed(self, moments: Sequence[Moment]) -> list[Rows]:
        """The same as `rows`, from the log itself."""
        self.ready()
        return self._assembled(moments, list(self._made_states(moments)))

    def touches(
        self, moment: Moment
    ) -> tuple[list[tuple[int, str, str, float]], Sequence[Event], Log]:
        """Every touch of the user's interest graph, the events, and what is known of them."""
        self.ready()
        log = Log(self.connection)
        events = _before(log.of([moment.user_id]).get(moment.user_id, []), moment.at)
        asked: list[Search] = searches(events)
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

    def _stored(self, moments: Sequence[Moment]) -> list[State | None]:
        """The state of each moment after the user's last event, else None."""
        users = list({m.user_id for m in moments})
        where, values = of_users(users)
        found = self.connection.execute(
            f"SELECT user_id, made, state FROM profiles WHERE {where}", values
        ).fetchall()
        rows = {user: (made, packed) for user, made, packed in found}
        states: list[State | None] = []
        for moment in moments:
            row = rows.get(moment.user_id)
            if row is None:
                states.append(State())  # nobody without a row has events
            elif moment.as_of > row[0]:
                kept = State(**json.loads(row[1]))
                days = (moment.as_of - row[0]).total_seconds() / 86400
                states.append(kept.moved(days, self.config.half_life_days))
            else:
                states.append(None)
        return states

    def _made_states(self, moments: Sequence[Moment]) -> Iterator[State]:
        """Each moment's state, from the log."""
        if not moments:
            return
        log = Log(self.connection)
        events = log.of({m.user_id for m in moments})
        for moment in moments:
            known = _before(events.get(moment.user_id, []), moment.at)
            yield state_of(known, moment.at, log.goods, log.wordings, self.config)

    # ------------------------------------------------------------ candidates

    def _assembled(self, moments: Sequence[Moment], states: Sequence[State]) -> list[Rows]:
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
            queries[start] |= wanted(state, mine, hour)
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
            Rows(candidates(state, mine, day_of[start], hour, known.vocabulary), state)
            for state, mine, start, hour in zip(states, near, days, trends, strict=True)
        ]


def _before(events: Sequence[Event], at: int) -> Sequence[Event]:
    return events[: bisect_left(events, at, key=lambda event: event.at)]


def joined(rows: Sequence[Rows]) -> dict[str, np.ndarray]:
    """The candidates of several moments one below the other."""
    parts = [blank(0), *(r.candidates for r in rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
