"""Feeds of Google Merchant Center: tabs, commas, RSS and Atom."""

import gzip

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.loading import load_preset

HEADER = [
    "id",
    "title",
    "link",
    "image_link",
    "availability",
    "price",
    "sale_price",
    "sale_price_effective_date",
    "brand",
    "product_type",
    "google_product_category",
    "gtin",
    "color",
]


def product(number, **fields):
    return {
        "id": f"p{number}",
        "title": f"Title {number}",
        "link": "https://x",
        "price": "10.00 EUR",
        "availability": "in_stock",
        **fields,
    }


PRODUCTS = (
    product(
        1,
        title='A 13" laptop',
        brand="Acme",
        product_type="Computers > Laptops, Sale > New",
        google_product_category="Apparel & Accessories",
        gtin="4006381333931",
        color="red",
    ),
    product(2, availability="out of stock", sale_price="8,50 EUR"),
    product(
        3,
        availability="preorder",
        sale_price="7.00 EUR",
        sale_price_effective_date="2020-01-01T00:00+0100/2020-02-01T00:00+0100",
        google_product_category="1604",
    ),
    product(
        4,
        availability="backorder",
        product_type="Bags, Shoes > Red",
        sale_price="6.00 EUR",
        sale_price_effective_date="2020-01-01T00:00+0100/2099-02-01T00:00+0100",
    ),
    product(5, google_product_category="Toys > Games"),
)
STORED = {
    "p1": ('A 13" laptop', "Acme", "Computers > Laptops", 10.0, True, {"color": "red"}),
    "p2": ("Title 2", None, None, 8.5, False, {}),
    "p3": ("Title 3", None, None, 10.0, True, {}),
    "p4": ("Title 4", None, "Bags", 6.0, True, {}),
    "p5": ("Title 5", None, "Toys > Games", 10.0, True, {}),
}


def test_a_feed_of_tabs_has_no_quotes(shop, raw, products):
    lines = ["\t".join(name.replace("_", " ") for name in HEADER)]
    lines += ["\t".join(row.get(name, "") for name in HEADER) for row in PRODUCTS]
    (raw / "feed.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = load_preset(shop, "auto", raw)
    assert report.preset == "google-merchant" and products() == STORED


def test_a_feed_of_commas_is_the_same(shop, raw, products, write_csv):
    names = [f"g:{name}" for name in HEADER]
    rows = [{f"g:{name}": value for name, value in row.items()} for row in PRODUCTS]
    write_csv("feed.csv", names, *rows)
    load_preset(shop, "google-merchant", raw)
    assert products() == STORED


def test_what_a_feed_has_no_column_for_stays(shop, raw, write_csv, products):
    write_csv("feed.csv", HEADER, *PRODUCTS)
    load_preset(shop, "google-merchant", raw)
    write_csv("feed.csv", HEADER[:6], product(1, price="11.00 EUR"))
    load_preset(shop, "google-merchant", raw)
    assert products()["p1"][3] == 11.0


def xml(form):
    items = []
    for row in PRODUCTS:
        fields = "".join(
            f"<g:{name}><![CDATA[{value}]]></g:{name}>"
            for name, value in row.items()
            if name != "title"
        )
        tag = "item" if form == "rss" else "entry"
        items.append(
            f"<{tag}><title><![CDATA[{row['title']}]]></title>{fields}"
            f"<g:product_type>Second</g:product_type></{tag}>"
            if "product_type" in row
            else f"<{tag}><title>{row['title']}</title>{fields}</{tag}>"
        )
    space = 'xmlns:g="http://base.google.com/ns/1.0"'
    if form == "rss":
        body = f'<rss version="2.0" {space}><channel>{"".join(items)}</channel></rss>'
    else:
        body = f'<feed xmlns="http://www.w3.org/2005/Atom" {space}>{"".join(items)}</feed>'
    return f'<?xml version="1.0"?>\n{body}'.encode()


@pytest.mark.parametrize("form", ["rss", "atom"])
def test_a_feed_of_xml_is_the_same(shop, raw, products, form):
    (raw / "feed.xml.gz").write_bytes(gzip.compress(xml(form)))
    load_preset(shop, "auto", raw)
    assert products() == STORED


def test_entities_and_damage_are_refused(shop, raw):
    path = raw / "feed.xml"
    path.write_bytes(xml("rss").replace(b"?>\n", b'?>\n<!DOCTYPE x [<!ENTITY a "b">]>\n'))
    with pytest.raises(QAgentError, match="no DOCTYPE"):
        load_preset(shop, "google-merchant", raw)
    path.write_bytes(xml("rss")[:-40])
    with pytest.raises(QAgentError, match="damaged XML"):
        load_preset(shop, "google-merchant", raw)
