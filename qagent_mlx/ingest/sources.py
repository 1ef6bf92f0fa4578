"""Open CSV, JSON Lines and Parquet files as the staged table of text."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..utils.database import literal
from ..utils.settings import SettingError
from .columns import choose_columns, quote, select_fields
from .report import Kind, ReadOptions

MAX_LINE = 16 << 20  # bytes
MAX_UNPACKED, MAX_RATIO = 256 << 20, 200  # of a gzip file: bytes, and against its own size

_FORMS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8",
    "ascii": "utf-8",
    "iso8859-1": "latin-1",
    "utf-16": "utf-16",
}  # Python's names, to DuckDB's


@dataclass(frozen=True, slots=True)
class Source:
    """A file as something that SQL can select from."""

    columns: Sequence[str]
    relation: str  # behind FROM
    parameters: Sequence[Any] = ()
    text: Callable[[str], str] = quote  # a column as a SQL text
    row: str = "row_number() OVER ()"
    broken: str = "NULL::VARCHAR"  # the beginning of a row that cannot be split into columns


def stage_file(
    connection: duckdb.DuckDBPyConnection, kind: Kind, path: Path, options: ReadOptions
) -> str:
    """Create the temporary table ``stage``: row, one text column per field, and broken.

    Returns the reason for the rows that are broken; errors name the remedy.
    """
    name = path.name.lower()
    zipped = name.endswith(".gz")
    form = _FORMS.get(Path(name.removesuffix(".gz")).suffix)
    if not path.exists():
        raise QAgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise QAgentError(f"{path} is a folder; name its files")
    if form is None or (form == "parquet" and zipped):
        raise QAgentError(
            f"{path}: cannot tell its form from its name; use .csv, .tsv, .jsonl (also .gz) "
            "or .parquet"
        )
    if form == "parquet":
        source = _parquet_source(connection, path)
    else:
        head = _check_text(path, zipped, options.encoding)
        encoding = [_duckdb_encoding(options.encoding), "gzip" if zipped else "none"]
        if form == "csv":
            source = _csv_source(connection, path, head, encoding)
        else:
            source = _json_lines_source(connection, path, encoding)
    chosen = choose_columns(kind, path, source.columns, options)
    texts = ", ".join(f"{source.text(column)} AS {quote(f)}" for f, column in chosen.items())
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE stage AS
            SELECT row, {select_fields(kind, chosen)}, broken FROM (
                SELECT {source.row} AS row, {source.broken} AS broken, {texts}
                FROM {source.relation})""",
            source.parameters,
        )
    except duckdb.Error as error:
        if form == "parquet":
            raise QAgentError(f"{path}: damaged Parquet file; write it again") from error
        raise
    if form == "csv":
        _add_broken_rows(connection)
    return "malformed JSON" if form == "jsonl" else "malformed row"


def _duckdb_encoding(name: str) -> str:
    try:
        return _ENCODINGS[codecs.lookup(name).name]
    except (LookupError, ValueError):
        raise SettingError("encoding", f"must be utf-8, latin-1 or utf-16, not {name!r}") from None


def _check_text(path: Path, zipped: bool, encoding: str) -> str:
    """Read the whole file once, for errors that DuckDB cannot explain; returns its beginning.

    Raises:
        QAgentError: unreadable, empty, cut short, in another encoding, or a line too long.
    """
    decoder = codecs.getincrementaldecoder(_duckdb_encoding(encoding))()
    first, line, line_length = b"", 1, 0
    for chunk in _chunks(path, zipped):
        first = first or chunk
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            line += chunk[: error.start].count(b"\n")
            wide = first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            guess = "UTF-16" if wide else "Latin-1"
            raise QAgentError(
                f"{path} line {line}: not {encoding} text (byte "
                f"0x{error.object[error.start]:02x}); if it is {guess}, give the encoding "
                f"{guess.lower()}"
            ) from None
        lines = chunk.count(b"\n")
        line += lines
        longest = line_length + (chunk.find(b"\n") if lines else len(chunk))
        line_length = len(chunk) - chunk.rfind(b"\n") - 1 if lines else longest
        if max(longest, line_length) > MAX_LINE:
            raise QAgentError(
                f"{path} line {line}: a line of over {MAX_LINE >> 20} MiB; is this the right file?"
            )
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise QAgentError(
            f"{path} line {line}: ends inside a character; is it cut short?"
        ) from None
    if not first.strip():
        raise QAgentError(f"{path} is empty; nothing to ingest")
    return first.decode(encoding, errors="replace").removeprefix("\ufeff")


def _chunks(path: Path, zipped: bool) -> Iterator[bytes]:
    """The file's bytes, unpacked, a MiB at a time."""
    try:
        limit = max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size) if zipped else math.inf
        size = 0
        with gzip.open(path) if zipped else path.open("rb") as file:
            while chunk := file.read(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise QAgentError(
                        f"{path}: unpacks to over {MAX_RATIO} times its size, as no log does; if "
                        "it is meant so, unpack it yourself (gunzip) and ingest that"
                    )
                yield chunk
    except (EOFError, zlib.error) as error:
        raise QAgentError(f"{path}: the gzip file is cut short or damaged; get it again") from error
    except gzip.BadGzipFile as error:
        raise QAgentError(f"{path}: not a gzip file; rename it without .gz") from error
    except OSError as error:
        raise QAgentError(f"{path}: {error.strerror or error}") from error


def _csv_source(
    connection: duckdb.DuckDBPyConnection, path: Path, head: str, encoding: list[str]
) -> Source:
    line = head.splitlines()[0]
    if not line.strip():
        raise QAgentError(f"{path} line 1: it is blank; the first line must name the columns")
    delimiter = max(",\t;|", key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader(io.StringIO(head), delimiter=delimiter))]
    except csv.Error as error:
        raise QAgentError(f"{path} line 1: {error}") from error
    names = [name or f"column{i}" for i, name in enumerate(names)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QAgentError(f"{path} line 1: the column {', '.join(twice)} stands there twice")
    for table in ("reject_errors", "reject_scans"):  # DuckDB's, see `_add_broken_rows`
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    return Source(
        names,
        f"""read_csv(?, auto_detect=false, header=true, columns={{{columns}}}, delim=?, quote='"',
            escape='"', encoding=?, compression=?, ignore_errors=true, store_rejects=true,
            rejects_limit=0, max_line_size={MAX_LINE})""",
        [str(path), delimiter, *encoding],
    )


def _add_broken_rows(connection: duckdb.DuckDBPyConnection) -> None:
    """Stage the rows of a CSV file that DuckDB could not split into columns."""
    broken = connection.execute(
        """SELECT line, any_value(csv_line), any_value(error_message) FROM reject_errors
        GROUP BY line ORDER BY line"""
    ).fetchall()
    if not broken:
        return
    # They were not numbered: shift the rows behind each of them.
    connection.execute(
        """UPDATE stage SET row = row + k.n FROM (SELECT s.row AS r, count(*) AS n
        FROM stage s JOIN (SELECT unnest(?::BIGINT[]) AS o) ON o < s.row GROUP BY s.row) k
        WHERE stage.row = k.r""",
        [[line - 2 - i for i, (line, *_) in enumerate(broken)]],
    )
    with connection.appender("stage", columns=["row", "broken"]) as appender:
        for line, text, message in broken:
            appender.append_row(line - 1, f"{message} | {(text or '')[:200]}")


def _json_lines_source(
    connection: duckdb.DuckDBPyConnection, path: Path, encoding: list[str]
) -> Source:
    # Read as one text column: 0x01 cannot occur inside JSON, so no line is ever split.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE lines AS SELECT row_number() OVER () AS row, line,
            CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END AS good
        FROM read_csv(?, auto_detect=false, header=false, columns={{'line': 'VARCHAR'}},
            delim='\x01', quote='', escape='', encoding=?, compression=?,
            max_line_size={MAX_LINE})""",
        [str(path), *encoding],
    )
    keys = connection.execute(
        """SELECT k FROM (SELECT row, unnest(json_keys(line)) AS k FROM lines
        WHERE row <= 10000 AND good) GROUP BY k ORDER BY min(row), k"""
    ).fetchall()
    if not keys:
        raise QAgentError(f"{path}: no line of it is a JSON object; is it one object a line?")

    def text(key: str) -> str:
        # Letters beyond ASCII stay as they are: DuckDB's paths know no \\u escapes.
        place = literal("$." + json.dumps(key, ensure_ascii=False))
        return f"CASE WHEN good THEN json_extract_string(line, {place}) END"

    return Source(
        [key for (key,) in keys],
        "lines WHERE trim(line) <> ''",
        text=text,
        row="row",
        broken="CASE WHEN NOT good THEN left(line, 200) END",
    )


def _parquet_source(connection: duckdb.DuckDBPyConnection, path: Path) -> Source:
    try:
        described = connection.execute(
            "DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]
        ).fetchall()
    except duckdb.Error as error:
        raise QAgentError(f"{path}: not a readable Parquet file; write it again") from error
    types: dict[str, str] = {name: sql_type for name, sql_type, *_ in described}

    def text(column: str) -> str:
        name, sql_type = quote(column), types[column]
        if sql_type.startswith(("STRUCT", "MAP")):
            return f"to_json({name})::VARCHAR"
        if sql_type.endswith("[]"):
            return f"array_to_string({name}, ' > ')"
        return f"{name}::VARCHAR"

    return Source(list(types), "read_parquet(?)", [str(path)], text)
