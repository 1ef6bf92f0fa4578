"""Check staged recommendations, queries that a user was shown, and store them."""

from __future__ import annotations

import duckdb

from ..shop.shop import Shop
from .impressions import MAX_POSITION
from .options import Load, ReadOptions
from .parse_fields import (
    FUTURE,
    MAX_ID,
    MAX_QUERY,
    OUT_OF_RANGE,
    clean_id,
    is_in_future,
    moment,
    moment_text,
    text_or_null,
)
from .staged_ids import id_value

_IMPORTED = "imported"  # source and policy where the file names none


def store_recommendations(shop: Shop, load: Load) -> tuple[int, int]:
    """Store the good rows of ``stage``; all go to ``checked``, with a reason where they are bad.

    An answer has one query at each position. Returns the numbers of rows that were stored, and
    of duplicates.
    """
    connection = shop.connection
    _check(connection, load.options)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS
        SELECT c.* FROM (FROM checked WHERE reason IS NULL
            QUALIFY row_number() OVER (PARTITION BY id_, position_ ORDER BY row) = 1) c
        ANTI JOIN recommendations r ON r.recommendation_id = c.id_ AND r.position = c.position_;
        INSERT INTO recommendations SELECT id_, user_, ts, position_, query_, key,
            coalesce(propensity_, 1), coalesce(source_, '{_IMPORTED}'),
            coalesce(policy_, '{_IMPORTED}'), version_, experiment_, arm_, $1, NULL
        FROM fresh ORDER BY ts, row""",
        [load.ingest_id],
    )
    ((good, stored),) = connection.execute(
        "SELECT (SELECT count(*) FROM checked WHERE reason IS NULL), count(*) FROM fresh"
    ).fetchall()
    connection.execute("DROP TABLE fresh")
    return stored, good - stored


def _check(connection: duckdb.DuckDBPyConnection, options: ReadOptions) -> None:
    """Make the table ``checked`` of ``stage``: each row's fields, and why it is bad."""
    user = id_value(connection, "user_id", options)
    texts = ", ".join(
        f"{text_or_null(f's.{name}')} AS {name}_text"
        for name in ("recommendation_id", "query", "position", "propensity", "version")
    )
    names = ", ".join(
        f"left(qa_clean({text_or_null(name)}), {MAX_ID}) AS {name}_"
        for name in ("source", "policy", "experiment", "arm")
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH given AS (SELECT s.*, {user} AS user_text, {moment_text("s")} AS time_text, {texts}
            FROM stage s),
        parsed AS (SELECT *, {clean_id("user_text")} AS user_,
                {moment("given", "time_text", options.time_format)} AS ts,
                {clean_id("recommendation_id_text")} AS id_,
                left(nullif(qa_clean(query_text), ''), {MAX_QUERY}) AS query_,
                try_cast(position_text AS DOUBLE) AS position_,
                try_cast(propensity_text AS DOUBLE) AS propensity_,
                try_cast(version_text AS BIGINT) AS version_, {names},
                NULL::VARCHAR AS product_id, NULL::VARCHAR AS product_
            FROM given)
        SELECT *, nullif(qa_key(query_), '') AS key,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN user_ IS NULL THEN 'no user'
                 WHEN id_ IS NULL THEN 'no recommendation id'
                 WHEN length(user_) > {MAX_ID} OR length(id_) > {MAX_ID} THEN 'id too long'
                 WHEN time_text IS NULL THEN 'no time'
                 WHEN ts IS NULL THEN 'unparseable time'
                 WHEN {OUT_OF_RANGE} THEN 'time out of range'
                 WHEN {is_in_future("ts", allowed=options.allow_future)} THEN '{FUTURE}'
                 WHEN key IS NULL THEN 'query without letters or digits'
                 WHEN coalesce(position_ <> floor(position_)
                      OR position_ NOT BETWEEN 1 AND {MAX_POSITION}, true) THEN 'bad position'
                 WHEN propensity_text IS NOT NULL AND coalesce(propensity_ <= 0
                      OR propensity_ > 1 OR isnan(propensity_), true) THEN 'bad propensity'
                 END AS reason,
            CASE reason WHEN 'unparseable time' THEN time_text WHEN 'time out of range' THEN time
                 WHEN '{FUTURE}' THEN time_text WHEN 'bad position' THEN position
                 WHEN 'bad propensity' THEN propensity WHEN 'no user' THEN trim(user_id)
                 WHEN 'malformed row' THEN broken END AS detail
        FROM parsed"""
    )
