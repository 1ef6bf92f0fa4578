"""Read workbooks of Excel and of LibreOffice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import QAgentError
from .archives import check_unpacked_size
from .source import Reading, Source
from .tables import choose_table, rows_source

if TYPE_CHECKING:
    from python_calamine import CalamineWorkbook


def workbook_source(reading: Reading, path: Path) -> Source:
    """A sheet of a workbook, whose first row that is not blank names the columns.

    Raises:
        QAgentError: it is no workbook, or the sheet is not there or not surely meant.
    """
    from python_calamine import CalamineError, CalamineWorkbook

    name = reading.name
    check_unpacked_size(path, name)
    try:
        workbook = CalamineWorkbook.from_path(str(path))
        titles = {title: _titles(workbook, title) for title in workbook.sheet_names}
        filled = {title: columns for title, columns in titles.items() if columns} or titles
        sheet, notes = choose_table(reading, filled, "sheet")
        rows = workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=True)
    except (CalamineError, OSError) as error:
        raise QAgentError(f"{name}: not a readable workbook; save it again as .xlsx") from error
    if not rows:
        raise QAgentError(f"{name} is empty; nothing to ingest")
    return rows_source(reading, rows[0], rows[1:], notes)


def _titles(workbook: CalamineWorkbook, sheet: str) -> list[str]:
    rows = workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=True, nrows=1)
    return [str(value) for value in rows[0]] if rows else []
