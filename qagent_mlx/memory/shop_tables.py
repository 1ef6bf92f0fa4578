"""The tables about a whole shop that statistics are computed from: built from log and catalog.

- ``goods``: the catalog with departments, leaf categories and the limits of price bands
- ``hourly``: searches of each query by the hour; ``spellings``: how each was first typed
- ``modifiers``, ``query_kinds``: brands and attributes, and which of them queries name
- ``catalog_words``: the words of the catalog's texts
- ``outcomes``, ``steps``, ``cycles``, ``returns``: users' transitions (see `transitions`)
- ``swing``: how much pairs of users vouch for a step, where `MemoryConfig.swing` asks for it

They are stored with the shop's memory (see `store`), or else temporary tables of one connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb

from ..shop.config import MemoryConfig
from ..shop.price_bands import price_limits_sql
from ..utils.database import append_rows
from ..utils.text import tokens, vocabulary
from .event_log import EventLog, History
from .sql import ALL, sql
from .title_kinds import create_title_kinds
from .transitions import Transitions, transitions_of

CHUNK = 4000  # users whose events are in memory at once
MAX_NAME = 8  # tokens of a brand or attribute, where a token may be a single character

TRANSITIONS = Transitions._fields
SHOP_TABLES = (
    *("goods", "catalog_words", "hourly", "spellings"),
    *(*TRANSITIONS, "modifiers", "query_kinds"),
)


def create_shop_tables(
    connection: duckdb.DuckDBPyConnection, kind: str, config: MemoryConfig
) -> None:
    """Create `SHOP_TABLES`, and ``swing`` where it is wanted, from the log and the catalog.

    ``kind`` is TABLE, or TEMP TABLE for this connection only.
    """
    create_counted(connection, kind, config)
    create_no_transitions(connection, kind)
    for histories in histories_of(connection, all_users(connection)):
        add_transitions(connection, histories)
    if config.swing:
        create(connection, "swing", config, kind)


def create_counted(connection: duckdb.DuckDBPyConnection, kind: str, config: MemoryConfig) -> None:
    """Create those of `SHOP_TABLES` that are counted over all events and products."""
    for name in ("goods", "hourly", "spellings"):
        create(connection, name, config, kind)
    create_catalog_words(connection, kind)
    create_wordings(connection, kind)


def create(
    connection: duckdb.DuckDBPyConnection, name: str, config: MemoryConfig, kind: str = "TABLE"
) -> None:
    """Create one of the tables that SQL alone derives."""
    if name == "goods":
        create_title_kinds(connection, config)
    text = hourly_sql(config) if name == "hourly" else derived_sql(name)
    connection.execute(f"CREATE OR REPLACE {kind} {name} AS {text}")


def hourly_sql(config: MemoryConfig, after_id: int = ALL) -> str:
    """The SQL of ``hourly``: searches by the hour, and the people where trends count these."""
    if config.trends_by == "users":
        return sql("hourly_by_users", after_id=after_id, new_hours=config.new_user_hours)
    return sql("hourly", after_id=after_id)


def counted_hours(config: MemoryConfig) -> str:
    """What trends add up: a relation of the people of each hour, and of those who were new then.

    Where trends count searches, each of them stands for a person.
    """
    if config.trends_by == "searches":
        return "(SELECT hour, query_key, n AS people, 0 AS newcomers FROM hourly)"
    hours = round(config.trend_long_days * 24)
    return f"""(SELECT hour, query_key, sum(people) AS people, sum(newcomers) AS newcomers
        FROM hourly
        WHERE hour >= (SELECT min(hour) FROM hours) - INTERVAL '{hours} hours' GROUP BY ALL)"""


def derived_sql(name: str) -> str:
    """The SQL of ``goods``, ``spellings`` or ``swing``."""
    return sql(name, price_limits=price_limits_sql(), after_id=ALL)


def drop_temporary(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop this connection's temporary tables, so that the names mean the stored tables again."""
    if has_temporary(connection):
        for name in (*SHOP_TABLES, "swing"):
            connection.execute(f"DROP TABLE IF EXISTS temp.{name}")


def has_temporary(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether this connection has the tables as temporary ones."""
    return bool(
        connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE temporary AND table_name = 'query_kinds'"
        ).fetchone()
    )


def all_users(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Everybody who did something, in order."""
    rows = connection.execute("SELECT DISTINCT user_id FROM events ORDER BY user_id").fetchall()
    return [user for (user,) in rows]


def histories_of(
    connection: duckdb.DuckDBPyConnection, users: Sequence[str]
) -> Iterator[list[History]]:
    """The histories of some users, `CHUNK` users at a time."""
    log = EventLog(connection)
    for start in range(0, len(users), CHUNK):
        yield list(log.read(users[start : start + CHUNK]).values())


def create_no_transitions(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Create the tables of users' transitions, empty."""
    connection.execute(sql("create_transitions", kind=kind))


def add_transitions(connection: duckdb.DuckDBPyConnection, histories: Iterable[History]) -> None:
    """Add the transitions of users who have none in the tables."""
    found = [transitions_of(history) for history in histories]
    for name in TRANSITIONS:
        append_rows(connection, name, (row for one in found for row in getattr(one, name)))


def create_catalog_words(connection: duckdb.DuckDBPyConnection, kind: str = "TABLE") -> None:
    """Create ``catalog_words``, from ``goods``."""
    connection.execute(sql("catalog_words", kind=kind))
    others = connection.execute(sql("catalog_texts")).fetchall()  # those of more than ASCII
    found = {word for (text,) in others for word in vocabulary(text)}
    append_rows(connection, "catalog_words", ((word,) for word in sorted(found)))


def create_wordings(connection: duckdb.DuckDBPyConnection, kind: str = "TABLE") -> None:
    """Create ``modifiers`` and ``query_kinds``, from ``goods`` and ``spellings``."""
    connection.execute(sql("create_wordings", kind=kind))
    brands = connection.execute("SELECT DISTINCT brand FROM goods WHERE brand IS NOT NULL")
    modifiers = {("brand", brand.lower()) for (brand,) in brands.fetchall()}
    attributes = connection.execute(
        "SELECT DISTINCT attributes FROM goods WHERE attributes IS NOT NULL"
    )
    for (values,) in attributes.fetchall():
        modifiers |= {("attribute", str(value).lower()) for value in json.loads(values).values()}
    append_rows(connection, "modifiers", sorted(modifiers))
    spellings = connection.execute("SELECT query_key, query FROM spellings").fetchall()
    add_wordings(connection, dict(spellings))


def add_wordings(connection: duckdb.DuckDBPyConnection, queries: Mapping[str, str]) -> None:
    """Store how queries (key -> text) are worded, in place of what was stored of them."""
    if not queries:
        return
    connection.execute(
        "DELETE FROM query_kinds WHERE query_key IN (SELECT unnest($1))", [list(queries)]
    )
    # Brands come last: they win over attributes of the same words.
    known = connection.execute("SELECT kind, text FROM modifiers ORDER BY kind, text").fetchall()
    modifiers = {tuple(tokens(text)): (kind, text) for kind, text in known}
    modifiers.pop((), None)
    rows = ((key, text, *query_wording(text, modifiers)) for key, text in queries.items())
    append_rows(connection, "query_kinds", rows)


def query_wording(
    text: str, modifiers: Mapping[tuple[str, ...], tuple[str, str]]
) -> tuple[str, str | None]:
    """How a query is worded: ``brand`` or ``attribute`` with the name, or ``plain`` and None."""
    words = tokens(text)
    best: tuple[str, str] | None = None
    for size in (3, 2, 1) if text.isascii() else range(MAX_NAME, 0, -1):
        for start in range(len(words) - size + 1):
            match = modifiers.get(tuple(words[start : start + size]))
            if match and (best is None or (best[0] != "brand" and match[0] == "brand")):
                best = match
    return best or ("plain", None)
