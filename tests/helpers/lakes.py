"""Lakes of a test's own, where DuckDB can load what they need; nothing is fetched."""

import contextlib
import secrets
import subprocess
import urllib.request
from functools import cache
from pathlib import Path

import pytest
from postgres_server import running_postgres

from qagent_mlx.shop.lake_catalog import EXTENSIONS
from qagent_mlx.utils.database import open_duckdb
from qagent_mlx.utils.duckdb_extensions import load_local_extension


@cache
def _can_load(extension):
    with open_duckdb() as connection:
        return load_local_extension(connection, extension)


def require_lakes(kind="sqlite"):
    """Skip where a lake cannot be opened here."""
    for extension in ("ducklake", EXTENSIONS[kind]):
        if not _can_load(extension):
            pytest.skip(f"DuckDB's extension {extension} is not here; `make test-lake` brings it")


@contextlib.contextmanager
def lakes(kind, hosts=()):
    """A function that gives the address of a new lake, whose files lie in a folder.

    With ``hosts``, addresses of this computer, PostgreSQL answers there too.
    """
    require_lakes(kind)
    if kind == "sqlite":
        yield lambda folder: f"ducklake:sqlite:{Path(folder).resolve() / 'catalog.sqlite'}"
        return
    with running_postgres(hosts) as socket:

        def address(folder):
            name = f"lake_{secrets.token_hex(4)}"
            subprocess.run(["createdb", "-h", socket, "-U", "postgres", name], check=True)
            return f"ducklake:postgres:host={socket} dbname={name} user=postgres"

        yield address


@contextlib.contextmanager
def object_store(folder, monkeypatch):
    """A place in a store of objects: a local server of S3's protocol, which DuckDB knows the keys of."""
    server_module = pytest.importorskip("moto.server")  # `make test-lake` brings it
    monkeypatch.setenv("HOME", str(folder / "home"))  # where DuckDB keeps secrets
    with open_duckdb() as connection:
        if not load_local_extension(connection, "httpfs"):
            pytest.skip("DuckDB's extension httpfs is not here; `make test-lake` brings it")
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        connection.execute(
            f"""CREATE PERSISTENT SECRET (TYPE s3, KEY_ID 'key', SECRET 'secret', URL_STYLE 'path',
            REGION 'us-east-1', ENDPOINT '{host}:{port}', USE_SSL false)"""
        )
    try:
        request = urllib.request.Request(f"http://{host}:{port}/rows", method="PUT")
        urllib.request.urlopen(request).close()
        yield "s3://rows/of-a-shop"
    finally:
        server.stop()
