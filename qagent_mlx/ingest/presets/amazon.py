"""Amazon Reviews 2023, with the queries of ESCI (arXiv:2206.06588)."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import QAgentError
from ...shop.shop import Shop
from ...utils.text import words
from ...utils.title_words import title_queries
from ..derived_queries import category_queries
from ..report import IngestReport
from .derived_purchases import Purchase, ingest_purchases
from .folder import Folder
from .preset import Preset


def _amazon(shop: Shop, raw: Folder) -> tuple[IngestReport, IngestReport]:
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
    events = ingest_purchases(shop, (Purchase(*purchase) for purchase in purchases), queries, how)
    return products, events


def _amazon_catalog(raw: Folder) -> None:
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


def _esci_queries(raw: Folder, path: Path) -> dict[str, str]:
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


PRESET = Preset.of_folder("amazon", _amazon)
