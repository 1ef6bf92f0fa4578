"""Presets on small generated files of the form in which the data sets are handed out."""

import csv
import gzip
import json
from datetime import timedelta
from itertools import pairwise

import duckdb
import pytest

from qagent_mlx.environment.cases import build_cases
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.loading import load_preset
from qagent_mlx.ingest.presets.registry import PRESETS
from qagent_mlx.shop.shop import Shop


def write(path, header, rows):
    opened = (
        gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    )
    with opened as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def events(shop, kind):
    return shop.connection.execute(
        "SELECT user_id, ts, query, product_id FROM events WHERE type = ? ORDER BY ts, event_id",
        [kind],
    ).fetchall()


def test_bestbuy_keeps_typed_queries_and_rejects_what_has_no_title(shop, raw):
    write(raw / "products.csv", ("sku", "name"), [("1", "Halo: Reach"), ("2", "Fable III")])
    write(
        raw / "events.csv",
        ("user_id", "query", "sku", "query_time", "click_time"),
        [
            ("u", "halo", "1", "2011-08-11 03:59:04.27", "2011-08-11 04:00:17.021"),
            ("u", "fable", "", "2011-08-12 03:59:04.27", ""),
            ("v", "gears", "9", "2011-08-12 03:59:04.27", "2011-08-12 04:00:00"),
        ],
    )
    report = load_preset(shop, "bestbuy", raw)
    assert report.derived is None
    assert report.events.accepted == 2 and report.events.rejected == 1
    assert [q for _, _, q, _ in events(shop, "search")] == ["halo", "fable"]
    assert [p for *_, p in events(shop, "click")] == ["1"]


def test_amazon_office_gets_a_clock_and_derived_queries(shop, raw):
    titles = [
        "HP 74 Black Ink Cartridge, 2",
        "Canon Ink Cartridges (Blue)",
        "BIC Gel Pens, 12",
        "Pilot Gel Pen Set",
    ]
    brands = ["HP", "Canon", "BIC", "Pilot"]
    write(
        raw / "products.csv",
        ("item_id", "title", "brand"),
        [(i, t, b) for i, (t, b) in enumerate(zip(titles, brands, strict=True))],
    )
    write(
        raw / "purchases.csv",
        ("user_id", "position", "item_id"),
        [("a", 0, 0), ("a", 1, 2), ("a", 2, 3), ("b", 0, 1), ("b", 1, 0)],
    )
    report = load_preset(shop, "amazon-office", raw)
    assert report.derived == "from titles"
    assert Shop.open(shop.path).config.derived_queries == "from titles"
    found = events(shop, "search")
    assert [(u, q) for u, _, q, _ in found if u == "a"] == [
        ("a", "ink cartridge"),
        ("a", "gel pen"),
        ("a", "gel pen"),
    ]
    # Everybody's last purchase falls in the last week; a user's are in order, days apart.
    last = {u: t for u, t, *_ in found}
    assert abs(last["a"] - last["b"]) < timedelta(days=7)
    mine = [t for u, t, *_ in found if u == "a"]
    assert all(b - a >= timedelta(days=1) for a, b in pairwise(mine))
    cases = build_cases(shop.connection)
    assert len(cases) == 3 and all(c.history > 0 for c in cases)


INSTACART = [
    # user, order, number, dow, hour, gap, product, place, reordered
    (1, 11, 1, 2, 8, "", 5, "1.0", "0.0"),
    (1, 11, 1, 2, 8, "", 6, "2.0", "0.0"),
    (1, 12, 2, 3, 9, "7.0", 5, "2.0", "1.0"),
    (1, 12, 2, 3, 9, "7.0", 7, "1.0", "0.0"),
    (2, 21, 1, 3, 23, "", 7, "1.0", "0.0"),
    (2, 22, 2, 3, 23, "0.0", 6, "1.0", "0.0"),
]


@pytest.mark.parametrize("form", ["ours", "release"])
def test_instacart_asks_for_first_purchases_by_aisle(shop, raw, form):
    goods = [
        (5, "Gala Apples", "fresh fruits", "produce"),
        (6, "Oat Milk", "milk", "dairy"),
        (7, "Rye Bread", "bread", "bakery"),
    ]
    if form == "ours":
        write(raw / "products.csv.gz", ("product_id", "product_name", "aisle", "department"), goods)
        write(
            raw / "order_items.csv.gz",
            (
                "user_id",
                "order_id",
                "order_number",
                "order_dow",
                "order_hour_of_day",
                "days_since_prior_order",
                "product_id",
                "add_to_cart_order",
                "reordered",
            ),
            INSTACART,
        )
    else:
        write(
            raw / "products.csv",
            ("product_id", "product_name", "aisle_id", "department_id"),
            [(p, n, i, i) for i, (p, n, *_) in enumerate(goods)],
        )
        write(raw / "aisles.csv", ("aisle_id", "aisle"), [(i, g[2]) for i, g in enumerate(goods)])
        write(
            raw / "departments.csv",
            ("department_id", "department"),
            [(i, g[3]) for i, g in enumerate(goods)],
        )
        orders = dict.fromkeys((o, u, "prior", n, d, h, g) for u, o, n, d, h, g, *_ in INSTACART)
        write(
            raw / "orders.csv",
            (
                "order_id",
                "user_id",
                "eval_set",
                "order_number",
                "order_dow",
                "order_hour_of_day",
                "days_since_prior_order",
            ),
            orders,
        )
        write(
            raw / "order_products__prior.csv",
            ("order_id", "product_id", "add_to_cart_order", "reordered"),
            [(r[1], r[6], r[7], r[8]) for r in INSTACART],
        )
    report = load_preset(shop, "instacart", raw)
    assert "aisle" in report.derived
    assert report.events.rejected == 0
    searched = [(u, q) for u, _, q, _ in events(shop, "search")]
    assert sorted(searched) == [
        ("1", "bread"),
        ("1", "fresh fruits"),
        ("1", "milk"),
        ("2", "bread"),
        ("2", "milk"),
    ]
    bought = events(shop, "purchase")
    assert len(bought) == 6  # what is bought again is bought without a search
    times = {(u, p): t for u, t, _, p in bought}
    assert times["1", "7"] - times["1", "6"] > timedelta(days=6)
    tied = shop.connection.execute(
        """SELECT count(*) FROM events e JOIN events s ON s.event_id = e.search_id
        WHERE e.type = 'purchase' AND e.query_key = s.query_key"""
    ).fetchone()
    assert tied == (5,)
    found = shop.connection.execute(
        """SELECT count(*) FROM events WHERE type = 'purchase' AND search_id IS NOT NULL"""
    ).fetchone()
    assert found == (5,)  # what is bought again was found by no search


def amazon_files(raw):
    meta = [
        {
            "parent_asin": "B1",
            "title": "Copy Paper 500",
            "store": "Acme",
            "price": 9.5,
            "categories": ["Office", "Paper", "Copy Paper"],
        },
        {
            "parent_asin": "B2",
            "title": "Gel Pen",
            "store": None,
            "price": "None",
            "categories": ["Office", "Writing", "Gel Pens"],
        },
    ]
    with gzip.open(raw / "meta_Office_Products.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, meta)))
    rows = [
        ("u1", "B1", 1500000000000),
        ("u1", "B2", 1500100000000),
        ("u2", "B2", 1500200000000),
        ("u2", "B9", 1500300000000),
    ]
    lines = [
        json.dumps({"user_id": u, "parent_asin": p, "timestamp": t, "rating": 5.0})
        for u, p, t in rows
    ]
    (raw / "Office_Products.jsonl").write_text("\n".join(lines))


def test_amazon_takes_the_escI_query_and_else_the_category(shop, raw):
    amazon_files(raw)
    duckdb.sql(
        """COPY (SELECT * FROM (VALUES ('best smooth pens', 'B2', 'us', 'E'),
            ('pencils', 'B2', 'us', 'I'), ('stifte', 'B2', 'de', 'E'))
            t(query, product_id, product_locale, esci_label))
        TO '"""
        + str(raw / "shopping_queries_dataset_examples.parquet")
        + "' (FORMAT parquet)"
    )
    report = load_preset(shop, "amazon", raw)
    assert report.products.accepted == 2
    assert "ESCI" in report.derived and "1 products" in report.derived
    assert [(u, q) for u, _, q, _ in events(shop, "search")] == [
        ("u1", "paper copy"),
        ("u1", "best smooth pens"),
        ("u2", "best smooth pens"),
    ]
    assert events(shop, "purchase")[0][1].year == 2017
    price = shop.connection.execute("SELECT price, brand FROM products ORDER BY ALL").fetchall()
    assert (9.5, "Acme") in price


def test_amazon_takes_no_file_of_reviews_by_chance(shop, raw):
    amazon_files(raw)
    (raw / "Beauty.csv").write_text("user_id,parent_asin,rating,timestamp\n")
    with pytest.raises(QAgentError, match="one file of reviews .* not Beauty.csv, Office_Products"):
        load_preset(shop, "amazon", raw)
    (raw / "Beauty.csv").rename(raw / "shopping_queries_dataset_sources.csv")  # ESCI's own
    assert load_preset(shop, "amazon", raw).events.accepted


def test_amazon_without_esci_derives_from_categories(shop, raw):
    amazon_files(raw)
    assert load_preset(shop, "amazon", raw).derived == "from category paths"


def test_generic_derives_only_where_nobody_searched(tmp_path, raw):
    write(
        raw / "products.csv",
        ("product_id", "title", "category"),
        [("p1", "A Tent", "Camping > Tents"), ("p2", "A Stove", "Camping > Stoves")],
    )
    header = ("user_id", "time", "type", "query", "product_id")
    bought = ("u", "2026-01-01T10:00:00", "purchase", "", "p1")
    write(raw / "events.csv", header, [bought])
    with Shop.create(tmp_path / "a") as shop:
        assert load_preset(shop, "generic", raw).derived == "from category paths"
        assert [q for _, _, q, _ in events(shop, "search")] == ["tents"]
    write(raw / "events.csv", header, [bought, ("u", "2026-01-01T09:59:00", "search", "hut", "")])
    with Shop.create(tmp_path / "b") as shop:
        assert load_preset(shop, "generic", raw).derived is None
        assert [q for _, _, q, _ in events(shop, "search")] == ["hut"]


def test_wrong_names_folders_files_and_shops_are_refused(shop, raw):
    with pytest.raises(QAgentError, match="known are ubi, .*bestbuy"):
        load_preset(shop, "ebay", raw)
    with pytest.raises(QAgentError, match="no folder"):
        load_preset(shop, "bestbuy", raw / "nothing")
    for name in (preset.name for preset in PRESETS.values() if preset.fill):
        with pytest.raises(QAgentError, match=r"has no (products|product file)"):
            load_preset(shop, name, raw)
    write(raw / "products.csv", ("id", "title"), [("1", "x")])
    with pytest.raises(QAgentError, match="no column"):
        load_preset(shop, "instacart", raw)
    write(raw / "products.csv", ("sku", "name"), [("1", "Halo")])
    write(
        raw / "events.csv",
        ("user_id", "query", "sku", "query_time"),
        [("u", "halo", "1", "2011-08-11")],
    )
    load_preset(shop, "bestbuy", raw)
    with pytest.raises(QAgentError, match="holds data already"):
        load_preset(shop, "bestbuy", raw)
