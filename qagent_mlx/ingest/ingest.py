"""Files to typed products and events; rows that do not fit are kept, with reasons.

    file -> `sources` -> ``stage`` (text) -> `products`, `events` -> ``checked`` -> the shop
                                                                 -> ``rejects`` and the report

A file goes in whole or not at all: it is staged as text, checked in SQL, and inserted in one
transaction. Duplicates are skipped, so the same file may be ingested twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal
from ..utils.settings import check
from ..utils.text import clean, query_key
from .columns import FIELDS
from .events import store_events
from .parse_fields import attributes_or_mark, category, plain
from .products import price_or_nan, store_products
from .report import REMEDIES, IngestReport, Kind, ReadOptions
from .sources.joining import stage_location
from .sources.locations import Location, locate

RETRY = "retry"  # stands for a file's name while rejected rows are tried again


def ingest_files(
    shop: Shop,
    kind: Kind,
    files: Sequence[str | Path | Location],
    options: ReadOptions | None = None,
) -> IngestReport:
    """Load ``products`` or ``events`` from files, folders, tables or addresses.

    Each file is one transaction; a file that cannot be read stops the run, with the files
    before it kept.

    Raises:
        QAgentError: a file is missing, empty, cut short, in another encoding, or lacks a
            column. Nothing of that file is stored.
    """
    options = options or ReadOptions()
    check(options)
    total = IngestReport()
    for location in locate(files, options.join):
        try:
            with shop.transaction() as connection:
                staged = stage_location(connection, kind, location, options)
                if staged is None:
                    continue
                total += _store_staged(shop, kind, location.short, options, staged.malformed)
                total += IngestReport(notes=staged.notes)
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            raise QAgentError(
                f"{location.shown}: not enough memory; close other programs, or cut it into "
                "smaller files"
            ) from error
        except duckdb.Error as error:
            raise QAgentError(f"{location.shown}: {str(error).splitlines()[0]}") from error
    return total


def retry_rejected(shop: Shop) -> IngestReport:
    """Try the rejected rows again, after what they lacked has come in."""
    total = IngestReport()
    kinds: tuple[Kind, ...] = ("products", "events")
    for kind in kinds:
        with shop.transaction() as connection:
            # Rows that could not even be split into fields stay where they are.
            retried = "kind = ? AND raw IS NOT NULL AND reason NOT LIKE 'malformed%'"
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE tried AS
                SELECT row_number() OVER (ORDER BY rowid) AS number, * FROM rejects
                WHERE {retried}""",
                [kind],
            )
            texts = ", ".join(f"json_extract_string(raw, '$.{f}') AS {f}" for f in FIELDS[kind])
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE stage AS
                SELECT number AS row, {texts}, NULL::VARCHAR AS broken FROM tried"""
            )
            connection.execute(f"DELETE FROM rejects WHERE {retried}", [kind])
            total += _store_staged(shop, kind, RETRY, ReadOptions())
            # What is rejected again is still a row of its own file.
            connection.execute(
                f"""UPDATE rejects SET file = t.file, row = t.row, rejected_at = t.rejected_at
                FROM tried t WHERE rejects.file = '{RETRY}' AND rejects.kind = t.kind
                AND rejects.row = t.number;
                DROP TABLE tried"""
            )
    return total


def append_events(shop: Shop, events: Iterable[dict[str, Any]]) -> IngestReport:
    """Store events given as dicts of the fields of events (``time`` as a datetime or text).

    All or nothing, as one file is.
    """
    register_functions(shop.connection)  # outside: a rolled back transaction would drop them
    with shop.transaction():
        return append_in_transaction(shop, events)


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
            report = append_in_transaction(shop, chain.from_iterable(batches))
            if report.rejected or report.duplicates:
                raise _NotAllStored
    except _NotAllStored:
        return [append_events(shop, events) for events in batches]
    return [IngestReport(accepted=len(events)) for events in batches]


class _NotAllStored(Exception):
    """Some event was refused or is a duplicate; rolls the transaction back."""


def append_in_transaction(shop: Shop, events: Iterable[dict[str, Any]]) -> IngestReport:
    """`append_events` inside a transaction, after `register_functions`."""
    fields = list(FIELDS["events"])
    columns = ", ".join(f"{field} VARCHAR" for field in fields)
    shop.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE stage (row BIGINT, {columns}, broken VARCHAR)"
    )
    with shop.connection.appender("stage") as appender:
        for number, values in enumerate(events, 1):
            appender.append_row(number, *(_text(values.get(field)) for field in fields), None)
    return _store_staged(shop, "events", "events", ReadOptions())


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if hasattr(value, "isoformat"):
        moment: str = value.isoformat()
        return moment
    text = str(value)
    # Half characters, as JSON's escapes can make them, are no text to a database.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def register_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Register the Python functions that SQL calls once per distinct value."""
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
    connection.create_function("qa_price", price_or_nan, ["VARCHAR", "BOOLEAN"], "DOUBLE")


def _store_staged(
    shop: Shop, kind: Kind, file: str, options: ReadOptions, malformed: str = "malformed row"
) -> IngestReport:
    """Check and store the rows of ``stage``, keep the rejected ones, and report."""
    connection = shop.connection
    register_functions(connection)
    store = store_products if kind == "products" else store_events
    accepted, duplicates = store(shop, options)
    connection.execute("UPDATE checked SET reason = ? WHERE reason = 'malformed row'", [malformed])
    raw = ", ".join(f"'{field}', {_raw_field(field, options)}" for field in FIELDS[kind])
    connection.execute(
        f"""INSERT INTO rejects (file, row, kind, reason, raw)
        SELECT file, row, kind, reason, raw FROM (
            SELECT ? AS file, row, ? AS kind, reason,
                   coalesce(broken, json_object({raw})::VARCHAR) AS raw
            FROM checked WHERE reason IS NOT NULL) c
        ANTI JOIN rejects r USING (file, row, kind, reason, raw)""",
        [file, kind],
    )
    reasons = connection.execute(
        """SELECT reason, count(*), min(row), arg_min(detail, row) FROM checked
        WHERE reason IS NOT NULL GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    examples = []
    for reason, count, row, detail in reasons:
        place = (file, row)
        if file == RETRY:
            (place,) = connection.execute(
                "SELECT file, row FROM tried WHERE number = ?", [row]
            ).fetchall()
        shown = f" {clean(str(detail))[:60]!r}" if detail else ""
        rows = f" ({count} rows)" if count > 1 else ""
        remedy = REMEDIES.get(reason, "")
        examples.append(f"{place[0]} row {place[1]}: {reason}{shown}{rows}; {remedy}")
    connection.execute("DROP TABLE IF EXISTS stage; DROP TABLE IF EXISTS checked;")
    counts = {reason: count for reason, count, *_ in reasons}
    return IngestReport(accepted, sum(counts.values()), duplicates, counts, tuple(examples))


def _raw_field(field: str, options: ReadOptions) -> str:
    """SQL: a field of a rejected row, readable by `retry_rejected` without the file's options."""
    if field == "type" and options.event_type:
        return f"coalesce(nullif(trim(type), ''), {literal(options.event_type)})"
    parsed = {"time": "ts", "click_time": "click_ts"}.get(field)
    if parsed and options.time_format:
        return f"coalesce({parsed}::VARCHAR, {field})"
    return field
