"""Check staged event rows and store them."""

from __future__ import annotations

import duckdb

from ..memory import sessions
from ..memory.store import MemoryStore
from ..shop.config import MemoryConfig
from ..shop.shop import Shop
from ..utils.database import literal
from .columns import TYPE_NAMES
from .options import Load, ReadOptions
from .parse_fields import (
    FUTURE,
    MAX_ID,
    MAX_QUERY,
    OUT_OF_RANGE,
    clean_id,
    is_in_future,
    normal_type,
    text_or_null,
    timestamp,
)
from .staged_ids import KNOWN_PRODUCT, row_texts, row_values


def store_events(shop: Shop, load: Load) -> tuple[int, int]:
    """Store the good rows of ``stage``; all go to ``checked``, with a reason where they are bad.

    A row with a query and a product, but no type, is a search and a click. Returns the numbers
    of rows that were stored, and of duplicates.
    """
    connection = shop.connection
    _check(connection, load.options)
    _find_fresh(
        connection,
        is_file=load.ingest_id is not None,
        queries_are_derived=shop.config.derived_queries is not None,
    )
    ((last_id,),) = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()
    connection.execute(
        """INSERT INTO events (event_id, user_id, ts, type, query, query_key, product_id,
            recommendation_id, position)
        SELECT nextval('event_ids'), user_id, ts, type::event_type, query, query_key,
               product_id, shown_, place_
        FROM (SELECT * FROM fresh ORDER BY ts, row, part)"""
    )
    ((good, stored),) = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  (SELECT count(DISTINCT staged) FROM fresh)"""
    ).fetchall()
    ((filled,),) = connection.execute("SELECT count(*) FROM filled").fetchall()
    if stored or filled:
        fresh_users = "SELECT user_id FROM fresh UNION SELECT user_id FROM filled"
        sessions.refresh_sessions(connection, shop.config.memory, fresh_users)
        first_typed = _drop_half_words(connection, shop.config.memory, fresh_users)
        if first_typed is not None and first_typed <= last_id:
            filled = True  # the log from before has changed, too
        users = [user for (user,) in connection.execute(fresh_users).fetchall()]
        MemoryStore(connection, shop.config.memory).update(users, None if filled else last_id)
    connection.execute("DROP TABLE fresh")
    return stored, good - stored


def _drop_half_words(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, users: str
) -> int | None:
    """Delete the searches that some users went on typing, as keystrokes are logged.

    Such a search is followed within ``typing_seconds`` by one that begins with it, and led to
    nothing itself. Their number goes to the table ``typed``.

    Returns:
        The smallest event id of those that were deleted; None where there was none.
    """
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE typed AS SELECT event_id FROM (
            SELECT event_id, type, ts, query_key, recommendation_id, lead(type) OVER w AS next_type,
                lead(ts) OVER w AS next_ts, lead(query_key) OVER w AS next_key
            FROM events WHERE user_id IN ({users})
            WINDOW w AS (PARTITION BY user_id ORDER BY ts, event_id)) t
        WHERE type = 'search' AND next_type = 'search' AND recommendation_id IS NULL
            AND next_ts - ts <= to_seconds({config.typing_seconds}) AND next_key <> query_key
            AND starts_with(next_key, query_key) AND {config.typing_seconds} > 0
            AND NOT EXISTS (FROM events e WHERE e.search_id = t.event_id AND e.type <> 'search')"""
    )
    ((first,),) = connection.execute("SELECT min(event_id) FROM typed").fetchall()
    if first is not None:
        connection.execute("DELETE FROM events WHERE event_id IN (FROM typed)")
        sessions.refresh_sessions(connection, config, users)
    return None if first is None else int(first)


def _check(connection: duckdb.DuckDBPyConnection, options: ReadOptions) -> None:
    """Parse ``stage`` into ``checked``: clean fields (ending in _), reason and detail."""
    types = ", ".join(f"({literal(name)}, {literal(t)})" for name, t in TYPE_NAMES.items())
    default = literal(options.event_type) if options.event_type else "NULL"
    clicked, shown = _held(connection, "click_time", "recommendation_id")
    click_ts = timestamp("click_text", options.time_format) if clicked else "NULL::TIMESTAMP"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH queries AS (SELECT query AS text, left(qa_clean(query), {MAX_QUERY + 1}) AS query_
                FROM (SELECT DISTINCT query FROM stage WHERE query IS NOT NULL)
                WHERE {text_or_null("query")} IS NOT NULL),
        given AS (SELECT s.*, nullif(q.query_, '') AS query_, {row_texts(connection, options)},
                {text_or_null("s.click_time") if clicked else "NULL::VARCHAR"} AS click_text,
                {text_or_null("s.type")} AS type_given,
                {text_or_null("s.recommendation_id") if shown else "NULL::VARCHAR"} AS shown_text
            FROM stage s LEFT JOIN queries q ON q.text = s.query),
        texts AS (SELECT *, {row_values(options)}, {click_ts} AS click_ts,
                coalesce({normal_type("type_given")}, {default}) AS type_text,
                left({clean_id("shown_text")}, {MAX_ID}) AS shown_,
                CASE WHEN shown_text IS NOT NULL THEN try_cast(position AS INTEGER) END AS place_
            FROM given),
        typed AS (SELECT t.*, qa_key(t.query_) AS key, k.type AS known,
                CASE WHEN k.type IS NOT NULL THEN k.type::VARCHAR
                     WHEN type_text IS NOT NULL THEN NULL
                     WHEN query_ IS NOT NULL AND given_ IS NOT NULL THEN 'search+click'
                     WHEN query_ IS NOT NULL THEN 'search' END AS kind,
                {KNOWN_PRODUCT}
            FROM texts t LEFT JOIN (VALUES {types}) k(name, type) ON k.name = t.type_text
            LEFT JOIN products p ON p.product_id = t.given_
            LEFT JOIN product_aliases a ON a.alias = t.given_),
        judged AS (SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN user_ IS NULL THEN 'no user'
                 WHEN length(user_) > {MAX_ID} OR length(product_) > {MAX_ID} THEN 'id too long'
                 WHEN time_text IS NULL THEN 'no time'
                 WHEN ts IS NULL OR (click_text IS NOT NULL AND click_ts IS NULL)
                 THEN 'unparseable time'
                 WHEN {OUT_OF_RANGE} THEN 'time out of range'
                 WHEN {is_in_future("greatest(ts, click_ts)", allowed=options.allow_future)}
                 THEN '{FUTURE}'
                 WHEN kind IS NULL AND type_text IS NOT NULL THEN 'unknown event type'
                 WHEN kind IS NULL THEN 'no event type'
                 WHEN kind = 'search' AND query_ IS NULL THEN 'search without a query'
                 WHEN length(query_) > {MAX_QUERY} THEN 'query too long'
                 WHEN query_ IS NOT NULL AND key = '' THEN 'query without letters or digits'
                 WHEN kind IN ('view', 'click', 'cart', 'purchase') AND product_ IS NULL
                 THEN 'no product'
                 WHEN product_ IS NOT NULL AND kind <> 'search' AND NOT in_catalog
                 THEN 'unknown product' END AS reason FROM typed)
        -- A name of the same SELECT would be written out wherever it stands.
        SELECT *, CASE reason WHEN 'unparseable time' THEN time_text
                 WHEN 'time out of range' THEN time WHEN '{FUTURE}' THEN time_text
                 WHEN 'unknown event type' THEN type WHEN 'unknown product' THEN product_
                 WHEN 'no user' THEN trim(user_id) WHEN 'no time' THEN trim(time)
                 WHEN 'no event type' THEN trim(type) WHEN 'no product' THEN trim(product_id)
                 WHEN 'search without a query' THEN trim(query)
                 WHEN 'malformed row' THEN broken END AS detail
        FROM judged"""
    )


def _held(connection: duckdb.DuckDBPyConnection, *fields: str) -> list[bool]:
    """Which fields some row of ``stage`` holds: what parses the others need not be planned.

    Planning takes longer than reading an event, and most single events lack most fields.
    """
    counts = ", ".join(f"count({field})" for field in fields)
    (held,) = connection.execute(f"SELECT {counts} FROM stage").fetchall()
    return [bool(count) for count in held]


def _find_fresh(
    connection: duckdb.DuckDBPyConnection, *, is_file: bool, queries_are_derived: bool
) -> None:
    """The events of good rows that the log does not hold yet, as ``fresh``.

    An event of a file that the log holds without its query is not fresh: it gets the query, and
    its user is in ``filled``.
    """
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE filled (user_id VARCHAR);
        CREATE OR REPLACE TEMP TABLE typed (event_id BIGINT);
        CREATE OR REPLACE TEMP TABLE once AS
        WITH split AS (
            SELECT rowid AS staged, row, 0 AS part, user_ AS user_id, ts, 'search' AS type,
                   query_ AS query, key AS query_key, NULL AS product_id, shown_, place_
            FROM checked WHERE reason IS NULL AND kind IN ('search', 'search+click')
            UNION ALL
            SELECT rowid, row, 1, user_, CASE WHEN kind = 'search+click'
                   THEN greatest(coalesce(click_ts, ts), ts) ELSE ts END,
                   CASE WHEN kind = 'search+click' THEN 'click' ELSE kind END, query_, key,
                   product_, shown_, place_
            FROM checked WHERE reason IS NULL AND kind <> 'search')
        SELECT * FROM split QUALIFY row_number() OVER (
            PARTITION BY user_id, ts, type, query_key, product_id ORDER BY row) = 1"""
    )
    if is_file:
        _fill_queries(connection)
    # A derived query is not in the file that its event came from, nor what another file told.
    any_query = "o.query_key IS NULL" if is_file or queries_are_derived else "false"
    same = """e.user_id = o.user_id AND e.ts = o.ts AND e.type = o.type::event_type
        AND e.product_id IS NOT DISTINCT FROM o.product_id"""
    ((first, last),) = connection.execute("SELECT min(ts), max(ts) FROM once").fetchall()
    is_same_time = f"ts BETWEEN '{first}' AND '{last}'" if first else "false"
    # The log is read for the time of the rows alone. Two joins, because some releases of DuckDB
    # compare every row with every other one where a join's condition has an OR.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS
        WITH same_time AS (FROM events WHERE {is_same_time})
        SELECT o.* FROM (FROM once o WHERE NOT ({any_query})) o ANTI JOIN same_time e
            ON {same} AND e.query_key IS NOT DISTINCT FROM o.query_key
        UNION ALL
        SELECT o.* FROM (FROM once o WHERE {any_query}) o ANTI JOIN same_time e ON {same};
        DROP TABLE once"""
    )


def _fill_queries(connection: duckdb.DuckDBPyConnection) -> None:
    """Give events of the log the queries that ``once`` knows of them."""
    queries = """SELECT * FROM once o WHERE type <> 'search' AND query_key IS NOT NULL
        AND NOT EXISTS (FROM events e WHERE e.user_id = o.user_id AND e.ts = o.ts
            AND e.type = o.type::event_type AND e.product_id = o.product_id
            AND e.query_key = o.query_key)
        QUALIFY row_number() OVER (PARTITION BY user_id, ts, type, product_id ORDER BY row) = 1"""
    users = connection.execute(
        f"""UPDATE events SET query = o.query, query_key = o.query_key FROM ({queries}) o
        WHERE events.query_key IS NULL AND events.user_id = o.user_id AND events.ts = o.ts
            AND events.type = o.type::event_type AND events.product_id = o.product_id
        RETURNING events.user_id"""
    ).fetchall()
    if users:
        connection.execute("INSERT INTO filled SELECT unnest(?)", [[u for (u,) in users]])
