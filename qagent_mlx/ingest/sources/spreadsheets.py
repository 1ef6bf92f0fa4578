"""Read workbooks of Excel and of LibreOffice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import QAgentError
from .archives import check_unpacked_size
from .source import Reading, Source
from .tables import choose_table, has_required, rows_source

if TYPE_CHECKING:
    from python_calamine import CalamineWorkbook

_MAX_HEADER = 20  # rows of a sheet down to the one that names the columns


def workbook_source(reading: Reading, path: Path) -> Source:
    """A sheet of a workbook. Its columns are named by the first row that has the needed ones.

    Raises:
        QAgentError: it is no workbook, or the sheet is not there or not surely meant.
    """
    from python_calamine import CalamineError, CalamineWorkbook

    name = reading.name
    check_unpacked_size(path, name)
    try:
        workbook = CalamineWorkbook.from_path(str(path))
        starts = {title: _start(workbook, title) for title in workbook.sheet_names}
        headers = {title: _header(reading, rows) for title, rows in starts.items() if rows}
        columns = {title: _texts(starts[title][row]) for title, row in headers.items()}
        if not columns:
            raise QAgentError(f"{name} is empty; nothing to ingest")
        sheet, notes = choose_table(reading, columns, "sheet")
        rows = workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=True)
    except (CalamineError, OSError) as error:
        raise QAgentError(f"{name}: not a readable workbook; save it again as .xlsx") from error
    header = headers[sheet]
    if header:
        notes = (*notes, f"{name}: row {header + 1} of {sheet} names the columns")
    return rows_source(reading, rows[header], rows[header + 1 :], notes)


def _start(workbook: CalamineWorkbook, sheet: str) -> list[list[Any]]:
    """The first rows of a sheet."""
    return workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=True, nrows=_MAX_HEADER)


def _header(reading: Reading, rows: list[list[Any]]) -> int:
    """Which row names the columns: there may be a title and a date above it."""
    fitting = (i for i, row in enumerate(rows) if has_required(reading, _texts(row)))
    return next(fitting, 0)


def _texts(row: list[Any]) -> list[str]:
    return [str(value) for value in row]
