"""The one place where DuckDB connections are opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from .atomic_files import replacing


def literal(value: Path | str) -> str:
    """A text or a path as SQL, for the places that take no parameter."""
    return "'" + str(value).replace("'", "''") + "'"


def open_duckdb(
    path: Path | str = ":memory:", *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """A connection, in memory by default.

    DuckDB draws a progress bar on stdout while a query takes long; that is where `--json`
    prints its one document, so it is off.
    """
    connection = duckdb.connect(str(path), read_only=read_only)
    # In a notebook without ipywidgets there is no bar, and no switch for it either.
    with suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")
    return connection


def write_parquet(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    values: Sequence[Any] = (),
    options: str = "",
) -> int:
    """Replace ``path`` with a query's rows as Parquet; returns how many there are."""
    with replacing(path) as temporary:
        ((rows,),) = connection.execute(
            f"COPY ({query}) TO {literal(temporary)} (FORMAT parquet{options})", list(values)
        ).fetchall()
    return int(rows)


def epoch_seconds(moment: datetime) -> float:
    """Seconds since 1970 of a naive UTC datetime."""
    return (moment - datetime(1970, 1, 1)).total_seconds()


def fetch_dicts(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of the last query as dicts by column name."""
    names = [column[0] for column in connection.description or []]
    return [dict(zip(names, row, strict=True)) for row in connection.fetchall()]
