"""Memory stored in the shop's database, so that a profile is read instead of computed.

Stored are the tables about the whole shop and each user's state as of the user's last event. New
events change only what they affect: a user's state depends on nobody else. What others did comes in
when a profile is read, from the tables about the shop as they were at the start of the day (see
`statistics_cache`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import duckdb
import msgspec

from ..shop.config import MemoryConfig
from ..utils.database import append_rows
from . import shop_tables
from .event_log import (
    EventLog,
    History,
    from_microseconds,
    start_of_day,
    start_of_hour,
    users_condition,
)
from .sql import ALL, sql
from .state_builder import user_state
from .title_kinds import create_title_kinds

# The format of stored memory. Raise it in the commit that changes what a stored row holds or
# means (a table's columns, a state's fields, how an event weighs): shops then store it anew.
MEMORY_FORMAT = 6

# Before 2.0, DuckDB's files know no `dict_fsst`.
_COMPRESSION = "fsst" if duckdb.__version__.startswith("1.") else "dict_fsst"

# Settings of what reaches others, which is decided when a profile is read.
OF_PUBLIC = ("least_users", "least_users_unknown", "hide_personal", "own_only")


@dataclass(frozen=True)
class StoreState:
    """What the stored tables stand for; kept in ``meta`` under the names in `_META`.

    The versions grow when late or deleted events change what was known at the start of a day, or
    of the last hour of the log: then caches of it are outdated.
    """

    fingerprint: str = ""
    days_version: int = 0
    hours_version: int = 0
    log_end: datetime | None = None


_META = ("memory", "memory_epoch", "memory_hours", "memory_end")


def fingerprint(config: MemoryConfig) -> str:
    """Identify what stored rows mean: the format and the settings that they were computed with."""
    of_reading = ("budget", *OF_PUBLIC, "typing_seconds")
    of_trends = () if config.trends_by == "users" else ("trends_by", "new_user_hours")
    settings = {n: v for n, v in asdict(config).items() if n not in (*of_reading, *of_trends)}
    text = json.dumps([MEMORY_FORMAT, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class MemoryStore:
    """The memory that is stored in a shop's database.

    The caller's transaction makes a change all or nothing.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection, self._config = connection, config
        self.fingerprint = fingerprint(config)

    def state(self) -> StoreState:
        """What the stored tables stand for, in whatever format they are."""
        rows = self._connection.execute(f"SELECT key, value FROM meta WHERE key IN {_META}")
        meta = dict(rows.fetchall())
        stored, days, hours, end = (meta.get(name, "") for name in _META)
        log_end = datetime.fromisoformat(end) if end else None
        return StoreState(stored, int(days or 0), int(hours or 0), log_end)

    def is_current(self) -> bool:
        """Whether memory is stored in this format, under these settings."""
        return self.state().fingerprint == self.fingerprint

    def discard(self) -> None:
        """Stop serving from what is stored, until the next `build`."""
        self._connection.execute("DELETE FROM meta WHERE key = 'memory'")

    def drop(self) -> None:
        """Delete all that is stored."""
        shop_tables.drop_temporary(self._connection)
        for name in (*shop_tables.SHOP_TABLES, "swing", "profiles"):
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")
        self.discard()

    def build(self) -> int:
        """Store the memory of the whole shop anew; returns the number of users with a state."""
        self.begin()
        self.add_users(shop_tables.all_users(self._connection))
        return self.end()

    def begin(self) -> None:
        """Store memory anew, of no user yet: `add_users` until all are there, then `end`."""
        shop_tables.drop_temporary(self._connection)
        self._create_profiles(self._log_end())
        shop_tables.create_counted(self._connection, "TABLE", self._config)
        shop_tables.create_no_transitions(self._connection, "TABLE")

    def add_users(self, users: Sequence[str]) -> None:
        """Compute the transitions and states of users who have none in the tables."""
        for histories in shop_tables.histories_of(self._connection, users):
            shop_tables.add_transitions(self._connection, histories)
            self._store_states(histories)

    def end(self) -> int:
        """Store what depends on all users; returns the number of users with a state."""
        if self._config.swing:
            shop_tables.create(self._connection, "swing", self._config)
        return self._count_profiles()

    def update(self, users: Iterable[str], after_id: int | None) -> None:
        """Follow a change of some users' events, where memory is stored.

        New events have ids above ``after_id``, which is None when events were deleted. The users'
        sessions have been numbered again.
        """
        before = self.state()
        if before.fingerprint != self.fingerprint:
            return
        if self._config.swing:
            self.discard()  # new steps change what other users' pairs vouch for
            return
        shop_tables.drop_temporary(self._connection)
        changed = sorted(set(users))
        log = EventLog(self._connection)
        histories = log.read(changed)
        for table in shop_tables.TRANSITIONS:
            self._delete(table, changed)
        shop_tables.add_transitions(self._connection, histories.values())
        reworded = self._follow_searches(after_id)
        self._write_state(self._followed(before, after_id, bool(reworded)))
        others = sorted(reworded.difference(changed))
        histories |= log.read(others) if others else {}
        self._delete("profiles", [*changed, *others])
        self._store_states(list(histories.values()))

    def catalog_changed(self, changed: str) -> None:
        """Follow a change of products; prices and stock of now touch nothing that is stored.

        ``changed`` is SQL that selects product_id and ts of the product states that were stored.
        """
        if not self.is_current():
            return
        shop_tables.drop_temporary(self._connection)
        create_title_kinds(self._connection, self._config)
        ((differences,),) = self._connection.execute(
            f"""WITH fresh AS ({shop_tables.derived_sql("goods")})
            SELECT count(*) FROM ((FROM goods EXCEPT FROM fresh) UNION ALL
                                  (FROM fresh EXCEPT FROM goods))"""
        ).fetchall()
        if differences:
            self.discard()  # titles, categories or price bands: everything depends on them
            return
        users = self._connection.execute(
            f"""SELECT DISTINCT e.user_id FROM events e JOIN ({changed}) c
            ON e.product_id = c.product_id AND e.ts >= c.ts"""
        ).fetchall()
        if users:
            self.update([user for (user,) in users], after_id=2**62)

    def keep(self, before: StoreState) -> None:
        """Go on with what is stored after products changed, until the next `build`.

        Products are as they are now; users' states know price bands and titles as they were. For
        a server, which cannot stop to build all anew.
        """
        if before.fingerprint == self.fingerprint and not self.is_current():
            shop_tables.create(self._connection, "goods", self._config)
            shop_tables.create_catalog_words(self._connection)
            self._write_state(before)

    def _write_state(self, state: StoreState) -> None:
        end = state.log_end.isoformat() if state.log_end else ""
        values = [state.fingerprint, str(state.days_version), str(state.hours_version), end]
        self._connection.execute(
            "INSERT OR REPLACE INTO meta SELECT unnest($1), unnest($2)", [list(_META), values]
        )

    def _log_end(self) -> datetime | None:
        ((end,),) = self._connection.execute("SELECT max(ts) FROM events").fetchall()
        return end

    def _create_profiles(self, log_end: datetime | None) -> None:
        """Create an empty table of states, and say what it will stand for."""
        self._connection.execute(sql("create_profiles", compression=_COMPRESSION))
        before = self.state()
        days, hours = before.days_version + 1, before.hours_version + 1
        self._write_state(StoreState(self.fingerprint, days, hours, log_end))

    def _store_states(self, histories: list[History]) -> None:
        """Store the states of users who have none in the table."""
        for log in {history.log for history in histories}:
            log.read_wordings(histories)
        append_rows(self._connection, "profiles", map(self._stored_row, histories))

    def _stored_row(self, history: History) -> tuple[str, datetime, int, str]:
        state = msgspec.json.encode(user_state(history, self._config)).decode()
        return history.user, from_microseconds(history.at), len(history.events), state

    def _count_profiles(self) -> int:
        ((users,),) = self._connection.execute("SELECT count(*) FROM profiles").fetchall()
        return int(users)

    def _delete(self, table: str, users: Sequence[str]) -> None:
        where, parameters = users_condition(users)
        self._connection.execute(f"DELETE FROM {table} WHERE {where}", parameters)

    def _followed(self, before: StoreState, after_id: int | None, reworded: bool) -> StoreState:
        """The state of the store after a change of events (see `update`)."""
        days, hours = before.days_version, before.hours_version
        if before.log_end is not None:
            hour = start_of_hour(before.log_end)
            ((earliest,),) = self._connection.execute(
                "SELECT min(ts) FROM events WHERE event_id > ?", [after_id or 0]
            ).fetchall()
            if reworded or after_id is None or (earliest and earliest < start_of_day(hour)):
                days += 1
            elif earliest and earliest < hour:
                hours += 1
        return StoreState(before.fingerprint, days, hours, self._log_end())

    def _follow_searches(self, after_id: int | None) -> set[str]:
        """Follow counts and spellings of searches after a change of events (see `update`).

        Returns the users who searched a query that is worded differently now.
        """
        connection = self._connection
        if after_id is None:
            shop_tables.create(connection, "hourly", self._config)
            joined = """FULL JOIN spellings s USING (query_key)
                WHERE n.event_id IS DISTINCT FROM s.event_id"""
        else:
            connection.execute(
                f"INSERT INTO hourly {shop_tables.hourly_sql(self._config, after_id)}"
            )
            joined = """LEFT JOIN spellings s USING (query_key)
                WHERE s.event_id IS NULL OR (n.ts, n.event_id) < (s.ts, s.event_id)"""
        new = sql("spellings", after_id=ALL if after_id is None else after_id)
        # The query is NULL where nobody searches it any longer, the one before where it is new.
        spellings = connection.execute(
            f"SELECT query_key, n.query, n.ts, n.event_id, s.query FROM ({new}) n {joined}"
        ).fetchall()
        if not spellings:
            return set()
        keys = [key for key, *_ in spellings]
        connection.execute("DELETE FROM spellings WHERE query_key IN (SELECT unnest($1))", [keys])
        append_rows(connection, "spellings", (row[:4] for row in spellings if row[1] is not None))
        reworded = [(key, query, old) for key, query, *_, old in spellings if query != old]
        shop_tables.add_wordings(connection, {key: q for key, q, _ in reworded if q is not None})
        gone = [key for key, query, _ in reworded if query is None]
        connection.execute("DELETE FROM query_kinds WHERE query_key IN (SELECT unnest($1))", [gone])
        known = [key for key, _, old in reworded if old is not None]
        if not known:
            return set()
        users = connection.execute(
            "SELECT DISTINCT user_id FROM events WHERE query_key IN (SELECT unnest($1))", [known]
        ).fetchall()
        return {user for (user,) in users}
