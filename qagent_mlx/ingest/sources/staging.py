"""Stage what a source holds: the temporary table ``stage`` of one text column per field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from ...errors import QAgentError
from ...utils.database import identifier, literal
from ...utils.process_folder import process_folder
from ...utils.settings import SettingError
from ..columns import (
    ATTRIBUTE,
    REQUIRED,
    choose_columns,
    profile_columns,
    select_fields,
    shown_columns,
    usual_fields,
)
from ..mapping import changed_value, key_value, resolve_path
from ..options import Kind, ReadOptions
from .locations import Location
from .nested import add_paths, refuse_objects
from .opening import open_source
from .source import Reading, Source
from .tabular import add_broken_rows

IGNORED = "\1"  # begins the type of rows that the user wants to be left out
KEY = "qa_key"  # the column of a staged table by which rows of two files belong together


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged, and how it was understood."""

    malformed: str  # the reason for the rows that are broken
    columns: tuple[str, ...]  # of the source, and the paths of the mapping
    chosen: dict[str, str]  # columns by field
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # where several columns could feed a field
    ignored: dict[str, int] = field(default_factory=dict)  # rows left out, by event type


def stage_table(
    connection: duckdb.DuckDBPyConnection,
    kind: Kind,
    location: Location,
    options: ReadOptions,
    table: str = "stage",
    key: str | None = None,
) -> Staged:
    """Create a temporary table of one location: row, one text column per field, and broken.

    Args:
        key: The column of a key that the table gets as ``qa_key``. With it the file may lack
            required and mapped columns, which another file has to give.

    Raises:
        QAgentError: the location cannot be read; the message names the remedy.
    """
    with TemporaryDirectory(dir=process_folder()) as folder:
        name = location.shown
        reading = Reading(connection, kind, options, Path(folder), name, location.table)
        source = _add_partitions(open_source(reading, location), location, reading)
        mapping = options.mapping
        paths = [column for _, column in mapping]
        if key is not None:
            mapping = tuple(pair for pair in mapping if resolve_path(pair[1], source.columns))
            paths = [key, *(column for _, column in mapping)]
        plain, source = source, add_paths(source, paths)
        columns = tuple(source.columns)
        if key is not None and key not in columns:
            raise SettingError(
                "on", f"{key!r}: {name} has no such column, only {shown_columns(columns)}"
            )
        lacking = _lacking(kind, source, mapping) if key is not None else ()
        source = _with_empty(source, lacking)
        selection = choose_columns(
            kind,
            Path(name),
            source.columns,
            replace(options, mapping=mapping),
            lambda names: profile_columns(
                connection, source.relation, source.parameters, {n: source.text(n) for n in names}
            ),
        )
        chosen = selection.chosen
        _create_table(reading, source, chosen, table, key)
        refuse_objects(connection, table, chosen, name)
    ignored = leave_out(connection, table, options) if kind == "events" else {}
    chosen = {field: column for field, column in chosen.items() if column not in lacking}
    nested = {f: c for f, c in chosen.items() if c not in plain.columns}
    notes = (*source.notes, *_empty_paths(connection, table, nested))
    columns = _without_used(columns, plain, chosen, [*nested.values(), *([key] if key else [])])
    return Staged(source.malformed, columns, chosen, notes, selection.notes, ignored)


def _without_used(
    columns: tuple[str, ...], source: Source, chosen: dict[str, str], names: Iterable[str]
) -> tuple[str, ...]:
    """The columns without those that only paths or the key of a join go into."""
    paths = [resolve_path(name, source.columns) for name in names]
    used = {path.column for path in paths if path is not None} - set(chosen.values())
    return tuple(column for column in columns if column not in used)


def _lacking(kind: Kind, source: Source, mapping: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The required fields that the source has no column for."""
    served = usual_fields(kind, source.columns) | {field for field, _ in mapping}
    return tuple(field for field in REQUIRED[kind] if field not in served)


def _with_empty(source: Source, columns: tuple[str, ...]) -> Source:
    """The source with empty columns of these names."""

    def text(column: str) -> str:
        return "NULL::VARCHAR" if column in columns else source.text(column)

    return replace(source, columns=[*source.columns, *columns], text=text) if columns else source


def _create_table(
    reading: Reading, source: Source, chosen: dict[str, str], table: str, key: str | None
) -> None:
    connection, kind, options = reading.connection, reading.kind, reading.options
    texts = "".join(
        f", {_value(field, source.text(column), options)} AS {identifier(field)}"
        for field, column in chosen.items()
    )
    if key is not None:
        texts += f", {key_value(source.text(key))} AS {KEY}"
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE {table} AS
            SELECT row, {select_fields(kind, chosen)}, broken{f", {KEY}" if key else ""} FROM (
                SELECT {source.row} AS row, {source.broken} AS broken{texts}
                FROM {source.relation})""",
            source.parameters,
        )
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        if source.damaged:
            raise QAgentError(source.damaged) from error
        raise
    if source.finds_broken_rows:
        add_broken_rows(connection, table)


def _value(field: str, text: str, options: ReadOptions) -> str:
    nothing = IGNORED if field == "type" else ""
    return changed_value(field, text, options.values, nothing)


def leave_out(
    connection: duckdb.DuckDBPyConnection, table: str, options: ReadOptions
) -> dict[str, int]:
    """Remove the rows of event types that mean nothing; returns how many there are of each."""
    if not any(field == "type" and not meant for field, _, meant in options.values):
        return {}
    counts = connection.execute(
        f"""SELECT type[2:], count(*) FROM {table} WHERE starts_with(type, '{IGNORED}')
        GROUP BY type ORDER BY count(*) DESC, type"""
    ).fetchall()
    connection.execute(f"DELETE FROM {table} WHERE starts_with(type, '{IGNORED}')")
    return dict(counts)


def _empty_paths(
    connection: duckdb.DuckDBPyConnection, table: str, nested: dict[str, str]
) -> list[str]:
    """Notes of the paths of a mapping that no row has."""
    paths = {f: column for f, column in nested.items() if not f.startswith(ATTRIBUTE)}
    if not paths:
        return []
    counts = ", ".join(f"count({field})" for field in paths)
    (row,) = connection.execute(f"SELECT {counts} FROM {table}").fetchall()
    return [
        f"{field} stays empty: no row has {column}"
        for (field, column), count in zip(paths.items(), row, strict=True)
        if not count
    ]


def _add_partitions(source: Source, location: Location, reading: Reading) -> Source:
    """The source with the columns that its folders stand for.

    A column of the file is never shadowed: neither one of the same name, nor one that serves the
    same field. Only a mapping by hand prefers the folder's.
    """
    mapped = {column for _, column in reading.options.mapping}
    served = usual_fields(reading.kind, source.columns)
    values = {
        key: value
        for key, value in location.partitions
        if key not in source.columns
        and (key in mapped or not served & usual_fields(reading.kind, [key]))
    }
    if not values:
        return source

    def text(column: str) -> str:
        if column not in values:
            return source.text(column)
        value = values[column]
        return "NULL::VARCHAR" if value is None else literal(value)

    return replace(source, columns=[*source.columns, *values], text=text)
