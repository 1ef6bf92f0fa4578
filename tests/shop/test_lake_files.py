"""Whoever can write to a lake's catalog gets no file of the machines that joined it."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from duckdb import OutOfMemoryException
from lakes import require_lakes

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.privacy import erase_user
from qagent_mlx.shop.lake_catalog import NAME, LakeCatalog, _attached
from qagent_mlx.shop.lake_state import state_of_lake, write_state
from qagent_mlx.shop.moving import FILE, create_in, move
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.database import open_duckdb
from qagent_mlx.utils.duckdb_extensions import load_local_extension


@pytest.fixture
def lake(tmp_path, tiny_files):
    """A shop in a lake, and the lake's catalog, which somebody else writes to."""
    require_lakes()
    catalog = tmp_path.resolve() / "catalog.sqlite"
    with Shop.create(tmp_path / "a") as shop:
        for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
            ingest_files(shop, kind, [tiny_files / name])
        move(shop, f"ducklake:sqlite:{catalog}", str(tmp_path / "data"))
    return tmp_path / "a", catalog


def tamper(catalog, statement, *values):
    with closing(sqlite3.connect(catalog)) as database, database:
        database.execute(statement, values)
    _attached.clear()  # as another process finds it


def test_a_view_in_place_of_a_table_reads_nothing(lake, tmp_path):
    _, catalog = lake
    secret = tmp_path / "secret.txt"
    secret.write_text("mine alone")
    address = f"ducklake:sqlite:{catalog}"
    with open_duckdb() as connection:
        for extension in ("ducklake", "sqlite_scanner"):
            load_local_extension(connection, extension)
        connection.execute(f"ATTACH '{address}' AS {NAME}")
        columns = connection.execute(f"DESCRIBE {NAME}.main.rejects").fetchall()
        values = ", ".join(
            f"{'content' if kind == 'VARCHAR' else 'NULL'}::{kind} AS {name}"
            for name, kind, *_ in columns
        )
        connection.execute(
            f"""DROP TABLE {NAME}.main.rejects; CREATE VIEW {NAME}.main.rejects AS
            SELECT {values} FROM read_text('{secret}')"""
        )
    with pytest.raises(QAgentError, match=r"the lake holds the view or macro 'rejects'"):
        create_in(tmp_path / "b", address, None)
    assert not (tmp_path / "b").exists()


def test_a_connection_to_a_lake_uses_files_of_the_lake_alone(lake, tmp_path):
    _, catalog = lake
    (tmp_path / "secret.txt").write_text("mine alone")
    cursor = LakeCatalog(f"ducklake:sqlite:{catalog}", "test").cursor()
    for statement in (
        f"FROM read_text('{tmp_path / 'secret.txt'}')",
        f"COPY (SELECT 1) TO '{tmp_path / 'written.csv'}'",
        "FROM read_csv('http://127.0.0.1:9/')",
        f"ATTACH '{tmp_path / 'other.duckdb'}'",
        "SET enable_external_access = true",
    ):
        with pytest.raises(Exception, match=r"(?i)disabled|locked|cannot change"):
            cursor.execute(statement)
    assert cursor.execute(f"SELECT count(*) FROM {NAME}.main.events").fetchall()[0][0] > 100


def test_forgetting_deletes_no_file_that_a_catalog_names(lake, tmp_path):
    path, catalog = lake
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    tamper(
        catalog,
        "INSERT INTO ducklake_files_scheduled_for_deletion VALUES (999, ?, 0, ?)",
        str(mine),
        "2020-01-01 00:00:00+00",
    )
    with (
        Shop.open(path, read_only=False) as shop,
        pytest.raises(QAgentError, match=r"Cannot access file .*mine\.txt"),
    ):
        erase_user(shop, "u01")
    assert mine.exists()


def point_at(catalog, folder):
    tamper(catalog, "UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", f"{folder}/")


def test_nor_a_folder_called_as_what_is_published(lake, tmp_path):
    """Whoever joins a lake when its catalog names that folder already."""
    _, catalog = lake
    mine = tmp_path / "home" / "memory" / "of-1995" / "photo.png"
    shutil.copytree(tmp_path / "data", tmp_path / "home")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    point_at(catalog, tmp_path / "home")
    create_in(tmp_path / "b", f"ducklake:sqlite:{catalog}", None)
    with Shop.open(tmp_path / "b", read_only=False) as shop:
        assert erase_user(shop, "u01").events
    assert mine.exists()


def test_a_catalog_that_names_another_folder_later_is_refused(lake, tmp_path, caplog):
    path, catalog = lake
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    with Shop.open(path) as shop:
        assert shop.config.data == f"{tmp_path / 'data'}/"
        counts = shop.counts()
    point_at(catalog, tmp_path / "moved")
    refusal = rf"names .*/moved/ as the place of its files, and named {tmp_path}/data/"
    with (
        Shop.open(path, read_only=False) as shop,
        pytest.raises(QAgentError, match=refusal) as error,
    ):
        erase_user(shop, "u01")
    with Shop.open(path) as shop:  # what it has already may be read
        assert shop.counts() == counts
    assert "as this machine knows it" in caplog.text
    address = f"ducklake:sqlite:{catalog}"
    with (
        Shop.open(path, read_only=False) as shop,
        pytest.raises(QAgentError, match="keeps its files in .*moved/, not in .*else"),
    ):
        move(shop, address, str(tmp_path / "else"))
    # The remedy that the refusal names.
    command = str(error.value).rpartition("run: ")[2]
    assert command == f"qagent move --store {address} --data {tmp_path / 'moved'}/"
    with Shop.open(path, read_only=False) as shop:
        move(shop, address, f"{tmp_path / 'moved'}/")
        assert erase_user(shop, "u01").events


def test_settings_of_a_lake_say_not_where_it_is(lake, tmp_path):
    path, catalog = lake
    address = f"ducklake:sqlite:{catalog}"
    other = tmp_path / "other"
    with Shop.open(path, read_only=False) as shop:
        settings = json.loads(shop.store.catalog.call(state_of_lake, 1.0)["settings"])
        assert not {"store", "data"} & settings.keys()
        evil = json.dumps({**settings, "store": "ducklake:sqlite:/else", "data": str(other)})
        state = {"settings": evil, "writer": "somebody"}
        shop.store.catalog.call(lambda lake: write_state(lake, state), 1.0)
    with Shop.open(path) as shop:
        shop.counts()
    with Shop.open(path) as shop:
        assert (shop.config.store, shop.config.data) == (address, f"{tmp_path / 'data'}/")


def test_a_shop_of_before_remembers_the_folder_when_it_is_changed(lake, tmp_path):
    path, _ = lake
    values = json.loads((path / "shop.json").read_text())
    del values["data"]
    (path / "shop.json").write_text(json.dumps(values))
    with Shop.open(path, read_only=False) as shop:
        shop.counts()
    assert json.loads((path / "shop.json").read_text())["data"] == f"{tmp_path / 'data'}/"
    with Shop.open(path, read_only=False) as shop:
        move(shop, FILE)
    assert not {"store", "data"} & json.loads((path / "shop.json").read_text()).keys()


def test_a_lake_that_is_joined_is_where_its_user_says(lake, tmp_path):
    _, catalog = lake
    with pytest.raises(QAgentError, match="keeps its files in"):
        create_in(tmp_path / "b", f"ducklake:sqlite:{catalog}", str(tmp_path / "else"))
    assert not (tmp_path / "b").exists()
    create_in(tmp_path / "b", f"ducklake:sqlite:{catalog}", str(tmp_path / "data"))


def test_a_lake_s_connection_keeps_what_has_no_memory_in_a_file_of_its_own(lake, monkeypatch):
    monkeypatch.setenv("QAGENT_DATABASE_MEMORY", "100MB")
    _, catalog = lake
    _attached.clear()
    of_lake = LakeCatalog(f"ducklake:sqlite:{catalog}", "test")
    with of_lake.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t AS SELECT hash(range) a FROM range(30_000_000)")
        kept = cursor.execute("SELECT sum(size) FROM duckdb_temporary_files()").fetchone()
    assert kept[0] > 100e6
    said = str(of_lake.unreachable(OutOfMemoryException()))
    assert "set QAGENT_DATABASE_MEMORY, which is 100MB, to more" in said
