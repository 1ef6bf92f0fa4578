"""Which rows of a lake have changed since the snapshot that a machine's file is a copy of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.database import copy_parquet, literal
from .copied import Copied
from .lake_catalog import NAME
from .row_changes import Rows, Table, net_changes, read_table
from .schema import OF_THIS_MACHINE, SHARED


def shared_tables(connection: duckdb.DuckDBPyConnection) -> list[Table]:
    """The tables of a shop's file whose rows all machines share."""
    own = ", ".join(map(literal, OF_THIS_MACHINE))
    where = {"meta": f"key NOT IN ({own})"}
    return [read_table(connection, name, where.get(name, "true")) for name in SHARED]


def read_changes(
    lake: duckdb.DuckDBPyConnection,
    tables: list[Table],
    copied: Copied,
    head: Copied,
    folder: Path,
    file: duckdb.DuckDBPyConnection,
) -> Iterator[Rows]:
    """What has changed in the lake since the snapshot that a shop's file is a copy of.

    Where the lake no longer knows that snapshot, all rows are compared.
    """
    ((oldest,),) = lake.execute(
        f"SELECT min(snapshot_id) FROM ducklake_snapshots('{NAME}')"
    ).fetchall()
    is_known = copied.snapshot >= 0 and copied.snapshot + 1 >= oldest
    touched = _touched_tables(lake, copied.snapshot + 1, head.snapshot) if is_known else None
    for table in tables:
        if touched is not None and table.name not in touched:
            continue
        _refuse_other_columns(lake, table)
        names = ", ".join(table.names)
        old, new = (folder / f"{table.name}-{kind}.parquet" for kind in ("old", "new"))
        if not is_known:
            ours = f"SELECT {table.plain} FROM {table.name} WHERE {table.where}"
            theirs = f"SELECT {names} FROM {NAME}.main.{table.name} AT (VERSION => {head.snapshot})"
        else:
            changed = f"""SELECT {names} FROM {NAME}.table_changes({literal(table.name)},
                {copied.snapshot + 1}, {head.snapshot}) WHERE change_type IN"""
            ours = f"{changed} ('delete', 'update_preimage')"
            theirs = f"{changed} ('insert', 'update_postimage')"
        removed = copy_parquet(lake if is_known else file, ours, old)
        added = copy_parquet(lake, theirs, new)
        rows = Rows(table, old, new, removed, added)
        if removed:
            rows = net_changes(table, old, new, lake)
        if rows.removed_rows or rows.added_rows:
            yield rows


def _touched_tables(lake: duckdb.DuckDBPyConnection, first: int, last: int) -> set[str] | None:
    """The tables that snapshots have done anything to; None where one does not say.

    Asking each table for its changes takes long beside that.
    """
    ((is_silent, named),) = lake.execute(
        f"""SELECT bool_or(changes IS NULL), flatten(list(flatten(map_values(changes))))
        FROM ducklake_snapshots('{NAME}') WHERE snapshot_id BETWEEN {first} AND {last}"""
    ).fetchall()
    if is_silent is not False:
        return None
    tables = lake.execute(f"SELECT table_name, table_id FROM ducklake_table_info('{NAME}')")
    # By its number, or by its name where it was made.
    return {
        name
        for name, number in tables.fetchall()
        if str(number) in named or f"main.{name}" in named
    }


def _refuse_other_columns(lake: duckdb.DuckDBPyConnection, table: Table) -> None:
    rows = lake.execute(f"SELECT column_name FROM (DESCRIBE {NAME}.main.{table.name})").fetchall()
    if sorted(name for (name,) in rows) != sorted(name for name, _ in table.columns):
        raise QAgentError(
            f"the lake's table {table.name} has other columns than this program's; use the same "
            "qagent-mlx on all machines"
        )


def next_number(connection: duckdb.DuckDBPyConnection) -> int:
    """The number that the next event would get."""
    ((last,),) = connection.execute(
        "SELECT max(last_value) FROM duckdb_sequences() WHERE sequence_name = 'event_ids'"
    ).fetchall()
    ((largest,),) = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()
    return max(int(last or 0), int(largest)) + 1


def continue_numbers(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Give events numbers from ``number`` on, if not larger ones already."""
    start = max(number, next_number(connection))
    connection.execute(f"CREATE OR REPLACE SEQUENCE event_ids START {start}")
