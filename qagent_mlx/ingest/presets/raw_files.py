"""The files that a preset reads, and SQL relations over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import duckdb

from ...errors import QAgentError
from ...utils.database import identifier, literal, more_memory
from ..sources.archives import read_chunks
from ..sources.documents import explain_json, json_compression
from ..sources.source import MAX_LINE

Form = Literal["csv", "json", "parquet", "xml", "none"]
BULK_ACTIONS = ("index", "create", "update", "delete")  # of OpenSearch's _bulk form
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
    is_lines: bool = False  # a JSON object each
    skips_broken: bool = False  # of these, those that are no JSON

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


class BrokenLines(QAgentError):
    """A file of JSON lines has some that are no JSON: see `RawFiles.skip_broken_lines`."""


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
        self.connection, self.files, self.folder = connection, list(files), folder
        self.meanings = {_letters(name): kind for name, kind in (meanings or {}).items()}
        self.malformed = 0  # rows that could not be split into columns, or are no JSON
        self.notes: list[str] = []  # on these

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
        """Make a table of a query over files.

        Raises:
            BrokenLines: see there.
            QAgentError: they cannot be read.
        """
        try:
            self.connection.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")
        except duckdb.Error as error:
            raise self.problem(error) from error

    def problem(self, error: duckdb.Error) -> QAgentError:
        """What to say of an error while files were read.

        Raises:
            QAgentError: a compressed file is damaged.
        """
        if isinstance(error, duckdb.OutOfMemoryException):
            return QAgentError(
                f"{self.folder}: not enough memory to read it at once; {more_memory()}, read its "
                "parts one after the other, or write its JSON values as one a line"
            )
        is_json = "Malformed JSON" in str(error)
        if is_json and any(file.is_lines and not file.skips_broken for _, file in self.files):
            return BrokenLines(_first_line(error))
        for _, file in self.files:
            check_whole(file)
        names = ", ".join(sorted({file.path.name for _, file in self.files})[:3])
        place = f"{self.folder} ({names})" if self.folder.name != names else str(self.folder)
        return QAgentError(
            f"{place}: {explain_json(str(error)) if is_json else _first_line(error)}"
        )

    def skip_broken_lines(self) -> None:
        """Read files of JSON lines without those that are no JSON, which are counted."""
        for number, (role, file) in enumerate(self.files):
            if not file.is_lines:
                continue
            file = replace(file, skips_broken=True)
            ((broken, first),) = self.rows(
                f"""SELECT count(*), min(row) FROM (
                    SELECT row_number() OVER () AS row, json FROM {json_objects(file)})
                WHERE json IS NULL"""
            )
            if broken:
                lines = "1 line is" if broken == 1 else f"{broken:,} lines are"
                self.notes.append(f"{file.path.name}: {lines} no JSON, from row {first:,} on")
            self.malformed += broken
            self.files[number] = (role, file)

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


def check_whole(file: RawFile) -> None:
    """Unpack a compressed file.

    Raises:
        QAgentError: it is damaged.
    """
    if file.compression != "none":
        for _ in read_chunks(file.readable, file.compression, str(file.path)):
            pass


def json_options(file: RawFile) -> str:
    """SQL: how DuckDB's readers of JSON read such a file."""
    is_lines = file.is_lines or file.container == "bulk"
    return (
        f"format='{'newline_delimited' if is_lines else 'auto'}', "
        f"compression='{json_compression(file.compression)}', "
        f"ignore_errors={str(file.skips_broken).lower()}, "
        f"maximum_object_size={MAX_LINE}, hive_partitioning=false"
    )


def json_objects(file: RawFile) -> str:
    """SQL: a relation of a file's JSON values, one column ``json``; NULL for what is none."""
    return f"read_json_objects({literal(file.readable)}, {json_options(file)})"


def documents(files: Iterable[RawFile]) -> str:
    """SQL: a relation of the unwrapped JSON objects of files, one column ``d``."""
    selects = []
    for file in files:
        where = f"NOT ({_SQL_ACTION})" if file.container == "bulk" else "d IS NOT NULL"
        reader = f"(SELECT json AS d FROM {json_objects(file)})"
        selects.append(f"SELECT {_UNWRAPPED[file.container]} AS d FROM {reader} WHERE {where}")
    return "(" + " UNION ALL ".join(selects) + ")"


def parquet_relation(file: RawFile) -> str:
    """SQL: a relation of a Parquet file's columns."""
    return f"read_parquet({literal(file.readable)}, hive_partitioning=false)"


def lines_relation(file: RawFile, columns: Mapping[str, str]) -> str:
    """SQL: a relation of a JSON lines file's keys in these types."""
    return json_relation([file], columns)


def json_relation(files: Sequence[RawFile], columns: Mapping[str, str]) -> str:
    """SQL: a relation of the keys of JSON objects in these types; all files are read alike."""
    types = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    paths = ", ".join(literal(file.readable) for file in files)
    relation = f"read_json([{paths}], columns={{{types}}}, {json_options(files[0])})"
    if not files[0].skips_broken:
        return relation
    holds_any = " OR ".join(f"{identifier(name)} IS NOT NULL" for name in columns)
    return f"(SELECT * FROM {relation} WHERE {holds_any})"


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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
