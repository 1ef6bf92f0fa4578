"""Read tables of SQLite, DuckDB and PostgreSQL, without writing to any."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from ...errors import QAgentError
from ...utils.database import identifier, literal, open_duckdb
from .source import Reading, Source
from .tables import choose_table, rows_source
from .tabular import csv_source, parquet_source
from .text import read_text


def sqlite_source(reading: Reading, path: Path) -> Source:
    """A table or view of a SQLite file."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = lambda data: data.decode("utf-8", errors="replace")
            names = database.execute(
                """SELECT name FROM sqlite_master WHERE type IN ('table', 'view')
                AND name NOT LIKE 'sqlite_%' ORDER BY name"""
            ).fetchall()
            tables = {t: _sqlite_columns(database, t) for (t,) in names}
            table, notes = choose_table(reading, tables, "table")
            rows: Iterator[Sequence[Any]] = database.execute(f"SELECT * FROM {identifier(table)}")
            return rows_source(reading, tables[table], rows, notes)
    except sqlite3.Error as error:
        raise QAgentError(f"{reading.name}: not a readable SQLite file ({error})") from error


def _sqlite_columns(database: sqlite3.Connection, table: str) -> list[str]:
    described = database.execute(f"SELECT * FROM {identifier(table)} LIMIT 0").description
    return [column[0] for column in described]


def duckdb_source(reading: Reading, path: Path) -> Source:
    """A table or view of a DuckDB file, by way of a Parquet file."""
    target = reading.folder / "table.parquet"
    try:
        with closing(open_duckdb(path, read_only=True)) as database:
            # A view of a stranger's file is SQL: it may read this file only.
            database.execute(
                f"""SET TimeZone = 'UTC'; SET temp_directory = {literal(reading.folder)};
                SET allowed_directories = [{literal(reading.folder)}];
                SET enable_external_access = false; SET lock_configuration = true"""
            )
            columns = database.execute(
                """SELECT CASE WHEN schema_name = 'main' THEN '' ELSE schema_name || '.' END
                    || table_name, column_name FROM duckdb_columns()
                WHERE NOT internal AND database_name = current_database()
                ORDER BY 1, column_index"""
            ).fetchall()
            tables = _by_table(columns)
            table, notes = choose_table(reading, tables, "table")
            relation = ".".join(identifier(part) for part in table.split("."))
            database.execute(f"COPY (FROM {relation}) TO {literal(target)} (FORMAT parquet)")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise QAgentError(
            f"{reading.name}: cannot be read as a DuckDB file ({str(error).splitlines()[0]})"
        ) from error
    source = parquet_source(reading.connection, target, reading.name)
    return _with_notes(source, notes)


def postgres_source(reading: Reading, address: str) -> Source:
    """A table or view of a PostgreSQL database, by way of a CSV file."""
    name = reading.name
    try:
        import psycopg
        from psycopg import sql
    except ImportError:
        raise QAgentError(
            f"{name}: PostgreSQL needs psycopg: pip install 'qagent-mlx[postgres]'; or write the "
            "table to a file with psql: \\copy TABLE TO 'table.csv' CSV HEADER"
        ) from None
    target = reading.folder / "table.csv"
    try:
        with closing(psycopg.connect(address, connect_timeout=10)) as database:
            database.read_only = True
            columns = database.execute(
                """SELECT CASE WHEN table_schema = 'public' THEN '' ELSE table_schema || '.' END
                    || table_name, column_name FROM information_schema.columns
                WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
                ORDER BY 1, ordinal_position"""
            ).fetchall()
            tables = _by_table(columns)
            table, notes = choose_table(reading, tables, "table")
            database.execute("SET TIME ZONE 'UTC'")
            copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT csv, HEADER)").format(
                sql.Identifier(*table.split("."))
            )
            database.execute("SET client_encoding = 'UTF8'")
            with target.open("wb") as file, database.cursor().copy(copy) as rows:
                file.writelines(rows)
    except (psycopg.Error, OSError) as error:
        raise QAgentError(f"{name}: {str(error).splitlines()[0]}") from error
    text = read_text(target, "none", name, "utf-8", reading.folder, lines=True)
    return _with_notes(csv_source(reading.connection, text, name, reading.folder), notes)


def _by_table(columns: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for table, column in columns:
        tables.setdefault(table, []).append(column)
    return tables


def _with_notes(source: Source, notes: tuple[str, ...]) -> Source:
    return replace(source, notes=(*source.notes, *notes))
