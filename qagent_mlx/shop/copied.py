"""Which snapshot of a lake the rows of a shop's file are of.

The file of a shop in a lake follows the lake. One that was made of a snapshot (see
`moving.create_at`) is a shop of its own, whose rows are that snapshot until somebody changes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import duckdb

KEY = "lake"  # of ``meta``: what the file is a copy of
MADE_OF = "lake_made_of"  # the snapshot that a shop of its own was made of, and its rows


@dataclass(frozen=True, slots=True)
class Copied:
    """What a machine's file is a copy of.

    Attributes:
        snapshot: Its number in the lake.
        writer: Who wrote it. Snapshots of upkeep change the number alone.
    """

    snapshot: int = -1
    writer: str = ""


def copied_snapshot(connection: duckdb.DuckDBPyConnection) -> Copied:
    """What the rows of a shop's file are a copy of."""
    value = _meta(connection, KEY)
    return Copied(**json.loads(value)) if value else Copied()


def keep_copied(connection: duckdb.DuckDBPyConnection, copied: Copied) -> None:
    """Remember what the rows of a shop's file are a copy of, from now on."""
    _set_meta(connection, KEY, json.dumps(asdict(copied)))


def keep_made_of(connection: duckdb.DuckDBPyConnection, snapshot: int) -> None:
    """Remember which snapshot a shop of its own was made of."""
    _set_meta(connection, MADE_OF, json.dumps([snapshot, *_rows(connection)]))


def named_snapshot(connection: duckdb.DuckDBPyConnection, is_shared: bool) -> int | None:
    """The snapshot that reports name; None of rows that are of none.

    Args:
        is_shared: Whether the shop is in a lake.
    """
    if is_shared:
        return copied_snapshot(connection).snapshot
    value = _meta(connection, MADE_OF)
    if not value:
        return None
    snapshot, *rows = json.loads(value)
    return int(snapshot) if rows == _rows(connection) else None


def _rows(connection: duckdb.DuckDBPyConnection) -> list[int | str]:
    """What changes with every change of events or products."""
    ((events, last, catalog),) = connection.execute(
        """SELECT count(*), coalesce(max(event_id), 0), (SELECT any_value(value) FROM meta
            WHERE key = 'catalog_version') FROM events"""
    ).fetchall()
    return [events, last, catalog or ""]


def _meta(connection: duckdb.DuckDBPyConnection, key: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
    return row[0] if row else ""


def _set_meta(connection: duckdb.DuckDBPyConnection, key: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])
