"""Memory kept in the shop's database, so that a profile is read and not made.

`build` stores the tables about the whole shop and each user's state as of their last event
(see `state`). `update` brings both up to date after new events and touches only what those
affect: a user's state hangs on nobody else. What others did comes in when a profile is read,
from the tables about the shop as they stood at the start of the day (see `knowledge`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import duckdb

from ..shop.config import MemoryConfig
from . import shop_statistics
from .event_log import SEARCH, Event, EventLog, microseconds, of_users, time_of
from .transitions import transitions_of
from .user_state import SETS, user_state

# The format of stored memory. Raise it in the commit that changes what a stored row holds or
# means (a table's columns, a state's fields, how an event weighs): shops then store it anew.
MEMORY_FORMAT = 2

_PROFILES = """
CREATE OR REPLACE TABLE profiles (
    user_id VARCHAR PRIMARY KEY,
    made    TIMESTAMP NOT NULL, -- the user's last event
    events  BIGINT NOT NULL,
    state   VARCHAR NOT NULL USING COMPRESSION dict_fsst -- a JSON object, see `State`
)"""
# Zstandard, which DuckDB takes for long texts, must unpack some thousand rows to read one:
# 25 ms instead of 1. A column for each part of the state would double the time to read it.

_HOUR = 3600_000_000  # microseconds

# The store's state, in the table `meta`. `memory` is the fingerprint; `memory_end` the end of
# the log; `memory_epoch` and `memory_hours` grow when late events, or the lack of some, change
# what was known at the start of the day, and of the hour, that the log had reached.
_KEYS = ("memory", "memory_epoch", "memory_hours", "memory_end")


def fingerprint(config: MemoryConfig) -> str:
    """Identify what stored rows mean: the format and the settings that they were made with."""
    read = ("budget", "least_users")  # what matters only when rows are read
    settings = {k: v for k, v in asdict(config).items() if k not in read}
    text = json.dumps([MEMORY_FORMAT, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What the store says of itself (see `_KEYS`)."""
    return dict(connection.execute(f"SELECT key, value FROM meta WHERE key IN {_KEYS}").fetchall())


def log_end(state: Mapping[str, str]) -> datetime | None:
    """When the log of a stored memory ends; None without events, or where nothing is stored."""
    end = state.get("memory_end")
    return datetime.fromisoformat(end) if end else None


def is_current(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Whether the stored tables follow the log, under these settings."""
    return state(connection).get("memory") == fingerprint(config)


def _set(connection: duckdb.DuckDBPyConnection, **values: str) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO meta SELECT unnest($1), unnest($2)", [[*values], [*values.values()]]
    )


# ---------------------------------------------------------------- building


def build(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> int:
    """Store the memory of the whole shop anew; the caller's transaction makes it all or nothing.

    Args:
        connection: The shop's database, open for writing.
        config: How events weigh.

    Returns:
        How many users have a profile.
    """
    shop_statistics.drop_temporary(connection)
    shop_statistics.make_derived(connection, "TABLE")
    shop_statistics.clear_traces(connection, "TABLE")
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    _begin(connection, config, end)
    users = 0
    # One reading of the log serves both: most of the time goes into making its rows.
    for log, histories in shop_statistics.everybody(connection):
        shop_statistics.add_traces(
            connection, (transitions_of(events, log.goods) for events in histories.values())
        )
        _fill(connection, config, log, histories)
        users += len(histories)
    if config.swing:
        shop_statistics.make_swing(connection, "TABLE")
    return users


def build_profiles(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, end: datetime | None
) -> int:
    """Store the states of all users of ``events``; the tables about the whole shop are there.

    Args:
        connection: Open for writing, without tables that only it can see.
        config: How events weigh.
        end: The last event of the whole shop, of whoever it is.

    Returns:
        How many users have a profile.
    """
    _begin(connection, config, end)
    users = 0
    for log, histories in shop_statistics.everybody(connection):
        _fill(connection, config, log, histories)
        users += len(histories)
    return users


def _begin(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, end: datetime | None
) -> None:
    """Make the table of states, with nothing in it, and say how far the log goes."""
    connection.execute(f"DROP TABLE IF EXISTS followers; {_PROFILES}")  # of older versions
    _set(
        connection,
        memory=fingerprint(config),
        memory_epoch=_after(state(connection), "memory_epoch"),
        memory_hours=_after(state(connection), "memory_hours"),
        memory_end=end.isoformat() if end else "",
    )


def _after(state: Mapping[str, str], key: str) -> str:
    return str(int(state.get(key) or 0) + 1)


def discard(connection: duckdb.DuckDBPyConnection) -> None:
    """Stop serving from what is stored, until the next `build`."""
    connection.execute("DELETE FROM meta WHERE key = 'memory'")


_packed = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _fill(
    connection: duckdb.DuckDBPyConnection,
    config: MemoryConfig,
    log: EventLog,
    histories: Mapping[str, Sequence[Event]],
) -> None:
    """Store the states of some users, of whom none is stored."""
    log.read_wordings(
        {e.query_key or "" for events in histories.values() for e in events if e.type == SEARCH}
    )
    with connection.appender("profiles") as appender:
        for user, events in histories.items():
            at = events[-1].at
            made = user_state(events, at, log.goods, log.wordings, config)
            packed = _packed({name: getattr(made, name) for name in SETS})
            appender.append_row(user, time_of(at), len(events), packed)


# ---------------------------------------------------------------- new events


def update(
    connection: duckdb.DuckDBPyConnection,
    config: MemoryConfig,
    users: Iterable[str],
    after_id: int | None,
) -> None:
    """Bring what is stored up to date with new events of some users.

    Does nothing where nothing is stored.

    Args:
        connection: Inside the transaction that stored the events and numbered the sessions.
        config: How events weigh.
        users: Whose events changed.
        after_id: The new events have greater ids; None when events were taken away.
    """
    known = state(connection)
    if known.get("memory") != fingerprint(config):
        return
    if config.swing:
        discard(connection)  # new steps change what others' pairs say: `build` counts them anew
        return
    shop_statistics.drop_temporary(connection)
    touched = sorted(set(users))
    log = EventLog(connection, worded=False)
    histories = log.of(touched)
    for name in shop_statistics.TRACES:
        _delete(connection, name, touched)
    shop_statistics.add_traces(
        connection, (transitions_of(events, log.goods) for events in histories.values())
    )
    first = None
    if after_id is None:
        others = _count_again(connection)
    else:
        new = [e for events in histories.values() for e in events if e.event_id > after_id]
        first = min((event.at for event in new), default=None)
        others = _count_new(connection, [event for event in new if event.type == SEARCH])
    _follow(connection, known, first, changed=bool(others) or after_id is None)
    others -= set(touched)
    histories |= log.of(sorted(others)) if others else {}
    _delete(connection, "profiles", [*touched, *sorted(others)])
    _fill(connection, config, log, histories)


def _delete(connection: duckdb.DuckDBPyConnection, table: str, users: Sequence[str]) -> None:
    where, values = of_users(users)
    connection.execute(f"DELETE FROM {table} WHERE {where}", values)


def _follow(
    connection: duckdb.DuckDBPyConnection,
    known: Mapping[str, str],
    first: int | None,
    changed: bool,
) -> None:
    """Say up to when the log goes, and whether what was known of the past has changed.

    Args:
        connection: With the events stored.
        known: The store's state before them.
        first: The time of the earliest new event.
        changed: It has, whatever the events' times are.
    """
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    before = log_end(known)
    values = {"memory_end": end.isoformat() if end else ""}
    if before is not None:
        hour = before.replace(minute=0, second=0, microsecond=0)
        if changed or (first is not None and first < microseconds(hour.replace(hour=0))):
            values["memory_epoch"] = _after(known, "memory_epoch")
        elif first is not None and first < microseconds(hour):
            values["memory_hours"] = _after(known, "memory_hours")
    _set(connection, **values)


def _count_new(connection: duckdb.DuckDBPyConnection, new: Sequence[Event]) -> set[str]:
    """Count new searches by the hour, and follow spellings that come first; see `_respell`."""
    if not new:
        return set()
    counts = Counter((e.at - e.at % _HOUR, e.query_key) for e in new)
    with connection.appender("hourly") as appender:
        for (hour, key), n in counts.items():
            appender.append_row(time_of(hour), key, n)
    firsts: dict[str, Event] = {}
    for event in sorted(new, key=lambda e: (e.at, e.event_id)):
        firsts.setdefault(event.query_key or "", event)
    known = {
        key: ((microseconds(ts), number), query)
        for key, query, ts, number in connection.execute(
            "SELECT * FROM spellings WHERE query_key IN (SELECT unnest($1))", [list(firsts)]
        ).fetchall()
    }
    rows = []
    for key, event in firsts.items():
        first, before = known.get(key, (None, None))
        if first is None or (event.at, event.event_id) < first:
            rows.append((key, event.query, time_of(event.at), event.event_id, before))
    return _respell(connection, rows)


def _count_again(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Count all searches again, after some were taken away; see `_respell`."""
    connection.execute(f"CREATE OR REPLACE TABLE hourly AS {shop_statistics.select('hourly')}")
    rows = connection.execute(
        f"""SELECT query_key, n.query, n.ts, n.event_id, s.query
        FROM ({shop_statistics.select("spellings")}) n FULL JOIN spellings s USING (query_key)
        WHERE s.event_id IS DISTINCT FROM n.event_id"""
    ).fetchall()
    return _respell(connection, rows)


def _respell(connection: duckdb.DuckDBPyConnection, rows: Sequence[tuple[Any, ...]]) -> set[str]:
    """Follow how queries are spelled now.

    Args:
        connection: Open for writing.
        rows: The key, the query (None: nobody searched it), its first search's time and
            event_id, and the query before (None: it is new).

    Returns:
        Who searched a query that is worded differently now.
    """
    if not rows:
        return set()
    keys = [row[0] for row in rows]
    connection.execute("DELETE FROM spellings WHERE query_key IN (SELECT unnest($1))", [keys])
    with connection.appender("spellings") as appender:
        for key, query, ts, number, _ in rows:
            if query is not None:
                appender.append_row(key, query, ts, number)
    changed = [(key, query, before) for key, query, _, _, before in rows if query != before]
    shop_statistics.add_wordings(
        connection, [(k, query) for k, query, _ in changed if query is not None]
    )
    known = [key for key, _, before in changed if before is not None]
    if not known:
        return set()
    return {
        user
        for (user,) in connection.execute(
            "SELECT DISTINCT user_id FROM events WHERE query_key IN (SELECT unnest($1))", [known]
        ).fetchall()
    }


def catalog_changed(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, changed: str
) -> None:
    """Follow a change of products: prices and stock of now touch nothing that is stored.

    Args:
        connection: Inside the transaction that stored the products.
        config: How events weigh.
        changed: SQL that selects product_id and ts of the states that were stored.
    """
    if not is_current(connection, config):
        return
    shop_statistics.drop_temporary(connection)
    row = connection.execute(
        f"""WITH fresh AS ({shop_statistics.select("goods")})
        SELECT count(*) FROM ((FROM goods EXCEPT FROM fresh) UNION ALL
                              (FROM fresh EXCEPT FROM goods))"""
    ).fetchone()
    if row and row[0]:
        discard(connection)  # titles, categories or price bands: everything hangs on them
        return
    users = connection.execute(
        f"""SELECT DISTINCT e.user_id FROM events e JOIN ({changed}) c
        ON e.product_id = c.product_id AND e.ts >= c.ts"""
    ).fetchall()
    if users:
        update(connection, config, [user for (user,) in users], 2**62)
