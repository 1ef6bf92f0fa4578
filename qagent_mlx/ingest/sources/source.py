"""What all kinds of files and tables are read as: something that SQL can select from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ...utils.database import identifier
from ..options import Kind, ReadOptions

MAX_LINE = 16 << 20  # bytes of a line, or of an element of a JSON array


def json_or_null(column: str) -> str:
    """A text column as JSON, NULL where it holds none."""
    return f"try_cast({identifier(column)} AS JSON)"


@dataclass(frozen=True, slots=True)
class Source:
    """A file as something that SQL can select from."""

    columns: Sequence[str]
    relation: str  # behind FROM
    parameters: Sequence[Any] = ()
    text: Callable[[str], str] = identifier  # a column as a SQL text
    json: Callable[[str], str] = json_or_null  # a column as SQL JSON, for paths into it
    row: str = "row_number() OVER ()"
    broken: str = "NULL::VARCHAR"  # the beginning of a row that cannot be split into columns
    malformed: str = "malformed row"  # the reason for such rows
    damaged: str = ""  # the error where reading stops half-way; empty where DuckDB explains it
    finds_broken_rows: bool = False  # whether DuckDB's table of rejects has some
    notes: tuple[str, ...] = ()  # what was decided while it was opened


@dataclass(frozen=True, slots=True)
class Reading:
    """What is being read, into which database, as what, and where temporary files go."""

    connection: duckdb.DuckDBPyConnection
    kind: Kind
    options: ReadOptions
    folder: Path
    name: str  # as the user knows it
    table: str | None = None  # or a sheet, or a member of an archive
