"""Read and write an environment's cases in a run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from ..types import Line, Profile
from ..utils.atomic_files import replacing
from ..utils.database import literal


def _profile_json(profile: Profile) -> str:
    return json.dumps(
        {
            "lines": [asdict(line) for line in profile.lines],
            "tokens": profile.tokens,
            "raw_tokens": profile.raw_tokens,
            "context": profile.context,
        }
    )


def _profile(user: str, as_of: Any, text: str, packed: str) -> Profile:
    values = json.loads(packed)
    lines = tuple(Line(**line) for line in values["lines"])
    return Profile(
        user,
        as_of,
        text,
        lines,
        tuple(line.query for line in lines if line.query is not None),
        values["tokens"],
        values["raw_tokens"],
        values["context"],
    )


def _copy(connection: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    with replacing(path) as temporary:
        connection.execute(f"COPY {table} TO {literal(temporary)} (FORMAT parquet)")
