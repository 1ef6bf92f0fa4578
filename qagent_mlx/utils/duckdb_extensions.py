"""DuckDB's extensions: those that are here, and those that its server has."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import duckdb

from ..errors import QAgentError
from .database import literal


def load_local_extension(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Load an extension that is installed, or that pip has brought; False where there is none."""
    try:
        connection.execute(f"LOAD {name}")
        return True
    except duckdb.Error:
        pass
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    folders = package.submodule_search_locations if package else None
    for path in (path for f in folders or () for path in Path(f).rglob("*.duckdb_extension")):
        with suppress(duckdb.Error):  # it is of another version of DuckDB
            connection.execute(f"LOAD {literal(path)}")
            return True
    return False


def load_extension(connection: duckdb.DuckDBPyConnection, name: str, needed_by: str) -> None:
    """Load an extension from here, else from DuckDB's server.

    Args:
        needed_by: Names in errors what needs it.

    Raises:
        QAgentError: it is not here, and cannot be fetched.
    """
    if load_local_extension(connection, name):
        return
    try:
        connection.execute(f"INSTALL {name}; LOAD {name}")
    except duckdb.Error as error:
        raise QAgentError(
            f"DuckDB {duckdb.__version__} cannot load its extension {name}, which {needed_by} "
            f"needs: {str(error).splitlines()[0]}; connect to the internet once, or install a "
            'DuckDB whose extensions are packages: pip install "qagent-mlx[lake]"'
        ) from error
