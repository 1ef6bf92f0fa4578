"""Write what a shop holds to a CSV, JSON lines or Parquet file, for other programs to read.

Columns are called as `ingest` reads them, so what is written here goes into another shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from .errors import QAgentError
from .runs.run import run_names
from .shop.shop import Shop
from .shop.traces import note_export
from .utils.database import literal
from .utils.table_files import check_table_name, write_table


@dataclass(frozen=True, slots=True)
class _Table:
    columns: str
    source: str  # what follows FROM, and the order
    moment: str = ""  # the column of time, where there is one


_ALIASES = """(SELECT string_agg(alias, '|' ORDER BY alias) FROM product_aliases a
    WHERE a.product_id = p.product_id) AS aliases"""
TABLES = {
    "products": _Table(
        f"product_id, title, brand, category, price, in_stock AS stock, attributes, {_ALIASES}",
        "products p {where} ORDER BY product_id",
    ),
    "prices": _Table(
        "product_id, ts AS time, price, in_stock AS stock",
        "product_history {where} ORDER BY product_id, ts",
        "ts",
    ),
    "events": _Table(
        "user_id, ts AS time, type, query, product_id, session_id, {recommendation_id}, {position}",
        "events {where} ORDER BY ts, event_id",
        "ts",
    ),
    "impressions": _Table(
        "user_id, ts AS time, query, product_id, position, query_id",
        "impressions {where} ORDER BY ts, user_id, query_id, position",
        "ts",
    ),
}
OF_USERS = ("events", "impressions")  # tables that tell of people
METRICS = "metrics"  # of training runs, which lie in files of their own


def export_table(
    shop: Shop, name: str, path: Path, since: datetime | None = None, until: datetime | None = None
) -> int:
    """Write one table of a shop to a file, as it is at one moment.

    Args:
        shop: A shop that is open for reading is enough; servers and ingests go on beside it.
        name: A key of `TABLES`, or `METRICS`.
        path: Its ending names the form: .csv, .jsonl or .parquet. It is replaced whole.
        since: Only rows from this moment on (UTC), of tables that have times.
        until: Only rows before this moment.

    Returns:
        The number of rows.

    Raises:
        QAgentError: the ending names no form, or the file cannot be written.
    """
    check_table_name(path)
    if name == METRICS:
        return _export_metrics(shop, path)
    if name == "impressions" and not shop.has_table(name):
        raise QAgentError(f"{shop.path} is of an older version; run any qagent ingest first")
    table = TABLES[name]
    wanted = [
        f"{table.moment} {sign} TIMESTAMP {literal(moment.isoformat())}"
        for sign, moment in ((">=", since), ("<", until))
        if moment is not None
    ]
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    columns = table.columns.format(**_of_answers(shop)) if name == "events" else table.columns
    query = f"SELECT {columns} FROM {table.source.format(where=where)}"
    rows = write_table(shop.connection, query, path)
    if name in OF_USERS:
        note_export(shop.path, path)
    return rows


def _export_metrics(shop: Shop, path: Path) -> int:
    """One row for each step of each run, with the columns of all."""
    files = [shop.folder("runs", name) / "metrics.jsonl" for name in run_names(shop)]
    files = [file for file in files if file.exists() and file.stat().st_size]
    if not files:
        raise QAgentError(f"{shop.path} has no runs with metrics; train with: qagent train sft")
    paths = ", ".join(literal(file) for file in files)
    query = f"""SELECT parse_path(filename)[-2] AS run, * EXCLUDE (filename) FROM read_json(
        [{paths}], format = 'newline_delimited', filename = true, union_by_name = true,
        sample_size = -1)"""
    try:
        return write_table(shop.connection, query, path)
    except duckdb.Error as error:
        line = str(error).splitlines()[0]
        raise QAgentError(f"the metrics of a run cannot be read: {line}") from error


def _of_answers(shop: Shop) -> dict[str, str]:
    """The columns of the answer that an event came of; older shops have none until they change."""
    rows = shop.connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'events'"
    ).fetchall()
    known = {name for (name,) in rows}
    kinds = {"recommendation_id": "VARCHAR", "position": "INTEGER"}
    return {n: n if n in known else f"NULL::{kind} AS {n}" for n, kind in kinds.items()}
