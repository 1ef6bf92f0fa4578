"""Loads of files are listed, and each can be taken back."""

import csv
import json
import tarfile
from pathlib import Path

import duckdb
import pytest

import qagent_mlx as qa
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.history import ingest_history, undo_ingest
from qagent_mlx.ingest.ingest import append_events, ingest_files, retry_rejected
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.rejects import clear_rejects, count_rejects, export_rejects
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.shop.shop import Shop

CATALOG = [
    {"product_id": "p1", "title": "Lamp", "price": "10", "aliases": "s1"},
    {"product_id": "p2", "title": "Mat", "price": "20", "aliases": ""},
]
OLD_SHOP = Path(__file__).parents[1] / "reliability" / "shops" / "0.1.0.tar.xz"


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        load(shop, "products", CATALOG, "catalog.csv")
        yield shop


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, {name: None for row in rows for name in row})
        writer.writeheader()
        writer.writerows(rows)
    return path


def event(**fields):
    return {"user_id": "u1", "time": "2026-01-05T10:00:00Z", "type": "search", **fields}


def state(shop, product):
    names = ("price", "brand")
    row = shop.connection.execute(
        "SELECT price, brand FROM products WHERE product_id = ?", [product]
    ).fetchone()
    return dict(zip(names, row, strict=True))


def load(shop, kind, rows, name="x.csv", **options):
    path = write(shop.path.parent / name, rows)
    return ingest_files(shop, kind, [path], ReadOptions(**options))


def log(shop):
    return shop.connection.execute(
        "SELECT user_id, ts, type, session_id, search_id FROM events ORDER BY ALL"
    ).fetchall()


def catalog(shop):
    tables = ("products", "product_history", "product_aliases")
    rows = {t: shop.connection.execute(f"FROM {t} ORDER BY ALL").fetchall() for t in tables}
    rows["products"] = [row[:-1] for row in rows["products"]]  # versions grow
    return rows


DAY = [event(query="lamp"), event(time="2026-01-05T10:00:20Z", type="click", product_id="s1")]
DAY[0]["product_id"] = DAY[1]["query"] = ""


def test_loads_are_listed_with_their_counts_and_options(shop):
    load(shop, "events", [*DAY, event(query="", product_id="")], "day.csv", event_type="view")
    first, second = ingest_history(shop)
    assert (first.ingest_id, first.file, first.kind, first.accepted) == (
        1,
        "catalog.csv",
        "products",
        2,
    )
    assert (second.file, second.accepted, second.rejected) == ("day.csv", 2, 1)
    assert second.options == {"event_type": "view"} and second.size and second.undone is None
    json.dumps(second.to_dict(), default=str)


def test_an_undone_load_of_events_leaves_nothing(shop):
    load(shop, "events", DAY, "day1.csv")
    append_events(shop, [event(time="2026-01-05T10:01:00Z", query="mat")])
    MemoryStore(shop.connection, shop.config.memory).build()
    before, memory = log(shop), profiles(shop)
    later = [
        {**row, "time": row["time"].replace("T10", "T10:00").replace(":00:00:", ":05:")}
        for row in DAY
    ]
    later.append({**event(), "user_id": "u2", "query": "!", "product_id": ""})
    load(shop, "events", [*DAY, *later], "day2.csv")
    assert len(log(shop)) == 5 and shop.counts()["rejects"] == 1
    report = undo_ingest(shop, 3)
    assert (report.events, report.rejects) == (2, 1)
    assert log(shop) == before and profiles(shop) == memory
    assert shop.counts()["rejects"] == 0
    with pytest.raises(QAgentError, match=r"ingest 3 \(day2.csv\) was undone at .* already"):
        undo_ingest(shop, 3)
    with pytest.raises(QAgentError, match="no ingest 9; list them with: qagent ingest history"):
        undo_ingest(shop, 9)
    # What was undone may come again.
    assert load(shop, "events", later[:2], "day2.csv").accepted == 2


def profiles(shop):
    return shop.connection.execute("SELECT user_id, state FROM profiles ORDER BY 1").fetchall()


def test_an_undone_load_of_products_brings_their_states_back(shop):
    before = catalog(shop)
    feed = [
        {"product_id": "p1", "title": "Lamp 2", "price": "12", "aliases": "s1|s9", "stock": "0"},
        {"product_id": "p3", "title": "New", "price": "1", "aliases": "s3", "stock": "1"},
    ]
    load(shop, "products", feed, "feed.csv")
    version = shop.catalog_version
    report = undo_ingest(shop, 2)
    assert (report.products_removed, report.products_restored) == (1, 1)
    assert catalog(shop) == before and shop.catalog_version > version


def test_a_later_change_stands_in_the_way_and_is_named(shop):
    before = catalog(shop)
    load(shop, "products", [{"product_id": "p1", "price": "11"}], "monday.csv")
    load(shop, "products", [{"product_id": "p1", "price": "12"}], "tuesday.csv")
    with pytest.raises(QAgentError, match=r"\(tuesday.csv\) changed 1 .*: qagent ingest undo 3"):
        undo_ingest(shop, 2)
    undo_ingest(shop, 3)
    assert state(shop, "p1")["price"] == 11
    undo_ingest(shop, 2)
    assert catalog(shop) == before


def test_products_with_events_go_after_their_events(shop):
    load(shop, "products", [{"product_id": "p3", "title": "New"}], "new.csv")
    load(shop, "events", [event(type="view", product_id="p3")], "day.csv")
    with pytest.raises(QAgentError, match=r"has 1 events of .*: qagent ingest undo 3"):
        undo_ingest(shop, 2)
    undo_ingest(shop, 3)
    assert undo_ingest(shop, 2).products_removed == 1


def test_impressions_are_undone(shop):
    shown = {"user_id": "u", "time": "2026-01-05T10:00:00Z", "product_id": "p1"}
    load(shop, "impressions", [shown], "shown.csv")
    assert undo_ingest(shop, 2).impressions == 1


# ---------------------------------------------------------------- rejected rows

BAD = [
    event(query="lamp", type="search", product_id=""),
    event(query="", type="looked", product_id="p1"),
    event(query="", type="looked", product_id="p2"),
]


def test_rejected_rows_are_counted_written_and_forgotten(shop, tmp_path):
    load(shop, "events", BAD, max_rejects=1)
    (count,) = count_rejects(shop)
    assert (count.file, count.reason, count.rows, count.first) == (
        "x.csv",
        "unknown event type",
        2,
        2,
    )
    assert "use one of search" in count.remedy
    for ending in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"rejects.{ending}"
        export_rejects(shop, path)
        rows = shop.connection.execute(f"SELECT reason, raw->>'type' FROM '{path}'").fetchall()
        assert rows == [("unknown event type", "looked")] * 2
    with pytest.raises(QAgentError, match="end it in .csv, .jsonl, .parquet"):
        export_rejects(shop, tmp_path / "rejects.xls")
    assert clear_rejects(shop) == 2 and count_rejects(shop) == []


def test_rejected_rows_are_tried_again_as_they_are_meant(shop):
    load(shop, "events", BAD, max_rejects=1)
    report = retry_rejected(shop, ReadOptions(values=(("type", "looked", "view"),)))
    assert (report.accepted, report.rejected) == (2, 0)
    # They are a load of their own, and may be undone.
    assert ingest_history(shop)[-1].file == "retry"
    assert undo_ingest(shop, 3).events == 2


def test_a_rejected_price_leaves_what_its_file_did_not_name(shop):
    load(shop, "products", [{"id": "p1", "price": "9"}, {"id": "new", "price": "5"}], "feed.csv")
    load(shop, "products", [{"id": "new", "title": "New", "brand": "Acme"}], "new.csv")
    assert retry_rejected(shop).accepted == 1
    assert (state(shop, "new")["price"], state(shop, "new")["brand"]) == (5, "Acme")


# ---------------------------------------------------------------- older shops, and Python


def test_a_shop_of_an_older_version_gets_what_it_lacks_when_it_is_written_to(tmp_path):
    with tarfile.open(OLD_SHOP) as archive:
        archive.extractall(tmp_path, filter="data")
    if duckdb.__version__ < "2":  # whose files it cannot read
        with pytest.raises(QAgentError, match=r"newer DuckDB .* pip install --upgrade duckdb"):
            Shop.open(tmp_path / "shop").connection  # noqa: B018
        return
    with Shop.open(tmp_path / "shop") as shop:
        assert ingest_history(shop) == []
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        (product,) = shop.connection.execute("SELECT min(product_id) FROM products").fetchone()
        load(shop, "products", [{"product_id": product, "price": "1.5"}])
        assert undo_ingest(shop, 1).products_restored == 1


def test_files_go_in_from_python(tmp_path):
    Shop.create(tmp_path / "shop").close()
    path = write(tmp_path / "p.csv", [{"code": f"p{n}", "title": f"Lamp {n}"} for n in range(3)])
    report = qa.ingest(tmp_path / "shop", path, "products", mapping={"product_id": "code"})
    assert (report.accepted, report.understood[0].columns["product_id"]) == (3, "code")
    rows = [event(query="lamp", type="SUCHE-X")]
    values = {"type": {"suche-x": "search"}}
    log = write(tmp_path / "e.csv", rows)
    assert qa.ingest(str(tmp_path / "shop"), [log], "events", values=values).accepted == 1
    assert qa.build(tmp_path / "shop").products == 3
    with Shop.open(tmp_path / "shop") as shop, pytest.raises(QAgentError, match="open for reading"):
        qa.ingest(shop, log, "events")
    assert {"ingest", "build"} <= set(dir(qa))
