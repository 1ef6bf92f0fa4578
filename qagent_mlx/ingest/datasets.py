"""Read public data sets in the form in which they are published.

A preset turns a folder of raw files into products and events, which go through the same checks as
any other file. Where a log has no queries they are derived, from category paths or from titles:
each purchase gets a search of its product's query just before it, as Ai et al. (SIGIR 2017,
arXiv:1708.08123) do with category paths. Nobody typed such a query. It measures whether the next
*kind of product* is foreseen, and every report on the shop says so. Each preset names its files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal, open_duckdb
from ..utils.text import words
from .derived_queries import category_queries, derive_queries, mark_as_derived, title_queries
from .ingest import append_events, ingest_files
from .report import IngestReport, ReadOptions

CLOCK_START = "2017-01-02"  # of logs that have no dates
PURCHASE_DELAY = timedelta(seconds=20)  # behind the derived search


@dataclass(frozen=True, slots=True)
class PresetReport:
    """Reports of a preset's files, and how queries were derived (None where people typed them)."""

    preset: str
    derived: str | None
    products: IngestReport
    events: IngestReport

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without examples of rejected rows."""
        reports: dict[str, dict[str, Any]] = {
            "products": self.products.to_dict(),
            "events": self.events.to_dict(),
        }
        for report in reports.values():
            del report["examples"]
        return {"preset": self.preset, "derived": self.derived, **reports}


def load_preset(shop: Shop, name: str, folder: str | Path) -> PresetReport:
    """Read a folder of a preset's raw files into a new shop that is open for writing.

    Raises:
        QAgentError: the preset, the folder or a file is missing, or the shop has other data.
    """
    if name not in PRESETS:
        raise QAgentError(f"there is no preset {name!r}; known are {', '.join(PRESETS)}")
    path = Path(folder)
    if not path.is_dir():
        raise QAgentError(f"{path} is no folder; name the one that holds the raw files of {name}")
    counts = shop.counts()
    if counts["products"] or counts["events"]:
        raise QAgentError(f"{shop.path} holds data already; a preset fills a new shop: qagent init")
    with open_duckdb() as raw:
        products, events = PRESETS[name](shop, _RawFiles(path, raw))
    return PresetReport(name, shop.config.derived_queries, products, events)


class _RawFiles:
    """A folder of raw files, and an in-memory database to read them into."""

    def __init__(self, folder: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.folder, self.connection = folder, connection

    def find(self, *patterns: str) -> Path | None:
        """The first file that matches the first pattern that any file matches."""
        for pattern in patterns:
            files = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if files:
                return files[0]
        return None

    def need(self, name: str, *patterns: str) -> Path:
        """The file that `find` finds; raises QAgentError where there is none."""
        path = self.find(*patterns)
        if path is None:
            raise QAgentError(
                f"{self.folder} has no {name} ({' or '.join(patterns)}), which the preset reads"
            )
        return path

    def table(self, name: str, path: Path, *required: str) -> set[str]:
        """Read a file as a table, CSV columns as text; returns its columns.

        Raises:
            QAgentError: it cannot be read, or lacks a column.
        """
        form = path.name.lower().removesuffix(".gz")
        if form.endswith((".parquet", ".pq")):
            relation = f"read_parquet({literal(path)})"
        elif form.endswith((".jsonl", ".ndjson", ".json")):
            relation = f"read_json({literal(path)}, format='newline_delimited', sample_size=-1)"
        else:
            relation = f"read_csv({literal(path)}, all_varchar=true, header=true)"
        try:
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {relation}")
        except duckdb.Error as error:
            raise QAgentError(f"{path}: {str(error).splitlines()[0]}") from error
        columns = {row[0] for row in self.rows(f"DESCRIBE {name}")}
        missing = [column for column in required if column not in columns]
        if missing:
            raise QAgentError(
                f"{path} has no column {missing[0]}; its columns are {', '.join(sorted(columns))}"
            )
        return columns

    def rows(self, query: str) -> list[Any]:
        """The rows of a query."""
        return self.connection.execute(query).fetchall()

    def ingest_products(
        self, shop: Shop, query: str, options: ReadOptions | None = None
    ) -> IngestReport:
        """Products from a query; they go through a file, as all products do."""
        path = shop.path / ".preset-products.parquet"
        try:
            self.rows(f"COPY ({query}) TO {literal(path)} (FORMAT parquet)")
            return ingest_files(shop, "products", [path], options)
        finally:
            path.unlink(missing_ok=True)


class _Purchase(NamedTuple):
    user_id: str
    product_id: str
    search_time: datetime
    is_searched: bool = True


def _ingest_purchases(
    shop: Shop,
    purchases: Iterable[_Purchase],
    queries: Mapping[str, str],
    how: str,
    delay: timedelta = PURCHASE_DELAY,
) -> IngestReport:
    """Store purchases, each behind a search of its product's derived query, as events."""
    events = []
    for user, product, time, is_searched in purchases:
        query = queries.get(str(product)) if is_searched else None
        if query is not None:
            events.append({"user_id": user, "time": time, "type": "search", "query": query})
        purchase = {"user_id": user, "time": time + delay, "type": "purchase"}
        events.append({**purchase, "query": query, "product_id": product})
    mark_as_derived(shop, how)
    return append_events(shop, events)


def _bestbuy(shop: Shop, raw: _RawFiles) -> tuple[IngestReport, IngestReport]:
    """products.csv (sku, name), events.csv (user_id, query, sku, query_time, click_time).

    Typed queries and clicks; some clicked products have no title and are rejected.
    """
    products = raw.need("products", "products.csv*")
    events = raw.need("events", "events.csv*")
    return ingest_files(shop, "products", [products]), ingest_files(shop, "events", [events])


def _generic(shop: Shop, raw: _RawFiles) -> tuple[IngestReport, IngestReport]:
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


def _amazon_office(shop: Shop, raw: _RawFiles) -> tuple[IngestReport, IngestReport]:
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
    events = _ingest_purchases(
        shop, (_Purchase(*purchase) for purchase in purchases), queries, "from titles"
    )
    return products, events


def _instacart(shop: Shop, raw: _RawFiles) -> tuple[IngestReport, IngestReport]:
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
    events = _ingest_purchases(
        shop,
        (_Purchase(*purchase[:-1]) for purchase in purchases),
        aisles,
        "from aisle names, for a product's first purchase by a user",
        timedelta(seconds=10),
    )
    return products, events


def _instacart_tables(raw: _RawFiles) -> str:
    """Read products and ordered items (``i``); returns the relation of products with aisles."""
    catalog = "p"
    path = raw.need("products", "products.csv*")
    if "aisle" not in raw.table("p", path, "product_id", "product_name"):
        raw.table("a", raw.need("aisles", "aisles.csv*"), "aisle_id", "aisle")
        path = raw.need("departments", "departments.csv*")
        raw.table("d", path, "department_id", "department")
        catalog = "(p JOIN a USING (aisle_id) JOIN d USING (department_id))"
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


def _amazon(shop: Shop, raw: _RawFiles) -> tuple[IngestReport, IngestReport]:
    """Amazon Reviews 2023 (``*meta*.jsonl``, one file of reviews) and, if there, ESCI's examples.

    Reviews are purchases; a query that ESCI marks Exact for the product stands before them.
    Without ESCI, or for products that it does not know, category paths give the query.
    """
    _amazon_catalog(raw)
    columns = raw.table("r", _amazon_reviews(raw.folder), "user_id", "timestamp")
    product = "parent_asin" if "parent_asin" in columns else "asin"
    products = raw.ingest_products(shop, "SELECT * FROM catalog ORDER BY product_id")
    purchases = raw.rows(
        f"""SELECT user_id, {product} AS product_id,
            make_timestamp(try_cast(timestamp AS BIGINT) * CASE
                WHEN try_cast(timestamp AS BIGINT) > 100000000000 THEN 1000 ELSE 1000000 END)
                AS time
        FROM r WHERE {product} IN (SELECT product_id FROM catalog)
            AND try_cast(timestamp AS BIGINT) > 0
        GROUP BY ALL ORDER BY time, user_id, product_id"""
    )
    catalog = raw.rows("SELECT product_id, title, brand, category FROM catalog")
    queries = category_queries({product: category for product, _, _, category in catalog})
    how = "from category paths"
    esci = raw.find("*examples*.parquet", "*examples*.csv*")
    if esci is not None:
        typed = _esci_queries(raw, esci)
        queries |= typed
        how = f"from ESCI by product id ({len(typed)} products), else from category paths"
    if not queries:
        queries = title_queries(
            {product: title for product, title, *_ in catalog},
            {product: brand for product, _, brand, _ in catalog},
        )
        how = "from titles"
    events = _ingest_purchases(shop, (_Purchase(*purchase) for purchase in purchases), queries, how)
    return products, events


def _amazon_catalog(raw: _RawFiles) -> None:
    """Read the metadata into the table ``catalog``: one row per product with a title."""
    path = raw.need("product file", "meta*.jsonl*", "*meta*.jsonl*", "meta*.parquet")
    columns = raw.table("m", path, "title")
    key = "parent_asin" if "parent_asin" in columns else "asin"
    brand = "store" if "store" in columns else "NULL"
    category = "array_to_string(categories, ' > ')" if "categories" in columns else "NULL"
    price = "try_cast(price AS DOUBLE)" if "price" in columns else "NULL"
    raw.rows(
        f"""CREATE TABLE catalog AS SELECT {key} AS product_id, any_value(title) AS title,
            any_value({brand}) AS brand, any_value({category}) AS category,
            any_value({price}) AS price
        FROM m WHERE coalesce(trim(title), '') <> '' GROUP BY {key}"""
    )


def _amazon_reviews(folder: Path) -> Path:
    """The one file of reviews in a folder, told apart from metadata and ESCI's files."""
    others = re.compile(r"meta|example|^shopping_queries")
    reviews = [
        path
        for path in sorted(folder.iterdir())
        if re.search(r"\.(jsonl|csv)(\.gz)?$", path.name) and not others.search(path.name)
    ]
    if len(reviews) != 1:
        names = ", ".join(path.name for path in reviews) or "none"
        raise QAgentError(
            f"{folder} must hold one file of reviews (*.jsonl, *.csv, also .gz), not {names}"
        )
    return reviews[0]


def _esci_queries(raw: _RawFiles, path: Path) -> dict[str, str]:
    """A typed query for each product of the catalog that ESCI has an Exact one for."""
    columns = raw.table("x", path, "query", "product_id", "esci_label")
    locale = "AND product_locale = 'us'" if "product_locale" in columns else ""
    rows = raw.rows(
        f"""SELECT product_id, min(query) FROM x
        WHERE esci_label IN ('E', 'Exact') {locale}
            AND product_id IN (SELECT product_id FROM catalog)
        GROUP BY product_id"""
    )
    return {product: query for product, query in rows if words(query)}


PRESETS: dict[str, Callable[[Shop, _RawFiles], tuple[IngestReport, IngestReport]]] = {
    "bestbuy": _bestbuy,
    "amazon": _amazon,
    "amazon-office": _amazon_office,
    "instacart": _instacart,
    "generic": _generic,
}
