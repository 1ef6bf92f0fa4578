"""Memory's SQL, a statement a file: what each one selects is said in its first lines."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ALL = -1  # events come after this id


@cache
def _template(name: str) -> str:
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")


def sql(name: str, **values: object) -> str:
    """The statement in ``name.sql``, with values put in the places of ``{names}``."""
    return _template(name).format(**values)
