"""Tell which usual format times are in that cannot be read without one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import duckdb

from ..utils.database import literal

_DAYS = """%d.%m.%Y %d/%m/%Y %m/%d/%Y %d-%m-%Y %m-%d-%Y %Y.%m.%d %Y/%m/%d %d.%m.%y %d/%m/%y
    %m/%d/%y""".split()  # noqa: SIM905
_DAYS += ["%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"]
_HOURS = ["", *(f" {hour}" for hour in ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f"))]
_HOURS += [" %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S", ", %I:%M %p", ", %I:%M:%S %p"]
_ZONED = [" %H:%M", " %H:%M:%S", " %H:%M:%S.%f", ", %H:%M", ", %H:%M:%S"]
_HOURS += [
    hour + zone for hour, zone in product(_ZONED, ("%z", " %z", " %Z"))
]  # +02:00, Europe/Rome
_FORMATS = tuple(day + hour for day, hour in product(_DAYS, _HOURS))
_SAMPLE = 1000  # values; the last ones, as days beyond the twelfth tell days from months


def fitting_formats(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The usual formats that read all times of ``checked`` that no format was needed for."""
    counts = ", ".join(f"count(try_strptime(time_text, {literal(f)}))" for f in _FORMATS)
    (row,) = connection.execute(
        f"""SELECT count(*), {counts} FROM (
            SELECT DISTINCT time_text FROM checked
            WHERE reason = 'unparseable time' AND ts IS NULL ORDER BY time_text DESC
            LIMIT {_SAMPLE})"""
    ).fetchall()
    total, *parsed = row
    return [f for f, count in zip(_FORMATS, parsed, strict=True) if total and count == total]


def time_remedy(formats: Sequence[str], given: str | None = None) -> str:
    """What helps against times that these formats read; empty where nothing is known.

    Args:
        given: The format by which they could not be read.
    """
    own = f"the format that was given, {given!r}, does not read it" if given else ""
    if not formats:
        hint = "leave out `time_format` for ISO 8601 and epoch seconds"
        return own and f"{own}; {hint}"
    own = own or "its times have a format of their own"
    which = "" if len(formats) == 1 else ", and you know which"
    return f"{own}{which}: `time_format` {' or '.join(map(repr, formats))}"
