"""Fetch files from the network, because the user named an address."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import duckdb

from ...errors import QAgentError
from ...utils.database import literal, open_duckdb

_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "r2", "az", "azure", "abfss", "hf")
_TIMEOUT = 30  # seconds without a byte


def is_address(name: str) -> bool:
    """Whether a name is an address such as ``https://example.org/events.csv.gz``."""
    return "://" in name and not name.startswith("file://")


def file_name(address: str) -> str:
    """The name of the file at an address."""
    return PurePosixPath(unquote(urlsplit(address).path)).name


def without_password(address: str) -> str:
    """An address as it may be shown."""
    parts = urlsplit(address)
    if parts.password is None:
        return address
    return address.replace(f":{parts.password}@", ":***@", 1)


def fetch(address: str, folder: Path) -> Path:
    """Download what an address names into a folder.

    Raises:
        QAgentError: it cannot be had; the message says what is missing.
    """
    name = without_password(address)
    scheme = urlsplit(address).scheme.lower()
    target = folder / "fetched"
    if scheme in ("http", "https"):
        _download(address, name, target)
    elif scheme in _STORES:
        _copy_object(address, name, target)
    else:
        raise QAgentError(
            f"{name}: cannot read from {scheme}://, only from https://, s3:// and "
            "postgresql://; download it and ingest the file"
        )
    return target


def _download(address: str, name: str, target: Path) -> None:
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "qagent"})
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(response, file, 1 << 20)
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        reason = getattr(error, "reason", None) or error
        status = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        raise QAgentError(
            f"{name}: cannot be fetched ({status}{reason}); download it and ingest the file"
        ) from error


def _copy_object(address: str, name: str, target: Path) -> None:
    """Copy an object of a store through DuckDB's extension httpfs."""
    with open_duckdb() as connection:
        try:
            connection.execute("LOAD httpfs")
        except duckdb.Error as error:
            raise QAgentError(
                f"{name}: needs DuckDB's extension httpfs, which is not installed; with a "
                "network, install it by: python -c \"import duckdb; duckdb.sql('INSTALL httpfs')\""
                "; or download the object and ingest the file"
            ) from error
        copy_blob(connection, address, name, target)


def copy_blob(connection: duckdb.DuckDBPyConnection, address: str, name: str, target: Path) -> None:
    """Write the bytes that DuckDB reads from an address to a file."""
    try:
        blobs = connection.execute(f"SELECT content FROM read_blob({literal(address)})").fetchall()
    except duckdb.Error as error:
        raise QAgentError(
            f"{name}: cannot be fetched ({str(error).splitlines()[0]}); DuckDB takes keys from "
            "secrets that are stored by: CREATE PERSISTENT SECRET"
        ) from error
    if len(blobs) != 1:
        raise QAgentError(f"{name}: there is no such object")
    target.write_bytes(blobs[0][0])
