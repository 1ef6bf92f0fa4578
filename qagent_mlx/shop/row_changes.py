"""What a transaction changes in the tables of a database, found by looking at the rows.

Nobody has to say what they change, so nothing is forgotten. Only parts of a table are read that can
have changed: those that DuckDB keeps updates of, or that have lost rows, and what was appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from ..utils.database import copy_parquet, identifier, literal

BLOCK = 2048  # rows of DuckDB's vectors

_Range = tuple[int, int]  # of rowids, both included


@dataclass(frozen=True)
class Table:
    """A table whose changes are followed.

    Attributes:
        columns: Names and types.
        where: SQL; other rows are this database's own.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    where: str = "true"

    @property
    def names(self) -> list[str]:
        """The columns' names, quoted."""
        return [identifier(name) for name, _ in self.columns]

    @property
    def plain(self) -> str:
        """SQL: the columns, of types that every file and catalog knows."""
        return ", ".join(
            f"{name}::VARCHAR AS {name}" if kind.startswith("ENUM") else name
            for name, (_, kind) in zip(self.names, self.columns, strict=True)
        )


@dataclass(frozen=True)
class Rows:
    """Rows that were removed from a table and that were added, as Parquet files, with counts.

    An updated row is in both.
    """

    table: Table
    removed: Path
    added: Path
    removed_rows: int
    added_rows: int


def read_table(connection: duckdb.DuckDBPyConnection, name: str, where: str = "true") -> Table:
    """A table of the database with its columns."""
    rows = connection.execute(
        """SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?
        AND database_name = current_database() AND schema_name = 'main' ORDER BY column_index""",
        [name],
    ).fetchall()
    return Table(name, tuple(rows), where)


class Before:
    """A database as it was before a transaction began.

    Args:
        connection: Will change the tables.
        tables: Those that are followed.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: list[Table]) -> None:
        # Another connection to the same database sees what was committed.
        self._old = connection.cursor()
        self._old.execute("SET TimeZone = 'UTC'")
        self._tables = tables
        self._sizes = {table.name: _size(self._old, table.name) for table in tables}

    def close(self) -> None:
        """Let go of the database."""
        self._old.close()

    def changes(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> list[Rows]:
        """What the connection's transaction has removed and added, as files in a folder."""
        found = (self._changes_of(table, connection, folder) for table in self._tables)
        return [rows for rows in found if rows.removed_rows or rows.added_rows]

    def _changes_of(
        self, table: Table, connection: duckdb.DuckDBPyConnection, folder: Path
    ) -> Rows:
        count, last = self._sizes[table.name]
        blocks = self._changed_blocks(table, connection, count, last)
        is_in = " OR ".join(f"rowid BETWEEN {low} AND {high}" for low, high in _ranges(blocks))
        old = f"SELECT {table.plain} FROM {table.name} WHERE ({is_in or 'false'}) AND {table.where}"
        new = f"""SELECT {table.plain} FROM {table.name}
            WHERE (({is_in or "false"}) AND rowid <= {last} OR rowid > {last}) AND {table.where}"""
        before, after = (folder / f"{table.name}-{name}.parquet" for name in ("old", "new"))
        removed = copy_parquet(self._old, old, before)
        added = copy_parquet(connection, new, after)
        if removed:
            return net_changes(table, before, after, self._old)
        return Rows(table, before, after, removed, added)

    def _changed_blocks(
        self, table: Table, connection: duckdb.DuckDBPyConnection, count: int, last: int
    ) -> list[int]:
        """The blocks of the rows from before of which some are gone or hold other values."""
        groups = _updated_groups(connection, table.name)
        ((now,),) = connection.execute(
            f"SELECT count(*) - (SELECT count(*) FROM {table.name} WHERE rowid > {last}) "
            f"FROM {table.name}"
        ).fetchall()
        where = "true"
        if now == count:
            if not groups:
                return []
            where = " OR ".join(f"rowid BETWEEN {low} AND {high}" for low, high in groups)
        blocks = f"""SELECT rowid // {BLOCK}, count(*), sum(hash({", ".join(table.names)}))
            FROM {table.name} WHERE ({where}) AND rowid <= {last} GROUP BY 1"""
        before = self._old.execute(blocks).fetchall()
        after = connection.execute(blocks).fetchall()
        return sorted({block for block, *_ in set(before) ^ set(after)})


def net_changes(table: Table, old: Path, new: Path, reader: duckdb.DuckDBPyConnection) -> Rows:
    """The rows of one file that are not in another and the other way round, each as often."""
    written = []
    for name, ours, others in (("removed", old, new), ("added", new, old)):
        path = old.with_name(f"{table.name}-{name}.parquet")
        query = f"""FROM read_parquet({literal(ours)})
            EXCEPT ALL FROM read_parquet({literal(others)}) ORDER BY ALL"""
        written.append((path, copy_parquet(reader, query, path)))
    (removed, removed_rows), (added, added_rows) = written
    return Rows(table, removed, added, removed_rows, added_rows)


def apply_rows(connection: duckdb.DuckDBPyConnection, target: str, rows: Rows) -> bool:
    """Remove and add rows in the table ``target``; False where some of the removed are not there.

    Of rows that are there several times, as many go as were removed.
    """
    names = ", ".join(rows.table.names)
    is_same = " AND ".join(f"t.{n} IS NOT DISTINCT FROM r.{n}" for n in rows.table.names)
    if rows.removed_rows:
        gone = f"""SELECT row FROM (
            SELECT t.rowid AS row, r.copies, row_number() OVER (PARTITION BY r.number) AS place
            FROM {target} t JOIN (SELECT *, row_number() OVER () AS number FROM (
                SELECT *, count(*) AS copies FROM read_parquet({literal(rows.removed)})
                GROUP BY ALL)) r ON {is_same}) WHERE place <= copies"""
        ((deleted,),) = connection.execute(
            f"DELETE FROM {target} WHERE rowid IN ({gone})"
        ).fetchall()
        if deleted != rows.removed_rows:
            return False
    if rows.added_rows:
        connection.execute(
            f"INSERT INTO {target} ({names}) "
            f"SELECT {names} FROM read_parquet({literal(rows.added)})"
        )
    return True


def fingerprint(
    connection: duckdb.DuckDBPyConnection, target: str, table: Table
) -> tuple[int, int]:
    """How many rows a table has, and a sum of hashes: the same for the same rows in any order."""
    ((count, total),) = connection.execute(
        f"""SELECT count(*), coalesce(sum(hash({", ".join(table.names)})), 0)
        FROM (SELECT {table.plain} FROM {target} WHERE {table.where})"""
    ).fetchall()
    return int(count), int(total)


def _size(connection: duckdb.DuckDBPyConnection, table: str) -> tuple[int, int]:
    ((count, last),) = connection.execute(
        f"SELECT count(*), coalesce(max(rowid), -1) FROM {table}"
    ).fetchall()
    return count, last


def _updated_groups(connection: duckdb.DuckDBPyConnection, table: str) -> list[_Range]:
    """The row groups of which DuckDB keeps updates, as ranges of rowids."""
    rows = connection.execute(
        f"""SELECT row_group_id, sum(count) FILTER (column_id = 0 AND segment_type <> 'VALIDITY'),
            bool_or(has_updates)
        FROM pragma_storage_info({literal(table)}) GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    groups, start = [], 0
    for _, count, is_updated in rows:
        if is_updated:
            groups.append((start, start + int(count) - 1))
        start += int(count)
    return groups


def _ranges(blocks: list[int]) -> list[_Range]:
    """Neighbouring blocks as one range of rowids each."""
    ranges: list[_Range] = []
    for block in blocks:
        low, high = block * BLOCK, block * BLOCK + BLOCK - 1
        if ranges and ranges[-1][1] == low - 1:
            ranges[-1] = (ranges[-1][0], high)
        else:
            ranges.append((low, high))
    return ranges
