"""A copy of a shop's database for one connection alone, so that nobody has to wait for it.

The file is copied as it is, which is cheap for large shops too: it is read as it is needed, and
where `cp` lets files share blocks (Linux's on Btrfs and XFS) the copy costs nothing. Where that
cannot be done its rows are copied into memory.
"""

from __future__ import annotations

import logging
import secrets
import subprocess
from pathlib import Path

import duckdb

from ..utils.database import identifier, literal, open_duckdb
from .schema import NOT_IN_SNAPSHOTS

log = logging.getLogger("qagent.shop")

_FILE, _COPY = "shop_file", "snapshot"  # names of the databases


def take_snapshot(reader: duckdb.DuckDBPyConnection, path: Path) -> duckdb.DuckDBPyConnection:
    """A connection to a copy of a database; what it changes stays there.

    Args:
        reader: Reads the database, so nobody writes to it meanwhile; it is closed.
        path: The database's file.
    """
    connection = open_duckdb()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        if not _copy_file(connection, path):
            _copy_rows(connection, path)
    except BaseException:
        connection.close()
        raise
    reader.close()
    return connection


def _copy_file(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Copy the file beside itself and open the copy, which has no name from then on.

    Returns:
        False where that was not possible, with everything as it was.
    """
    if Path(f"{path}.wal").exists():
        return False  # a part of the database is in there
    # A process that is killed in the middle leaves a name that `clear_leftovers` knows.
    copy = path.with_name(f".{secrets.token_hex(6)}-snapshot.duckdb")
    try:
        # Another process has to read it: a process that closes the file, however it opened it,
        # gives up all of its locks on it.
        command = ["cp", str(path.absolute()), str(copy.absolute())]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        connection.execute(f"ATTACH {literal(copy)} AS {_COPY} (RECOVERY_MODE no_wal_writes)")
        connection.execute(f"USE {_COPY}")
        for table in _tables(connection, _COPY):
            if table in NOT_IN_SNAPSHOTS:
                connection.execute(f"DELETE FROM {table}")
    except (OSError, subprocess.CalledProcessError, duckdb.Error) as error:
        log.debug("%s is copied into memory: %s", path, error)
        return False
    finally:
        copy.unlink(missing_ok=True)
    return True


def _copy_rows(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Copy the rows of the file into the connection's database in memory."""
    connection.execute(f"USE memory; ATTACH {literal(path)} AS {_FILE} (READ_ONLY)")
    connection.execute(f"COPY FROM DATABASE {_FILE} TO memory (SCHEMA)")
    for table in _tables(connection, _FILE):
        if table not in NOT_IN_SNAPSHOTS:
            name = identifier(table)
            connection.execute(f"INSERT INTO memory.main.{name} FROM {_FILE}.main.{name}")
    connection.execute(f"DETACH {_FILE}")


def _tables(connection: duckdb.DuckDBPyConnection, database: str) -> list[str]:
    rows = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND NOT temporary",
        [database],
    ).fetchall()
    return [table for (table,) in rows]
