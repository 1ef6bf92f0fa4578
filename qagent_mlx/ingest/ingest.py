"""Files to typed products and events; rows that do not fit are kept, with reasons.

A file goes in whole or not at all: it is staged as text, checked in SQL, and inserted in
one transaction. Duplicates are skipped, so the same file may be ingested twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..types import EVENT_TYPES
from ..utils.database import literal
from ..utils.text import clean, query_key
from .columns import ALIASES
from .events import _store_events
from .parse_fields import attributes_or_mark, category, plain
from .products import _price, _store_products
from .report import REMEDIES, IngestReport, ReadOptions
from .sources import _stage

RETRY = "retry"


def ingest_files(
    shop: Shop, kind: str, files: Sequence[str | Path], options: ReadOptions | None = None
) -> IngestReport:
    """Load ``products`` or ``events`` from CSV, TSV, JSON lines (all also .gz) or Parquet.

    Each file is one transaction; a file that cannot be read stops the run, with the files
    before it kept.

    Raises:
        QAgentError: a file is missing, empty, cut short, in another encoding, or lacks a
            column. Nothing of that file is stored.
    """
    options = options or ReadOptions()
    if options.event_type is not None and options.event_type not in EVENT_TYPES:
        raise QAgentError(f"--type {options.event_type}: use one of {', '.join(EVENT_TYPES)}")
    total = IngestReport()
    for file in files:
        path = Path(file)
        try:
            with shop.transaction() as connection:
                malformed = _stage(connection, kind, path, options)
                report = _store(shop, kind, path.name, options, malformed)
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            raise QAgentError(
                f"{path}: not enough memory; close other programs, or cut it into smaller files"
            ) from error
        except duckdb.Error as error:
            raise QAgentError(f"{path}: {str(error).splitlines()[0]}") from error
        total.add(report)
    return total


def retry_rejected(shop: Shop) -> IngestReport:
    """Try the rejected rows again, after what they lacked has come in."""
    total = IngestReport()
    for kind in ("products", "events"):
        with shop.transaction() as connection:
            texts = ", ".join(f"json_extract_string(raw, '$.{f}') AS {f}" for f in ALIASES[kind])
            # Rows that could not even be split into fields stay where they are.
            connection.execute(
                """CREATE OR REPLACE TEMP TABLE tried AS
                SELECT row_number() OVER (ORDER BY rowid) AS number, * FROM rejects
                WHERE kind = ? AND raw IS NOT NULL AND reason NOT LIKE 'malformed%'""",
                [kind],
            )
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE stage AS
                SELECT number AS row, {texts}, NULL::VARCHAR AS broken FROM tried"""
            )
            connection.execute(
                "DELETE FROM rejects WHERE kind = ? AND raw IS NOT NULL "
                "AND reason NOT LIKE 'malformed%'",
                [kind],
            )
            total.add(_store(shop, kind, RETRY, ReadOptions()))
            # What is rejected again is still a row of its own file.
            connection.execute(
                f"""UPDATE rejects SET file = t.file, row = t.row, rejected_at = t.rejected_at
                FROM tried t WHERE rejects.file = '{RETRY}' AND rejects.kind = t.kind
                AND rejects.row = t.number"""
            )
            connection.execute("DROP TABLE tried")
    return total


# ---------------------------------------------------------------- reading files


# ---------------------------------------------------------------- checking and storing


def register_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Python functions that run once a distinct value, so that Python and SQL agree."""
    connection.execute("SELECT 1").fetchall()  # a result left half read would be in the way
    for name, function in (
        ("qa_clean", clean),
        ("qa_key", query_key),
        ("qa_plain", plain),
        ("qa_attributes", attributes_or_mark),
        ("qa_category", category),
    ):
        try:
            connection.create_function(name, function, ["VARCHAR"], "VARCHAR")
        except duckdb.NotImplementedException:
            return  # registered by an earlier file
    connection.create_function("qa_price", _price, ["VARCHAR", "BOOLEAN"], "DOUBLE")


def _store(
    shop: Shop, kind: str, name: str, options: ReadOptions, malformed: str = "malformed row"
) -> IngestReport:
    connection = shop.connection
    register_functions(connection)
    if kind == "products":
        accepted, duplicates = _store_products(shop, options)
    else:
        accepted, duplicates = _store_events(shop, options)
    report = IngestReport(accepted=accepted, duplicates=duplicates)
    connection.execute("UPDATE checked SET reason = ? WHERE reason = 'malformed row'", [malformed])
    raw = ", ".join(f"'{f}', {_kept(f, options)}" for f in ALIASES[kind])
    reasons = connection.execute(
        """SELECT reason, count(*), min(row), arg_min(detail, row) FROM checked
        WHERE reason IS NOT NULL GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    connection.execute(
        f"""INSERT INTO rejects (file, row, kind, reason, raw)
        SELECT file, row, kind, reason, raw FROM (
            SELECT ? AS file, row, ? AS kind, reason,
                   coalesce(broken, json_object({raw})::VARCHAR) AS raw
            FROM checked WHERE reason IS NOT NULL) c
        ANTI JOIN rejects r USING (file, row, kind, reason, raw)""",
        [name, kind],
    )
    for reason, count, row, detail in reasons:
        report.reasons[reason] = count
        report.rejected += count
        shown = f" {clean(str(detail))[:60]!r}" if detail else ""
        rows = f" ({count} rows)" if count > 1 else ""
        file = name
        if name == RETRY:
            ((file, row),) = connection.execute(
                "SELECT file, row FROM tried WHERE number = ?", [row]
            ).fetchall()
        report.examples.append(
            f"{file} row {row}: {reason}{shown}{rows}; {REMEDIES.get(reason, '')}"
        )
    connection.execute("DROP TABLE IF EXISTS stage; DROP TABLE IF EXISTS checked;")
    return report


def _kept(name: str, options: ReadOptions) -> str:
    """A field of a rejected row as SQL: readable by `retry_rejected` without the file's options."""
    if name == "type" and options.event_type:
        return f"coalesce(nullif(trim(type), ''), {literal(options.event_type)})"
    parsed = {"time": "ts", "click_time": "click_ts"}.get(name)
    if parsed and options.time_format:
        return f"coalesce({parsed}::VARCHAR, {name})"
    return name


def append_events(shop: Shop, rows: Iterable[dict[str, Any]]) -> IngestReport:
    """Store events given as dicts with the fields of `ALIASES` (``time`` as a datetime or text).

    All or nothing, as one file is.
    """
    register_functions(
        shop.connection
    )  # before the transaction: one that fails would take them away
    with shop.transaction():
        return append(shop, rows)


def append_event_batches(
    shop: Shop, batches: Sequence[Sequence[dict[str, Any]]]
) -> list[IngestReport]:
    """Store several lists of events as `append_events` does, with a report for each.

    Most of the time goes into what a call costs once, so all go in together; only where some
    event is refused or known already is each list stored by itself.
    """
    register_functions(shop.connection)
    try:
        with shop.transaction():
            report = append(shop, chain.from_iterable(batches))
            if report.rejected or report.duplicates:
                raise _NotAllNew
    except _NotAllNew:
        return [append_events(shop, rows) for rows in batches]
    return [IngestReport(accepted=len(rows)) for rows in batches]


class _NotAllNew(Exception):
    """Some event of several lists was refused or is a duplicate; nothing is stored."""


def append(shop: Shop, rows: Iterable[dict[str, Any]]) -> IngestReport:
    """`append_events` inside a transaction, after `register_functions`."""
    fields = list(ALIASES["events"])
    columns = ", ".join(f"{f} VARCHAR" for f in fields)
    shop.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE stage (row BIGINT, {columns}, broken VARCHAR)"
    )
    with shop.connection.appender("stage") as appender:
        for number, values in enumerate(rows, 1):
            appender.append_row(number, *_texts(values, fields), None)
    return _store(shop, "events", "events", ReadOptions())


def _texts(values: dict[str, Any], fields: Sequence[str]) -> Iterator[str | None]:
    for name in fields:
        value = values.get(name)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield None
        elif hasattr(value, "isoformat"):
            yield value.isoformat()
        else:
            text = str(value)
            # Half characters, as JSON's escapes can make them, are no text to a database.
            yield text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
