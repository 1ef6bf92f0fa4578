"""WooCommerce: products with variations, and orders of several origins."""

import json

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.loading import load_preset

HEADER = [
    "ID",
    "Type",
    "SKU",
    "GTIN, UPC, EAN, or ISBN",
    "Name",
    "Published",
    "Visibility in catalog",
    "Date sale price starts",
    "Date sale price ends",
    "In stock?",
    "Sale price",
    "Regular price",
    "Categories",
    "Tags",
    "Parent",
    "Brands",
    "Attribute 1 name",
    "Attribute 1 value(s)",
    "Attribute 2 name",
    "Attribute 2 value(s)",
]
GERMAN = [
    "ID",
    "Typ",
    "Artikelnummer",
    "GTIN, UPC, EAN oder ISBN",
    "Name",
    "Veröffentlicht",
    "Sichtbarkeit im Katalog",
    "Datum, an dem Angebotspreis beginnt",
    "Datum, an dem Angebotspreis endet",
    "Vorrätig?",
    "Angebotspreis",
    "Regulärer Preis",
    "Kategorien",
    "Schlagwörter",
    "Übergeordnetes Produkt",
    "Marken",
    "Attribut 1 Name",
    "Attribut 1 Wert(e)",
    "Attribut 2 Name",
    "Attribut 2 Wert(e)",
]


def row(number, kind, name, price="", **fields):
    return {
        "ID": number,
        "Type": kind,
        "Name": name,
        "Published": "1",
        "In stock?": "1",
        "Visibility in catalog": "visible",
        "Regular price": price,
        **fields,
    }


ROWS = (
    row(
        10,
        "variable",
        "Hoodie",
        SKU="hoodie",
        Categories="Sale, Clothing > Hoodies",
        Tags="warm, soft",
        Brands="Acme",
        **{"Attribute 1 name": "Color", "Attribute 1 value(s)": "Blue, Green\\, dark"},
    ),
    row(
        11,
        "variation",
        "Hoodie - Blue",
        "45,00",
        SKU="h-blue",
        Parent="hoodie",
        **{"In stock?": "0"},
    ),
    row(12, "variation", "Hoodie - Green", "50,00", SKU="h-green", Parent="id:10"),
    row(
        13,
        "simple, downloadable",
        "'=Album",
        "15,00",
        SKU="album",
        Categories="Uncategorized",
        **{"Sale price": "12,99", "Attribute 1 name": "Brand", "Attribute 1 value(s)": "Sony"},
    ),
    row(
        14,
        "simple",
        "Ended",
        "10,00",
        **{"Sale price": "5,00", "Date sale price ends": "2020-01-01", "In stock?": "backorder"},
    ),
    row(15, "simple", "Hidden", "10,00", **{"Visibility in catalog": "hidden"}),
    row(16, "variation", "Lost one", "3,00", Parent="gone"),
)
STORED = {
    "10": (
        "Hoodie",
        "Acme",
        "Clothing > Hoodies",
        50.0,
        True,
        {"Color": "Blue, Green, dark", "Tags": "warm, soft"},
    ),
    "13": ("=Album", "Sony", None, 12.99, True, {}),
    "14": ("Ended", None, None, 10.0, True, {}),
    "15": ("Hidden", None, None, 10.0, False, {}),
    "16": ("Lost one", None, None, 3.0, True, {}),
}


@pytest.mark.parametrize("header", [HEADER, GERMAN])
def test_variations_are_one_product(shop, raw, products, write_csv, header):
    write_csv("export.csv", header, *([row.get(name, "") for name in HEADER] for row in ROWS))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "woocommerce" and products() == STORED
    assert report.total.notes == (
        "1 variations whose parent is not in the file are products",
        "1 products are hidden or not published: out of stock",
    )


def test_columns_of_an_unknown_language_are_refused_with_a_remedy(shop, raw, write_csv):
    header = ["ID", "Tipo", *HEADER[2:]]
    write_csv("export.csv", header, [ROWS[3].get(name, "") for name in HEADER])
    with pytest.raises(QAgentError, match="set to English"):
        load_preset(shop, "auto", raw)


BOUGHT = [
    ("7", "2026-01-06 10:00:00", "10"),
    ("7", "2026-01-06 10:00:00", "13"),
    ("a@b.c", "2026-01-06 11:00:00", "10"),
]


def check(report, stored):
    assert sorted((user, time, product) for user, time, _, _, product in stored) == BOUGHT
    assert report.total.ignored == {"line of an order that is cancelled": 1}


def test_orders_of_the_rest_interface_are_purchases(shop, raw, stored, write_csv):
    write_csv("export.csv", HEADER, *ROWS)
    orders = [
        {
            "id": 1,
            "status": "completed",
            "date_created_gmt": "2026-01-06T10:00:00",
            "customer_id": 7,
            "billing": {"email": "x@y.z"},
            "line_items": [
                {"product_id": 10, "variation_id": 12, "sku": "h-green"},
                {"product_id": 13, "variation_id": 0, "sku": "album"},
            ],
        },
        {
            "id": 2,
            "status": "processing",
            "date_created_gmt": "2026-01-06T11:00:00",
            "customer_id": 0,
            "billing": {"email": "A@b.c"},
            "line_items": [{"product_id": 10, "variation_id": 0, "sku": ""}],
        },
        {
            "id": 3,
            "status": "cancelled",
            "date_created_gmt": "2026-01-06T12:00:00",
            "customer_id": 7,
            "billing": {},
            "line_items": [{"product_id": 13}],
        },
    ]
    (raw / "orders.json").write_text(json.dumps(orders))
    check(load_preset(shop, "auto", raw), stored())


def test_orders_of_export_plugins_are_the_same(shop, raw, stored, write_csv):
    write_csv("export.csv", HEADER, *ROWS)
    path = write_csv(
        "orders.csv",
        ("order_id", "date", "status", "customer_id", "billing_email", "line_items"),
        (
            1,
            "2026-01-06 10:00:00",
            "wc-completed",
            7,
            "x@y.z",
            "name:Hoodie|product_id:12|sku:|quantity:1;name:Album|product_id:13|sku:album",
        ),
        (2, "2026-01-06 11:00:00", "on-hold", 0, "a@b.c", "name:Hoodie|product_id:|sku:h-blue"),
        (3, "2026-01-06 12:00:00", "cancelled", 7, "", "name:Album|product_id:13|sku:album"),
    )
    check(load_preset(shop, "woocommerce", raw), stored())
    path.unlink()
    write_csv(
        "lines.csv",
        (
            "Order Number",
            "Order Status",
            "Order Date",
            "Email (Billing)",
            "Customer User ID",
            "SKU",
        ),
        ("9", "Completed", "2026-01-07 10:00", "", "7", "h-green"),
        ("9", "", "", "", "", "album"),
    )
    load_preset(shop, "auto", raw)
    later = [(user, product) for user, *_, product in stored()][3:]
    assert sorted(later) == [("7", "10"), ("7", "13")]


def test_the_report_of_orders_has_no_ids(shop, raw, write_csv):
    write_csv("report.csv", ("Date", "Order #", "Customer", "Product(s)"), ("d", 1, "A", "2× Hat"))
    with pytest.raises(QAgentError, match="no ids of them; export orders from the REST"):
        load_preset(shop, "auto", raw)


@pytest.mark.parametrize(
    ("price", "cents"), [("1,299.00", "9.90"), ("1.299,00", "9,90"), ("1299", "9.9")]
)
def test_prices_are_read_as_they_are_written(shop, write_csv, products, price, cents):
    rows = [
        {"ID": "1", "Type": "simple", "SKU": "'1", "Name": "A", "Regular price": price},
        {"ID": "2", "Type": "simple", "SKU": "2", "Name": "B", "Regular price": cents},
    ]
    load_preset(shop, "woocommerce", write_csv("p.csv", HEADER, *rows))
    assert [products()[i][3] for i in "12"] == [1299.0, 9.9]
