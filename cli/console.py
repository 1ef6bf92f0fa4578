"""Output of the commands: consoles, tables, spinners, and one JSON document on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_hushed = False


def hush() -> None:
    """Print no progress and no notes from now on: another process of this run does."""
    global _hushed
    _hushed = True


def _console(stream: Any) -> Console:
    from rich.console import Console

    from qagent_mlx.utils.text import strip_control_characters

    class Plain(Console):
        """Obeys no control characters in a text."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(strip_control_characters(text), **options)

    # A notebook's cell says that it is a terminal, and keeps every frame of an animation.
    notebook = stream is sys.stderr and "JPY_PARENT_PID" in os.environ
    # Data is printed as it is: no markup, no emoji codes, no colouring of numbers.
    return Plain(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        quiet=_hushed and stream is sys.stderr,
        force_terminal=False if notebook else None,
    )


def out() -> Console:
    """The console on stdout, for results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console on stderr, for progress and notes."""
    return _console(sys.stderr)


def say(text: Any, style: str = "") -> None:
    """Print one line on stdout; a terminal wraps it."""
    out().print(safe(text, style), soft_wrap=True)


def note(text: str) -> None:
    """Print one line about progress on stderr."""
    err().print(safe(text), soft_wrap=True)


def safe(value: Any, style: str = "") -> Text:
    """Text that is safe on a terminal: without control and direction characters."""
    from rich.text import Text

    from qagent_mlx.utils.text import clean

    # Two spaces are a gap between columns; `clean` alone would close it.
    return Text("  ".join(clean(part) for part in str(value).split("  ")), style=style)


def short(text: str, width: int) -> str:
    """The text, cut to a number of characters."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Sequence[str] = (),
    wide: str = "",
    widths: Mapping[str, int] | None = None,
    cut: bool = False,
) -> None:
    """Print a table without frames, readable at 80 columns and without colour.

    Args:
        columns: Headings; where all are empty there is no heading.
        rows: Cells are made safe, unless they are rich's own.
        numbers: Columns that are aligned to the right.
        wide: The column that takes the room that is left.
        widths: The most characters of columns.
        cut: Cells of the wide column end in "…" where the room ends, instead of going on below.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.show_header = any(columns)
    for column in columns:
        table.add_column(
            safe(column),
            justify="right" if column in numbers else "left",
            ratio=1 if column and column == wide else None,
            max_width=(widths or {}).get(column),
            no_wrap=cut and column != wide,
        )
    for row in rows:
        cells = [cell if isinstance(cell, Text) else safe(cell) for cell in row]
        if cut:  # the cell, as a column that may not wrap takes its room from the others
            cell = cells[columns.index(wide)]
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    out().print(table)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a spinner on stderr, where that is a terminal."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(safe(text)):
        yield


def emit(document: Any) -> None:
    """Print one JSON document on stdout."""
    from qagent_mlx.utils.text import escape_control_characters

    text = json.dumps(
        _plain(document), indent=2, ensure_ascii=not writes_unicode(), allow_nan=False
    )
    click.echo(escape_control_characters(text))


def writes_unicode() -> bool:
    """Whether stdout can write every character."""
    return "utf" in (sys.stdout.encoding or "").lower()


def _plain(value: Any) -> Any:
    """The value in JSON's types; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value)
