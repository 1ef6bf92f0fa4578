"""Open CSV, JSON Lines and Parquet files as staged tables of text."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import BinaryIO

import duckdb

from ..errors import QAgentError
from ..utils.database import literal
from .columns import _columns, _list, _quote, _select
from .report import ReadOptions

MAX_LINE = 16 << 20
MAX_UNPACKED, MAX_RATIO = 256 << 20, 200  # of a gzip file: bytes, and against its own size


def _stage(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, options: ReadOptions
) -> str:
    """Make the temporary table ``stage``: row, one text column a field, and broken.

    Returns the reason for the rows that are broken.
    """
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    form = suffixes[-2] if zipped and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")
    if not path.exists():
        raise QAgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise QAgentError(f"{path} is a folder; name its files")
    if form in {".csv", ".tsv", ".txt"}:
        _stage_csv(connection, kind, path, zipped, options)
    elif form in {".jsonl", ".ndjson", ".json"}:
        _stage_jsonl(connection, kind, path, zipped, options)
    elif form in {".parquet", ".pq"} and not zipped:
        _stage_parquet(connection, kind, path, options)
    else:
        raise QAgentError(
            f"{path}: cannot tell its form from its name; use .csv, .tsv, .jsonl (also .gz) "
            "or .parquet"
        )
    return "malformed JSON" if form in {".jsonl", ".ndjson", ".json"} else "malformed row"


def _open(path: Path, zipped: bool) -> BinaryIO:
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _encoding(name: str) -> str:
    """The encoding as DuckDB spells it."""
    known = {
        "utf-8": "utf-8",
        "utf-8-sig": "utf-8",
        "ascii": "utf-8",
        "iso8859-1": "latin-1",
        "utf-16": "utf-16",
    }
    try:
        return known[codecs.lookup(name).name]
    except (LookupError, ValueError):
        raise QAgentError(f"--encoding {name}: unknown; use utf-8, latin-1 or utf-16") from None


def _check_text(path: Path, zipped: bool, encoding: str) -> str:
    """Read the file once for what the loader cannot explain; returns the first line.

    Raises:
        QAgentError: unreadable, empty, cut short, in another encoding, or a line too long.
    """
    decoder = codecs.getincrementaldecoder(_encoding(encoding))()
    first, line, since_newline, seen = b"", 1, 0, 0
    try:
        with _open(path, zipped) as file:
            while chunk := file.read(1 << 20):
                if not first:
                    first = chunk
                seen += len(chunk)
                if zipped and seen > MAX_UNPACKED and seen > MAX_RATIO * path.stat().st_size:
                    raise QAgentError(
                        f"{path}: unpacks to over {MAX_RATIO} times its size, as no log does; if "
                        "it is meant so, unpack it yourself (gunzip) and ingest that"
                    )
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    bad = line + chunk[: error.start].count(b"\n")
                    wide = first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                    guess = (
                        "UTF-16, add --encoding utf-16"
                        if wide
                        else ("Latin-1, add --encoding latin-1")
                    )
                    raise QAgentError(
                        f"{path} line {bad}: not {encoding} text "
                        f"(byte 0x{error.object[error.start]:02x}); if it is {guess}"
                    ) from None
                line += chunk.count(b"\n")
                last = chunk.rfind(b"\n")
                head = chunk.find(b"\n")
                longest = since_newline + (head if head >= 0 else len(chunk))
                since_newline = len(chunk) - last - 1 if last >= 0 else longest
                if max(longest, since_newline) > MAX_LINE:
                    raise QAgentError(
                        f"{path} line {line}: a line of over {MAX_LINE >> 20} MiB; "
                        "is this the right file?"
                    )
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise QAgentError(
            f"{path} line {line}: ends inside a character; is it cut short?"
        ) from None
    except (EOFError, zlib.error) as error:
        raise QAgentError(f"{path}: the gzip file is cut short or damaged; get it again") from error
    except gzip.BadGzipFile as error:
        raise QAgentError(f"{path}: not a gzip file; rename it without .gz") from error
    except OSError as error:
        raise QAgentError(f"{path}: {error.strerror or error}") from error
    if not seen or not first.strip():
        raise QAgentError(f"{path} is empty; nothing to ingest")
    text = first.decode(encoding, errors="replace").removeprefix("\ufeff")
    return text


def _stage_csv(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, zipped: bool, options: ReadOptions
) -> None:
    head = _check_text(path, zipped, options.encoding)
    line = head.splitlines()[0]
    if not line.strip():
        raise QAgentError(f"{path} line 1: it is blank; the first line must name the columns")
    delimiter = max(",\t;|", key=line.count)
    try:
        present = [c.strip() for c in next(csv.reader(io.StringIO(head), delimiter=delimiter))]
    except csv.Error as error:
        raise QAgentError(f"{path} line 1: {error}") from error
    present = [c or f"column{i}" for i, c in enumerate(present)]
    twice = sorted({c for c in present if present.count(c) > 1})
    if twice:
        raise QAgentError(f"{path} line 1: the column {_list(twice)} stands there twice")
    chosen = _columns(kind, path, present, options)
    columns = "{" + ", ".join(f"{literal(c)}: 'VARCHAR'" for c in present) + "}"
    for table in ("reject_errors", "reject_scans"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS
        SELECT row_number() OVER () AS row, {_select(kind, chosen, "{}")}, NULL::VARCHAR AS broken
        FROM read_csv(?, auto_detect=false, header=true, columns={columns}, delim=?, quote='"',
             escape='"', encoding=?, compression=?, ignore_errors=true, store_rejects=true,
             rejects_limit=0, max_line_size={MAX_LINE})""",
        [str(path), delimiter, _encoding(options.encoding), "gzip" if zipped else "none"],
    )
    broken = connection.execute(
        """SELECT line, any_value(csv_line), any_value(error_message) FROM reject_errors
        GROUP BY line ORDER BY line"""
    ).fetchall()
    if broken:
        # Broken rows were not numbered: shift the rows behind each of them.
        offsets = [line - 2 - i for i, (line, *_) in enumerate(broken)]
        connection.execute(
            """UPDATE stage SET row = row + k.n FROM (SELECT s.row AS r, count(*) AS n
            FROM stage s JOIN (SELECT unnest(?::BIGINT[]) AS o) ON o < s.row GROUP BY s.row) k
            WHERE stage.row = k.r""",
            [offsets],
        )
        with connection.appender("stage", columns=["row", "broken"]) as appender:
            for line, text, message in broken:
                appender.append_row(line - 1, f"{message} | {(text or '')[:200]}")


def _stage_jsonl(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, zipped: bool, options: ReadOptions
) -> None:
    _check_text(path, zipped, options.encoding)
    # Read as one text column: 0x01 cannot occur inside JSON, so no line is ever split.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE lines AS
        SELECT row_number() OVER () AS row, line FROM read_csv(?, auto_detect=false,
            header=false, columns={{'line': 'VARCHAR'}}, delim='\x01', quote='', escape='',
            encoding=?, compression=?, max_line_size={MAX_LINE})""",
        [str(path), _encoding(options.encoding), "gzip" if zipped else "none"],
    )
    good = "(json_valid(line) AND json_type(line) = 'OBJECT')"
    present = [
        name
        for (name,) in connection.execute(
            f"""SELECT k FROM (SELECT row, unnest(json_keys(line)) AS k FROM lines
            WHERE row <= 10000 AND CASE WHEN json_valid(line) THEN {good} ELSE false END)
            GROUP BY k ORDER BY min(row), k"""
        ).fetchall()
    ]
    if not present:
        raise QAgentError(f"{path}: no line of it is a JSON object; is it one object a line?")
    chosen = _columns(kind, path, present, options)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE parsed AS SELECT row, line, "
        f"CASE WHEN json_valid(line) THEN {good} ELSE false END AS good FROM lines "
        "WHERE trim(line) <> ''"
    )
    fields = [
        (name, f"json_extract_string(line, {literal(_json_path(column))})")
        for name, column in chosen
    ]
    # The expressions stand in for columns: `_select` quotes names, so go through a view.
    inner = ", ".join(f"CASE WHEN good THEN {e} END AS {_quote(n)}" for n, e in fields)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS
        SELECT row, {_select(kind, [(n, n) for n, _ in fields], "{}")},
               CASE WHEN NOT good THEN left(line, 200) END AS broken
        FROM (SELECT row, line, good, {inner} FROM parsed)"""
    )


def _json_path(key: str) -> str:
    # Letters beyond ASCII stay as they are: DuckDB's paths know no \\u escapes.
    return "$." + json.dumps(key, ensure_ascii=False)


def _stage_parquet(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, options: ReadOptions
) -> None:
    try:
        described = connection.execute(
            "DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]
        ).fetchall()
    except duckdb.Error as error:
        raise QAgentError(f"{path}: not a readable Parquet file; write it again") from error
    present = [row[0] for row in described]
    nested = {row[0] for row in described if row[1].startswith(("STRUCT", "MAP"))}
    lists = {row[0] for row in described if row[1].endswith("[]")}
    chosen = _columns(kind, path, present, options)

    def text(column: str) -> str:
        if column in nested:
            return f"to_json({_quote(column)})::VARCHAR"
        if column in lists:
            return f"array_to_string({_quote(column)}, ' > ')"
        return f"{_quote(column)}::VARCHAR"

    inner = ", ".join(f"{text(c)} AS {_quote(n)}" for n, c in chosen)
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE stage AS
            SELECT row, {_select(kind, [(n, n) for n, _ in chosen], "{}")}, NULL::VARCHAR AS broken
            FROM (SELECT row_number() OVER () AS row, {inner} FROM read_parquet(?))""",
            [str(path)],
        )
    except duckdb.Error as error:
        raise QAgentError(f"{path}: damaged Parquet file; write it again") from error
