"""Memory kept in the shop's database, so that a profile is read and not made.

`build` stores the tables about the whole shop and each user's state as of their last event
(see `state`). `update` brings both up to date after new events and touches only what those
affect: a user's state hangs on nobody else. What others did comes in when a profile is read,
from the tables about the shop as they stood at the start of the day (see `knowledge`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache

import duckdb

from ..shop import MemoryConfig
from . import history, tables
from . import state as states
from .history import Log
from .state import SETS, state_of

CHUNK = 4000  # users whose states are made in one pass: bounds memory

_PROFILES = f"""
CREATE OR REPLACE TABLE profiles (
    user_id VARCHAR PRIMARY KEY,
    made    TIMESTAMP NOT NULL, -- the user's last event
    events  BIGINT NOT NULL,
    {", ".join(f"{name} VARCHAR USING COMPRESSION dict_fsst" for name in SETS)})"""
# The rows are JSON arrays. Zstandard, which DuckDB takes for long texts, must unpack some
# thousand rows to read one: 25 ms instead of 1.

# The store's state, in the table `meta`. `memory` is the fingerprint; `memory_end` the end of
# the log; `memory_epoch` and `memory_hours` grow when late events, or the lack of some, change
# what was known at the start of the day, and of the hour, that the log had reached.
_KEYS = ("memory", "memory_epoch", "memory_hours", "memory_end")


@lru_cache(maxsize=1)
def _code() -> str:
    return "".join(inspect.getsource(module) for module in (history, states))


def fingerprint(config: MemoryConfig) -> str:
    """Changes whenever stored rows would mean something else."""
    settings = {k: v for k, v in asdict(config).items() if k != "budget"}
    code = [_PROFILES, _code(), tables.select("swing")]
    code += [tables.select(name) for name in tables.DERIVED]
    text = json.dumps([settings, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What the store says of itself (see `_KEYS`)."""
    return dict(
        connection.execute(
            f"SELECT key, value FROM meta WHERE key IN {_KEYS}"
        ).fetchall()
    )


def ended(state: Mapping[str, str]) -> datetime | None:
    """When the log of a stored memory ends; None without events, or where nothing is stored."""
    end = state.get("memory_end")
    return datetime.fromisoformat(end) if end else None


def is_current(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Whether the stored tables follow the log, under these settings."""
    return state(connection).get("memory") == fingerprint(config)


def _set(connection: duckdb.DuckDBPyConnection, **values: str) -> None:
    for key, value in values.items():
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])


# ---------------------------------------------------------------- building


def build(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> int:
    """Store the memory of the whole shop anew; the caller's transaction makes it all or nothing.

    Args:
        connection: The shop's database, open for writing.
        config: How events weigh.

    Returns:
        How many users have a profile.
    """
    tables.drop_temporary(connection)
    tables.make_shop_tables(connection, "TABLE", bool(config.swing))
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    return build_profiles(connection, config, end)


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
    connection.execute(f"DROP TABLE IF EXISTS followers; {_PROFILES}")  # of older versions
    _set(
        connection,
        memory=fingerprint(config),
        memory_epoch=_next(connection, "memory_epoch"),
        memory_hours=_next(connection, "memory_hours"),
        memory_end=end.isoformat() if end else "",
    )
    users = connection.execute("SELECT DISTINCT user_id FROM events ORDER BY user_id").fetchall()
    _fill(connection, config, Log(connection), [user for (user,) in users])
    return len(users)


def _next(connection: duckdb.DuckDBPyConnection, key: str) -> str:
    return str(int(state(connection).get(key) or 0) + 1)


def discard(connection: duckdb.DuckDBPyConnection) -> None:
    """Stop serving from what is stored, until the next `build`."""
    connection.execute("DELETE FROM meta WHERE key = 'memory'")


_packed = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _fill(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, log: Log, users: Sequence[str]
) -> None:
    """Store the states of some users; those who have no events get no row."""
    names = ", ".join(SETS)
    for start in range(0, len(users), CHUNK):
        columns: list[list[object]] = [[] for _ in range(3 + len(SETS))]
        for user, events in log.of(users[start : start + CHUNK]).items():
            at = events[-1].at
            made = state_of(events, at, log.goods, log.wordings, config)
            sets = [_packed(getattr(made, name)) for name in SETS]
            for column, value in zip(columns, (user, at, len(events), *sets), strict=True):
                column.append(value)
        connection.execute(
            f"""INSERT OR REPLACE INTO profiles (user_id, made, events, {names})
            SELECT unnest($1), make_timestamp(unnest($2)), {
                ", ".join(f"unnest(${i})" for i in range(3, 4 + len(SETS)))}""",
            columns,
        )


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
    if not is_current(connection, config):
        return
    if config.swing:
        discard(connection)  # new steps change what others' pairs say: `build` counts them anew
        return
    tables.drop_temporary(connection)
    touched = sorted(set(users))
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE touched AS SELECT unnest($1) AS user_id", [touched]
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE their_events AS
        SELECT e.* FROM events e SEMI JOIN touched USING (user_id);
        CREATE OR REPLACE TEMP TABLE their_outcomes AS {tables.select("outcomes", "their_events")};
        DELETE FROM outcomes WHERE user_id IN (FROM touched);
        INSERT INTO outcomes FROM their_outcomes;
        DELETE FROM steps WHERE user_id IN (FROM touched);
        INSERT INTO steps {tables.select("steps", "their_events", "their_outcomes")};
        DELETE FROM cycles WHERE user_id IN (FROM touched);
        INSERT INTO cycles {tables.select("cycles", "their_events")}"""
    )
    if after_id is None:
        _count_again(connection)
        connection.execute(
            """DELETE FROM profiles WHERE user_id IN (FROM touched)
            AND user_id NOT IN (SELECT user_id FROM their_events)"""
        )
    else:
        _count_new(connection, after_id)
    others = _respell(connection)
    _follow(connection, after_id, bool(others))
    _fill(connection, config, Log(connection, "their_events"), touched)
    _fill(connection, config, Log(connection), sorted(others - set(touched)))
    connection.execute("DROP TABLE touched; DROP TABLE their_events; DROP TABLE their_outcomes")


def _follow(
    connection: duckdb.DuckDBPyConnection, after_id: int | None, respelled: bool
) -> None:
    """Say up to when the log goes, and whether what was known of the past has changed."""
    ((end, first),) = connection.execute(
        """SELECT (SELECT max(ts) FROM events),
                  (SELECT min(ts) FROM their_events WHERE event_id > ?)""",
        [after_id or 0],
    ).fetchall()
    before = ended(state(connection))
    changed = {"memory_end": end.isoformat() if end else ""}
    if before is not None:
        hour = before.replace(minute=0, second=0, microsecond=0)
        if after_id is None or respelled or (first and first < hour.replace(hour=0)):
            changed["memory_epoch"] = _next(connection, "memory_epoch")
        elif first and first < hour:
            changed["memory_hours"] = _next(connection, "memory_hours")
    _set(connection, **changed)


def _count_new(connection: duckdb.DuckDBPyConnection, after_id: int) -> None:
    """Add new searches to the hourly counts, and find spellings that come first."""
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_events AS
        FROM their_events WHERE event_id > {after_id};
        INSERT INTO hourly {tables.select("hourly", "new_events")};
        CREATE OR REPLACE TEMP TABLE respelled AS
        SELECT n.*, s.query AS before FROM ({tables.select("spellings", "new_events")}) n
        LEFT JOIN spellings s USING (query_key) WHERE s.first IS NULL OR n.first < s.first;
        DROP TABLE new_events"""
    )


def _count_again(connection: duckdb.DuckDBPyConnection) -> None:
    """Count all searches again, after some were taken away."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE hourly AS {tables.select("hourly")};
        CREATE OR REPLACE TEMP TABLE respelled AS
        SELECT query_key, n.query, n.first, s.query AS before
        FROM ({tables.select("spellings")}) n FULL JOIN spellings s USING (query_key)
        WHERE s.first IS DISTINCT FROM n.first"""
    )


def _respell(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Follow what is in ``respelled``; who searched a query that is worded differently now."""
    found = connection.execute("SELECT query_key, query, before FROM respelled").fetchall()
    others: set[str] = set()
    if found:
        connection.execute(
            """DELETE FROM spellings WHERE query_key IN (SELECT query_key FROM respelled);
            INSERT INTO spellings SELECT query_key, query, first FROM respelled
            WHERE query IS NOT NULL"""
        )
    changed = [(key, query, before) for key, query, before in found if query != before]
    known = [key for key, _, before in changed if before is not None]
    if known:
        connection.execute(
            "DELETE FROM query_kinds WHERE query_key IN (SELECT unnest($1))", [known]
        )
        connection.execute(
            "DELETE FROM query_terms WHERE query_key IN (SELECT unnest($1))", [known]
        )
        others = {
            user for (user,) in connection.execute(
                "SELECT DISTINCT user_id FROM events WHERE query_key IN (SELECT unnest($1))",
                [known],
            ).fetchall()
        }  # fmt: skip
    tables.add_wordings(connection, [(k, query) for k, query, _ in changed if query is not None])
    connection.execute("DROP TABLE respelled")
    return others


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
    tables.drop_temporary(connection)
    row = connection.execute(
        f"""WITH fresh AS ({tables.select("goods")})
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
