"""Open one location as a source, whatever its form."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import QAgentError
from .archives import CHUNK, MAGIC, read_chunks, unpack, unpack_member
from .databases import duckdb_source, postgres_source, sqlite_source
from .documents import document_source, json_layout
from .locations import STDIN, Location, form_of, readable_members
from .query import query_source
from .remote import fetch, file_name, is_address
from .source import Reading, Source
from .spreadsheets import workbook_source
from .tables import SEPARATOR, has_required
from .tabular import csv_source, json_lines_source, parquet_source
from .text import head_of, read_text

_POSTGRES = ("postgresql://", "postgres://")
_COLUMNS = re.compile(rb"^[^\n]*[,;\t]")  # a first line of several columns
_IN_DUCKDB = ("none", "gzip", "zstd")  # compressions that DuckDB reads itself


@dataclass(frozen=True, slots=True)
class _File:
    """A file on this machine, its form and its compression."""

    path: Path
    form: str
    compression: str
    table: str | None = None


def open_source(reading: Reading, location: Location) -> Source:
    """What a location holds, as something that SQL can select from.

    Raises:
        QAgentError: it is missing, damaged, in an unknown form, or not to be had.
    """
    if location.query is not None:
        return query_source(reading, location.query)
    if location.name.startswith(_POSTGRES):
        return postgres_source(replace(reading, table=location.table), location.name)
    file = _local_file(reading, location)
    reading = replace(reading, table=file.table)
    if file.form == "database":
        file = replace(file, form=_sniff(file.path, reading.name) or "sqlite")
    text = file.form in ("csv", "json")
    if file.table is not None and (text or file.form == "parquet"):
        raise QAgentError(f"{reading.name}: {file.form} files have no tables; leave out ::")
    if file.compression not in _IN_DUCKDB or (file.compression != "none" and not text):
        unpacked = unpack(file.path, file.compression, reading.name, reading.folder)
        file = replace(file, path=unpacked, compression="none")
    if text:
        return _text_source(reading, file)
    if file.form == "parquet":
        return parquet_source(reading.connection, file.path, reading.name)
    read = {"workbook": workbook_source, "sqlite": sqlite_source, "duckdb": duckdb_source}
    return read[file.form](reading, file.path)


def _text_source(reading: Reading, file: _File) -> Source:
    connection, name, encoding = reading.connection, reading.name, reading.options.encoding
    layout = None
    if file.form == "json":
        head = head_of(file.path, file.compression, name, encoding)
        layout = json_layout(head, lambda keys: has_required(reading, keys))
    lines = layout is None or layout.form == "lines"
    text = read_text(file.path, file.compression, name, encoding, reading.folder, lines=lines)
    if layout is None:
        return csv_source(connection, text, name, reading.folder)
    if lines:
        return json_lines_source(connection, text, name)
    return document_source(connection, text, layout, name, reading.folder)


def _local_file(reading: Reading, location: Location) -> _File:
    """The location's file, after fetching it or taking it out of its archive."""
    name, path, table = location.name, Path(location.name.removeprefix("file://")), location.table
    if name == STDIN:
        path, name = reading.folder / "stdin", ""
        with path.open("wb") as target:
            shutil.copyfileobj(sys.stdin.buffer, target, CHUNK)
    elif is_address(name):
        path, name = fetch(name, reading.folder), file_name(name)
    form, compression = form_of(name)
    if form is None:
        form, compression = _sniffed(path, reading.name, anything=location.name == STDIN)
    if form == "zip":
        path, member, table = _take_out(path, table, reading, location)
        form, compression = form_of(member)
        if form is None:
            form, compression = _sniffed(path, reading.name, anything=False)
    file = _File(path, form, compression, table or None)
    return _as_it_is(file, reading) if form in ("csv", "json", "workbook") else file


def _take_out(
    path: Path, table: str | None, reading: Reading, location: Location
) -> tuple[Path, str, str]:
    """Unpack the file of an archive that is named, or the only one that can be read.

    Returns its path, its name in the archive, and the table in it that is named.
    """
    member, _, table = (table or "").partition(SEPARATOR)
    if not member:
        members = readable_members(path, reading.name)
        if len(members) != 1:
            raise QAgentError(
                f"{reading.name}: an archive; name the file in it: {location.shown}{SEPARATOR}FILE"
                f" (of {', '.join(members[:20]) or 'none that can be read'})"
            )
        member = members[0]
    return unpack_member(path, member, reading.name, reading.folder), member, table


def _as_it_is(file: _File, reading: Reading) -> _File:
    """The file by its first bytes, where its name says something else."""
    if file.compression != "none":
        return file
    with file.path.open("rb") as opened:
        start = opened.read(512)
    if file.form == "workbook":
        # Some systems export text in columns, or a page of HTML, under the name of a workbook.
        if not start.strip() or b"\0" in start or start.startswith(MAGIC["zip"]):
            return file
        if start.lstrip()[:1] == b"<" or not _COLUMNS.search(start):
            return file
        return replace(file, form="csv")
    if start.startswith(MAGIC["zip"]):
        raise QAgentError(
            f"{reading.name}: not text, but a zip archive or a workbook; rename it to .zip or .xlsx"
        )
    if start.startswith((b"PAR1", b"SQLite format 3\0")):
        return replace(file, form="parquet" if start.startswith(b"PAR1") else "sqlite")
    packed = (c for c, magic in MAGIC.items() if start.startswith(magic))
    return replace(file, compression=next(packed, "none"))


def _sniffed(path: Path, name: str, *, anything: bool) -> tuple[str, str]:
    """Form and compression by a file's first bytes.

    Args:
        anything: Whether bytes that say nothing are taken for CSV.
    """
    with path.open("rb") as file:
        start = file.read(8)
    compression = next((c for c, magic in MAGIC.items() if start.startswith(magic)), "none")
    if compression == "zip":
        return "zip", "none"
    form = _sniff(path, name, compression)
    if form is None and not anything:
        raise QAgentError(
            f"{name}: cannot tell its form from its name; use .csv, .tsv, .jsonl, .json (also "
            ".gz, .zst, .bz2, .zip), .parquet, .xlsx, .sqlite or .duckdb"
        )
    return form or "csv", compression


def _sniff(path: Path, name: str, compression: str = "none") -> str | None:
    start = next(read_chunks(path, compression, name), b"")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"SQLite format 3\0"):
        return "sqlite"
    if start[8:12] == b"DUCK":
        return "duckdb"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text[:1] in (b"{", b"[") else None
