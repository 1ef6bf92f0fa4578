"""Memory stored in the shop's database, so that a profile is read instead of computed.

`build` stores the tables about the whole shop and each user's state as of the user's last event.
`update` follows new events and changes only what they affect: a user's state depends on nobody
else. What others did comes in when a profile is read, from the tables about the shop as they were
at the start of the day (see `statistics_cache`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import duckdb
import msgspec

from ..shop.config import MemoryConfig
from . import shop_tables
from .event_log import SEARCH, Event, EventLog, from_microseconds, start_of_day, users_condition
from .sql import ALL, sql
from .state_builder import user_state

# The format of stored memory. Raise it in the commit that changes what a stored row holds or
# means (a table's columns, a state's fields, how an event weighs): shops then store it anew.
MEMORY_FORMAT = 3

# DuckDB's default for long texts, Zstandard, has to unpack thousands of rows to read one.
_PROFILES = """
CREATE OR REPLACE TABLE profiles (
    user_id VARCHAR PRIMARY KEY,
    made    TIMESTAMP NOT NULL, -- the user's last event
    events  BIGINT NOT NULL,
    state   VARCHAR NOT NULL USING COMPRESSION dict_fsst -- JSON of a `UserState`
)"""


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
    of_reading = ("budget", "least_users")
    settings = {name: value for name, value in asdict(config).items() if name not in of_reading}
    text = json.dumps([MEMORY_FORMAT, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_state(connection: duckdb.DuckDBPyConnection) -> StoreState:
    """What the stored tables stand for, in whatever format they are."""
    meta = dict(connection.execute(f"SELECT key, value FROM meta WHERE key IN {_META}").fetchall())
    stored, days, hours, end = (meta.get(name) for name in _META)
    return StoreState(
        stored or "", int(days or 0), int(hours or 0), datetime.fromisoformat(end) if end else None
    )


def is_current(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Whether memory is stored in this format, under these settings."""
    return store_state(connection).fingerprint == fingerprint(config)


def _write_state(connection: duckdb.DuckDBPyConnection, state: StoreState) -> None:
    end = state.log_end.isoformat() if state.log_end else ""
    values = [state.fingerprint, str(state.days_version), str(state.hours_version), end]
    connection.execute(
        "INSERT OR REPLACE INTO meta SELECT unnest($1), unnest($2)", [list(_META), values]
    )


def _log_end(connection: duckdb.DuckDBPyConnection) -> datetime | None:
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    return end


def build(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> int:
    """Store the memory of the whole shop anew; returns the number of users with a state.

    Args:
        connection: Open for writing; the caller's transaction makes it all or nothing.
        config: How events weigh.
    """
    shop_tables.drop_temporary(connection)
    _create_profiles(connection, config, _log_end(connection))
    shop_tables.create_shop_tables(
        connection,
        "TABLE",
        bool(config.swing),
        lambda log, histories: _store_states(connection, config, log, histories),
    )
    return _count_profiles(connection)


def build_profiles(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, log_end: datetime | None
) -> int:
    """Store the states of all users of ``events``, beside tables about a larger shop.

    Args:
        connection: Open for writing, with `shop_tables.SHOP_TABLES`.
        config: How events weigh.
        log_end: The last event of the whole shop, of whichever user.

    Returns:
        The number of users with a state.
    """
    _create_profiles(connection, config, log_end)
    for log, histories in shop_tables.all_histories(connection):
        _store_states(connection, config, log, histories)
    return _count_profiles(connection)


def _count_profiles(connection: duckdb.DuckDBPyConnection) -> int:
    ((users,),) = connection.execute("SELECT count(*) FROM profiles").fetchall()
    return int(users)


def _create_profiles(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, log_end: datetime | None
) -> None:
    connection.execute(f"DROP TABLE IF EXISTS followers; {_PROFILES}")  # of older versions
    state = store_state(connection)
    _write_state(
        connection,
        StoreState(fingerprint(config), state.days_version + 1, state.hours_version + 1, log_end),
    )


def discard(connection: duckdb.DuckDBPyConnection) -> None:
    """Stop serving from what is stored, until the next `build`."""
    connection.execute("DELETE FROM meta WHERE key = 'memory'")


def _store_states(
    connection: duckdb.DuckDBPyConnection,
    config: MemoryConfig,
    log: EventLog,
    histories: Mapping[str, Sequence[Event]],
) -> None:
    """Store the states of users who have none in the table."""
    log.read_wordings(
        {e.query_key or "" for events in histories.values() for e in events if e.type == SEARCH}
    )
    with connection.appender("profiles") as appender:
        for user, events in histories.items():
            at = events[-1].at
            state = user_state(events, at, log.products, log.wordings, config)
            packed = msgspec.json.encode(state).decode()
            appender.append_row(user, from_microseconds(at), len(events), packed)


def update(
    connection: duckdb.DuckDBPyConnection,
    config: MemoryConfig,
    users: Iterable[str],
    after_id: int | None,
) -> None:
    """Follow a change of some users' events, where memory is stored.

    Args:
        connection: Inside the transaction that stored the events and numbered the sessions.
        config: How events weigh.
        users: Whose events changed.
        after_id: The new events have greater ids; None when events were deleted.
    """
    before = store_state(connection)
    if before.fingerprint != fingerprint(config):
        return
    if config.swing:
        discard(connection)  # new steps change what other users' pairs vouch for
        return
    shop_tables.drop_temporary(connection)
    changed = sorted(set(users))
    log = EventLog(connection, worded=False)
    histories = log.read(changed)
    for table in shop_tables.TRANSITIONS:
        _delete(connection, table, changed)
    shop_tables.add_transitions(connection, log, histories)
    reworded = _follow_searches(connection, after_id)
    _write_state(connection, _followed(connection, before, after_id, bool(reworded)))
    others = sorted(reworded.difference(changed))
    histories |= log.read(others) if others else {}
    _delete(connection, "profiles", [*changed, *others])
    _store_states(connection, config, log, histories)


def _delete(connection: duckdb.DuckDBPyConnection, table: str, users: Sequence[str]) -> None:
    where, parameters = users_condition(users)
    connection.execute(f"DELETE FROM {table} WHERE {where}", parameters)


def _followed(
    connection: duckdb.DuckDBPyConnection, before: StoreState, after_id: int | None, reworded: bool
) -> StoreState:
    """The state of the store after a change of events (see `update`)."""
    days, hours = before.days_version, before.hours_version
    if before.log_end is not None:
        hour = before.log_end.replace(minute=0, second=0, microsecond=0)
        ((earliest,),) = connection.execute(
            "SELECT min(ts) FROM events WHERE event_id > ?", [after_id or 0]
        ).fetchall()
        if reworded or after_id is None or (earliest and earliest < start_of_day(hour)):
            days += 1
        elif earliest and earliest < hour:
            hours += 1
    return StoreState(before.fingerprint, days, hours, _log_end(connection))


def _follow_searches(connection: duckdb.DuckDBPyConnection, after_id: int | None) -> set[str]:
    """Follow counts and spellings of searches after a change of events (see `update`).

    Returns:
        The users who searched a query that is worded differently now.
    """
    fresh = sql("spellings", after_id=ALL if after_id is None else after_id)
    if after_id is None:
        shop_tables.create(connection, "hourly")
        changed = (
            "FULL JOIN spellings s USING (query_key) WHERE n.event_id IS DISTINCT FROM s.event_id"
        )
    else:
        connection.execute(f"INSERT INTO hourly {sql('hourly', after_id=after_id)}")
        changed = """LEFT JOIN spellings s USING (query_key)
            WHERE s.event_id IS NULL OR (n.ts, n.event_id) < (s.ts, s.event_id)"""
    # Where nobody searches a query any longer, there is no text but the one before.
    spellings = connection.execute(
        f"SELECT query_key, n.query, n.ts, n.event_id, s.query FROM ({fresh}) n {changed}"
    ).fetchall()
    if not spellings:
        return set()
    connection.execute(
        "DELETE FROM spellings WHERE query_key IN (SELECT unnest($1))",
        [[key for key, *_ in spellings]],
    )
    with connection.appender("spellings") as appender:
        for key, query, ts, event_id, _ in spellings:
            if query is not None:
                appender.append_row(key, query, ts, event_id)
    reworded = [(key, query, before) for key, query, *_, before in spellings if query != before]
    shop_tables.add_wordings(connection, [(key, q) for key, q, _ in reworded if q is not None])
    known = [key for key, _, before in reworded if before is not None]
    if not known:
        return set()
    users = connection.execute(
        "SELECT DISTINCT user_id FROM events WHERE query_key IN (SELECT unnest($1))", [known]
    ).fetchall()
    return {user for (user,) in users}


def catalog_changed(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, changed: str
) -> None:
    """Follow a change of products; prices and stock of now touch nothing that is stored.

    Args:
        connection: Inside the transaction that stored the products.
        config: How events weigh.
        changed: SQL that selects product_id and ts of the product states that were stored.
    """
    if not is_current(connection, config):
        return
    shop_tables.drop_temporary(connection)
    ((differences,),) = connection.execute(
        f"""WITH fresh AS ({shop_tables.derived_sql("goods")})
        SELECT count(*) FROM ((FROM goods EXCEPT FROM fresh) UNION ALL
                              (FROM fresh EXCEPT FROM goods))"""
    ).fetchall()
    if differences:
        discard(connection)  # titles, categories or price bands: everything depends on them
        return
    users = connection.execute(
        f"""SELECT DISTINCT e.user_id FROM events e JOIN ({changed}) c
        ON e.product_id = c.product_id AND e.ts >= c.ts"""
    ).fetchall()
    if users:
        update(connection, config, [user for (user,) in users], 2**62)
