import csv
import json
from datetime import datetime

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.export import TABLES, export_table
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.database import open_duckdb

PRODUCTS = [
    {"product_id": "p1", "title": 'Rope, 5 m "red"', "price": 0.1, "time": "2026-01-01"},
    {
        "product_id": "p2",
        "title": "=1+1",
        "stock": False,
        "category": "Climb > Rope",
        "attributes": {"size": "a|b"},
    },
    {"product_id": "p3", "title": "Kühl\tbox ☃", "brand": "Á", "aliases": "sku-3|sku-4"},
    {"product_id": "007", "title": "O", "price": 1e-7},
    {"product_id": "p1", "title": 'Rope, 5 m "red"', "price": 0.3, "time": "2026-01-05T00:00:00"},
]
EVENTS = [
    {"user_id": "ann", "time": "2026-01-01T10:00:00.123", "type": "search", "query": 'a "b", c'},
    {"user_id": "ann", "time": "2026-01-01T10:00:01", "type": "click", "product_id": "p1",
     "query": 'a "b", c'},
    {"user_id": "0042", "time": "2026-01-02T10:00:00", "type": "search", "query": "=cmd ☃"},
    {"user_id": "0042", "time": "2026-01-03T10:00:00", "type": "purchase", "product_id": "sku-3"},
]  # fmt: skip


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    with Shop.create(place / "shop") as shop:
        assert ingest_files(shop, "products", [lines(place / "p.jsonl", PRODUCTS)]).rejected == 0
        assert ingest_files(shop, "events", [lines(place / "e.jsonl", EVENTS)]).rejected == 0
    return place / "shop"


def contents(path):
    """All that must be the same in another shop."""
    queries = (
        "SELECT * EXCLUDE (changed) FROM products ORDER BY ALL",
        # A product without a time holds since ever, so the history begins with a row more.
        "FROM product_history WHERE ts > TIMESTAMP '1970-01-01' ORDER BY ALL",
        "FROM product_aliases ORDER BY ALL",
        "SELECT user_id, ts, type, query, query_key, product_id FROM events ORDER BY ALL",
    )
    with Shop.open(path) as shop:
        return [shop.connection.execute(query).fetchall() for query in queries]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_exported_makes_the_same_shop_again(folder, tmp_path, form):
    with Shop.open(folder) as shop:
        counts = {
            name: export_table(shop, name, tmp_path / f"{name}.{form}")
            for name in ("products", "prices", "events")
        }
    assert counts == {"products": 4, "prices": 2, "events": 4}
    with Shop.create(tmp_path / "again") as shop:
        for kind, name in (("products", "products"), ("products", "prices"), ("events", "events")):
            report = ingest_files(shop, kind, [tmp_path / f"{name}.{form}"])
            assert report.rejected == 0, report
    assert contents(tmp_path / "again") == contents(folder)


def test_a_span_of_time_has_its_first_moment_and_not_its_last(folder, tmp_path):
    with Shop.open(folder) as shop:
        rows = export_table(
            shop,
            "events",
            tmp_path / "e.csv",
            datetime(2026, 1, 1, 10, 0, 1),
            datetime(2026, 1, 3, 10),
        )
    with (tmp_path / "e.csv").open() as file:
        users = [row["user_id"] for row in csv.DictReader(file)]
    assert rows == 2 and users == ["ann", "0042"]


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_is_a_file_with_its_columns(tmp_path, name):
    with Shop.create(tmp_path / "shop") as shop:
        assert export_table(shop, name, tmp_path / "t.parquet") == 0
    with open_duckdb() as connection:
        columns = connection.execute(f"FROM '{tmp_path}/t.parquet'").description
    assert len(columns) >= 4


def test_a_file_of_no_known_form_or_without_runs_says_so(folder, tmp_path):
    with Shop.open(folder) as shop:
        with pytest.raises(QAgentError, match="end it in .csv"):
            export_table(shop, "events", tmp_path / "e.txt")
        with pytest.raises(QAgentError, match="no runs with metrics"):
            export_table(shop, "metrics", tmp_path / "m.csv")


def test_metrics_of_runs_with_other_columns_stand_in_one_table(folder, tmp_path):
    for name, rows in (("a", [{"step": 1, "loss": 0.5}]), ("b", [{"step": 1, "reward": 0.25}])):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        lines(run / "metrics.jsonl", rows)
    with Shop.open(folder) as shop:
        assert export_table(shop, "metrics", tmp_path / "m.csv") == 2
    with (tmp_path / "m.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["run"])
    assert rows == [
        {"run": "a", "step": "1", "loss": "0.5", "reward": ""},
        {"run": "b", "step": "1", "loss": "", "reward": "0.25"},
    ]


def test_a_strangers_metrics_are_no_sql(tmp_path):
    stolen = tmp_path / "stolen.csv"
    name = f"""a", '|') AS "step") FROM (SELECT ['q'] AS a, 1 AS step)) TO '{stolen}' --"""
    run = tmp_path / "shop" / "runs" / "a"
    with Shop.create(tmp_path / "shop") as shop:
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        lines(run / "metrics.jsonl", [{"step": 1, name: ["x", "y"]}])
        assert export_table(shop, "metrics", tmp_path / "m.csv") == 1
    with (tmp_path / "m.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"run": "a", "step": "1", name: "x|y"}]
    assert not stolen.exists()


def test_events_say_which_answer_they_came_of_also_in_a_shop_that_cannot_know(own_shop, tmp_path):
    connection, shop = own_shop.connection, own_shop
    connection.execute("UPDATE events SET recommendation_id = 'r1', position = 2")
    export_table(shop, "events", tmp_path / "new.parquet")
    names = duckdb.sql(f"FROM '{tmp_path / 'new.parquet'}'").columns
    assert names[-2:] == ["recommendation_id", "position"]
    found = duckdb.sql(f"SELECT DISTINCT recommendation_id, position FROM '{tmp_path}/new.parquet'")
    assert found.fetchall() == [("r1", 2)]
    connection.execute("ALTER TABLE events DROP recommendation_id")
    connection.execute("ALTER TABLE events DROP position")
    export_table(shop, "events", tmp_path / "old.parquet")
    assert duckdb.sql(f"FROM '{tmp_path / 'old.parquet'}'").columns == names
