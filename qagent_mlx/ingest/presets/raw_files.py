"""The files that a preset reads: what each looks like, and SQL relations over them."""

from __future__ import annotations

import codecs
import csv
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import duckdb

from ...errors import QAgentError
from ...utils.database import identifier, literal
from ..sources.archives import MAGIC, read_chunks
from ..sources.documents import cut_out_list, json_compression, json_layout
from ..sources.source import MAX_LINE
from ..sources.text import TextFile, read_text

Form = Literal["csv", "json", "parquet", "xml", "none"]
# Lists of records that may be all that a file's one object holds, and keys of records that have
# lists of their own.
_LISTS = ("events", "batch", "data", "visits", "orders", "results", "rows", "hits.hits")
_RECORDS = frozenset(("session", "event_name", "user_history", "idVisit", "messageId", "type"))
_ACTIONS = ("index", "create", "update", "delete")  # of the _bulk form
_SQL_ACTION = (
    "len(json_keys(d)) = 1 AND list_contains(['index', 'create', 'update', 'delete'], "
    "json_keys(d)[1])"
)
# SQL to unwrap a JSON value ``d`` of a container.
_UNWRAPPED = {
    "": "d",
    "bulk": "coalesce(d->'doc', d)",
    "elasticdump": "json_merge_patch(json_object('_id', d->>'_id', '_index', d->>'_index'), "
    "d->'_source')",
}


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file and what its beginning says about it."""

    path: Path  # as the user knows it
    form: Form = "none"
    columns: tuple[str, ...] = ()  # of a table, or keys of the first JSON objects
    record: dict[str, Any] = field(default_factory=dict)  # the first row or object
    container: str = ""  # what the JSON objects are wrapped in, see `unwrap`
    compression: str = "none"
    delimiter: str = ","
    readable: Path = Path()  # where its bytes are: unpacked, decoded, or the file itself

    def has(self, *names: str) -> bool:
        """Whether the file has all these columns or keys, whatever their case."""
        columns = {column.lower() for column in self.columns}
        return all(name.lower() in columns for name in names)

    def column(self, *names: str) -> str:
        """SQL: the first of these columns that the file has, else NULL; names in any case."""
        by_name = {column.lower(): column for column in reversed(self.columns)}
        for name in names:
            if name.lower() in by_name:
                return identifier(by_name[name.lower()])
        return "NULL::VARCHAR"


class RawFiles:
    """The files of an import, and an in-memory database to read them into.

    Attributes:
        files: What was recognised, by role such as ``events``.
        folder: The first folder that was named.
        meanings: Types of events that the user gave to names of the source.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        files: Sequence[tuple[str, RawFile]],
        folder: Path,
        meanings: Mapping[str, str] | None = None,
    ) -> None:
        self.connection, self.files, self.folder = connection, files, folder
        self.meanings = {_letters(name): kind for name, kind in (meanings or {}).items()}
        self.malformed = 0  # rows of CSV files that could not be split into columns

    def of(self, *roles: str) -> list[RawFile]:
        """The files with one of these roles."""
        return [file for role, file in self.files if role in roles]

    def mapped_type(self, *names: str) -> str:
        """SQL: the type that the user gave to an event's name, the first of these that has one."""
        if not self.meanings:
            return "NULL::VARCHAR"
        cases = " ".join(
            f"WHEN {literal(name)} THEN {literal(kind)}" for name, kind in self.meanings.items()
        )
        letters = (f"regexp_replace(lower({name}), '[^a-z0-9]', '', 'g')" for name in names)
        return f"coalesce({', '.join(f'CASE {text} {cases} END' for text in letters)})"

    def rows(self, query: str) -> list[Any]:
        """The rows of a query."""
        return self.connection.execute(query).fetchall()

    def counts(self, query: str) -> dict[str, int]:
        """The rows of a query for a name and a number, those above 0."""
        return {str(name): number for name, number in self.rows(query) if number}

    def load(self, table: str, query: str) -> None:
        """Make a table of a query over files; raises QAgentError where they cannot be read."""
        try:
            self.connection.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")
        except duckdb.OutOfMemoryException as error:
            raise QAgentError(
                f"{self.folder}: not enough memory to read it at once; read its parts one after "
                "the other, or write its JSON values as one a line"
            ) from error
        except duckdb.Error as error:
            names = ", ".join(sorted({file.path.name for _, file in self.files})[:3])
            raise QAgentError(f"{self.folder} ({names}): {_first_line(error)}") from error

    def load_csv(
        self,
        table: str,
        file: RawFile,
        *,
        where: str = "true",
        quote_character: str = '"',
        is_plain: bool = False,
    ) -> None:
        """Make a table of text of a CSV file; rows that do not fit its header are counted.

        ``is_plain`` says that no cell holds a line break: large files are read faster then.
        """
        for leftover in ("reject_errors", "reject_scans"):
            self.connection.execute(f"DROP TABLE IF EXISTS {leftover}")
        relation = csv_relation(file, quote_character, is_plain=is_plain)
        self.load(table, f"SELECT * FROM {relation} WHERE {where}")
        ((malformed,),) = self.rows("SELECT count(DISTINCT line) FROM reject_errors")
        self.malformed += malformed


def documents(files: Iterable[RawFile]) -> str:
    """SQL: a relation of the unwrapped JSON objects of files, one column ``d``."""
    selects = []
    for file in files:
        reader = (
            f"(SELECT json AS d FROM read_json_objects({literal(file.readable)}, "
            f"format='{'newline_delimited' if file.container == 'bulk' else 'auto'}', "
            f"compression='{json_compression(file.compression)}', "
            f"maximum_object_size={MAX_LINE}, hive_partitioning=false))"
        )
        if file.container == "bulk":
            reader += f" WHERE NOT ({_SQL_ACTION})"
        selects.append(f"SELECT {_UNWRAPPED[file.container]} AS d FROM {reader}")
    return "(" + " UNION ALL ".join(selects) + ")"


def parquet_relation(file: RawFile) -> str:
    """SQL: a relation of a Parquet file's columns."""
    return f"read_parquet({literal(file.readable)}, hive_partitioning=false)"


def lines_relation(file: RawFile, columns: Mapping[str, str]) -> str:
    """SQL: a relation of a JSON lines file's keys in these types."""
    types = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    return (
        f"read_json({literal(file.readable)}, compression='{json_compression(file.compression)}', "
        f"columns={{{types}}}, format='newline_delimited', hive_partitioning=false)"
    )


def csv_relation(file: RawFile, quote_character: str = '"', *, is_plain: bool = False) -> str:
    """SQL: a relation of a CSV file's columns, all text; for `RawFiles.load_csv`."""
    names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in file.columns)
    return (
        f"read_csv({literal(file.readable)}, auto_detect=false, header=true, columns={{{names}}}, "
        f"delim={literal(file.delimiter)}, quote={literal(quote_character)}, "
        f"escape={literal(quote_character)}, compression='{file.compression}', "
        f"null_padding=true, ignore_errors=true, store_rejects=true, "
        # In parallel DuckDB pads no rows of files that have line breaks inside of cells.
        f"parallel={str(is_plain).lower()}, "
        f"rejects_limit=0, max_line_size={MAX_LINE})"
    )


def look_at(
    connection: duckdb.DuckDBPyConnection, path: Path, readable: Path, folder: Path
) -> RawFile:
    """Tell a file's form, columns and first record from its beginning.

    Args:
        path: What the user calls it.
        readable: Where its bytes are.
        folder: For a copy in UTF-8, where it is in another encoding.

    Raises:
        QAgentError: it cannot be opened.
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
        raise QAgentError(f"{path}: not enough memory to read one value of it; split it") from error
    except UnicodeDecodeError:
        with suppress(QAgentError, duckdb.Error, csv.Error, ValueError, IndexError):
            return _look_at_text(connection, in_utf8(file, folder), folder)
    except (QAgentError, duckdb.Error, csv.Error, ValueError, IndexError):
        pass  # it is of no form that a preset reads
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


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


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
    texts = connection.execute(
        f"""SELECT json FROM read_json_objects({literal(file.readable)}, format='auto',
        compression='{json_compression(file.compression)}', maximum_object_size={MAX_LINE},
        hive_partitioning=false) LIMIT 20"""
    ).fetchall()
    container, records = unwrap([json.loads(text) for (text,) in texts])
    keys = dict.fromkeys(key for record in records for key in record)
    first = records[0] if records else {}
    return replace(file, form="json", columns=tuple(keys), record=first, container=container)


def unwrap(values: Sequence[Any]) -> tuple[str, list[dict[str, Any]]]:
    """The container of a file's first JSON values, and the objects inside.

    ``bulk`` is OpenSearch's ``_bulk`` form, ``elasticdump`` its documents with ``_source``.
    """
    records = [value for value in values if isinstance(value, dict)]
    if not records:
        return "", []
    first = records[0]
    if len(first) == 1 and next(iter(first)) in _ACTIONS:
        action = next(iter(first.values()))
        if isinstance(action, dict) and ("_index" in action or "_id" in action or not action):
            inner = [r for r in records if not (len(r) == 1 and next(iter(r)) in _ACTIONS)]
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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
