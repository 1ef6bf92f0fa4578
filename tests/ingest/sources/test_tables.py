"""Databases and workbooks: which table is meant, and what its cells are."""

import datetime
import sqlite3

import duckdb
import pytest
from source_files import (
    EVENT_FIELDS,
    EVENTS,
    PRODUCTS,
    filled,
    log,
    put,
    titles,
    write_duckdb,
    write_sqlite,
    write_workbook,
)

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files

TABLES = {
    "audit": [{"moment": "2026", "action": "x"}],
    "catalogue": PRODUCTS,
    "clickstream": filled(EVENTS, EVENT_FIELDS),
}


def cells(rows):
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def write(folder, form, tables):
    path = folder / f"shop.{form}"
    if form == "xlsx":
        return write_workbook(path, {title: cells(rows) for title, rows in tables.items()})
    return (write_sqlite if form == "sqlite" else write_duckdb)(path, tables)


@pytest.mark.parametrize("form", ["sqlite", "duckdb", "xlsx"])
def test_the_table_is_chosen_by_its_columns(shop, tmp_path, form):
    path = write(tmp_path, form, TABLES)
    assert ingest_files(shop, "products", [path]).accepted == 2
    assert ingest_files(shop, "events", [path]).accepted == 3
    assert [row[1] for row in titles(shop)] == ['Monitor 24", black', "Käse; grün"]
    assert [row[2] for row in log(shop)] == ["search", "click", "view"]


@pytest.mark.parametrize("form", ["sqlite", "duckdb", "xlsx"])
def test_a_table_is_named_where_several_fit_and_the_remedy_works(shop, tmp_path, form):
    path = write(tmp_path, form, {"old": PRODUCTS, "new": PRODUCTS[:1]})
    with pytest.raises(QAgentError, match="several of its .* could be the products") as error:
        ingest_files(shop, "products", [path])
    remedy = str(error.value).partition("such as ")[2].partition(" (of")[0]
    assert ingest_files(shop, "products", [remedy]).accepted in (1, 2)
    with pytest.raises(QAgentError, match="no (table|sheet) 'none', only"):
        ingest_files(shop, "products", [f"{path}::none"])
    assert ingest_files(shop, "products", [f"{path}::OLD"]).duplicates >= 1


def test_a_table_called_as_the_kind_is_preferred(shop, tmp_path):
    path = write(tmp_path, "sqlite", {"backup": PRODUCTS, "products": PRODUCTS[:1]})
    assert ingest_files(shop, "products", [path]).accepted == 1


def test_cells_are_read_as_what_they_mean(shop, tmp_path):
    rows = [
        ["id", "title", "stock", "price", None, "id"],
        [1289.0, "A", True, 2.5, "x", "y"],
        [7, "B & <c>", False, 3, None, None],
        ["p3", "line\nbreak", None, None],
    ]
    path = write_workbook(tmp_path / "x.xlsx", {"S": rows, "Empty": []})
    assert ingest_files(shop, "products", [path]).accepted == 3
    stored = shop.connection.execute(
        "SELECT product_id, title, in_stock, price FROM products ORDER BY ALL"
    ).fetchall()
    assert stored == [
        ("1289", "A", True, 2.5),
        ("7", "B & <c>", False, 3.0),
        ("p3", "line break", True, None),
    ]


def test_a_view_of_sqlite_and_odd_names_and_values(shop, tmp_path):
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as database:
        database.execute('CREATE TABLE "a ""b" (id, title, note)')
        database.execute("INSERT INTO \"a \"\"b\" VALUES (1, x'4142', 'n'), (2, ?, NULL)", ["B\0C"])
        database.execute('CREATE VIEW products AS SELECT * FROM "a ""b"')
    database.close()
    before = path.read_bytes()
    assert ingest_files(shop, "products", [f'{path}::a "b']).accepted == 2
    assert ingest_files(shop, "products", [f"{path}::products"]).duplicates == 2
    assert [row[1] for row in titles(shop)] == ["AB", "BC"]
    assert path.read_bytes() == before


def test_times_of_a_duckdb_file_are_utc(stocked, tmp_path):
    path = tmp_path / "x.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE SCHEMA web")
        database.execute(
            """CREATE TABLE web.hits AS SELECT 'u' AS user_id, 'view' AS type, 'p1' AS product_id,
            TIMESTAMPTZ '2026-01-05 12:00:00+02' AS time"""
        )
    assert ingest_files(stocked, "events", [f"{path}::web.hits"]).accepted == 1
    ((time,),) = stocked.connection.execute("SELECT ts FROM events").fetchall()
    assert time == datetime.datetime(2026, 1, 5, 10)


@pytest.mark.parametrize("name", ["x.xlsx", "x.sqlite", "x.duckdb", "x.ods", "x.db"])
def test_a_file_that_is_none_is_refused_in_one_line(shop, tmp_path, name):
    path = put(tmp_path / name, "nonsense " * 1000)
    with pytest.raises(QAgentError) as error:
        ingest_files(shop, "products", [path])
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_sheet_may_have_a_title_above_its_columns(shop, tmp_path):
    rows = [["Products of 2026"], [None], ["from", "1 May"], *cells(PRODUCTS)]
    path = write_workbook(tmp_path / "x.xlsx", {"S": rows})
    report = ingest_files(shop, "products", [path])
    assert report.accepted == 2
    assert any(note.endswith("row 4 of S names the columns") for note in report.notes)


def test_a_view_of_a_duckdb_file_reads_no_other_file(shop, tmp_path):
    secret = put(tmp_path / "secret.csv", "id,title\n1,secret\n")
    path = tmp_path / "x.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute(f"CREATE VIEW products AS SELECT * FROM read_csv('{secret}')")
        database.execute("CREATE TABLE plain AS SELECT 2 AS id, 'Tent' AS title")
        database.execute("CREATE VIEW own AS SELECT * FROM plain")
    with pytest.raises(QAgentError, match="cannot be read as a DuckDB file"):
        ingest_files(shop, "products", [f"{path}::products"])
    assert ingest_files(shop, "products", [f"{path}::own"]).accepted == 1
    assert [row[1] for row in titles(shop)] == ["Tent"]
