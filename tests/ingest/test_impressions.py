import csv

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.privacy import erase_user, export_user
from qagent_mlx.shop.shop import Shop

SHOWN = {
    "user_id": "u1",
    "time": "2026-01-05T10:00:00",
    "query": "Red Lamp",
    "product_id": "p1",
    "position": "1",
    "query_id": "q-1",
}


@pytest.fixture
def shop(tmp_path):
    path = write(tmp_path / "p.csv", [{"product_id": p, "title": "Lamp"} for p in ("p1", "p2")])
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [path])
        yield shop


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def stored(shop):
    return shop.connection.execute(
        """SELECT user_id, ts::VARCHAR, query, query_key, product_id, position, query_id
        FROM impressions ORDER BY ALL"""
    ).fetchall()


def test_impressions_are_kept_with_their_position(shop, tmp_path):
    rows = [SHOWN, {**SHOWN, "product_id": "p2", "position": "2", "query": "(not set)"}]
    report = ingest_files(shop, "impressions", [write(tmp_path / "i.csv", rows)])
    assert (report.accepted, report.rejected) == (2, 0)
    assert stored(shop) == [
        ("u1", "2026-01-05 10:00:00", "Red Lamp", "redlamp", "p1", 1, "q-1"),
        ("u1", "2026-01-05 10:00:00", None, None, "p2", 2, "q-1"),
    ]
    again = ingest_files(shop, "impressions", [tmp_path / "i.csv"])
    assert (again.accepted, again.duplicates) == (0, 2)


def test_bad_impressions_are_rejected_with_their_reasons(shop, tmp_path):
    changes = {
        "bad position": {"position": "0"},
        "no product": {"product_id": ""},
        "no user": {"user_id": "guest"},
        "time in the future": {"time": "2099-01-01"},
    }
    rows = [SHOWN] * 5 + [{**SHOWN, **change} for change in changes.values()]
    report = ingest_files(shop, "impressions", [write(tmp_path / "i.csv", rows)])
    assert report.reasons == dict.fromkeys(changes, 1)
    assert len(stored(shop)) == 1


def test_impressions_may_be_of_products_that_the_shop_does_not_have(shop, tmp_path):
    path = write(tmp_path / "i.csv", [{**SHOWN, "product_id": "gone"}])
    assert ingest_files(shop, "impressions", [path]).accepted == 1
    assert stored(shop)[0][4] == "gone"


def test_impressions_need_a_product(shop, tmp_path):
    path = write(tmp_path / "i.csv", [{"user_id": "u", "time": "2026-01-01"}])
    with pytest.raises(QAgentError, match="product_id=COLUMN is missing"):
        ingest_files(shop, "impressions", [path])


def test_a_persons_impressions_are_exported_and_erased(shop, tmp_path):
    rows = [SHOWN, {**SHOWN, "user_id": "u2"}]
    ingest_files(shop, "impressions", [write(tmp_path / "i.csv", rows)])
    assert [row["product_id"] for row in export_user(shop, "u1").impressions] == ["p1"]
    assert erase_user(shop, "u1").impressions == 1
    assert [row[0] for row in stored(shop)] == ["u2"]


# ---------------------------------------------------------------- aliases of products


def test_events_of_an_alias_are_of_its_product(shop, tmp_path):
    rows = [
        {"product_id": "p1", "title": "Lamp", "aliases": "sku-1|sku-2"},
        {"product_id": "p2", "title": "Lamp", "aliases": "p1| sku-3 |"},
    ]
    path = write(tmp_path / "p.csv", rows)
    ingest_files(shop, "products", [path])
    assert ingest_files(shop, "products", [path]).duplicates == 2
    events = [
        {"user_id": "u", "time": f"2026-01-0{day}", "type": "view", "product_id": product}
        for day, product in enumerate(("sku-1", "sku-2", "sku-3", "p1", "p2"), 1)
    ]
    assert ingest_files(shop, "events", [write(tmp_path / "e.csv", events)]).rejected == 0
    of_products = shop.connection.execute("SELECT product_id FROM events ORDER BY ts").fetchall()
    # An id of the catalog itself is never another product's alias.
    assert [product for (product,) in of_products] == ["p1", "p1", "p2", "p1", "p2"]


def test_aliases_follow_their_file(shop, tmp_path):
    def load(clear=(), **fields):
        path = write(tmp_path / "p.csv", [{"product_id": "p1", **fields}])
        return ingest_files(shop, "products", [path], ReadOptions(clear=clear))

    def aliases():
        rows = shop.connection.execute("SELECT alias FROM product_aliases ORDER BY ALL")
        return [alias for (alias,) in rows.fetchall()]

    assert load(aliases="a|b").accepted == 1
    assert aliases() == ["a", "b"]
    load(price="3")  # says nothing of them
    assert aliases() == ["a", "b"]
    assert load(aliases="b|c").accepted == 1
    assert aliases() == ["b", "c"]
    load(aliases="")  # says nothing of them, either
    assert aliases() == ["b", "c"]
    load(clear=("aliases",), aliases="")
    assert aliases() == []
