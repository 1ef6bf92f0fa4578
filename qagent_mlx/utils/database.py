"""The one place where DuckDB connections are opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from .atomic_files import replacing
from .process_folder import process_folder

ROWS_AT_ONCE = 10_000  # that `append_rows` hands over, or a reader takes
MEMORY_ENV = "QAGENT_DATABASE_MEMORY"
MEMORY = "1GB"  # of each open database; DuckDB itself would take four fifths of the machine's


def literal(value: Path | str) -> str:
    """A text or a path as SQL, for the places that take no parameter."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name of a column or a table as SQL; names in files of others hold anything."""
    return '"' + name.replace('"', '""') + '"'


def open_duckdb(
    path: Path | str = ":memory:", *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """A connection, in memory by default.

    It holds `MEMORY` of rows, or what ``QAGENT_DATABASE_MEMORY`` says, such as ``4GB``, and keeps
    more in a temporary folder of its own.

    DuckDB draws a progress bar on stdout while a query takes long; that is where `--json`
    prints its one document, so it is off.

    Raises:
        QAgentError: ``QAGENT_DATABASE_MEMORY`` is no amount of memory.
    """
    config: dict[str, Any] = {
        "memory_limit": _memory_limit(),
        "temp_directory": str(_spill_folder(path)),
    }
    connection = duckdb.connect(str(path), read_only=read_only, config=config)
    # In a notebook without ipywidgets there is no bar, and no switch for it either.
    with suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")
    return connection


def _spill_folder(path: Path | str) -> Path:
    """Where a database keeps what it has no memory for.

    Before 2.0, DuckDB's files there have the same names in all databases and processes: two that
    share a folder read each other's rows. Connections to one file are of one database, and have to
    name the same folder.
    """
    if str(path) == ":memory:":
        name = secrets.token_hex(8)
    else:
        name = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:16]
    return process_folder() / f"spilled-{name}"


def _memory_limit() -> str:
    given = os.environ.get(MEMORY_ENV, "").strip() or MEMORY
    amount = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])(i?)B", given, re.IGNORECASE)
    unit = "MGT".index(amount[2].upper()) + 2 if amount else 0
    if not amount or float(amount[1]) * 1000**unit < 1e8:
        raise QAgentError(
            f"{MEMORY_ENV} is {given!r}; it is the memory of a database, 100MB or more, such as 4GB"
        )
    return given


def more_memory() -> str:
    """What to do when a database has too little memory (`duckdb.OutOfMemoryException`)."""
    return f"set {MEMORY_ENV}, which is {_memory_limit()}, to more, such as 4GB"


def write_parquet(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    values: Sequence[Any] = (),
    options: str = "",
) -> int:
    """Replace ``path`` with a query's rows as Parquet; returns how many there are."""
    with replacing(path) as temporary:
        return copy_parquet(connection, query, temporary, values, options)


def copy_parquet(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    values: Sequence[Any] = (),
    options: str = "",
) -> int:
    """Write a query's rows as Parquet to a file that is not to last; returns how many there are."""
    ((rows,),) = connection.execute(
        f"COPY ({query}) TO {literal(path)} (FORMAT parquet{options})", list(values)
    ).fetchall()
    return int(rows)


def append_rows(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    rows: Iterable[Sequence[Any]],
    columns: Sequence[str] | None = None,
) -> None:
    """Append Python rows to a table, many times as fast as `executemany`.

    ``columns`` names those that a row has; all of the table's by default.
    """
    if hasattr(connection, "appender"):  # from DuckDB 2.0 on
        with connection.appender(table, columns=list(columns) if columns else None) as appender:
            for row in rows:
                appender.append_row(*row)
        return
    # A column as one JSON text: before 2.0, DuckDB takes 100 times as long to look at each value.
    names = ", ".join(columns) if columns else "*"
    described = connection.execute(f"SELECT {names} FROM {table} LIMIT 0").description
    assert described is not None
    values = ", ".join(
        f"unnest(from_json(${place}, {literal(json.dumps([str(kind)]))}))"
        for place, (_, kind, *_) in enumerate(described, 1)
    )
    into = f"{table} ({names})" if columns else table
    rows = iter(rows)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        texts = [json.dumps(column, default=_plain) for column in zip(*batch, strict=True)]
        connection.execute(f"INSERT INTO {into} SELECT {values}", texts)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers of numpy, times."""
    return value.item() if hasattr(value, "item") else str(value)


def epoch_seconds(moment: datetime) -> float:
    """Seconds since 1970 of a naive UTC datetime."""
    return (moment - datetime(1970, 1, 1)).total_seconds()


def fetch_dicts(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of the last query as dicts by column name."""
    names = [column[0] for column in connection.description or []]
    return [dict(zip(names, row, strict=True)) for row in connection.fetchall()]
