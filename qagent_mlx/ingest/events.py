"""Check staged event rows and store them."""

from __future__ import annotations

from ..memory import sessions as event_memory
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from ..utils.database import literal
from .columns import TYPE_NAMES
from .parse_fields import _BLANK, _ID, MAX_ID, MAX_QUERY, _time
from .report import ReadOptions


def _store_events(shop: Shop, options: ReadOptions) -> tuple[int, int]:
    connection = shop.connection
    types = ", ".join(f"({literal(k)}, {literal(v)})" for k, v in TYPE_NAMES.items())
    default = literal(options.event_type) if options.event_type else "NULL"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH names AS (SELECT query AS text, left(qa_clean(query), {MAX_QUERY + 1}) AS query_
                FROM (SELECT DISTINCT query FROM stage WHERE query IS NOT NULL)),
        texts AS (SELECT s.*, nullif(qa_clean(s.user_id), '') AS user_,
                nullif(n.query_, '') AS query_, {_ID.format("s.product_id")} AS product_,
                {_BLANK.format("s.time")} AS time_text,
                {_time("trim(s.time)", options.time_format)} AS ts,
                {_time("trim(s.click_time)", options.time_format)} AS click_ts,
                coalesce(nullif(replace(replace(lower(trim(s.type)), ' ', '_'), '-', '_'), ''),
                         {default}) AS type_text
            FROM stage s LEFT JOIN names n ON n.text = s.query),
        typed AS (SELECT t.*, qa_key(t.query_) AS key, k.type AS known,
                CASE WHEN k.type IS NOT NULL THEN k.type::VARCHAR
                     WHEN type_text IS NOT NULL THEN NULL
                     WHEN query_ IS NOT NULL AND product_ IS NOT NULL THEN 'search+click'
                     WHEN query_ IS NOT NULL THEN 'search' END AS kind,
                p.product_id IS NOT NULL AS in_catalog
            FROM texts t LEFT JOIN (VALUES {types}) k(name, type) ON k.name = t.type_text
            LEFT JOIN products p ON p.product_id = t.product_)
        SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN user_ IS NULL THEN 'no user'
                 WHEN length(user_) > {MAX_ID} OR length(product_) > {MAX_ID} THEN 'id too long'
                 WHEN time_text IS NULL THEN 'no time'
                 WHEN ts IS NULL OR (click_time IS NOT NULL AND trim(click_time) <> ''
                      AND click_ts IS NULL) THEN 'unparseable time'
                 WHEN ts < TIMESTAMP '1990-01-01' OR ts >= TIMESTAMP '2100-01-01'
                 THEN 'time out of range'
                 WHEN kind IS NULL AND type_text IS NOT NULL THEN 'unknown event type'
                 WHEN kind IS NULL THEN 'no event type'
                 WHEN kind = 'search' AND query_ IS NULL THEN 'search without a query'
                 WHEN length(query_) > {MAX_QUERY} THEN 'query too long'
                 WHEN query_ IS NOT NULL AND key = '' THEN 'query without letters or digits'
                 WHEN kind IN ('view', 'click', 'cart', 'purchase') AND product_ IS NULL
                 THEN 'no product'
                 WHEN product_ IS NOT NULL AND kind <> 'search' AND NOT in_catalog
                 THEN 'unknown product' END AS reason,
            CASE reason WHEN 'unparseable time' THEN time WHEN 'time out of range' THEN time
                 WHEN 'unknown event type' THEN type WHEN 'unknown product' THEN product_
                 WHEN 'malformed row' THEN broken END AS detail
        FROM typed"""
    )
    # A derived query is not in the file that its event came from.
    derived = " OR o.query_key IS NULL" if shop.config.derived_queries else ""
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS
        WITH split AS (
            SELECT row, 0 AS part, user_ AS user_id, ts, 'search' AS type, query_ AS query,
                   key AS query_key, NULL AS product_id
            FROM checked WHERE reason IS NULL AND kind IN ('search', 'search+click')
            UNION ALL
            SELECT row, 1, user_, CASE WHEN kind = 'search+click'
                   THEN greatest(coalesce(click_ts, ts), ts) ELSE ts END,
                   CASE WHEN kind = 'search+click' THEN 'click' ELSE kind END, query_, key,
                   product_
            FROM checked WHERE reason IS NULL AND kind <> 'search'),
        once AS (SELECT * FROM split QUALIFY row_number() OVER (
            PARTITION BY user_id, ts, type, query_key, product_id ORDER BY row) = 1)
        SELECT o.* FROM once o ANTI JOIN events e
            ON e.user_id = o.user_id AND e.ts = o.ts AND e.type = o.type::event_type
            AND (e.query_key IS NOT DISTINCT FROM o.query_key{derived})
            AND e.product_id IS NOT DISTINCT FROM o.product_id"""
    )
    last_id = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()[0][0]
    connection.execute(
        """INSERT INTO events
        SELECT nextval('event_ids'), user_id, ts, type::event_type, query, query_key,
               product_id, NULL, NULL
        FROM (SELECT * FROM fresh ORDER BY ts, row, part)"""
    )
    row = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  (SELECT count(DISTINCT row) FROM fresh)"""
    ).fetchone()
    assert row is not None
    good, stored = row
    if stored:
        event_memory.refresh_sessions(
            connection, shop.config.memory, "SELECT DISTINCT user_id FROM fresh"
        )
        users = connection.execute("SELECT DISTINCT user_id FROM fresh").fetchall()
        MemoryStore(connection, shop.config.memory).update([user for (user,) in users], last_id)
    connection.execute("DROP TABLE fresh")
    return stored, good - stored
