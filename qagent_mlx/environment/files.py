"""Write and read an environment's Parquet files: cases with their profiles, and columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import duckdb
import msgspec
import numpy as np

from ..types import Case, Line, Profile, UserContext
from ..utils.atomic_files import replacing
from ..utils.database import literal, open_duckdb

_SCHEMA = """CREATE TABLE cases (case_id INTEGER, user_id VARCHAR, as_of TIMESTAMP, query VARCHAR,
query_key VARCHAR, products VARCHAR[], history INTEGER, split VARCHAR, profile VARCHAR,
profile_json VARCHAR)"""


class _ProfileJson(msgspec.Struct):
    """The column ``profile_json``: what the other columns do not say of a profile."""

    lines: tuple[Line, ...]
    tokens: int
    context: UserContext


def write_cases(path: Path, cases: Iterable[tuple[Case, Profile]]) -> None:
    """Write cases, each with the profile that the agent reads."""
    with open_duckdb() as connection:
        connection.execute(_SCHEMA)
        with connection.appender("cases") as appender:
            for case, profile in cases:
                packed = {
                    "lines": [asdict(line) for line in profile.lines],
                    "tokens": profile.tokens,
                    "context": asdict(profile.context),
                }
                appender.append_row(
                    case.case_id,
                    case.user_id,
                    case.as_of,
                    case.query,
                    case.query_key,
                    list(case.products),
                    case.history,
                    case.split,
                    profile.text,
                    json.dumps(packed),
                )
        _copy(connection, "cases", path)


def read_cases(path: Path) -> list[tuple[Case, Profile]]:
    """Read what `write_cases` wrote.

    Raises:
        duckdb.Error: the file is missing or damaged.
    """
    with open_duckdb() as connection:
        rows = connection.execute(f"SELECT * FROM read_parquet({literal(path)})").fetchall()
    cases = []
    for number, user, as_of, query, key, products, history, split, text, packed in rows:
        case = Case(number, user, as_of, query, key, tuple(products), history, split)
        stored = msgspec.json.decode(packed, type=_ProfileJson)
        references = tuple(line.query for line in stored.lines if line.query is not None)
        profile = Profile(
            user, as_of, text, stored.lines, references, stored.tokens, stored.context
        )
        cases.append((case, profile))
    return cases


def write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write arrays of equal length as the columns of a file."""
    with open_duckdb() as connection:
        connection.register("columns", dict(columns))
        _copy(connection, "columns", path)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_columns` wrote.

    Raises:
        duckdb.Error: the file is missing or damaged.
    """
    with open_duckdb() as connection:
        found = connection.execute(f"SELECT * FROM read_parquet({literal(path)})").fetchnumpy()
    return {name: np.asarray(values) for name, values in found.items()}


def _copy(connection: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    with replacing(path) as temporary:
        connection.execute(f"COPY {table} TO {literal(temporary)} (FORMAT parquet)")
