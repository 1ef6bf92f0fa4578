"""Segment and RudderStack: the track calls of their ecommerce specification."""

from __future__ import annotations

from ..parse_fields import text_or_null, timestamp, user_or_null
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, csv_relation, documents, parquet_relation
from .sql import event_types, fields, ignored_names, merge_searches, name_persons, text_at

# Names of events, letters only; those of the first version of the specification too.
_TYPES = {
    "search": "productssearched searchedproducts productsearched search searchperformed",
    "impression": "productlistviewed viewedproductcategory productlistfiltered",
    "click": "productclicked clickedproduct",
    "view": "productviewed viewedproduct",
    "cart": "productadded addedproduct wishlistproductaddedtocart",
    "purchase": "ordercompleted completedorder",
    "refund": "orderrefunded ordercancelled",
}
_CALLS = ("track", "identify", "page", "screen", "group", "alias")
_FIELDS = (
    "type event userId anonymousId previousId messageId timestamp originalTimestamp receivedAt "
    "properties:JSON"
)
_PRODUCT = ("product_id", "sku", "position", "name", "brand", "category", "price")
_PROPERTIES = (*_PRODUCT, "products", "order_id")  # columns of a warehouse's tables


def _recognise(file: RawFile) -> str | None:
    if file.has("event", "event_text", "anonymous_id", "received_at"):
        return "table"
    is_call = file.has("type", "messageId") and (file.has("anonymousId") or file.has("userId"))
    return "events" if is_call and file.record.get("type") in _CALLS else None


def _read(raw: RawFiles) -> Extract:
    """Track calls as JSON lines, or tables of a warehouse with one table for each event.

    ``event`` (Products Searched, Product Clicked, Product Viewed, Product Added, Order
    Completed) is the type, ``timestamp`` the time, ``properties.query`` the query.
    ``properties.product_id`` is the product, or each of ``properties.products[]``; ``sku``
    where the catalog knows those rather. Product List Viewed is impressions. A person is
    ``userId``; ``anonymousId``, identify and alias calls join what came before the login.
    ``messageId`` keeps repeated deliveries out. Order Refunded and Order Cancelled without
    products take their order back. Page calls and other events are ignored.
    """
    _load_calls(raw)
    ((repeats,),) = raw.rows("SELECT count(*) FROM calls WHERE nth > 1")
    raw.connection.execute("DELETE FROM calls WHERE nth > 1")
    name_persons(raw, "calls")
    ignored = {"message delivered again": repeats} if repeats else {}
    ignored |= ignored_names(
        raw,
        """SELECT CASE WHEN call = 'track' THEN event ELSE call || ' call' END AS name
        FROM calls WHERE type IS NULL""",
    )
    raw.load(
        "searches",
        f"""SELECT person AS user_id, time, time_text, CASE json_type(properties->'query')
                WHEN 'OBJECT' THEN {text_at("properties->'query'", "text", "query", "q", "term")}
                ELSE {text_at("properties", "query", "search_query", "search_term", "keyword")}
            END AS query FROM calls WHERE type = 'search'""",
    )
    ignored |= merge_searches(raw, "searches")
    notes = _load_items(raw)
    ignored |= _take_back(raw)
    return Extract(
        events="""SELECT user_id, coalesce(time::VARCHAR, time_text) AS time, 'search' AS type,
                query, NULL AS product_id FROM searches
            UNION ALL SELECT person, coalesce(time::VARCHAR, time_text), type, NULL, product
            FROM items WHERE type <> 'impression'""",
        impressions="""SELECT person AS user_id, coalesce(time::VARCHAR, time_text) AS time,
                NULL AS query, product AS product_id, position, NULL AS query_id
            FROM items WHERE type = 'impression' AND product IS NOT NULL""",
        mentioned=f"""SELECT product AS product_id,
                arg_max({text_at("item", "name", "title")}, time) AS title,
                arg_max({text_or_null(text_at("item", "brand"))}, time) AS brand,
                arg_max({text_or_null(text_at("item", "category"))}, time) AS category,
                arg_max({text_at("item", "price")}, time) AS price
            FROM items WHERE product IS NOT NULL GROUP BY 1""",
        logins="FROM logins",
        returned="FROM returned",
        ignored=ignored,
        notes=notes,
    )


def _load_calls(raw: RawFiles) -> None:
    """The table ``calls``: one row per call, of JSON or of warehouse tables."""
    tables = [_warehouse(file) for file in raw.of("table")]
    if raw.of("events"):
        tables.append(fields(documents(raw.of("events")), _FIELDS))
    time = "coalesce(timestamp, originalTimestamp, receivedAt)"
    raw.load(
        "calls",
        f"""SELECT c.type AS call, event, {user_or_null("userId")} AS user_id,
            coalesce(CASE WHEN c.type = 'alias' THEN {text_or_null("previousId")} END,
                {user_or_null("anonymousId")}) AS device,
            {time} AS time_text, {timestamp(time)} AS time, properties,
            CASE WHEN c.type = 'track' THEN coalesce({raw.mapped_type("event")}, names.type)
                END AS type,
            CASE WHEN messageId IS NULL THEN 1 ELSE
                row_number() OVER (PARTITION BY messageId ORDER BY receivedAt) END AS nth
        FROM ({" UNION ALL BY NAME ".join(tables)}) c
        LEFT JOIN {event_types(_TYPES)}
            ON names.name = regexp_replace(lower(c.event), '[^a-z]', '', 'g')""",
    )


def _warehouse(file: RawFile) -> str:
    """SQL: a table of a warehouse as the calls that it was made of."""
    column = file.column
    relation = f"{parquet_relation(file)}" if file.form == "parquet" else csv_relation(file)
    properties = ", ".join(
        f"'{name}', {_parsed_list(column(name)) if name == 'products' else column(name)}"
        for name in _PROPERTIES
        if file.has(name)
    )
    query = f"coalesce({column('query')}::VARCHAR, {column('query_text')}::VARCHAR)"
    return f"""SELECT 'track' AS type,
        coalesce({column("event_text")}, {column("event")})::VARCHAR AS event,
        {column("user_id")}::VARCHAR AS userId, {column("anonymous_id")}::VARCHAR AS anonymousId,
        NULL::VARCHAR AS previousId, {column("id", "message_id")}::VARCHAR AS messageId,
        {column("timestamp")}::VARCHAR AS timestamp,
        {column("original_timestamp")}::VARCHAR AS originalTimestamp,
        {column("received_at")}::VARCHAR AS receivedAt,
        json_merge_patch(json_object({properties}), json_object('query', {query})) AS properties
    FROM {relation}"""


def _parsed_list(column: str) -> str:
    return f"CASE WHEN json_valid({column}::VARCHAR) THEN {column}::VARCHAR::JSON END"


def _load_items(raw: RawFiles) -> tuple[str, ...]:
    """The table ``items``: a row for each product of a call; returns notes."""
    products = "properties->'products'"
    raw.load(
        "items",
        f"""WITH lists AS (SELECT * EXCLUDE (nth), CASE json_type({products})
                WHEN 'ARRAY' THEN from_json({products}, '["JSON"]')
                WHEN 'OBJECT' THEN [{products}]
                WHEN 'VARCHAR' THEN CASE WHEN json_valid({products}->>'$')
                    THEN from_json(({products}->>'$')::JSON, '["JSON"]') END END AS list
            FROM calls WHERE type IN ('click', 'view', 'cart', 'purchase', 'impression'))
        SELECT * EXCLUDE (list), unnest(list_transform(
            CASE WHEN len(list) > 0 THEN list ELSE [properties] END,
            lambda item, place: {{'item': item, 'place': place}}), max_depth := 2)
        FROM lists""",
    )
    ids = ("product_id", "productId", "item_id", "itemId")
    raw.load(
        "items",
        f"""SELECT *, coalesce(try_cast({text_at("item", "position")} AS INT), place) AS position,
            {text_or_null(text_at("item", *ids))} AS by_id,
            {text_or_null(text_at("item", "sku"))} AS by_sku,
            {text_or_null(text_at("item", "id"))} AS other FROM items""",
    )
    known = "SELECT product_id FROM known"
    ((by_id, by_sku),) = raw.rows(
        f"""SELECT count(*) FILTER (by_id IN ({known})), count(*) FILTER (by_sku IN ({known}))
        FROM items"""
    )
    first, second = ("by_sku", "by_id") if by_sku > by_id else ("by_id", "by_sku")
    raw.load("items", f"SELECT *, coalesce({first}, {second}, other) AS product FROM items")
    return ("products go by sku, which the catalog knows",) if first == "by_sku" else ()


def _take_back(raw: RawFiles) -> dict[str, int]:
    """Delete the purchases of orders that were taken back as a whole; returns the numbers."""
    order = text_at("properties", "order_id", "orderId")
    raw.load(
        "refunds",
        f"""SELECT {order} AS order_id,
            coalesce(json_array_length(properties->'products'), 0) AS products
        FROM calls WHERE type = 'refund'""",
    )
    whole = "SELECT order_id FROM refunds WHERE products = 0 AND order_id IS NOT NULL"
    taken = f"type = 'purchase' AND {order} IN ({whole})"
    raw.load(
        "returned",
        f"SELECT person AS user_id, time, product AS product_id FROM items WHERE {taken}",
    )
    ((lines, partial, unknown),) = raw.rows(
        f"""SELECT (SELECT count(*) FROM items WHERE {taken}),
        (SELECT count(*) FROM refunds WHERE products > 0),
        (SELECT count(*) FROM refunds WHERE products = 0 AND (order_id IS NULL OR order_id NOT IN (
            SELECT {order} FROM items WHERE type = 'purchase' AND {order} IS NOT NULL)))"""
    )
    raw.connection.execute(f"DELETE FROM items WHERE {taken}")
    counts = {
        "purchase that was refunded": lines,
        "refund of single products": partial,
        "refund of an order that is not in these files": unknown,
    }
    return {name: count for name, count in counts.items() if count}


PRESET = Preset("segment", _recognise, _read)
