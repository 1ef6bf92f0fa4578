"""Check staged impressions, products that a user was shown, and store them."""

from __future__ import annotations

import duckdb

from ..shop.shop import Shop
from .options import Load, ReadOptions
from .parse_fields import (
    FUTURE,
    MAX_ID,
    MAX_QUERY,
    OUT_OF_RANGE,
    clean_id,
    is_in_future,
    text_or_null,
)
from .staged_ids import KNOWN_PRODUCT, row_texts, row_values

MAX_POSITION = 1_000_000


def store_impressions(shop: Shop, load: Load) -> tuple[int, int]:
    """Store the good rows of ``stage``; all go to ``checked``, with a reason where they are bad.

    Memory is not made from impressions; they say what a user saw and left, also of products that
    the shop does not have. Returns the numbers of rows that were stored, and of duplicates.
    """
    connection = shop.connection
    _check(connection, load.options)
    # What came in without its query gets it from a later file.
    connection.execute(
        """UPDATE impressions SET query = c.query_, query_key = c.key FROM (
            FROM checked WHERE reason IS NULL AND key IS NOT NULL QUALIFY row_number() OVER (
                PARTITION BY user_, ts, product_, position_ ORDER BY row) = 1) c
        WHERE impressions.query_key IS NULL AND impressions.user_id = c.user_
            AND impressions.ts = c.ts AND impressions.product_id = c.product_
            AND impressions.position IS NOT DISTINCT FROM c.position_"""
    )
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE fresh AS
        SELECT n.* FROM (
            SELECT row, user_ AS user_id, ts, query_ AS query, key AS query_key,
                   product_ AS product_id, position_::INTEGER AS position, query_id_ AS query_id
            FROM checked WHERE reason IS NULL
            QUALIFY row_number() OVER (
                PARTITION BY user_, ts, key, product_, position_ ORDER BY row) = 1) n
        ANTI JOIN impressions i ON i.user_id = n.user_id AND i.ts = n.ts
            AND i.product_id = n.product_id
            AND (i.query_key IS NOT DISTINCT FROM n.query_key OR n.query_key IS NULL)
            AND i.position IS NOT DISTINCT FROM n.position;
        INSERT INTO impressions SELECT * EXCLUDE row, $1 FROM fresh ORDER BY ts, row""",
        [load.ingest_id],
    )
    ((good, stored),) = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL), count(*) FROM fresh"""
    ).fetchall()
    connection.execute("DROP TABLE fresh")
    return stored, good - stored


def _check(connection: duckdb.DuckDBPyConnection, options: ReadOptions) -> None:
    """Parse ``stage`` into ``checked``: clean fields (ending in _), reason and detail."""
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH given AS (SELECT s.*, {row_texts(connection, options)},
                {text_or_null("s.query")} AS query_text,
                {text_or_null("s.query_id")} AS query_id_text,
                {text_or_null("s.position")} AS position_text
            FROM stage s),
        texts AS (SELECT *, {row_values(options)},
                left(nullif(qa_clean(query_text), ''), {MAX_QUERY}) AS query_,
                left({clean_id("query_id_text")}, {MAX_ID}) AS query_id_,
                try_cast(position_text AS DOUBLE) AS position_
            FROM given)
        SELECT t.* EXCLUDE query_, nullif(qa_key(query_), '') AS key,
            CASE WHEN key IS NOT NULL THEN query_ END AS query_,
            {KNOWN_PRODUCT},
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN user_ IS NULL THEN 'no user'
                 WHEN length(user_) > {MAX_ID} OR length(product_) > {MAX_ID} THEN 'id too long'
                 WHEN time_text IS NULL THEN 'no time'
                 WHEN ts IS NULL THEN 'unparseable time'
                 WHEN {OUT_OF_RANGE} THEN 'time out of range'
                 WHEN {is_in_future("ts", allowed=options.allow_future)} THEN '{FUTURE}'
                 WHEN product_ IS NULL THEN 'no product'
                 WHEN position_text IS NOT NULL AND coalesce(position_ <> floor(position_)
                      OR position_ NOT BETWEEN 1 AND {MAX_POSITION}, true) THEN 'bad position'
                 END AS reason,
            CASE reason WHEN 'unparseable time' THEN time_text WHEN 'time out of range' THEN time
                 WHEN '{FUTURE}' THEN time_text WHEN 'bad position' THEN position
                 WHEN 'no user' THEN trim(t.user_id) WHEN 'no time' THEN trim(t.time)
                 WHEN 'no product' THEN trim(t.product_id)
                 WHEN 'malformed row' THEN broken END AS detail
        FROM texts t
        LEFT JOIN products p ON p.product_id = t.given_
        LEFT JOIN product_aliases a ON a.alias = t.given_"""
    )
