"""Check staged product rows and store them."""

from __future__ import annotations

import math

import duckdb

from ..memory.store import MemoryStore
from ..shop.shop import Shop
from .parse_fields import (
    BAD_ATTRIBUTES,
    MAX_ID,
    MAX_TITLE,
    OUT_OF_RANGE,
    blank_to_null,
    price,
    timestamp,
)
from .report import ReadOptions

# A comma before the last one or two digits separates cents, and so does a point.
_CENTS = "count(*) FILTER (regexp_matches(price, '\\d[{0}]\\d{{1,2}}\\D*$'))"
_HAS_DECIMAL_COMMAS = f"SELECT {_CENTS.format(',')} > 0 AND {_CENTS.format('.')} = 0 FROM stage"
_IN_STOCK = ("true", "t", "yes", "y", "in stock", "instock", "available")
_SOLD_OUT = ("false", "f", "no", "n", "out of stock", "outofstock", "unavailable", "sold out")


def price_or_nan(text: str, comma: bool) -> float:
    """`parse_fields.price` for SQL."""
    value = price(text, comma)
    return math.nan if value is None else value


def store_products(shop: Shop, options: ReadOptions) -> tuple[int, int]:
    """Store the good rows of ``stage``; all go to ``checked``, with a reason where they are bad.

    ``products`` holds the newest state of each product and ``product_history`` all states. A row
    with a time says what held from then on. A row without one says what holds now; what held
    before stays known for moments before now. Returns the numbers of rows that were stored, and
    of duplicates.
    """
    connection, version = shop.connection, shop.catalog_version + 1
    _check(connection, options)
    _find_changes(connection)
    ((good, stored),) = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  count(*) FROM (SELECT DISTINCT product_id, ts FROM fresh_history UNION
            SELECT f.product_id, NULL FROM fresh f
            WHERE f.product_id NOT IN (SELECT product_id FROM fresh_history))"""
    ).fetchall()
    _store_changes(connection, version)
    if stored:
        shop.set_meta("catalog_version", str(version))
        MemoryStore(connection, shop.config.memory).catalog_changed(
            "SELECT product_id, ts FROM fresh_history"
        )
    connection.execute("DROP TABLE states; DROP TABLE fresh; DROP TABLE fresh_history")
    return stored, good - stored


def _check(connection: duckdb.DuckDBPyConnection, options: ReadOptions) -> None:
    """Parse ``stage`` into ``checked``: clean fields (ending in _), reason and detail."""
    ((comma,),) = connection.execute(_HAS_DECIMAL_COMMAS).fetchall()

    def text(column: str) -> str:
        if not options.html:
            return column
        markup = f"contains({column}, '&') OR contains({column}, '<')"
        return f"CASE WHEN {markup} THEN qa_plain({column}) ELSE {column} END"

    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH texts AS (SELECT row, broken, product_id, title, brand, category, price, stock,
                attributes, time, nullif(qa_clean(product_id), '') AS id,
                left(nullif(qa_clean({text("title")}), ''), {MAX_TITLE}) AS title_,
                left(nullif(qa_clean({text("brand")}), ''), 120) AS brand_,
                nullif(qa_category({text("category")}), '') AS category_,
                {blank_to_null("price")} AS price_text,
                CASE WHEN try_cast(price_text AS DOUBLE) IS NULL OR {comma}
                     THEN qa_price(price_text, {comma}) ELSE price_text::DOUBLE END AS price_,
                lower({blank_to_null("stock")}) AS stock_text,
                qa_attributes(attributes) AS attributes_,
                {blank_to_null("time")} AS time_text,
                {timestamp("trim(time)", options.time_format)} AS ts
            FROM stage),
        typed AS (SELECT *,
                CASE WHEN stock_text IS NULL OR stock_text IN {_IN_STOCK} THEN true
                     WHEN stock_text IN {_SOLD_OUT} THEN false
                     WHEN isfinite(try_cast(stock_text AS DOUBLE))
                     THEN try_cast(stock_text AS DOUBLE) > 0 END AS stock_,
                price_text IS NOT NULL AND (price_ IS NULL OR NOT isfinite(price_)
                     OR price_ < 0 OR price_ > 1e9) AS bad_price
            FROM texts)
        SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN id IS NULL THEN 'no product id'
                 WHEN length(id) > {MAX_ID} THEN 'id too long'
                 WHEN title_ IS NULL THEN 'no title'
                 WHEN bad_price THEN 'bad price'
                 WHEN stock_ IS NULL THEN 'bad stock'
                 WHEN attributes_ = $bad THEN 'bad attributes'
                 WHEN time_text IS NOT NULL AND ts IS NULL THEN 'unparseable time'
                 WHEN {OUT_OF_RANGE} THEN 'time out of range' END AS reason,
            CASE reason WHEN 'malformed row' THEN broken WHEN 'bad price' THEN price
                 WHEN 'bad stock' THEN stock WHEN 'unparseable time' THEN time
                 WHEN 'time out of range' THEN time END AS detail
        FROM typed""",
        {"bad": BAD_ATTRIBUTES},
    )


def _find_changes(connection: duckdb.DuckDBPyConnection) -> None:
    """``states`` of good rows, and what is new in them: ``fresh`` products, ``fresh_history``."""
    # Of the rows that say the same moment the last wins: a later row is the newer export.
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE states AS
        SELECT id AS product_id, title_ AS title, brand_ AS brand, category_ AS category,
               price_ AS price, stock_ AS in_stock, nullif(attributes_, '') AS attributes, ts
        FROM checked WHERE reason IS NULL
        QUALIFY row_number() OVER (PARTITION BY id, ts ORDER BY row DESC) = 1;
        CREATE OR REPLACE TEMP TABLE fresh AS
        WITH newest AS (SELECT product_id, max(ts) AS ts FROM product_history GROUP BY 1)
        SELECT s.* EXCLUDE ts FROM states s LEFT JOIN newest n USING (product_id)
        WHERE s.ts IS NULL OR n.ts IS NULL OR s.ts >= n.ts
        QUALIFY row_number() OVER (
            PARTITION BY s.product_id ORDER BY s.ts DESC NULLS FIRST) = 1;
        DELETE FROM fresh USING products p
        WHERE fresh.product_id = p.product_id AND fresh.title = p.title
            AND fresh.brand IS NOT DISTINCT FROM p.brand
            AND fresh.category IS NOT DISTINCT FROM p.category
            AND fresh.price IS NOT DISTINCT FROM p.price AND fresh.in_stock = p.in_stock
            AND fresh.attributes IS NOT DISTINCT FROM p.attributes;
        CREATE OR REPLACE TEMP TABLE fresh_history AS
        SELECT product_id, ts, price, in_stock FROM states WHERE ts IS NOT NULL
        EXCEPT SELECT product_id, ts, price, in_stock FROM product_history"""
    )


def _store_changes(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    # The state that a change replaces holds since ever, unless its history says more.
    connection.execute(
        f"""INSERT INTO product_history
        SELECT p.product_id, TIMESTAMP '1970-01-01', p.price, p.in_stock FROM products p
        WHERE p.product_id NOT IN (SELECT product_id FROM product_history) AND (
            p.product_id IN (SELECT product_id FROM fresh_history)
            OR EXISTS (FROM fresh f WHERE f.product_id = p.product_id
                AND (p.price IS DISTINCT FROM f.price OR p.in_stock <> f.in_stock)));
        INSERT INTO product_history
        SELECT f.product_id, (current_timestamp AT TIME ZONE 'UTC'), f.price, f.in_stock
        FROM fresh f JOIN states s ON s.product_id = f.product_id AND s.ts IS NULL
        WHERE f.product_id IN (SELECT product_id FROM product_history);
        INSERT OR REPLACE INTO products SELECT *, {version} FROM fresh;
        DELETE FROM product_history USING fresh_history f
        WHERE product_history.product_id = f.product_id AND product_history.ts = f.ts;
        INSERT INTO product_history SELECT * FROM fresh_history"""
    )
