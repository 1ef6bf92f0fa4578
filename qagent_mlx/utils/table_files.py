"""Write a query's rows as CSV, JSON lines or Parquet, as the file's name says."""

from __future__ import annotations

from pathlib import Path

import duckdb

from ..errors import QAgentError
from .atomic_files import replacing
from .database import identifier, literal

# A list of texts in CSV is one text with bars between, as ids and titles seldom have any.
_FORMATS = {".csv": "csv, header", ".jsonl": "json", ".parquet": "parquet"}


def check_table_name(path: Path) -> None:
    """Refuse a file whose ending names no form.

    Raises:
        QAgentError: it ends in something else than .csv, .jsonl or .parquet.
    """
    if path.suffix.lower() not in _FORMATS:
        raise QAgentError(
            f"{path}: cannot tell the form from this name; end it in {', '.join(_FORMATS)}"
        )


def write_table(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> int:
    """Write the rows of a SELECT to a file whose ending names the form, whole or not at all.

    Lists become texts with ``|`` between in CSV.

    Returns:
        The number of rows.

    Raises:
        QAgentError: the ending names no form, or the file cannot be written.
    """
    check_table_name(path)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        described = connection.execute(f"DESCRIBE {query}").fetchall()
        lists = [identifier(name) for name, sql_type, *_ in described if sql_type.endswith("[]")]
        texts = ", ".join(f"array_to_string({name}, '|') AS {name}" for name in lists)
        query = f"SELECT * REPLACE ({texts}) FROM ({query})" if lists else query
    with replacing(path) as temporary:
        ((rows,),) = connection.execute(
            f"COPY ({query}) TO {literal(temporary)} (FORMAT {_FORMATS[suffix]})"
        ).fetchall()
    return int(rows)
