"""Check staged product rows and store them."""

from __future__ import annotations

import math

import duckdb

from ..memory.store import MemoryStore
from ..shop.shop import Shop
from .columns import ATTRIBUTE
from .options import Load
from .parse_fields import (
    BAD_ATTRIBUTES,
    MAX_ID,
    MAX_TITLE,
    OUT_OF_RANGE,
    clean_id,
    in_stock,
    price,
    text_or_null,
    timestamp,
)
from .staged_ids import id_value

# A comma before the last one or two digits separates cents, and so does a point.
_CENTS = "count(*) FILTER (regexp_matches(price, '\\d[{0}]\\d{{1,2}}\\D*$'))"
_HAS_DECIMAL_COMMAS = f"SELECT {_CENTS.format(',')} > 0 AND {_CENTS.format('.')} = 0 FROM stage"


def price_or_nan(text: str, comma: bool) -> float:
    """`parse_fields.price` for SQL."""
    value = price(text, comma)
    return math.nan if value is None else value


def store_products(shop: Shop, load: Load) -> tuple[int, int]:
    """Store the good rows of ``stage``; all go to ``checked``, with a reason where they are bad.

    ``products`` holds the newest state of each product and ``product_history`` all states. A row
    with a time says what held from then on. A row without one says what holds now; what held
    before stays known for moments before now. Fields that the file does not have, and those whose
    cells are blank, stay as they are; those of a product that is new are empty, and it is in
    stock. ``clear`` names fields that blank cells empty. Returns the numbers of rows that were
    stored, and of duplicates.
    """
    connection, version = shop.connection, shop.catalog_version + 1
    _check(connection, load)
    _find_changes(connection, load)
    _find_aliases(connection, load)
    ((good, stored),) = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  count(*) FROM (SELECT DISTINCT product_id, ts FROM fresh_history UNION
            SELECT product_id, NULL FROM (
                SELECT product_id FROM fresh UNION SELECT product_id FROM realiased)
            WHERE product_id NOT IN (SELECT product_id FROM fresh_history))"""
    ).fetchall()
    if stored:
        if load.ingest_id is not None:
            _keep_replaced(connection, load.ingest_id, version)
        _store_changes(connection, version)
        shop.set_meta("catalog_version", str(version))
        MemoryStore(connection, shop.config.memory).catalog_changed(
            "SELECT product_id, ts FROM fresh_history"
        )
    for table in ("states", "fresh", "fresh_history", "fresh_aliases", "realiased"):
        connection.execute(f"DROP TABLE {table}")
    return stored, good - stored


def _check(connection: duckdb.DuckDBPyConnection, load: Load) -> None:
    """Parse ``stage`` into ``checked``: clean fields (ending in _), reason and detail."""
    ((comma,),) = connection.execute(_HAS_DECIMAL_COMMAS).fetchall()

    def text(column: str) -> str:
        if not load.options.html:
            return text_or_null(column)
        markup = f"contains({column}, '&') OR contains({column}, '<')"
        return text_or_null(f"(CASE WHEN {markup} THEN qa_plain({column}) ELSE {column} END)")

    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH given AS (SELECT s.*, {id_value(connection, "product_id", load.options)} AS id_text,
                {text("title")} AS title_text, {text("brand")} AS brand_text,
                {text("category")} AS category_text, {text_or_null("price")} AS price_text,
                try_cast(price_text AS DOUBLE) AS price_number,
                {text_or_null("stock")} AS stock_text, {text_or_null("time")} AS time_text
            FROM stage s),
        texts AS (SELECT *, {clean_id("id_text")} AS id,
                left(nullif(qa_clean(title_text), ''), {MAX_TITLE}) AS new_title,
                left(nullif(qa_clean(brand_text), ''), 120) AS new_brand,
                nullif(qa_category(category_text), '') AS new_category,
                CASE WHEN price_number IS NULL OR {comma}
                     THEN qa_price(price_text, {comma}) ELSE price_number END AS new_price,
                {in_stock("stock_text")} AS new_stock,
                {timestamp("time_text", load.options.time_format)} AS ts
            FROM given),
        typed AS (SELECT t.*, {_old_fields()}, coalesce(new_title, p.title) AS title_,
                {_attributes(load)} AS attributes_,
                price_text IS NOT NULL AND (new_price IS NULL OR NOT isfinite(new_price)
                     OR new_price < 0 OR new_price > 1e9) AS bad_price
            FROM texts t LEFT JOIN products p ON p.product_id = t.id
            ASOF LEFT JOIN product_history h ON h.product_id = t.id AND t.ts >= h.ts)
        SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN id IS NULL THEN 'no product id'
                 WHEN length(id) > {MAX_ID} THEN 'id too long'
                 WHEN title_ IS NULL THEN 'no title'
                 WHEN bad_price THEN 'bad price'
                 WHEN stock_text IS NOT NULL AND new_stock IS NULL THEN 'bad stock'
                 WHEN attributes_ = $bad THEN 'bad attributes'
                 WHEN time_text IS NOT NULL AND ts IS NULL THEN 'unparseable time'
                 WHEN {OUT_OF_RANGE} THEN 'time out of range' END AS reason,
            CASE reason WHEN 'malformed row' THEN broken WHEN 'bad price' THEN price
                 WHEN 'bad stock' THEN stock WHEN 'unparseable time' THEN time
                 WHEN 'time out of range' THEN time
                 WHEN 'no product id' THEN trim(product_id)
                 WHEN 'no title' THEN {"trim(title)" if "title" in load.fields else "id"}
                 END AS detail
        FROM typed""",
        {"bad": BAD_ATTRIBUTES},
    )


def _old_fields() -> str:
    """SQL: what a product is before a row ``t``, by the stored ``p``.

    Price and stock are as they were at the row's time, which ``h`` knows.
    """
    return """p.title AS old_title, p.brand AS old_brand, p.category AS old_category,
        p.attributes AS old_attributes,
        CASE WHEN h.product_id IS NOT NULL THEN h.price ELSE p.price END AS old_price,
        coalesce(h.in_stock, p.in_stock, true) AS old_stock, h.ts AS old_ts"""


def _attributes(load: Load) -> str:
    """SQL: the attributes that a row tells of; mapped ones are added to those of the product."""
    is_mapped = any(field.startswith(ATTRIBUTE) for field in load.fields)
    if "attributes" in load.fields or not is_mapped or "attributes" in load.options.clear:
        return f"qa_attributes({text_or_null('t.attributes')})"
    told = f"nullif({text_or_null('t.attributes')}, '{{}}') IS NOT NULL"
    patch = "json_merge_patch(coalesce(p.attributes, '{}')::JSON, t.attributes::JSON)::VARCHAR"
    return f"CASE WHEN {told} THEN qa_attributes({patch}) END"


def _find_changes(connection: duckdb.DuckDBPyConnection, load: Load) -> None:
    """``states`` of good rows, and what is new in them: ``fresh`` products, ``fresh_history``."""

    def state(field: str, new: str, *, empty: str = "NULL") -> str:
        """The last value that a row up to this one tells, else the stored one."""
        has_column = any(f == field or f.startswith(f"{field}.") for f in load.fields)
        if has_column and field in load.options.clear:
            return f"coalesce({new}, {empty})"
        told = _last(new)
        if field not in ("price", "stock"):
            return f"coalesce({told}, old_{field})"
        # What the file tells of an earlier moment than the shop's history is older than that.
        since = _last(f"CASE WHEN {new} IS NOT NULL THEN ts END")
        return f"CASE WHEN {told} IS NULL OR {since} < old_ts THEN old_{field} ELSE {told} END"

    # Of the rows that say the same moment the last wins: a later row is the newer export.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE states AS
        SELECT id AS product_id, coalesce({_last("new_title")}, old_title) AS title,
               {state("brand", "new_brand")} AS brand,
               {state("category", "new_category")} AS category,
               {state("price", "new_price")} AS price,
               {state("stock", "new_stock", empty="true")} AS in_stock,
               {state("attributes", "nullif(attributes_, '')")} AS attributes, ts
        FROM checked WHERE reason IS NULL
        WINDOW so_far AS (PARTITION BY id, ts IS NULL ORDER BY ts, row
                          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
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


def _last(new: str) -> str:
    """SQL: the last value so far that is told."""
    return f"last_value({new} IGNORE NULLS) OVER so_far"


def contradictions(connection: duckdb.DuckDBPyConnection) -> tuple[int, str | None]:
    """Good rows of ``checked`` that a later one of the same product and time contradicts.

    Returns their number, and the id of such a product.
    """
    fields = [f"new_{field}" for field in ("title", "brand", "category", "price", "stock")]
    fields.append("nullif(attributes_, '')")
    differ = " OR ".join(f"min({field}) <> max({field})" for field in fields)
    ((rows, example),) = connection.execute(
        f"""SELECT coalesce(sum(n), 0)::BIGINT, arg_min(id, first) FROM (
            SELECT id, count(*) - 1 AS n, min(row) AS first FROM checked
            WHERE reason IS NULL GROUP BY id, ts HAVING count(*) > 1 AND ({differ}))"""
    ).fetchall()
    return rows, example


def _find_aliases(connection: duckdb.DuckDBPyConnection, load: Load) -> None:
    """``fresh_aliases`` of the good rows, and in ``realiased`` the products whose differ."""
    where = "reason IS NULL" if "aliases" in load.fields else "false"
    if "aliases" not in load.options.clear:
        where += f" AND {text_or_null('aliases')} IS NOT NULL"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh_aliases AS
        SELECT alias, arg_max(id, row) AS product_id FROM (
            SELECT row, id, {clean_id(text_or_null("text"))} AS alias FROM (
                SELECT row, id, unnest(string_split(aliases, '|')) AS text FROM (
                    FROM checked WHERE {where}
                    QUALIFY row_number() OVER (PARTITION BY id ORDER BY row DESC) = 1)))
        WHERE alias IS NOT NULL AND alias <> id AND length(alias) <= {MAX_ID} GROUP BY alias;
        CREATE OR REPLACE TEMP TABLE realiased AS
        WITH named AS (SELECT DISTINCT id AS product_id FROM checked WHERE {where}),
        before AS (SELECT alias, product_id FROM product_aliases SEMI JOIN named USING (product_id))
        SELECT DISTINCT product_id FROM (
            (FROM before EXCEPT SELECT alias, product_id FROM fresh_aliases) UNION ALL
            (SELECT alias, product_id FROM fresh_aliases EXCEPT FROM before))"""
    )


def _keep_replaced(connection: duckdb.DuckDBPyConnection, ingest_id: int, version: int) -> None:
    """Keep the products as they are before this load, for `history.undo_ingest`."""
    connection.execute(
        """INSERT INTO replaced_products
        WITH touched AS (SELECT product_id FROM fresh UNION SELECT product_id FROM fresh_history
                         UNION SELECT product_id FROM realiased),
        histories AS (SELECT product_id, list({ts: h.ts, price: h.price, in_stock: h.in_stock})
                          AS history
                      FROM product_history h SEMI JOIN touched USING (product_id) GROUP BY 1),
        others AS (SELECT product_id, list(alias) AS aliases
                   FROM product_aliases SEMI JOIN touched USING (product_id) GROUP BY 1)
        SELECT $1, t.product_id,
               CASE WHEN p.product_id IS NOT NULL THEN {title: p.title, brand: p.brand,
                   category: p.category, price: p.price, in_stock: p.in_stock,
                   attributes: p.attributes, changed: p.changed} END,
               history, aliases, $2
        FROM touched t LEFT JOIN products p USING (product_id)
        LEFT JOIN histories USING (product_id) LEFT JOIN others USING (product_id)""",
        [ingest_id, version],
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
        INSERT INTO product_history SELECT * FROM fresh_history;
        DELETE FROM product_aliases WHERE product_id IN (SELECT product_id FROM realiased);
        INSERT OR REPLACE INTO product_aliases
        SELECT alias, product_id FROM fresh_aliases SEMI JOIN realiased USING (product_id);
        UPDATE products SET changed = {version}
        WHERE product_id IN (SELECT product_id FROM realiased)"""
    )
