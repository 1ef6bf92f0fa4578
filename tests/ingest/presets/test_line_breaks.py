"""Cells with line breaks, in the CSV files of all presets that read some."""

import pytest

from qagent_mlx.ingest.presets.loading import load_preset

BREAK = 'one\r\n"two", \nthree'
CATALOGS = {
    "shopify": (
        ("Handle", "Title", "Body (HTML)", "Option1 Value", "Variant SKU", "Variant Price"),
        lambda n: (f"p{n}", f"Title {n}", BREAK, "", f"s{n}", "5.00"),
    ),
    "woocommerce": (
        ("ID", "Type", "SKU", "Name", "Description", "In stock?", "Regular price"),
        lambda n: (f"p{n}", "simple", f"s{n}", f"Title {n}", BREAK, "1", "5.00"),
    ),
    "google-merchant": (
        ("id", "title", "description", "link", "availability", "price"),
        lambda n: (f"p{n}", f"Title {n}", BREAK, "https://x", "in stock", "5.00 EUR"),
    ),
}
LOGS = {
    "algolia": (
        ("query_id", "user_token", "query", "timestamp", "tags"),
        lambda n: (f"q{n}", "u", f"query {n}", 1767607200 + n, BREAK),
    ),
    "segment": (
        ("id", "anonymous_id", "event", "event_text", "received_at", "timestamp", "query", "tags"),
        lambda n: (
            str(n),
            "u",
            "products_searched",
            "Products Searched",
            f"2026-01-05 10:{n // 60:02}:{n % 60:02}",
            f"2026-01-05 10:{n // 60:02}:{n % 60:02}",
            f"query {n}",
            BREAK,
        ),
    ),
}


@pytest.mark.parametrize("count", [2, 3000])
@pytest.mark.parametrize("name", CATALOGS)
def test_line_breaks_in_a_catalog_cost_no_row(shop, write_csv, products, name, count):
    header, row = CATALOGS[name]
    path = write_csv("catalog.csv", header, *map(row, range(count)))
    report = load_preset(shop, "auto", path)
    assert (report.preset, len(products()), report.total.rejected) == (name, count, 0)
    assert "malformed row" not in report.total.ignored


@pytest.mark.parametrize("name", LOGS)
def test_line_breaks_in_a_log_cost_no_row(shop, write_csv, stored, name):
    header, row = LOGS[name]
    path = write_csv("log.csv", header, *map(row, range(300)))
    assert load_preset(shop, "auto", path).preset == name
    assert len(stored()) == 300


def test_a_line_break_far_down_after_rows_that_have_none(shop, write_csv, products):
    header, row = CATALOGS["shopify"]
    rows = [[*row(n)[:2], "" if n != 2900 else BREAK, *row(n)[3:]] for n in range(3000)]
    load_preset(shop, "shopify", write_csv("products_export.csv", header, *rows))
    assert len(products()) == 3000
