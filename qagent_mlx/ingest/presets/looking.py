"""What the beginning of a file says about it: its form, its columns, its first record."""

from __future__ import annotations

import codecs
import csv
import json
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from ...errors import QAgentError
from ...utils.database import more_memory
from ..sources.archives import MAGIC, read_chunks
from ..sources.documents import cut_out_list, is_json, json_layout
from ..sources.text import TextFile, read_text
from .raw_files import (
    BULK_ACTIONS,
    RawFile,
    check_whole,
    csv_relation,
    json_objects,
    parquet_relation,
)

# Lists of records that may be all that a file's one object holds, and keys of records that have
# lists of their own.
_LISTS = ("events", "batch", "data", "visits", "orders", "results", "rows", "hits.hits")
_RECORDS = frozenset(("session", "event_name", "user_history", "idVisit", "messageId", "type"))


def look_at(
    connection: duckdb.DuckDBPyConnection, path: Path, readable: Path, folder: Path
) -> RawFile:
    """Tell a file's form, columns and first record from its beginning.

    Args:
        path: What the user calls it.
        readable: Where its bytes are.
        folder: For a copy in UTF-8, where it is in another encoding.

    Raises:
        QAgentError: it cannot be opened or unpacked.
    """
    try:
        with readable.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise QAgentError(f"{path}: {error.strerror or error}") from error
    # DuckDB reads these two; zip and bz2 files were unpacked before.
    compression = next((c for c in ("gzip", "zstd") if head.startswith(MAGIC[c])), "none")
    file = RawFile(path, compression=compression, readable=readable)
    try:
        if head.startswith(b"PAR1"):
            return _look_at_parquet(connection, file)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return _look_at_text(connection, in_utf8(file, folder), folder)
        if b"\0" in head and compression == "none":
            return file  # a database, a workbook, a picture
        return _look_at_text(connection, file, folder)
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise QAgentError(
            f"{path}: not enough memory to read one value of it; {more_memory()}, or split it"
        ) from error
    except UnicodeDecodeError:
        with suppress(QAgentError, duckdb.Error, csv.Error, ValueError, IndexError):
            return _look_at_text(connection, in_utf8(file, folder), folder)
    except (QAgentError, duckdb.Error, csv.Error, ValueError, IndexError):
        check_whole(file)  # else it is of no form that a preset reads
    return file


def in_utf8(file: RawFile, folder: Path) -> RawFile:
    """The file, or a copy of it in UTF-8; Windows-1252 and UTF-16 are recognised.

    Raises:
        QAgentError: it is text of another encoding, or none.
    """
    own = Path(tempfile.mkdtemp(dir=folder))
    text = read_text(
        file.readable, file.compression, str(file.path), "utf-8", own, lines=file.form == "csv"
    )
    return replace(file, readable=text.path, compression=text.compression)


def _look_at_parquet(connection: duckdb.DuckDBPyConnection, file: RawFile) -> RawFile:
    described = connection.execute(f"DESCRIBE FROM {parquet_relation(file)}").fetchall()
    types = {row[0]: row[1] for row in described}
    return replace(file, form="parquet", columns=tuple(types), record=types)


def _look_at_text(connection: duckdb.DuckDBPyConnection, file: RawFile, folder: Path) -> RawFile:
    head = next(read_chunks(file.readable, file.compression, str(file.path)), b"")
    text = codecs.getincrementaldecoder("utf-8")().decode(head).removeprefix("\ufeff")
    if text.lstrip()[:1] in ("{", "["):
        return _look_at_json(connection, file, text, folder)
    text = text.lstrip()
    if text[:1] == "<":
        return replace(file, form="xml", record={"head": text[:4096]})
    header = text.splitlines()[0]
    delimiter = max(",\t;|", key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    columns = tuple(_unique([name or f"column{i}" for i, name in enumerate(names)]))
    file = replace(file, form="csv", columns=columns, delimiter=delimiter)
    first = None
    with suppress(duckdb.InvalidInputException):  # said when it is read, as whose file it is
        first = connection.execute(f"SELECT * FROM {csv_relation(file)} LIMIT 1").fetchone()
    connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    return replace(file, record=dict(zip(columns, first or (), strict=False)))


def _unique(names: Sequence[str]) -> list[str]:
    """Names of columns, the second of two equal ones with a number behind."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name.lower()] = count = seen.get(name.lower(), 0) + 1
        unique.append(name if count == 1 else f"{name} {count}")
    return unique


def _look_at_json(
    connection: duckdb.DuckDBPyConnection, file: RawFile, head: str, folder: Path
) -> RawFile:
    layout = json_layout(head, lambda keys: not _RECORDS.isdisjoint(keys))
    if layout.list_name in _LISTS:
        text = TextFile(file.readable, file.compression, head)
        own = Path(tempfile.mkdtemp(dir=folder))
        text = cut_out_list(text, layout, str(file.path), own)
        file = replace(file, readable=text.path, compression=text.compression)
    first, _, rest = head.lstrip().partition("\n")
    is_lines = layout.form == "lines" and (is_json(first) or is_json(rest.partition("\n")[0]))
    file = replace(file, is_lines=is_lines)
    reader = json_objects(replace(file, skips_broken=is_lines))
    texts = connection.execute(
        f"SELECT json FROM {reader} WHERE json IS NOT NULL LIMIT 20"
    ).fetchall()
    container, records = unwrap([json.loads(text) for (text,) in texts])
    keys = dict.fromkeys(key for record in records for key in record)
    record = records[0] if records else {}
    return replace(file, form="json", columns=tuple(keys), record=record, container=container)


def unwrap(values: Sequence[Any]) -> tuple[str, list[dict[str, Any]]]:
    """The container of a file's first JSON values, and the objects inside.

    ``bulk`` is OpenSearch's ``_bulk`` form, ``elasticdump`` its documents with ``_source``.
    """
    records = [value for value in values if isinstance(value, dict)]
    if not records:
        return "", []
    first = records[0]
    if len(first) == 1 and next(iter(first)) in BULK_ACTIONS:
        action = next(iter(first.values()))
        if isinstance(action, dict) and ("_index" in action or "_id" in action or not action):
            inner = [r for r in records if not (len(r) == 1 and next(iter(r)) in BULK_ACTIONS)]
            return "bulk", [r["doc"] if isinstance(r.get("doc"), dict) else r for r in inner]
    if isinstance(first.get("_source"), dict):
        return "elasticdump", _sources(records)
    return "", records


def _sources(hits: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {"_id": hit.get("_id"), "_index": hit.get("_index"), **hit["_source"]}
        for hit in hits
        if isinstance(hit, dict) and isinstance(hit.get("_source"), dict)
    ]
