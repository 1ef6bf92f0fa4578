"""Read the result of a query in DuckDB's SQL, which the user wrote."""

from __future__ import annotations

from dataclasses import replace

import duckdb

from ...errors import QAgentError
from ...utils.database import open_duckdb
from .source import Reading, Source
from .tabular import parquet_source


def query_source(reading: Reading, query: str) -> Source:
    """The result of one SELECT, run in a database of its own, by way of a Parquet file.

    The query can read what the user can read (files, folders, addresses), and only that: it sees
    no shop, and a statement that writes, attaches, installs or sets anything is refused.

    Raises:
        QAgentError: it is not one SELECT, or fails.
    """
    target = reading.folder / "query.parquet"
    with open_duckdb() as database:
        database.execute("SET TimeZone = 'UTC'")
        try:
            statements = database.extract_statements(query)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT] or _is_pragma(
                database, query
            ):
                raise QAgentError(
                    f"{reading.name}: must be one SELECT; it reads, and does not write, attach "
                    "or set anything"
                )
            database.sql(query).write_parquet(str(target))
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise QAgentError(f"{reading.name}: {_reason(error)}") from error
    source = parquet_source(reading.connection, target, reading.name)
    return replace(source, damaged="")


def _is_pragma(database: duckdb.DuckDBPyConnection, query: str) -> bool:
    """Whether it is a PRAGMA, which DuckDB before 2.0 calls a SELECT."""
    ((tree,),) = database.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    return "Only SELECT statements" in tree.partition('"statements"')[0]


def _reason(error: duckdb.Error) -> str:
    """The first line of an error, and the place that DuckDB points at."""
    lines = str(error).splitlines()
    place = next((line for line in lines if line.startswith("LINE ")), "")
    return f"{lines[0]} ({place})" if place else lines[0]
