"""Shopify's admin exports, with the names of columns until 2025 and since."""

import pytest

from qagent_mlx.ingest.presets.loading import load_preset

OLD = [
    "Handle",
    "Title",
    "Body (HTML)",
    "Vendor",
    "Product Category",
    "Type",
    "Tags",
    "Published",
    "Option1 Name",
    "Option1 Value",
    "Variant SKU",
    "Variant Inventory Tracker",
    "Variant Inventory Qty",
    "Variant Inventory Policy",
    "Variant Price",
    "Variant Compare At Price",
    "Variant Barcode",
    "Image Src",
    "Material (product.metafields.custom.material)",
    "Status",
]
NEW = {
    "Handle": "URL handle",
    "Body (HTML)": "Description",
    "Product Category": "Product category",
    "Published": "Published on online store",
    "Option1 Name": "Option1 name",
    "Option1 Value": "Option1 value",
    "Variant SKU": "SKU",
    "Variant Inventory Tracker": "Inventory tracker",
    "Variant Inventory Qty": "Inventory quantity",
    "Variant Inventory Policy": "Continue selling when out of stock",
    "Variant Price": "Price",
    "Variant Compare At Price": "Compare-at price",
    "Variant Barcode": "Barcode",
    "Image Src": "Product image URL",
}
ORDERS = [
    "Name",
    "Email",
    "Financial Status",
    "Created at",
    "Lineitem quantity",
    "Lineitem name",
    "Lineitem sku",
    "Phone",
    "Cancelled at",
    "Phone",
]


def variant(handle, size, sku, price, quantity, policy="deny", tracker="shopify", **fields):
    return {
        "Handle": handle,
        "Option1 Value": size,
        "Variant SKU": sku,
        "Variant Price": price,
        "Variant Inventory Qty": quantity,
        "Variant Inventory Policy": policy,
        "Variant Inventory Tracker": tracker,
        **fields,
    }


SHIRT = {
    "Title": "Tom &amp; Shirt",
    "Vendor": "Acme",
    "Product Category": "Clothing > Shirts",
    "Type": "Shirt",
    "Tags": "a, b",
    "Option1 Name": "Size",
    "Material (product.metafields.custom.material)": "Wool",
    "Status": "active",
    "Published": "true",
}
PRODUCTS = (
    variant("shirt", "S", "sh-S", "20.00", -1, **SHIRT),
    variant("shirt", "M", "sh-M", "25.00", 3, **{"Variant Compare At Price": "30.00"}),
    {"Handle": "shirt", "Image Src": "https://x/y.jpg"},
    variant(
        "mug",
        "Default Title",
        "mug-1",
        "5.00",
        0,
        Title="Mug",
        Type="Mugs",
        **{"Option1 Name": "Title", "Variant Barcode": "4006381333931"},
    ),
    variant("card", "Default Title", "", "10.00", "", tracker="", Title="Gift card"),
    variant("old", "Default Title", "old-1", "9.00", 5, Title="Old", Status="draft"),
)


@pytest.mark.parametrize("names", [{}, NEW])
def test_all_rows_of_a_handle_are_one_product(shop, raw, products, write_csv, names):
    rows = [[row.get(column, "") for column in OLD] for row in PRODUCTS]
    write_csv("products_export.csv", [names.get(column, column) for column in OLD], *rows)
    report = load_preset(shop, "auto", raw)
    assert report.preset == "shopify" and report.products.rejected == 0
    shirt = {"Size": "S, M", "Type": "Shirt", "Tags": "a, b", "Material": "Wool"}
    assert products() == {
        "shirt": (
            "Tom & Shirt",
            "Acme",
            "Clothing > Shirts",
            25.0,
            True,
            {**shirt, "Compare at": "30.00"},
        ),
        "mug": ("Mug", None, "Mugs", 5.0, False, {}),
        "card": ("Gift card", None, None, 10.0, True, {}),
        "old": ("Old", None, None, 9.0, False, {}),
    }
    assert "1 products are no longer sold (draft, archived, unpublished)" in report.total.notes


def test_an_export_of_two_files_is_one_catalog(shop, raw, products, write_csv):
    write_csv("products_export_1.csv", OLD, *PRODUCTS[:1])
    write_csv("products_export_2.csv", OLD, *PRODUCTS[1:])
    load_preset(shop, "shopify", raw)
    assert products()["shirt"][3] == 25.0 and len(products()) == 4


def order(name, sku, item="", **fields):
    return {"Name": name, "Lineitem sku": sku, "Lineitem name": item, **fields}


FIRST = {
    "Email": "Anna@Example.com",
    "Financial Status": "paid",
    "Created at": "2026-01-06 10:30:45 +0200",
}


def test_lines_of_orders_are_purchases_by_the_skus_of_variants(shop, raw, stored, write_csv):
    write_csv("products_export.csv", OLD, *PRODUCTS)
    write_csv(
        "orders_export.csv",
        ORDERS,
        order("#1", "sh-S", "Shirt - S", **FIRST),
        order("#1", "sh-M", "Shirt - M"),
        order("#1", "", "Mug"),
        order("#1", "4006381333931", "Mug"),
        order("#2", "mug-1", "Mug", **FIRST, **{"Cancelled at": "2026-01-07"}),
        order("#3", "mug-1", "Mug", **{**FIRST, "Financial Status": "refunded"}),
        order("#4", "", "Tip", **FIRST),
        order("#5", "mug-1", "Mug", **{**FIRST, "Email": ""}),
    )
    report = load_preset(shop, "auto", raw)
    assert [(user, time[:23], product) for user, time, _, _, product in stored()] == [
        ("anna@example.com", "2026-01-06 08:30:45", "shirt"),
        ("anna@example.com", "2026-01-06 08:30:45", "mug"),
        ("anna@example.com", "2026-01-06 08:30:45.001", "shirt"),
        ("anna@example.com", "2026-01-06 08:30:45.001", "mug"),
    ]
    assert report.total.ignored == {
        "line of a cancelled order": 1,
        "line of an order that is refunded": 1,
    }
    assert report.events.reasons == {"no product": 1, "no user": 1}


def test_a_stock_that_the_export_does_not_tell_is_said(shop, raw, write_csv):
    names = [name for name in OLD if name != "Variant Inventory Qty"]
    write_csv("products_export.csv", names, *PRODUCTS[:3])
    notes = load_preset(shop, "shopify", raw).total.notes
    assert "1 products have no stock that is known, the export has no quantities" in notes


def test_orders_that_come_later_know_the_variants(shop, raw, stored, write_csv):
    write_csv("products_export.csv", OLD, *PRODUCTS)
    load_preset(shop, "shopify", raw / "products_export.csv")
    lines = [order("#1", "sh-S", "Shirt - S", **FIRST), order("#1", "sh-M", "Shirt - M")]
    path = write_csv("orders_export.csv", ORDERS, *lines)
    load_preset(shop, "shopify", path)
    assert [product for *_, product in stored()] == ["shirt", "shirt"]
    again = load_preset(shop, "shopify", raw)
    assert again.total.accepted == 0 and again.total.duplicates == 6


def test_prices_have_commas_and_codes_the_apostrophe_of_spreadsheets(
    shop, raw, stored, products, write_csv
):
    rows = [
        {"Handle": "a", "Title": "A", "Variant SKU": "'007", "Variant Price": "1,299.00"},
        {"Handle": "b", "Title": "B", "Variant SKU": "8", "Variant Price": "ask us"},
    ]
    write_csv("products_export.csv", OLD, *rows)
    order = {
        "Name": "#1",
        "Email": "a@x",
        "Financial Status": "paid",
        "Created at": "2026-01-05 10:00:00 +0000",
        "Lineitem name": "x",
    }
    write_csv(
        "orders_export.csv", ORDERS, [{**order, "Lineitem sku": "'007"}.get(c, "") for c in ORDERS]
    )
    report = load_preset(shop, "auto", raw)
    assert [products()[i][3] for i in "ab"] == [1299.0, None]
    assert [product for *_, product in stored()] == ["a"]
    assert "1 prices cannot be read, such as 'ask us': left empty" in report.total.notes
    aliases = shop.connection.execute("SELECT alias FROM product_aliases ORDER BY 1").fetchall()
    assert aliases == [("007",), ("8",)]
