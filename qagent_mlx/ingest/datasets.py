"""Public data sets as they are handed out, made ready to ingest: ``qagent ingest --preset``.

A preset reads a folder of raw files and turns them into products and events, which then go
through the same checks as any other file. Where a log has no queries they are *derived*, from
category paths or from titles, and the shop says so: every report on it carries the mark.

- ``bestbuy``: products.csv (sku, name), events.csv (user_id, query, sku, query_time,
  click_time). Typed queries.
- ``amazon``: Amazon Reviews 2023 (``*meta*.jsonl[.gz]`` and one file of reviews, .jsonl or
  .csv, also .gz) and, where it is there, ESCI (``*examples*.parquet`` or .csv): a product's
  query is the one that ESCI marks Exact for it, else one derived from its category path.
- ``amazon-office``: products.csv (item_id, title, brand), purchases.csv (user_id, position,
  item_id). Queries derived from titles.
- ``instacart``: products.csv with aisle and department, order_items.csv; or the release's own
  files (aisles, departments, orders, order_products__prior). Queries derived from aisles.
- ``generic``: products.* and events.*; queries are derived when the events have none.

What stands for a search under derived queries: a purchase makes a search of the derived query
just before it, as Ai et al. (SIGIR 2017, arXiv:1708.08123) do with category paths. Such a query
was never typed by anybody: it measures whether the next *kind of product* is foreseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal, open_duckdb
from ..utils.text import words
from .derived_queries import category_queries, derive_queries, mark_as_derived, title_queries
from .ingest import append_events, ingest_files
from .report import IngestReport, ReadOptions

START = "2017-01-02"  # where a clock begins that a log does not have
FIRST_ONLY = "a product's first purchase by a user"


@dataclass(frozen=True)
class Preset:
    """How one data set is read."""

    name: str
    about: str
    load: Callable[[Shop, Path], dict[str, IngestReport]]


def load_preset(shop: Shop, name: str, folder: str | Path) -> dict[str, Any]:
    """Read a folder of raw files into a shop.

    Args:
        shop: Open for writing; new, as a shop's queries are either typed or derived.
        name: Of `PRESETS`.
        folder: Holds the files that the preset names.

    Returns:
        ``preset``, ``derived`` (how queries were made, or None), ``products`` and ``events``
        (each accepted, rejected, duplicates, reasons).

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
        raise QAgentError(
            f"{shop.path} holds data already; a preset fills a new shop: qagent init --shop NEW"
        )
    reports = PRESETS[name].load(shop, path)
    return {
        "preset": name,
        "derived": shop.config.derived_queries,
        **{
            kind: {
                "accepted": r.accepted,
                "rejected": r.rejected,
                "duplicates": r.duplicates,
                "reasons": r.reasons,
            }
            for kind, r in reports.items()
        },
    }


# ---------------------------------------------------------------- finding and reading files


def _find(folder: Path, *patterns: str) -> Path | None:
    """The first file that fits the first pattern that any file fits."""
    for pattern in patterns:
        found = sorted(p for p in folder.glob(pattern) if p.is_file())
        if found:
            return found[0]
    return None


def _need(folder: Path, what: str, *patterns: str) -> Path:
    found = _find(folder, *patterns)
    if found is None:
        raise QAgentError(
            f"{folder} has no {what} ({' or '.join(patterns)}); see qagent ingest --help"
        )
    return found


class _Reader:
    """Raw files as DuckDB tables, all columns as text; the database is in memory."""

    def __init__(self) -> None:
        self._connection = open_duckdb()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def table(self, name: str, path: Path, *needed: str) -> set[str]:
        """Read a file; returns its columns.

        Raises:
            QAgentError: it cannot be read, or lacks a column.
        """
        form = path.name.lower().removesuffix(".gz")
        if form.endswith((".parquet", ".pq")):
            source = f"read_parquet({literal(path)})"
        elif form.endswith((".jsonl", ".ndjson", ".json")):
            source = f"read_json({literal(path)}, format='newline_delimited', sample_size=-1)"
        else:
            source = f"read_csv({literal(path)}, all_varchar=true, header=true)"
        try:
            self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {source}")
        except duckdb.Error as error:
            raise QAgentError(f"{path}: {str(error).splitlines()[0]}") from error
        columns = {row[0] for row in self._connection.execute(f"DESCRIBE {name}").fetchall()}
        missing = [c for c in needed if c not in columns]
        if missing:
            raise QAgentError(
                f"{path} has no column {missing[0]}; its columns are {', '.join(sorted(columns))}"
            )
        return columns

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query as dicts."""
        cursor = self._connection.execute(query)
        names = [d[0] for d in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def write(self, query: str, path: Path) -> Path:
        """The rows of a query as a Parquet file."""
        self._connection.execute(f"COPY ({query}) TO {literal(path)} (FORMAT parquet)")
        return path


def _products(
    shop: Shop, reader: _Reader, query: str, options: ReadOptions | None = None
) -> IngestReport:
    """Products from a query; they go through a file, as all products do."""
    path = shop.path / ".preset-products.parquet"
    try:
        return ingest_files(shop, "products", [reader.write(query, path)], options)
    finally:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- derived queries


def _derived(
    shop: Shop, purchases: Sequence[dict[str, Any]], queries: dict[str, str], how: str
) -> IngestReport:
    """Purchases, each behind a search of its product's query, as events; the shop says how."""
    rows = []
    for row in purchases:
        query = queries.get(str(row["product_id"]))
        if query is not None and row.get("searched", True):
            rows.append(
                {"user_id": row["user_id"], "time": row["time"], "type": "search", "query": query}
            )
            rows.append(
                {
                    "user_id": row["user_id"],
                    "time": row["after"],
                    "type": "purchase",
                    "query": query,
                    "product_id": row["product_id"],
                }
            )
        else:
            rows.append(
                {
                    "user_id": row["user_id"],
                    "time": row["after"],
                    "type": "purchase",
                    "product_id": row["product_id"],
                }
            )
    mark_as_derived(shop, how)
    return append_events(shop, rows)


# ---------------------------------------------------------------- the presets


def _bestbuy(shop: Shop, folder: Path) -> dict[str, IngestReport]:
    """Typed queries and clicks; some clicked products have no title and are rejected."""
    products = _need(folder, "products", "products.csv*")
    events = _need(folder, "events", "events.csv*")
    return {
        "products": ingest_files(shop, "products", [products]),
        "events": ingest_files(shop, "events", [events], ReadOptions()),
    }


def _generic(shop: Shop, folder: Path) -> dict[str, IngestReport]:
    forms = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz")
    products = _need(folder, "products", *(f"products.{form}" for form in forms))
    events = _need(folder, "events", *(f"events.{form}" for form in forms))
    reports = {
        "products": ingest_files(shop, "products", [products]),
        "events": ingest_files(shop, "events", [events]),
    }
    row = shop.connection.execute(
        "SELECT count(*) FILTER (type = 'search'), count(*) FROM events"
    ).fetchone()
    assert row is not None
    if row[1] and not row[0]:
        reports["events"] = derive_queries(shop)
    return reports


def _amazon_office(shop: Shop, folder: Path) -> dict[str, IngestReport]:
    """Purchases in order, without times: the clock puts a week between a user's."""
    with _Reader() as reader:
        reader.table("p", _need(folder, "products", "products.csv*"), "item_id", "title", "brand")
        reader.table(
            "e", _need(folder, "purchases", "purchases.csv*"), "user_id", "position", "item_id"
        )
        products = _products(
            shop,
            reader,
            "SELECT item_id AS product_id, title, brand FROM p ORDER BY rowid",
            ReadOptions(html=False),  # as they are handed out: published numbers rest on them
        )
        # The last purchases of all users end together, as a log's do: so the split by time
        # tests each user's last ones.
        purchases = reader.rows(
            f"""WITH places AS (
                SELECT user_id, item_id AS product_id, position::INT AS place,
                       max(place) OVER (PARTITION BY user_id) AS last, max(place) OVER () AS ends,
                       dense_rank() OVER (ORDER BY user_id) AS number FROM e),
            placed AS (
                SELECT *, TIMESTAMP '{START}' + INTERVAL 7 DAY * (ends - last + place)
                    + INTERVAL 1 SECOND * (number * 7919 % 80000)::INT AS time FROM places)
            SELECT user_id, product_id, time, time + INTERVAL 20 SECOND AS after
            FROM placed ORDER BY time, user_id"""
        )
        goods = reader.rows("SELECT item_id AS id, title, brand FROM p")
    queries = title_queries(
        {g["id"]: g["title"] or "" for g in goods}, {g["id"]: g["brand"] for g in goods}
    )
    return {"products": products, "events": _derived(shop, purchases, queries, "from titles")}


def _instacart(shop: Shop, folder: Path) -> dict[str, IngestReport]:
    """Orders with day gaps; the aisle is the query, of products that are bought first."""
    with _Reader() as reader:
        columns = reader.table(
            "p", _need(folder, "products", "products.csv*"), "product_id", "product_name"
        )
        if "aisle" not in columns:
            reader.table("a", _need(folder, "aisles", "aisles.csv*"), "aisle_id", "aisle")
            reader.table(
                "d", _need(folder, "departments", "departments.csv*"), "department_id", "department"
            )
            goods = "(p JOIN a USING (aisle_id) JOIN d USING (department_id))"
        else:
            goods = "p"
        items = _find(folder, "order_items.csv*")
        if items is not None:
            reader.table(
                "i",
                items,
                "user_id",
                "order_id",
                "order_number",
                "order_hour_of_day",
                "days_since_prior_order",
                "product_id",
                "add_to_cart_order",
            )
        else:
            reader.table("o", _need(folder, "orders", "orders.csv*"), "user_id", "order_id")
            reader.table(
                "op",
                _need(folder, "order items", "order_products__prior.csv*", "order_products*.csv*"),
                "order_id",
                "product_id",
            )
            reader.rows("CREATE VIEW i AS SELECT * FROM o JOIN op USING (order_id)")
        products = _products(
            shop,
            reader,
            f"""SELECT product_id, product_name AS title, department || ' > ' || aisle AS category
            FROM {goods} ORDER BY product_id""",
        )
        # All users' last orders end on one day; going back from there by the gaps dates all.
        purchases = reader.rows(
            f"""WITH orders AS (
                SELECT user_id, order_id, any_value(order_number)::INT AS n,
                       any_value(order_hour_of_day)::INT AS hour,
                       coalesce(try_cast(any_value(days_since_prior_order) AS DOUBLE), 0) AS gap
                FROM i GROUP BY ALL),
            days AS (
                SELECT *, sum(gap) OVER (PARTITION BY user_id ORDER BY n) AS day,
                       sum(gap) OVER (PARTITION BY user_id) AS total FROM orders),
            placed AS (
                SELECT *, TIMESTAMP '{START}' + INTERVAL 1 DAY * (
                    (max(total) OVER () - total + day)::INT) + INTERVAL 1 HOUR * hour
                    + INTERVAL 1 MINUTE * (n % 60) AS ts FROM days),
            bought AS (
                SELECT i.user_id, i.order_id, i.product_id, p.ts, coalesce(g.aisle, '') AS aisle,
                       try_cast(i.add_to_cart_order AS DOUBLE) AS added,
                       row_number() OVER (PARTITION BY i.user_id, i.product_id ORDER BY
                           p.ts, p.n) = 1 AS first
                FROM i JOIN placed p USING (order_id) JOIN {goods} g
                    ON g.product_id = i.product_id),
            -- What is bought again comes first, as from a list: behind a search it would count
            -- as found by it.
            numbered AS (
                SELECT *, row_number() OVER (PARTITION BY user_id, order_id ORDER BY
                    first, added, product_id) AS place FROM bought)
            SELECT user_id, product_id, aisle, first AS searched,
                   ts + INTERVAL 20 SECOND * place AS time,
                   ts + INTERVAL 20 SECOND * place + INTERVAL 10 SECOND AS after
            FROM numbered ORDER BY time, user_id, place"""
        )
    queries = {row["product_id"]: row["aisle"] for row in purchases if words(row["aisle"])}
    how = f"from aisle names, for {FIRST_ONLY}"
    return {"products": products, "events": _derived(shop, purchases, queries, how)}


def _amazon(shop: Shop, folder: Path) -> dict[str, IngestReport]:
    """Reviews as purchases; a product's ESCI query (marked Exact) stands before them.

    Without ESCI, or for products that it does not know, category paths give the query.
    """
    with _Reader() as reader:
        columns = reader.table(
            "m",
            _need(folder, "product file", "meta*.jsonl*", "*meta*.jsonl*", "meta*.parquet"),
            "title",
        )
        key = "parent_asin" if "parent_asin" in columns else "asin"

        def column(name: str, form: str = "{}") -> str:
            return f"{form.format(name)} AS {name}" if name in columns else f"NULL AS {name}"

        reviews = [
            p
            for p in sorted(folder.iterdir())
            if re.search(r"\.(jsonl|csv)(\.gz)?$", p.name)
            and "meta" not in p.name
            and not p.name.startswith("shopping_queries")
            and "example" not in p.name
        ]
        if len(reviews) != 1:
            held = ", ".join(p.name for p in reviews) or "none"
            raise QAgentError(
                f"{folder} must hold one file of reviews (*.jsonl, *.csv, also .gz), not {held}"
            )
        found = reader.table("r", reviews[0], "user_id", "timestamp")
        product = "parent_asin" if "parent_asin" in found else "asin"
        reader.rows(
            f"""CREATE TABLE goods AS SELECT {key} AS product_id, any_value(title) AS title,
                any_value({"store" if "store" in columns else "NULL"}) AS brand,
                any_value({
                "array_to_string(categories, ' > ')" if "categories" in columns else "NULL"
            }) AS category,
                any_value({"try_cast(price AS DOUBLE)" if "price" in columns else "NULL"}) AS price
            FROM m WHERE coalesce(trim(title), '') <> '' GROUP BY {key}"""
        )
        products = _products(shop, reader, "SELECT * FROM goods ORDER BY product_id")
        purchases = reader.rows(
            f"""SELECT user_id, {product} AS product_id,
                make_timestamp(try_cast(timestamp AS BIGINT) * CASE
                    WHEN try_cast(timestamp AS BIGINT) > 100000000000 THEN 1000 ELSE 1000000 END)
                    AS time, time + INTERVAL 20 SECOND AS after
            FROM r WHERE {product} IN (SELECT product_id FROM goods)
                AND try_cast(timestamp AS BIGINT) > 0
            GROUP BY ALL ORDER BY time, user_id, product_id"""
        )
        category = {g["product_id"]: g["category"] for g in reader.rows("SELECT * FROM goods")}
        queries, how = category_queries(category), "from category paths"
        esci = _find(folder, "*examples*.parquet", "*examples*.csv*")
        if esci is not None:
            known = reader.table("x", esci, "query", "product_id", "esci_label")
            locale = "AND product_locale = 'us'" if "product_locale" in known else ""
            joined = reader.rows(
                f"""SELECT product_id, min(query) AS query FROM x
                WHERE esci_label IN ('E', 'Exact') {locale}
                    AND product_id IN (SELECT product_id FROM goods)
                GROUP BY product_id"""
            )
            typed = {row["product_id"]: row["query"] for row in joined if words(row["query"])}
            queries |= typed
            how = f"from ESCI by product id ({len(typed)} products), else from category paths"
        if not queries:
            goods = reader.rows("SELECT * FROM goods")
            queries = title_queries(
                {g["product_id"]: g["title"] for g in goods},
                {g["product_id"]: g["brand"] for g in goods},
            )
            how = "from titles"
    return {"products": products, "events": _derived(shop, purchases, queries, how)}


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("bestbuy", "typed queries and clicks: products.csv, events.csv", _bestbuy),
        Preset("amazon", "Amazon Reviews 2023, joined with ESCI on product id", _amazon),
        Preset("amazon-office", "purchases in order, without times or queries", _amazon_office),
        Preset("instacart", "orders with day gaps, without queries", _instacart),
        Preset("generic", "products.* and events.*; queries derived if there are none", _generic),
    )
}
