"""Public data sets in folders; where a log has no queries they are derived."""

from __future__ import annotations

from datetime import timedelta

from ...shop.shop import Shop
from ...utils.text import words
from ...utils.title_words import title_queries
from ..derived_queries import derive_queries
from ..ingest import ingest_files
from ..options import ReadOptions
from ..report import IngestReport
from .derived_purchases import Purchase, ingest_purchases
from .folder import Folder
from .preset import Preset

CLOCK_START = "2017-01-02"  # of logs that have no dates


def _bestbuy(shop: Shop, raw: Folder) -> tuple[IngestReport, IngestReport]:
    """products.csv (sku, name), events.csv (user_id, query, sku, query_time, click_time).

    Typed queries and clicks; some clicked products have no title and are rejected.
    """
    products = raw.need("products", "products.csv*")
    events = raw.need("events", "events.csv*")
    return ingest_files(shop, "products", [products]), ingest_files(shop, "events", [events])


def _generic(shop: Shop, raw: Folder) -> tuple[IngestReport, IngestReport]:
    """products.* and events.*; queries are derived when the events have none."""
    forms = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz")
    catalog = raw.need("products", *(f"products.{form}" for form in forms))
    log = raw.need("events", *(f"events.{form}" for form in forms))
    products = ingest_files(shop, "products", [catalog])
    events = ingest_files(shop, "events", [log])
    ((searches, stored),) = shop.connection.execute(
        "SELECT count(*) FILTER (type = 'search'), count(*) FROM events"
    ).fetchall()
    return products, derive_queries(shop) if stored and not searches else events


def _amazon_office(shop: Shop, raw: Folder) -> tuple[IngestReport, IngestReport]:
    """products.csv (item_id, title, brand), purchases.csv (user_id, position, item_id).

    Purchases in order, without times: the clock puts a week between a user's.
    """
    raw.table("p", raw.need("products", "products.csv*"), "item_id", "title", "brand")
    raw.table("e", raw.need("purchases", "purchases.csv*"), "user_id", "position", "item_id")
    products = raw.ingest_products(
        shop,
        "SELECT item_id AS product_id, title, brand FROM p ORDER BY rowid",
        ReadOptions(html=False),  # as they are published: reported numbers rest on them
    )
    # The last purchases of all users end together, as a log's do: so the split by time
    # tests each user's last ones.
    purchases = raw.rows(
        f"""WITH places AS (
            SELECT user_id, item_id AS product_id, position::INT AS place,
                   max(place) OVER (PARTITION BY user_id) AS last, max(place) OVER () AS ends,
                   dense_rank() OVER (ORDER BY user_id) AS number FROM e)
        SELECT user_id, product_id, TIMESTAMP '{CLOCK_START}'
            + INTERVAL 7 DAY * (ends - last + place)
            + INTERVAL 1 SECOND * (number * 7919 % 80000)::INT AS time
        FROM places ORDER BY time, user_id"""
    )
    catalog = raw.rows("SELECT item_id, title, brand FROM p")
    queries = title_queries(
        {product: title or "" for product, title, _ in catalog},
        {product: brand for product, _, brand in catalog},
    )
    events = ingest_purchases(
        shop, (Purchase(*purchase) for purchase in purchases), queries, "from titles"
    )
    return products, events


def _instacart(shop: Shop, raw: Folder) -> tuple[IngestReport, IngestReport]:
    """products.csv with aisle and department, order_items.csv; or the files of the release.

    Orders with day gaps; the aisle is the query, of products that a user buys for the first time.
    """
    catalog = _instacart_tables(raw)
    products = raw.ingest_products(
        shop,
        f"""SELECT product_id, product_name AS title, department || ' > ' || aisle AS category
        FROM {catalog} ORDER BY product_id""",
    )
    # All users' last orders end on one day; going back from there by the gaps dates all.
    purchases = raw.rows(
        f"""WITH orders AS (
            SELECT user_id, order_id, any_value(order_number)::INT AS n,
                   any_value(order_hour_of_day)::INT AS hour,
                   coalesce(try_cast(any_value(days_since_prior_order) AS DOUBLE), 0) AS gap
            FROM i GROUP BY ALL),
        days AS (
            SELECT *, sum(gap) OVER (PARTITION BY user_id ORDER BY n) AS day,
                   sum(gap) OVER (PARTITION BY user_id) AS total FROM orders),
        dated AS (
            SELECT *, TIMESTAMP '{CLOCK_START}' + INTERVAL 1 DAY * (
                (max(total) OVER () - total + day)::INT) + INTERVAL 1 HOUR * hour
                + INTERVAL 1 MINUTE * (n % 60) AS ts FROM days),
        bought AS (
            SELECT i.user_id, i.order_id, i.product_id, d.ts, coalesce(g.aisle, '') AS aisle,
                   try_cast(i.add_to_cart_order AS DOUBLE) AS added,
                   row_number() OVER (PARTITION BY i.user_id, i.product_id ORDER BY
                       d.ts, d.n) = 1 AS first
            FROM i JOIN dated d USING (order_id) JOIN {catalog} g
                ON g.product_id = i.product_id),
        -- What is bought again comes first, as from a list: behind a search it would count
        -- as found by it.
        numbered AS (
            SELECT *, row_number() OVER (PARTITION BY user_id, order_id ORDER BY
                first, added, product_id) AS place FROM bought)
        SELECT user_id, product_id, ts + INTERVAL 20 SECOND * place AS time, first, aisle
        FROM numbered ORDER BY time, user_id, place"""
    )
    aisles = {str(product): aisle for _, product, *_, aisle in purchases if words(aisle)}
    events = ingest_purchases(
        shop,
        (Purchase(*purchase[:-1]) for purchase in purchases),
        aisles,
        "from aisle names, for a product's first purchase by a user",
        timedelta(seconds=10),
    )
    return products, events


def _instacart_tables(raw: Folder) -> str:
    """Read products and ordered items (``i``); returns the relation of products with aisles."""
    catalog = "p"
    path = raw.need("products", "products.csv*")
    if "aisle" not in raw.table("p", path, "product_id", "product_name"):
        raw.table("a", raw.need("aisles", "aisles.csv*"), "aisle_id", "aisle")
        path = raw.need("departments", "departments.csv*")
        raw.table("d", path, "department_id", "department")
        catalog = "(SELECT * FROM p JOIN a USING (aisle_id) JOIN d USING (department_id))"
    of_order = ("user_id", "order_id", "order_number", "order_hour_of_day")
    items = raw.find("order_items.csv*")
    if items is not None:
        of_item = ("days_since_prior_order", "product_id", "add_to_cart_order")
        raw.table("i", items, *of_order, *of_item)
        return catalog
    raw.table("o", raw.need("orders", "orders.csv*"), "user_id", "order_id")
    items = raw.need("order items", "order_products__prior.csv*", "order_products*.csv*")
    raw.table("op", items, "order_id", "product_id")
    raw.rows("CREATE VIEW i AS SELECT * FROM o JOIN op USING (order_id)")
    return catalog


PRESETS = (
    Preset.of_folder("bestbuy", _bestbuy),
    Preset.of_folder("amazon-office", _amazon_office),
    Preset.of_folder("instacart", _instacart),
    Preset.of_folder("generic", _generic),
)
