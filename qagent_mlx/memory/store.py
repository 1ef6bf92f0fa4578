"""Memory kept in the shop's database, so that a profile is read and not made.

`build` stores the tables about the whole shop and, for each user, the rows that a profile is
made of, as they stood just after the log's last event. `update` brings both up to date after
new events and touches only what those affect. `Shelf` reads the rows and moves them on to a
later moment: ages grow, weights halve, trends are those of the hour. All of it comes from
the SQL in `tables`, so a profile is the same wherever its rows come from.

What neighbours did and how often a query succeeds is known up to the start of a day. So a
stored row answers for its own day; on a later day, for an earlier moment, and after late
events of an earlier day, rows are computed from the log as ever, until the next `build`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from ..shop import MemoryConfig
from . import tables

if TYPE_CHECKING:
    from .profile import Memory, Moment, Rows

CHUNK = 4000  # users whose rows are made in one pass: bounds memory
NOBODY = "\x01"  # a user without events; no id holds a control character
_AGED = ("age", "had_age", "leaf_age", "main_age")  # columns of candidates that grow with time
_TREND = ("share", "longer_share", "short_share", "trend_place", "recent")

# Sets of rows: what a profile is made of, and what is asked about queries that trend.
_MADE_OF = ("candidates", "nodes", "identity", "wording", "products")
_KNOWN = ("had", "touched", "knows", "taste", "used")
_SETS = (*_MADE_OF, *_KNOWN)

_PROFILES = f"""
CREATE OR REPLACE TABLE profiles (
    user_id VARCHAR PRIMARY KEY,
    made    TIMESTAMP NOT NULL, -- the moment that the rows are of
    epoch   INTEGER NOT NULL,   -- grows when late events change what was known before
    events  BIGINT NOT NULL,
    {", ".join(f"{name} VARCHAR USING COMPRESSION dict_fsst" for name in _SETS)})"""
# The rows are JSON arrays. Zstandard, which DuckDB takes for long texts, must unpack some
# thousand rows to read one: 25 ms instead of 1.

_AFTER = timedelta(seconds=1)  # rows are of the moment after the log


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _queries() -> dict[str, str]:
    return {"candidates": tables.lines(), **tables.moment_queries(), **tables.known_of()}


def fingerprint(config: MemoryConfig) -> str:
    """Changes whenever stored rows would mean something else."""
    read = ("budget", "least_users")  # what matters only when rows are read
    settings = {k: v for k, v in asdict(config).items() if k not in read}
    code = [tables.MOMENT_TABLES, tables.touches(config), _PROFILES]
    code += [tables.transitions(1.0), tables.select("swing"), *_queries().values()]
    code += [tables.select(name) for name in tables.DERIVED]
    text = json.dumps([settings, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _state(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return dict(
        connection.execute(
            """SELECT key, value FROM meta
            WHERE key IN ('memory', 'memory_epoch', 'memory_end', 'memory_day')"""
        ).fetchall()
    )


def is_current(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Whether the stored tables follow the log, under these settings."""
    return _state(connection).get("memory") == fingerprint(config)


def ready(connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> bool:
    """Make the tables about the whole shop readable; True where they were stored already."""
    if is_current(connection, config):
        tables.drop_temporary(connection)
        return True
    tables.prepare_shop(connection, bool(config.swing))
    return False


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
    """Store the rows of all users of ``events``; the tables about the whole shop are there.

    Args:
        connection: Open for writing, without tables that only it can see.
        config: How events weigh.
        end: The last event of the whole shop, of whoever it is.

    Returns:
        How many users have a profile.
    """
    connection.execute(_PROFILES)
    day = _day(end + _AFTER) if end else datetime(1970, 1, 1)
    # What follows what at the start of the day, once for all users.
    wanted = f"SELECT DISTINCT source, TIMESTAMP '{day}' AS day FROM steps"
    connection.execute(
        f"""CREATE OR REPLACE TABLE followers AS
        FROM ({tables.transitions(config.swing, wanted)}) ORDER BY source, query_key"""
    )
    _set(connection, memory=fingerprint(config), memory_epoch="0", memory_day=day.isoformat())
    users = connection.execute("SELECT DISTINCT user_id FROM events ORDER BY user_id").fetchall()
    _fill(connection, config, [user for (user,) in users], end)
    return len(users)


def discard(connection: duckdb.DuckDBPyConnection) -> None:
    """Stop serving from what is stored, until the next `build`."""
    connection.execute("DELETE FROM meta WHERE key = 'memory'")


def _fill(
    connection: duckdb.DuckDBPyConnection,
    config: MemoryConfig,
    users: Sequence[str],
    end: datetime | None,
) -> None:
    """Store the rows of some users as of the moment after the log."""
    _set(connection, memory_end=end.isoformat() if end else "")
    if end is None:
        return
    made = end + _AFTER
    state = _state(connection)
    epoch = int(state["memory_epoch"])
    known = ""
    if state["memory_day"] == _day(made).isoformat():
        known = "SELECT f.* FROM followers f SEMI JOIN sources s USING (source, day)"
    queries = _queries()
    for start in range(0, len(users), CHUNK):
        part = users[start : start + CHUNK]
        tables.prepare_moments(
            connection, ((i, user, made) for i, user in enumerate(part)), config, known
        )
        # Trends are added when rows are read: they are the hour's, not the user's.
        connection.execute("DELETE FROM trends")
        for name in _SETS:
            query = queries[name]
            values = ", ".join(f'"{c}"' for c in _columns(connection, query))
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE packed_{name} AS
                SELECT moment, to_json(list(json_array({values}) ORDER BY place_)) AS packed
                FROM (SELECT *, row_number() OVER () AS place_ FROM ({query}))
                GROUP BY moment"""
            )
        joins = " ".join(f"LEFT JOIN packed_{n} USING (moment)" for n in _SETS)
        packed = ", ".join(f"coalesce(packed_{n}.packed, '[]')" for n in _SETS)
        connection.execute(
            f"""INSERT OR REPLACE INTO profiles
            SELECT m.user_id, ?, {epoch}, t.events, {packed}
            FROM moments m JOIN identity t USING (moment) {joins}""",
            [made],
        )
    for name in _SETS:
        connection.execute(f"DROP TABLE IF EXISTS packed_{name}")


_described: dict[str, list[str]] = {}


def _columns(connection: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    """The names of a query's columns but the first; asked once a query."""
    if query not in _described:
        rows = connection.execute(f"DESCRIBE {query}").fetchall()
        _described[query] = [row[0] for row in rows][1:]
    return _described[query]


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
    connection.execute("CREATE OR REPLACE TEMP TABLE touched (user_id VARCHAR)")
    with connection.appender("touched") as appender:
        for user in touched:
            appender.append_row(user)
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
    else:
        _count_new(connection, after_id)
    if after_id is None or _reaches_back(connection, after_id):
        # What others' neighbours and the queries' chances were at the start of their day.
        epoch = int(_state(connection)["memory_epoch"]) + 1
        _set(connection, memory_epoch=str(epoch), memory_day="")
    kept = connection.execute("SELECT DISTINCT user_id FROM their_events ORDER BY 1").fetchall()
    connection.execute(
        """DELETE FROM profiles WHERE user_id IN (FROM touched)
        AND user_id NOT IN (SELECT user_id FROM their_events)"""
    )
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    _fill(connection, config, [user for (user,) in kept], end)
    connection.execute("DROP TABLE touched; DROP TABLE their_events; DROP TABLE their_outcomes")


def _reaches_back(connection: duckdb.DuckDBPyConnection, after_id: int) -> bool:
    """Whether a new event lies before the day of some stored row."""
    row = connection.execute(
        """SELECT (SELECT min(ts) FROM their_events WHERE event_id > ?)
                  < (SELECT date_trunc('day', max(made)) FROM profiles)""",
        [after_id],
    ).fetchone()
    return bool(row and row[0])


def _count_new(connection: duckdb.DuckDBPyConnection, after_id: int) -> None:
    """Add new searches to the hourly counts, and spellings that come first."""
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_events AS
        FROM their_events WHERE event_id > {after_id};
        INSERT INTO hourly {tables.select("hourly", "new_events")};
        CREATE OR REPLACE TEMP TABLE respelled AS
        SELECT n.*, s.query AS before FROM ({tables.select("spellings", "new_events")}) n
        LEFT JOIN spellings s USING (query_key) WHERE s.first IS NULL OR n.first < s.first"""
    )
    _respell(connection)
    connection.execute("DROP TABLE new_events")


def _count_again(connection: duckdb.DuckDBPyConnection) -> None:
    """Count all searches again, after some were taken away."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE hourly AS {tables.select("hourly")};
        CREATE OR REPLACE TEMP TABLE respelled AS
        SELECT query_key, n.query, n.first, s.query AS before
        FROM ({tables.select("spellings")}) n FULL JOIN spellings s USING (query_key)
        WHERE s.first IS DISTINCT FROM n.first"""
    )
    _respell(connection)


def _respell(connection: duckdb.DuckDBPyConnection) -> None:
    changed = "SELECT query_key FROM respelled WHERE query IS DISTINCT FROM before"
    connection.execute(
        f"""DELETE FROM query_kinds WHERE query_key IN ({changed});
        DELETE FROM query_terms WHERE query_key IN ({changed});
        DELETE FROM spellings WHERE query_key IN (SELECT query_key FROM respelled);
        INSERT INTO spellings SELECT query_key, query, first FROM respelled
        WHERE query IS NOT NULL"""
    )
    tables.add_wordings(
        connection,
        """SELECT query_key, query FROM respelled
        WHERE query IS NOT NULL AND query IS DISTINCT FROM before""",
    )
    connection.execute("DROP TABLE respelled")


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


# ---------------------------------------------------------------- reading


class Shelf:
    """Reads stored rows for a `Memory`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._fingerprint = fingerprint(memory.config)
        self._guests: dict[datetime, _Guest] = {}
        self._fixed: dict[str, str] | None = None

    def _known(self) -> dict[str, str]:
        """The store's state; asked once where nobody can change it under this connection."""
        if self._fixed is not None:
            return self._fixed
        connection = self._memory.connection
        state = _state(connection)
        readonly = connection.execute(
            "SELECT readonly FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchone()
        if readonly and readonly[0]:
            self._fixed = state
        return state

    def rows(self, moments: Sequence[Moment]) -> list[Rows | None]:
        """The rows of each moment that can be answered from what is stored, else None."""
        connection = self._memory.connection
        made: list[Rows | None] = [None] * len(moments)
        state = self._known()
        if state.get("memory") != self._fingerprint or not state.get("memory_end"):
            return made
        end, epoch = datetime.fromisoformat(state["memory_end"]), int(state["memory_epoch"])
        wanted = [i for i, m in enumerate(moments) if m.as_of > end]
        if not wanted:
            return made
        names = ", ".join(("user_id", "made", "epoch", *_SETS))
        if len(wanted) == 1:
            found = connection.execute(
                f"SELECT {names} FROM profiles WHERE user_id = ?", [moments[wanted[0]].user_id]
            ).fetchall()
        else:
            found = connection.execute(
                f"SELECT {names} FROM profiles WHERE user_id IN (SELECT unnest(?))",
                [list({moments[i].user_id for i in wanted})],
            ).fetchall()
        stored = {row[0]: row[1:] for row in found}
        for i in wanted:
            as_of = moments[i].as_of
            row = stored.get(moments[i].user_id)
            if row is None:
                made[i] = self._guest(as_of).rows()
            elif row[1] == epoch and row[0].date() == as_of.date():
                unpacked = {n: json.loads(v) for n, v in zip(_SETS, row[2:], strict=True)}
                days = (as_of - row[0]).total_seconds() / 86400
                made[i] = self._moved(unpacked, days, self._guest(as_of))
        return made

    def _moved(self, sets: dict[str, list[list[Any]]], days: float, guest: _Guest) -> Rows:
        """Rows as they are some days after they were made."""
        from .profile import Rows

        decay = 2.0 ** (-days / self._memory.config.half_life_days)
        for row in sets["nodes"]:
            row[2] *= decay
        for row in sets["identity"]:
            row[3] += days
        for row in sets["products"]:
            row[4] += days
        others = {name: [tuple(row) for row in sets[name]] for name in _MADE_OF[1:]}
        return Rows(guest.joined(sets, days), **others)

    def _guest(self, as_of: datetime) -> _Guest:
        hour = as_of.replace(minute=0, second=0, microsecond=0)
        if hour not in self._guests:
            if len(self._guests) > 100:
                self._guests.clear()
            self._guests[hour] = _Guest(self._memory, as_of)
        return self._guests[hour]


class _Guest:
    """What somebody without events is shown in an hour: the shop's trends, for all to share."""

    def __init__(self, memory: Memory, as_of: datetime) -> None:
        from .profile import Moment

        memory.prepare([Moment(NOBODY, as_of)])
        connection = memory.connection
        self._columns = tables.candidate_rows(connection, 1).columns
        self._lists = {name: values.tolist() for name, values in self._columns.items()}
        names = ", ".join(n.replace("trend_place", "place") for n in _TREND)
        rows = connection.execute(f"SELECT query_key, {names} FROM trends").fetchall()
        self._trends = {key: rest for key, *rest in rows}

    def rows(self) -> Rows:
        """All that a new user's profile is made of."""
        from .profile import Rows

        return Rows(dict(self._columns))

    def joined(self, sets: dict[str, list[list[Any]]], days: float) -> dict[str, np.ndarray]:
        """A user's stored candidates and the hour's trends, as columns in order of the keys."""
        mine = sets["candidates"]
        values = zip(*mine, strict=True) if mine else ([] for _ in self._lists)
        columns = {name: list(column) for name, column in zip(self._lists, values, strict=True)}
        known = set(columns["query_key"])
        for i, key in enumerate(columns["query_key"]):
            if key in self._trends:
                for name, value in zip(_TREND, self._trends[key], strict=True):
                    columns[name][i] = value
        new = [i for i, key in enumerate(self._lists["query_key"]) if key not in known]
        for name, column in columns.items():
            column += [self._lists[name][i] for i in new]
        made = {
            name: np.array(column, dtype=object if name in tables.TEXTS else np.float64)
            for name, column in columns.items()
        }
        self._age(made, slice(0, len(mine)), days)
        self._ask(made, range(len(mine), len(mine) + len(new)), sets, days)
        order = sorted(range(len(columns["query_key"])), key=columns["query_key"].__getitem__)
        return {name: column[order] for name, column in made.items()}

    def _age(self, columns: dict[str, np.ndarray], here: slice, days: float) -> None:
        """The user's own candidates, some days later."""
        before = columns["source_age"][here].copy()
        columns["source_age"][here] += days
        later = np.maximum(columns["source_age"][here], 0.02)
        columns["timing"][here] += np.log(later / np.maximum(before, 0.02))
        for name in _AGED:
            columns[name][here] += days
        columns["due"][here] = columns["had_age"][here] / columns["cycle_gap"][here]

    def _ask(
        self, columns: dict[str, np.ndarray], places: range, sets: dict[str, Any], days: float
    ) -> None:
        """What the user knows of the queries that only trends brought up."""
        had = {leaf: age + days for leaf, age in sets["had"]}
        touched = {leaf: (last, age + days, times) for leaf, last, age, times in sets["touched"]}
        knows = {product: (bought, age + days) for product, bought, age in sets["knows"]}
        wording, taste, used = (dict(sets[name]) for name in ("wording", "taste", "used"))
        nothing = (np.nan, np.nan, np.nan)
        for i in places:
            leaf, modifier = columns["leaf"][i], columns["modifier"][i]
            columns["had_age"][i] = had.get(leaf, np.nan)
            columns["due"][i] = columns["had_age"][i] / columns["cycle_gap"][i]
            last, age, times = touched.get(leaf, nothing)
            columns["leaf_last"][i], columns["leaf_age"][i] = last, age
            columns["leaf_times"][i] = times
            bought, age = knows.get(columns["main"][i], nothing[:2])
            columns["main_bought"][i], columns["main_age"][i] = bought, age
            columns["wording"][i] = wording.get(columns["kind"][i], 0.0)
            columns["taste"][i] = taste.get(modifier, 0.0)
            columns["used"][i] = used.get(modifier, 0.0)
