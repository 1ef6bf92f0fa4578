"""Read CSV, JSON lines and Parquet files."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import duckdb

from ...errors import QAgentError
from ...utils.database import append_rows, identifier, literal
from ..mapping import json_path
from .archives import read_chunks
from .source import MAX_LINE, Source, json_or_null
from .text import TextFile

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_SEPARATOR_LINE = re.compile('"?sep=([,;|\t])"?')  # as Excel writes it


def csv_source(
    connection: duckdb.DuckDBPyConnection, file: TextFile, name: str, folder: Path
) -> Source:
    """A file of text in columns that its first line names."""
    line = file.head.splitlines()[0]
    separator = _SEPARATOR_LINE.fullmatch(line.rstrip())
    if separator:
        file = _without_first_line(file, name, folder)
        line = (file.head.splitlines() or [""])[0]
    if not line.strip():
        raise QAgentError(f"{name} line 1: it is blank; the first line must name the columns")
    delimiter = separator[1] if separator else max(",\t;|", key=line.count)
    try:
        titles = next(csv.reader(io.StringIO(file.head), delimiter=delimiter))
    except csv.Error as error:
        raise QAgentError(f"{name} line 1: {error}") from error
    columns = [title.strip() or f"column{i}" for i, title in enumerate(titles)]
    if _CONTROL.search(line):
        raise QAgentError(
            f"{name} line 1: it holds bytes that are no text; is this the right file?"
        )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise QAgentError(f"{name} line 1: the column {', '.join(twice)} stands there twice")
    return delimited_source(
        connection, file.path, columns, delimiter, file.compression, notes=file.notes
    )


def _without_first_line(file: TextFile, name: str, folder: Path) -> TextFile:
    """A copy of a file without the line by which Excel is told the separator."""
    target = folder / "columns.csv"
    chunks = read_chunks(file.path, file.compression, name)
    with target.open("wb") as output:
        output.write(next(chunks).partition(b"\n")[2])
        output.writelines(chunks)
    head = file.head.partition("\n")[2]
    return replace(file, path=target, compression="none", head=head)


def delimited_source(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    columns: list[str],
    delimiter: str = ",",
    compression: str = "none",
    notes: tuple[str, ...] = (),
) -> Source:
    """A CSV file in UTF-8 with one line of titles, whose columns are known."""
    for table in ("reject_errors", "reject_scans"):  # DuckDB's, see `add_broken_rows`
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
    return Source(
        columns,
        f"""read_csv(?, auto_detect=false, header=true, columns={{{types}}}, delim=?, quote='"',
            escape='"', compression=?, ignore_errors=true, store_rejects=true,
            hive_partitioning=false, rejects_limit=0, max_line_size={MAX_LINE})""",
        [str(path), delimiter, compression],
        finds_broken_rows=True,
        notes=notes,
    )


def add_broken_rows(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """Stage the rows of a CSV file that DuckDB could not split into columns."""
    broken = connection.execute(
        """SELECT line, any_value(csv_line), any_value(error_message) FROM reject_errors
        GROUP BY line ORDER BY line"""
    ).fetchall()
    if not broken:
        return
    # They were not numbered: shift the rows behind each of them.
    connection.execute(
        f"""UPDATE {table} SET row = row + k.n FROM (SELECT s.row AS r, count(*) AS n
        FROM (SELECT DISTINCT row FROM {table}) s JOIN (SELECT unnest(?::BIGINT[]) AS o)
            ON o < s.row GROUP BY s.row) k
        WHERE {table}.row = k.r""",
        [[line - 2 - i for i, (line, *_) in enumerate(broken)]],
    )
    rows = ((line - 1, f"{message} | {(text or '')[:200]}") for line, text, message in broken)
    append_rows(connection, table, rows, columns=("row", "broken"))


def json_lines_source(connection: duckdb.DuckDBPyConnection, file: TextFile, name: str) -> Source:
    """A file of one JSON object a line."""
    # Read as one text column: 0x01 cannot occur inside JSON, so no line is ever split.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE lines AS SELECT row_number() OVER () AS row, line,
            CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END AS good
        FROM read_csv(?, auto_detect=false, header=false, columns={{'line': 'VARCHAR'}},
            delim='\x01', quote='', escape='', compression=?, hive_partitioning=false,
            max_line_size={MAX_LINE})""",
        [str(file.path), file.compression],
    )
    missing = f"{name}: no line of it is a JSON object; is it one object a line?"
    return objects_source(connection, missing, file.notes)


def objects_source(
    connection: duckdb.DuckDBPyConnection, missing: str, notes: tuple[str, ...] = ()
) -> Source:
    """The temporary table ``lines`` (row, line, good) of JSON objects as a source.

    Args:
        missing: The error where no line is an object.
    """
    keys = connection.execute(
        """SELECT k FROM (SELECT row, unnest(json_keys(line)) AS k FROM lines
        WHERE row <= 10000 AND good) GROUP BY k ORDER BY min(row), k"""
    ).fetchall()
    if not keys:
        raise QAgentError(missing)

    def text(key: str) -> str:
        return f"CASE WHEN good THEN json_extract_string(line, {json_path([key])}) END"

    def value(key: str) -> str:
        whole = f"json_extract(line, {json_path([key])})"
        return (
            f"CASE WHEN NOT good THEN NULL WHEN json_type({whole}) = 'VARCHAR' "
            f"THEN try_cast(json_extract_string(line, {json_path([key])}) AS JSON) "
            f"ELSE {whole} END"
        )

    return Source(
        [key for (key,) in keys],
        "lines WHERE trim(line) <> ''",
        text=text,
        json=value,
        row="row",
        broken="CASE WHEN NOT good THEN left(line, 200) END",
        malformed="malformed JSON",
        notes=notes,
    )


def parquet_source(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> Source:
    """A Parquet file."""
    relation = "read_parquet(?, hive_partitioning=false)"
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}", [str(path)]).fetchall()
    except duckdb.Error as error:
        raise QAgentError(f"{name}: not a readable Parquet file; write it again") from error
    types: dict[str, str] = {column: sql_type for column, sql_type, *_ in described}

    def text(column: str) -> str:
        sql, sql_type = identifier(column), types[column]
        if sql_type.startswith(("STRUCT", "MAP")):
            return f"to_json({sql})::VARCHAR"
        if sql_type.endswith("[]"):
            return f"array_to_string({sql}, ' > ')"
        return f"{sql}::VARCHAR"

    def value(column: str) -> str:
        if types[column] in ("VARCHAR", "JSON"):
            return json_or_null(column)
        return f"to_json({identifier(column)})"

    return Source(
        list(types),
        relation,
        [str(path)],
        text,
        value,
        damaged=f"{name}: damaged Parquet file; write it again",
    )
