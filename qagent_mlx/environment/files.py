"""Write and read an environment's Parquet files: cases with their profiles, and columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..types import Case, Line, Profile, UserContext
from ..utils.database import append_rows, literal, open_duckdb, write_parquet

_SCHEMA = """CREATE TABLE cases (case_id INTEGER, user_id VARCHAR, as_of TIMESTAMP, query VARCHAR,
query_key VARCHAR, products VARCHAR[], history INTEGER, split VARCHAR, profile VARCHAR,
profile_json VARCHAR)"""  # the fields of `Case` in order, the profile's text, and the rest of it


class _ProfileJson(msgspec.Struct):
    lines: tuple[Line, ...]
    tokens: int
    context: UserContext


def write_cases(path: Path, cases: Iterable[tuple[Case, Profile]]) -> None:
    """Write cases, each with the profile that the agent reads."""
    with open_duckdb() as connection:
        connection.execute(_SCHEMA)
        append_rows(connection, "cases", (_row(*pair) for pair in cases))
        write_parquet(connection, "FROM cases", path)


def _row(case: Case, profile: Profile) -> tuple[Any, ...]:
    values = asdict(profile)
    packed = json.dumps({name: values[name] for name in _ProfileJson.__struct_fields__})
    return (*astuple(case), profile.text, packed)


def read_cases(path: Path) -> list[tuple[Case, Profile]]:
    """Read what `write_cases` wrote; a `duckdb.Error` if the file is missing or damaged."""
    with open_duckdb() as connection:
        rows = connection.execute(f"SELECT * FROM read_parquet({literal(path)})").fetchall()
    cases = []
    for number, user, as_of, query, key, products, history, split, text, packed in rows:
        case = Case(number, user, as_of, query, key, tuple(products), history, split)
        rest = msgspec.json.decode(packed, type=_ProfileJson)
        references = tuple(line.query for line in rest.lines if line.query is not None)
        profile = Profile(user, as_of, text, rest.lines, references, rest.tokens, rest.context)
        cases.append((case, profile))
    return cases


def write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write arrays of equal length as the columns of a file."""
    with open_duckdb() as connection:
        connection.register("columns", dict(columns))
        write_parquet(connection, "FROM columns", path)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_columns` wrote; a `duckdb.Error` if the file is missing or damaged."""
    with open_duckdb() as connection:
        columns = connection.execute(f"FROM read_parquet({literal(path)})").fetchnumpy()
    return {name: np.asarray(values) for name, values in columns.items()}
