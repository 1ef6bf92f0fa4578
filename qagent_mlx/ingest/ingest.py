"""Files to typed products and events; rows that do not fit are kept, with reasons.

    file -> `sources` -> ``stage`` (text) -> `products`, `events` -> ``checked`` -> the shop
                                                                 -> ``rejects`` and the report

A file goes in whole or not at all: it is staged as text, checked in SQL, and inserted in one
transaction. Duplicates are skipped, so the same file may be ingested twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import append_rows, literal, more_memory
from ..utils.settings import check
from ..utils.stamps import utc_now
from ..utils.text import clean, query_key
from .columns import ATTRIBUTE, FIELDS
from .events import store_events
from .history import last_event, next_ingest, record_ingest
from .impressions import store_impressions
from .mapping import changed_value
from .options import Kind, Load, ReadOptions
from .parse_fields import attributes_or_mark, category, plain
from .products import contradictions, price_or_nan, store_products
from .recommendations import store_recommendations
from .report import IngestReport, RejectReason, refuse_rejects, remedy, with_progress
from .sources.joining import stage_location
from .sources.locations import Location, locate
from .sources.staging import IGNORED, Staged, leave_out
from .time_formats import fitting_formats, time_remedy
from .understood import notes, understand

RETRY = "retry"  # stands for a file's name where rejected rows are tried again
_PATCH = ATTRIBUTE  # of a rejected row: attributes that leave the others of the product as they are


def ingest_files(
    shop: Shop,
    kind: Kind,
    files: Sequence[str | Path | Location],
    options: ReadOptions | None = None,
) -> IngestReport:
    """Load a kind of rows (`options.Kind`) from files, folders, tables or addresses.

    Each file is one transaction; a file that cannot be read stops the run, with the files
    before it kept. Each is an entry of the shop's history (`history.undo_ingest`).

    Raises:
        QAgentError: a file is missing, empty, cut short, in another encoding, lacks a column, or
            has more bad rows than ``max_rejects`` allows. Nothing of that file is stored.
    """
    options = options or ReadOptions()
    check(options)
    register_functions(shop.connection)
    load = partial(_ingest_location, shop, kind, options=options)
    return ingest_each(locate(files, options.join), load, dry_run=options.dry_run)


def ingest_each(
    locations: Sequence[Location], load: Callable[[Location], IngestReport], *, dry_run: bool
) -> IngestReport:
    """Load places one after the other; returns the sum of the reports.

    Raises:
        QAgentError: what ``load`` has to say of one, with what became of the others.
    """
    total = IngestReport()
    for number, location in enumerate(locations):
        try:
            total += load(location)
        except QAgentError as error:
            names = [other.shown for other in locations]
            raise with_progress(
                error, names[:number], names[number + 1 :], dry_run=dry_run
            ) from error
    return total


def _ingest_location(
    shop: Shop, kind: Kind, location: Location, options: ReadOptions
) -> IngestReport:
    """Load one file in a transaction of its own."""
    try:
        with shop.transaction() as connection:
            staged = stage_location(connection, kind, location, options)
            if staged is None:
                return IngestReport()
            report = _store_file(shop, kind, location, options, staged)
            if options.dry_run:
                raise _DryRun(report)
        return report
    except _DryRun as dry:
        return dry.report
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise QAgentError(
            f"{location.shown}: not enough memory; {more_memory()}, close other programs, or cut "
            "it into smaller files"
        ) from error
    except duckdb.Error as error:
        raise QAgentError(f"{location.shown}: {str(error).splitlines()[0]}") from error


class _DryRun(Exception):
    """Rolls a file's transaction back, with the report of what it would have stored."""

    def __init__(self, report: IngestReport) -> None:
        super().__init__()
        self.report = report


def _store_file(
    shop: Shop, kind: Kind, location: Location, options: ReadOptions, staged: Staged
) -> IngestReport:
    """Store what is staged of a file, and enter it into the shop's history."""
    load = Load(options, frozenset(staged.chosen), next_ingest(shop.connection))
    started, last = utc_now(), last_event(shop.connection)
    report = _store_staged(shop, kind, location.short, load, staged, last)
    path = Path(location.name)
    size = path.stat().st_size if path.is_file() else None
    record_ingest(shop.connection, load, kind, location.short, started, report, size, last)
    return report


def retry_rejected(shop: Shop, options: ReadOptions | None = None) -> IngestReport:
    """Try the rejected rows again, after what they lacked has come in.

    Args:
        options: How to read them this time: the type of all, their times' format, or the field
            that holds another one (``mapping``).
    """
    options = options or ReadOptions()
    check(options)
    total = IngestReport()
    register_functions(shop.connection)
    for kind in get_args(Kind):
        with shop.transaction() as connection:
            # Rows that could not even be split into fields stay where they are.
            retried = "kind = ? AND raw IS NOT NULL AND reason NOT LIKE 'malformed%'"
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE tried AS
                SELECT row_number() OVER (ORDER BY rowid) AS number, json_keys(raw) AS keys, *
                FROM rejects WHERE {retried}""",
                [kind],
            )
            connection.execute(f"DELETE FROM rejects WHERE {retried}", [kind])
            started, last = utc_now(), last_event(connection)
            load = Load(options, frozenset(), next_ingest(connection))
            report = IngestReport()
            key_lists = connection.execute("SELECT DISTINCT keys FROM tried ORDER BY keys")
            for (keys,) in key_lists.fetchall():
                fields = _stage_tried(connection, kind, keys, options)
                if kind == "events":
                    report += IngestReport(ignored=leave_out(connection, "stage", options))
                report += _store_staged(shop, kind, RETRY, replace(load, fields=fields))
            if report.accepted:
                record_ingest(connection, load, kind, RETRY, started, report, None, last)
            # What is rejected again is still a row of its own file; a mapping that did not help
            # does not change it.
            connection.execute(
                f"""UPDATE rejects SET file = t.file, row = t.row, rejected_at = t.rejected_at,
                    ingest_id = t.ingest_id{", raw = t.raw" if options.mapping else ""}
                FROM tried t WHERE rejects.file = '{RETRY}' AND rejects.kind = t.kind
                AND rejects.row = t.number;
                DROP TABLE tried"""
            )
            total += report
    return total


def _stage_tried(
    connection: duckdb.DuckDBPyConnection, kind: Kind, keys: list[str], options: ReadOptions
) -> frozenset[str]:
    """Stage the rejected rows that have these fields; returns the fields."""
    sources = {field: field for field in FIELDS[kind] if field in keys}
    if _PATCH in keys:  # attributes of which the file had only some
        sources["attributes"] = _PATCH
    sources |= {field: key for field, key in options.mapping if field in FIELDS[kind]}

    def text(field: str) -> str:
        if field not in sources:
            return "NULL::VARCHAR"
        path = literal("$." + json.dumps(sources[field]))
        nothing = IGNORED if field == "type" else ""
        return changed_value(field, f"json_extract_string(raw, {path})", options.values, nothing)

    texts = ", ".join(f"{text(field)} AS {field}" for field in FIELDS[kind])
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS
        SELECT number AS row, {texts}, NULL::VARCHAR AS broken FROM tried WHERE keys = ?""",
        [keys],
    )
    return frozenset(_PATCH if key == _PATCH else field for field, key in sources.items())


def append_events(shop: Shop, events: Iterable[dict[str, Any]]) -> IngestReport:
    """Store events given as dicts of the fields of events (``time`` as a datetime or text).

    All or nothing, as one file is.
    """
    register_functions(shop.connection)
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


def append_in_transaction(
    shop: Shop, rows: Iterable[Mapping[str, Any]], kind: Kind = "events"
) -> IngestReport:
    """`append_events`, or the same for products, in a transaction, after `register_functions`."""
    fields = list(FIELDS[kind])
    columns = ", ".join(f"{field} VARCHAR" for field in fields)
    shop.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE stage (row BIGINT, {columns}, broken VARCHAR)"
    )
    staged = (
        (number, *(_text(values.get(field)) for field in fields), None)
        for number, values in enumerate(rows, 1)
    )
    append_rows(shop.connection, "stage", staged)
    # Products come with all that is known of them; aliases stay as they are.
    options = ReadOptions(
        allow_future=True, exact_ids=True, clear=("brand", "category", "price", "attributes")
    )
    load = Load(options, frozenset(fields) - {"aliases"})
    return _store_staged(shop, kind, kind, load)


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if hasattr(value, "isoformat"):
        moment: str = value.isoformat()
        return moment
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # an id that pandas made a float of
    text = str(value)
    # Half characters, as JSON's escapes can make them, are no text to a database.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def register_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Register the Python functions that SQL calls once per distinct value.

    Outside of a transaction: rolled back it would drop them, and where another connection of this
    process has registered them the attempt would abort it.
    """
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
        except (duckdb.NotImplementedException, duckdb.CatalogException):
            return  # registered by an earlier file, or by another thread
    connection.create_function("qa_price", price_or_nan, ["VARCHAR", "BOOLEAN"], "DOUBLE")


_STORE = {
    "products": store_products,
    "events": store_events,
    "impressions": store_impressions,
    "recommendations": store_recommendations,
}


def _store_staged(
    shop: Shop,
    kind: Kind,
    file: str,
    load: Load,
    staged: Staged | None = None,
    last_event_id: int = 0,
) -> IngestReport:
    """Check and store the rows of ``stage``, keep the rejected ones, and report.

    Args:
        staged: How the file was read. Without it the rows come from no file: there is no more to
            say of them, and they may all be rejected.
        last_event_id: Of the log before this load, which ``staged`` is compared with.
    """
    connection = shop.connection
    accepted, duplicates = _STORE[kind](shop, load)
    if staged is not None:
        connection.execute(
            "UPDATE checked SET reason = ? WHERE reason = 'malformed row'", [staged.malformed]
        )
    report = IngestReport(accepted, 0, duplicates)
    if kind == "products":
        report = _count_contradictions(connection, report)
    if kind == "events":
        ((typed,),) = connection.execute("SELECT count(*) FROM typed").fetchall()
        if typed:
            report += IngestReport(ignored={"search while typing": typed})
    rejected = _rejected(connection, kind, file, load)
    if staged is not None:
        report += IngestReport(ignored=staged.ignored)
        refuse_rejects(file, rejected, accepted + duplicates, load, staged.notes)
        understood = understand(connection, kind, file, staged, last_event_id)
        lines = staged.notes + notes(connection, kind, load)
        if not understood.rows:
            lines += (f"{file} holds no rows",)
        report += IngestReport(notes=lines, understood=(understood,))
    if rejected:
        _keep_rejected(connection, kind, file, load)
    connection.execute("DROP TABLE IF EXISTS stage; DROP TABLE IF EXISTS checked;")
    return report + IngestReport(
        rejected=sum(reason.rows for reason in rejected),
        reasons={reason.name: reason.rows for reason in rejected},
        examples=tuple(str(reason) for reason in rejected),
    )


def _count_contradictions(
    connection: duckdb.DuckDBPyConnection, report: IngestReport
) -> IngestReport:
    """The report with rows that a later one contradicts as ignored, not as known already."""
    rows, example = contradictions(connection)
    if not rows:
        return report
    note = f"rows of one product say different things (such as {example}); the last one holds"
    return replace(
        report,
        duplicates=report.duplicates - rows,
        ignored={"contradicted by a later row": rows},
        notes=(note,),
    )


def _rejected(
    connection: duckdb.DuckDBPyConnection, kind: Kind, file: str, load: Load
) -> list[RejectReason]:
    """The reasons of the rows of ``checked`` that are bad, the most frequent first."""
    reasons = connection.execute(
        """SELECT reason, count(*), min(row), arg_min(detail, row) FROM checked
        WHERE reason IS NOT NULL GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    rejected = []
    for name, count, row, detail in reasons:
        source, place = file, f"row {row}"
        if file == RETRY:
            ((source, row),) = connection.execute(
                "SELECT file, row FROM tried WHERE number = ?", [row]
            ).fetchall()
            place = f"row {row}"
        elif load.options.preset is not None:
            place = _described(connection, kind, row)
        shown = clean(str(detail))[:60] if detail else ""
        helps = remedy(name, load.fields)
        if name == "unparseable time":
            given = load.options.time_format
            helps = time_remedy(fitting_formats(connection), given) or helps
        rejected.append(RejectReason(name, count, source, place, shown, helps))
    return rejected


def _described(connection: duckdb.DuckDBPyConnection, kind: Kind, row: int) -> str:
    """A row of ``checked`` by its contents: what a preset makes of a file has other numbers."""
    names = ["product_id"] if kind == "products" else ["user_id", "time", "product_id"]
    (values,) = connection.execute(
        f"SELECT {', '.join(names)} FROM checked WHERE row = ? LIMIT 1", [row]
    ).fetchall()
    words = {"user_id": "of user", "time": "at", "product_id": "with product"}
    if kind == "products":
        words = {"product_id": "called"}
    texts = [
        f"{words[name]} {clean(str(text))[:60]}"
        for name, text in zip(names, values, strict=True)
        if text
    ]
    return " ".join([kind.removesuffix("s"), *texts])


def _keep_rejected(
    connection: duckdb.DuckDBPyConnection, kind: Kind, file: str, load: Load
) -> None:
    """Add the bad rows of ``checked`` to ``rejects``, with the fields that the file has."""
    raw = ", ".join(f"{literal(name)}, {sql}" for name, sql in _raw_fields(kind, load).items())
    connection.execute(
        f"""INSERT INTO rejects (file, row, kind, reason, raw, ingest_id)
        SELECT file, row, kind, reason, raw, $3 FROM (
            SELECT $1 AS file, row, $2 AS kind, reason,
                   coalesce(broken, json_object({raw})::VARCHAR) AS raw
            FROM checked WHERE reason IS NOT NULL) c
        ANTI JOIN rejects r USING (file, row, kind, reason, raw) ORDER BY row""",
        [file, kind, load.ingest_id],
    )


def _raw_fields(kind: Kind, load: Load) -> dict[str, str]:
    """SQL of a rejected row's fields, readable by `retry_rejected` without the file's options."""
    fields = {field: field for field in FIELDS[kind] if field in load.fields}
    if "attributes" not in fields and any(name.startswith(ATTRIBUTE) for name in load.fields):
        fields[_PATCH] = "attributes"
    if load.options.event_type and kind == "events":
        fields["type"] = f"coalesce(nullif(trim(type), ''), {literal(load.options.event_type)})"
    joined = "time_of_day" in fields
    for field, parsed in (("time", "ts"), ("click_time", "click_ts")):
        if field in fields and (load.options.time_format or (joined and field == "time")):
            fields[field] = f"coalesce({parsed}::VARCHAR, {field})"
    if joined:
        fields["time_of_day"] = "CASE WHEN ts IS NULL THEN time_of_day END"
    return fields
