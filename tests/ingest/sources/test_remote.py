"""Addresses: https as it is, object stores through DuckDB's extension, PostgreSQL."""

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import duckdb
import pytest
from source_files import PRODUCTS, put, titles, write

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.sources.remote import copy_blob


@pytest.fixture
def site(tmp_path):
    """The address of a folder, served."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("form", ["csv", "jsonl.gz", "parquet", "xlsx", "csv.bz2"])
def test_a_file_is_read_from_its_address(shop, site, form):
    folder, address = site
    write(folder / f"my p.{form}", PRODUCTS)
    report = ingest_files(shop, "products", [f"{address}/my%20p.{form}?download=1"])
    assert report.accepted == 2
    assert [row[0] for row in titles(shop)] == ["p1", "p2"]


def test_an_address_that_gives_nothing_is_named_with_the_remedy(shop, site):
    _, address = site
    for bad in (f"{address}/none.csv", "http://127.0.0.1:9/x.csv"):
        with pytest.raises(QAgentError, match="cannot be fetched .*; download it and ingest") as e:
            ingest_files(shop, "products", [bad])
        assert "\n" not in str(e.value)


def test_an_object_store_names_the_extension_that_it_needs(shop):
    with duckdb.connect() as connection:
        try:
            connection.execute("LOAD httpfs")
        except duckdb.Error:
            pass
        else:
            pytest.skip("the extension is here")
    with pytest.raises(QAgentError, match="needs DuckDB's extension httpfs.*INSTALL httpfs") as e:
        ingest_files(shop, "products", ["s3://bucket/p.parquet"])
    assert "\n" not in str(e.value)
    with pytest.raises(QAgentError, match="cannot read from ftp://"):
        ingest_files(shop, "products", ["ftp://host/p.csv"])


def test_the_bytes_of_an_object_are_copied(tmp_path):
    path = put(tmp_path / "x.bin", b"\0\xff any bytes")
    with duckdb.connect() as connection:
        copy_blob(connection, str(path), "x", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        with pytest.raises(QAgentError, match="cannot be fetched|no such object"):
            copy_blob(connection, str(tmp_path / "none.bin"), "x", tmp_path / "copy")
