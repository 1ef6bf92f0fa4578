"""The file ``shop.duckdb``: opened in UTC, waiting for whoever holds it, and looked at."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.database import open_duckdb
from .schema import ADDED, ADDITIONS

SAME_PROCESS_SECONDS = 5.0  # at most, to wait for another thread of this process


def connect(path: Path, *, read_only: bool, wait: float = 0.0) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection in UTC, with errors that name the remedy.

    Args:
        path: The database's file.
        read_only: Others may read at the same time.
        wait: Seconds to wait for whoever keeps this process out.
    """
    start, pause = time.monotonic(), 0.01
    while True:
        try:
            return _connect(path, read_only=read_only)
        except DatabaseInUse as error:
            most = min(wait, SAME_PROCESS_SECONDS) if error.is_same_process else wait
            left = start + most - time.monotonic()
            if left <= 0:
                raise
        # By chance, so that processes that wait for each other do not meet again and again.
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
        pause = min(pause * 1.5, 0.2)


class DatabaseInUse(QAgentError):
    """The database is held by another process, or by this one."""

    def __init__(self, message: str, *, is_same_process: bool = False) -> None:
        super().__init__(message)
        self.is_same_process = is_same_process


def _connect(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        connection = open_duckdb(path, read_only=read_only)
    except duckdb.IOException as error:
        holder = re.search(r"Conflicting lock is held in (.*?) \(PID (\d+)\)", str(error))
        if holder:
            program, process = Path(holder[1]).name, holder[2]
            # A reader is kept out by a writer only, a writer by readers too.
            doing = "being written to" if read_only else "in use"
            raise DatabaseInUse(
                f"{path.parent} is {doing} by process {process} ({program}); "
                "wait until it ends, or stop it"
            ) from error
        raise _unreadable(path, error) from error
    except duckdb.Error as error:
        if re.search("different configuration|file handle conflict|already attached", str(error)):
            how = "writing" if read_only else "reading"
            raise DatabaseInUse(
                f"{path.parent} is open for {how} in this process already; close that Shop first",
                is_same_process=True,
            ) from error
        raise _unreadable(path, error) from error
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def refuse_views(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse views and macros: those of a stranger's shop could read any file of ours.

    Raises:
        QAgentError: there is one.
    """
    try:
        names = connection.execute(
            """SELECT view_name FROM duckdb_views()
            WHERE NOT internal AND NOT temporary
                AND database_name = current_database()
            UNION ALL SELECT function_name FROM duckdb_functions()
            WHERE NOT internal AND database_name = current_database()"""
        ).fetchall()
    except duckdb.Error as error:
        raise _unreadable(path / "shop.duckdb", error) from error
    if names:
        raise QAgentError(
            f"{path}/shop.duckdb holds the view or macro {names[0][0]!r}, and a shop has none; "
            "drop it, or make the shop again with qagent init and ingest"
        )


def add_missing_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a shop of an older version the tables that were added since."""
    tables = dict(
        connection.execute(
            """SELECT table_name, list(column_name) FROM duckdb_columns()
            WHERE list_contains($names, table_name) GROUP BY table_name""",
            {"names": list(ADDED)},
        ).fetchall()
    )
    is_old = any(column not in tables.get(table, []) for table, column in ADDED.items())
    if "rejects" in tables and is_old:
        connection.execute(f"BEGIN; {ADDITIONS} COMMIT;")


def _unreadable(path: Path, error: duckdb.Error) -> QAgentError:
    if "newer version of DuckDB" in str(error):
        return QAgentError(
            f"{path} was written by a newer DuckDB than {duckdb.__version__}, which is installed "
            "here; run: pip install --upgrade duckdb"
        )
    return QAgentError(
        f"cannot open {path}: {str(error).splitlines()[0]}; "
        "bring back a copy, or make the shop again with qagent init and ingest"
    )
