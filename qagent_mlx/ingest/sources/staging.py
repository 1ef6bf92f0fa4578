"""Stage what a source holds: the temporary table ``stage`` of one text column per field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from ...errors import QAgentError
from ...utils.database import literal
from ..columns import choose_columns, quote, select_fields, usual_fields
from ..report import Kind, ReadOptions
from .locations import Location
from .opening import open_source
from .source import Reading, Source
from .tabular import add_broken_rows


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged, and how it was understood."""

    malformed: str  # the reason for the rows that are broken
    columns: tuple[str, ...]  # of the source
    chosen: dict[str, str]  # columns by field
    notes: tuple[str, ...] = ()


def stage_location(
    connection: duckdb.DuckDBPyConnection, kind: Kind, location: Location, options: ReadOptions
) -> Staged:
    """Create the temporary table ``stage``: row, one text column per field, and broken.

    Raises:
        QAgentError: the location cannot be read; the message names the remedy.
    """
    with TemporaryDirectory(prefix="qagent-ingest-") as folder:
        name = location.shown
        reading = Reading(connection, kind, options, Path(folder), name, location.table)
        source = _add_partitions(open_source(reading, location), location, reading)
        chosen = choose_columns(kind, Path(name), source.columns, options)
        _create_table(connection, kind, source, chosen)
    return Staged(source.malformed, tuple(source.columns), chosen, source.notes)


def _create_table(
    connection: duckdb.DuckDBPyConnection, kind: Kind, source: Source, chosen: dict[str, str]
) -> None:
    texts = ", ".join(f"{source.text(column)} AS {quote(f)}" for f, column in chosen.items())
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE stage AS
            SELECT row, {select_fields(kind, chosen)}, broken FROM (
                SELECT {source.row} AS row, {source.broken} AS broken, {texts}
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
        add_broken_rows(connection, "stage")


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
