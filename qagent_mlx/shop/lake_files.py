"""Which files a lake may make this machine use: those of its own folder, and no others.

Whoever writes to a lake's catalog names files in it: that hold rows, that a view reads, that are no
longer needed and to be deleted. Joining a lake hands over the rows of a shop, not the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.database import literal
from ..utils.process_folder import process_folder
from ..utils.text import clean


def confine(lake: duckdb.DuckDBPyConnection, data: str) -> None:
    """Let a connection use no other files than those below ``data`` and those of `scratch`.

    Call it when the lake is attached; whatever needs more comes before.
    """
    lake.execute("SELECT count(*) FROM duckdb_secrets()").fetchall()  # reads those of the user
    places = (data, str(_scratch_base()))
    folders = ", ".join(literal(place.rstrip("/") + "/") for place in places)
    lake.execute(
        f"SET allowed_directories = [{folders}]; SET enable_external_access = false; "
        "SET lock_configuration = true"
    )


def refuse_views(lake: duckdb.DuckDBPyConnection, name: str) -> None:
    """Refuse views and macros in the lake that is attached as ``name``: a shop has none.

    Raises:
        QAgentError: there is one.
    """
    names = lake.execute(
        """SELECT view_name FROM duckdb_views() WHERE database_name = $1
        UNION ALL SELECT function_name FROM duckdb_functions() WHERE database_name = $1""",
        [name],
    ).fetchall()
    if names:
        raise QAgentError(
            f"the lake holds the view or macro {clean(names[0][0])!r}, and a shop has none; drop "
            "it, or make another lake"
        )


def _scratch_base() -> Path:
    base = process_folder() / "lake"
    base.mkdir(mode=0o700, exist_ok=True)
    return base


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for rows on their way between a file and a lake, which both may read and write."""
    with tempfile.TemporaryDirectory(dir=_scratch_base()) as folder:
        yield Path(folder)
