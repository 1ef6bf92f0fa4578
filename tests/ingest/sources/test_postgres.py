"""Tables of a real PostgreSQL, where there is one."""

import sys

import pytest
from postgres_server import running_postgres
from source_files import log, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions


@pytest.fixture(scope="module")
def address():
    with running_postgres() as folder:
        import psycopg

        address = f"postgresql://postgres:secret@/postgres?host={folder}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(
                """CREATE SCHEMA web;
                CREATE TABLE catalogue (product_id int, title text, price numeric, meta jsonb);
                INSERT INTO catalogue VALUES (1, 'Zelt "groß", neu', 12.5, '{"brand": "Acme"}'),
                    (2, E'a\\nb', NULL, NULL);
                CREATE TABLE web.log AS SELECT 'u' || i AS user_id, 1 + i % 2 AS product_id,
                    'view' AS type, timestamptz '2026-01-05 12:00+02' + i * interval '1 h' AS time
                FROM generate_series(1, 3) i"""
            )
        yield address


def test_tables_are_chosen_or_named(shop, address):
    options = ReadOptions(mapping=(("brand", "meta.brand"),))
    assert ingest_files(shop, "products", [address], options).accepted == 2
    assert titles(shop) == [("1", 'Zelt "groß", neu', "Acme", 12.5), ("2", "a b", None, None)]
    assert ingest_files(shop, "events", [f"{address}::web.log"]).accepted == 3
    assert ingest_files(shop, "events", [address]).duplicates == 3
    assert log(shop)[0][:2] == ("u1", "2026-01-05 11:00:00")


def test_errors_do_not_show_the_password(shop, address):
    for bad in (f"{address}::none", "postgresql://me:secret@/x?host=/nowhere"):
        with pytest.raises(QAgentError) as error:
            ingest_files(shop, "events", [bad])
        assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_without_psycopg_the_line_says_what_to_install(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(QAgentError, match=r"pip install 'qagent-mlx\[postgres\]'.*copy TABLE TO"):
        ingest_files(shop, "events", ["postgresql://host/shop"])
