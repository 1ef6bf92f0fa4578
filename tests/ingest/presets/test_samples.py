"""The shared samples of each format, where they are there."""

from pathlib import Path

import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.presets.loading import load_preset
from qagent_mlx.shop.shop import Shop

_PLACES = [folder / "shared" / "cases" / "formats" for folder in Path(__file__).parents]
SAMPLES = next((place for place in _PLACES if place.exists()), _PLACES[0])
BASE = {"search": 558, "click": 159, "view": 84, "cart": 143, "purchase": 133}
CASES = {
    "ubi": (("ubi/ubi_queries.ndjson", "ubi/ubi_events.ndjson"), BASE, 30),
    "ubi without user_query": (("ubi/ubi_queries.ndjson", "ubi/ubi_events_10.ndjson"), BASE, 30),
    "ubi bulk": (("ubi/bulk.ndjson",), {"search": 150}, 24),
    "ga4 parquet": (("ga4/events_20260105.parquet",), BASE, 30),
    "ga4 json": (
        ("ga4/events_20260105.json",),
        {"search": 106, "click": 26, "view": 13, "cart": 23, "purchase": 21},
        17,
    ),
    "segment": (("segment",), {**BASE, "purchase": 266}, 30),
    "queries and clicks": (
        ("logs/queries.csv", "logs/clicks.csv"),
        {"search": 558, "click": 159, "purchase": 133},
        30,
    ),
    "shopify": (("shopify",), {"purchase": 266}, 30),
    "insights": (("logs/insights.jsonl",), {"click": 159, "view": 84, "cart": 276}, 30),
}


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")
@pytest.mark.parametrize("case", CASES)
def test_each_sample_goes_in_with_its_counts(shop, case):
    names, counts, users = CASES[case]
    ingest_files(shop, "products", [SAMPLES / "products.csv"])
    report = load_preset(shop, "auto", *(SAMPLES / name for name in names))
    stored = shop.connection.execute("SELECT type, count(*) FROM events GROUP BY type").fetchall()
    assert dict(stored) == counts and report.events.rejected == 0
    assert report.impressions.accepted == (99 if "events" in names[-1] and "ubi" in case else 0)
    assert shop.counts()["users"] == users


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")
@pytest.mark.parametrize(
    ("name", "in_stock"), [("shopify/products_export.csv", 172), ("merchant/gmc.tsv", 161)]
)
def test_each_catalog_goes_in_with_its_stock(shop, products, name, in_stock):
    report = load_preset(shop, "auto", SAMPLES / name)
    assert report.products.accepted == 201 and report.products.rejected == 0
    assert sum(product[4] for product in products().values()) == in_stock
    base = shop.path.parent / "base"
    with Shop.create(base) as other:
        ingest_files(other, "products", [SAMPLES / "products.csv"])
        titles = other.connection.execute("SELECT title, brand, category FROM products").fetchall()
    assert {product[:3] for product in products().values()} == set(titles)
