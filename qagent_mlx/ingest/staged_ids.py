"""Who, what and when in staged rows: nobody, numbers that became floats, other ids of a product."""

from __future__ import annotations

from typing import Literal

import duckdb

from .options import ReadOptions
from .parse_fields import clean_id, moment, moment_text, text_or_null

# SQL beside the joins of products p and product_aliases a: an alias stands for its product.
KNOWN_PRODUCT = """coalesce(p.product_id, a.product_id, t.given_) AS product_,
    coalesce(p.product_id, a.product_id) IS NOT NULL AS in_catalog"""

IdField = Literal["user_id", "product_id"]
_FLOAT = r"\d{1,18}\.0"
_KNOWN_IDS = {
    "user_id": "SELECT user_id FROM events",
    "product_id": "SELECT product_id FROM products UNION ALL SELECT alias FROM product_aliases",
}


def are_floats(connection: duckdb.DuckDBPyConnection, field: IdField) -> bool:
    """Whether all ids of a field are numbers that became floats, as pandas writes `1289.0`.

    They are not where the shop itself knows such ids.
    """
    if (
        connection.execute(f"SELECT 1 FROM stage WHERE {field} LIKE '%.0%' LIMIT 1").fetchone()
        is None
    ):
        return False  # quickly, as single events come often
    given = text_or_null(field, person=field == "user_id")
    for rows in ("(FROM stage LIMIT 1000)", "stage"):
        ((share,),) = connection.execute(
            f"""SELECT count(*) FILTER (regexp_full_match({given}, '{_FLOAT}'))
                       / nullif(count({given}), 0) FROM {rows}"""
        ).fetchall()
        if share is not None and share < 1:
            return False
    if share is None:
        return False
    ((known,),) = connection.execute(
        f"""SELECT count(*) FROM ({_KNOWN_IDS[field]}) k
        WHERE regexp_full_match(k.{field}, '{_FLOAT}')
            AND k.{field} IN (SELECT {given} FROM stage)"""
    ).fetchall()
    return not known


def id_value(connection: duckdb.DuckDBPyConnection, field: IdField, options: ReadOptions) -> str:
    """SQL: the ids of a field of ``stage s``, before they are cleaned; NULL for nobody."""
    given = text_or_null(f"s.{field}", person=field == "user_id" and not options.has_user_zero)
    if not options.exact_ids and are_floats(connection, field):
        return f"regexp_replace({given}, '\\.0$', '')"
    return given


def row_texts(connection: duckdb.DuckDBPyConnection, options: ReadOptions) -> str:
    """SQL: who, what and when a row of ``stage s`` names, as text; NULL where it does not.

    They are the columns of a relation ``given`` below `row_values`: a name of the same SELECT is
    written out by DuckDB wherever it stands, and planning that took longer than reading an event.
    """
    user = id_value(connection, "user_id", options)
    product = id_value(connection, "product_id", options)
    # Few files have a column of the time of day, whose many forms take long to plan.
    hours = connection.execute("SELECT 1 FROM stage WHERE time_of_day IS NOT NULL LIMIT 1")
    time = moment_text("s") if hours.fetchone() else text_or_null("s.time")
    return f"{user} AS user_text, {product} AS product_text, {time} AS time_text"


def row_values(options: ReadOptions) -> str:
    """SQL: the ids and the moment of the texts in ``given``; a product's as the row gives it."""
    return f"""{clean_id("user_text")} AS user_, {clean_id("product_text")} AS given_,
        {moment("given", "time_text", options.time_format)} AS ts"""
