"""Choose among the tables of a database or the sheets of a workbook, and write rows as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from ...errors import QAgentError
from ...utils.settings import SettingError
from ..columns import choose_columns
from ..mapping import resolve_path
from .source import Reading, Source
from .tabular import delimited_source

SEPARATOR = "::"  # between a file and its table, sheet or member


def has_required(reading: Reading, columns: Iterable[str]) -> bool:
    """Whether columns with these names hold all that products or events need."""
    names = list(columns)
    mapped = (column for _, column in reading.options.mapping)
    names += [c for c in mapped if c not in names and resolve_path(c, names)]
    try:
        choose_columns(reading.kind, Path(), names, reading.options)
    except SettingError:
        return False
    return True


def choose_table(
    reading: Reading, tables: Mapping[str, Sequence[str]], what: str
) -> tuple[str, tuple[str, ...]]:
    """The table that was named, or else the one that holds products or events, and a note.

    Args:
        tables: Columns by the tables' names.
        what: "table" or "sheet".

    Raises:
        QAgentError: there is none, or none that is surely meant.
    """
    kind, name = reading.kind, reading.name
    if not tables:
        raise QAgentError(f"{name} has no {what}")
    if reading.table is not None:
        return _named_table(name, reading.table, tables, what), ()
    if len(tables) == 1:
        return next(iter(tables)), ()
    fitting = [table for table in tables if has_required(reading, tables[table])]
    by_name = [table for table in fitting or tables if table.rpartition(".")[2].lower() == kind]
    chosen = fitting if len(fitting) == 1 else by_name
    if len(chosen) != 1:
        problem = f"{'several' if fitting else 'none'} of its {what}s could be the {kind}"
        listed = list(fitting or tables)
        names = ", ".join(listed[:20]) + (", …" if len(listed) > 20 else "")
        raise QAgentError(
            f"{name}: {problem}; name one, such as {name}{SEPARATOR}{listed[0]} (of {names})"
        )
    others = ", ".join(table for table in list(tables)[:20] if table != chosen[0])
    return chosen[0], (f"{name}: read the {what} {chosen[0]}, not {others}",)


def _named_table(name: str, table: str, tables: Iterable[str], what: str) -> str:
    """The table as it is called."""
    names = list(tables)
    for candidate in names:
        if candidate == table or candidate.lower() == table.lower():
            return candidate
    raise QAgentError(f"{name} has no {what} {table!r}, only {', '.join(names[:20]) or 'none'}")


def rows_source(
    reading: Reading,
    columns: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    notes: tuple[str, ...] = (),
) -> Source:
    """Rows of Python values as a source, by way of a CSV file."""
    path = reading.folder / "rows.csv"
    titles = unique_titles(columns)
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows([_text(value) for value in row] for row in rows)
    return delimited_source(reading.connection, path, titles, notes=notes)


def unique_titles(columns: Sequence[Any]) -> list[str]:
    """Names of columns: those of blank ones are numbered, and so are those that occur again."""
    titles: list[str] = []
    for number, column in enumerate(columns):
        title = _text(column).strip() or f"column{number}"
        titles.append(title if title not in titles else f"{title}_{number}")
    return titles


def _text(value: Any) -> str:
    """A cell as a CSV file has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value).replace("\0", "")
