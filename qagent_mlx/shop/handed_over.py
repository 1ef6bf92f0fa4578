"""Look at a shop's folder before it is used: it may come from somebody else."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import duckdb

from ..errors import QAgentError

DEPTH = 4  # of folders in a part that hold its files
# What the program itself reads and writes; whatever else lies in the folder is its owner's.
OWN_PARTS = (
    *("shop.json", "shop.duckdb", "shop.duckdb.wal", "exports.jsonl"),
    *("inventory", "journal", "policies", "runs", "scenarios", "summaries"),
)


def refuse_foreign_parts(path: Path) -> None:
    """Refuse links out of the folder, and what is no file: pipes, sockets and devices.

    What is written into a stranger's shop stays in it, and reading it ends.

    Raises:
        QAgentError: a part of the shop is such a thing.
    """
    inside = path.resolve()
    for name in OWN_PARTS:
        for part, mode in _parts(path / name, DEPTH):
            if stat.S_ISLNK(mode) and not part.resolve().is_relative_to(inside):
                raise QAgentError(
                    f"{part} is a link out of the shop's folder; put the files themselves there, "
                    "or mount the place there"
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise QAgentError(
                    f"{part} is no file but a pipe, a socket or a device; remove it, and put a "
                    "copy of the shop's own file there"
                )


def _parts(part: Path, depth: int) -> Iterator[tuple[Path, int]]:
    """A part of a folder and what lies below, each with its mode; nothing where it is not there."""
    try:
        mode = part.lstat().st_mode
        inner = sorted(part.iterdir()) if stat.S_ISDIR(mode) and depth else []
    except OSError:  # it went meanwhile, or may not be read, which its reader will say
        return
    yield part, mode
    for path in inner:
        yield from _parts(path, depth - 1)


def refuse_times(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse times that no log has, which overflow: ingest stores none before 1990 or after 2100.

    Raises:
        QAgentError: there is one.
    """
    tables = connection.execute(
        """SELECT table_name FROM duckdb_columns() WHERE column_name = 'ts'
        AND database_name = current_database() AND data_type = 'TIMESTAMP'
        AND table_name IN ('events', 'impressions', 'recommendations', 'product_history')"""
    ).fetchall()
    for (table,) in tables:
        ((is_sound,),) = connection.execute(
            f"""SELECT coalesce(min(ts) >= TIMESTAMP '1900-01-01'
                AND max(ts) < TIMESTAMP '2200-01-01', true) FROM {table}"""
        ).fetchall()
        if not is_sound:
            raise QAgentError(
                f"{path}/shop.duckdb holds rows of {table} before 1900 or after 2200; delete them, "
                "or make the shop again with qagent init and ingest"
            )
