"""Algolia: Insights events, and a log of queries with its clicks."""

from __future__ import annotations

from ...utils.database import literal
from ..parse_fields import timestamp, user_or_null
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, documents
from .sql import fields, ignored_names, merge_searches, name_persons

_FIELDS = (
    "eventType eventSubtype eventName userToken authenticatedUserToken timestamp queryID "
    "objectIDs:JSON objectData:JSON"
)
_CART, _PURCHASE = "cart|basket|bag", "purchas|order|buy|bought|checkout complete|transaction"
_CONVERSION = "conversion of clicks.csv"
_SHOWN = "hits viewed|search results viewed|impression"


def _recognise(file: RawFile) -> str | None:
    if file.form == "json" and file.has("eventType", "eventName", "userToken", "index"):
        return "insights"
    has_id = file.has("query_id") or file.has("queryID")
    if file.form != "csv" or not has_id:
        return None
    if file.has("object_id") or file.has("objectID"):
        return "clicks" if file.has("event_type") or file.has("eventType") else None
    is_queries = file.has("query") and (file.has("user_token") or file.has("userToken"))
    return "queries" if is_queries else None


def _read(raw: RawFiles) -> Extract:
    """Insights events as JSON, ``queries.csv`` and ``clicks.csv``.

    Each of ``objectIDs`` is an event of ``userToken`` (``authenticatedUserToken`` where it is
    known) at ``timestamp``, in milliseconds. ``eventType`` is click, view or conversion; a
    conversion is a cart or a purchase by ``eventSubtype``, else by words of ``eventName``, else
    a cart, which the report says. ``queryID`` finds the query in the log of queries
    (query_id, timestamp, user_token, query), in which the searches are; without it there are
    none. In clicks.csv (query_id, timestamp, event_type, object_id) a conversion is a purchase.
    Events with ``filters`` only are ignored.
    """
    _load_queries(raw)
    notes = _load_events(raw)
    raw.load(
        "searches",
        """SELECT person AS user_id, time, time_text, query,
            id IN (SELECT id FROM events WHERE id IS NOT NULL) AS is_used FROM queries""",
    )
    ignored = merge_searches(raw, "searches", is_typing_logged=True)
    ignored |= ignored_names(raw, "SELECT name FROM events WHERE type IS NULL")
    return Extract(
        events="""SELECT user_id, coalesce(time::VARCHAR, time_text) AS time, 'search' AS type,
                query, NULL AS product_id FROM searches
            UNION ALL SELECT coalesce(e.person, q.person),
                coalesce(e.time::VARCHAR, e.time_text), e.type, q.query, e.product
            FROM events e LEFT JOIN queries q USING (id) WHERE e.type <> 'impression'""",
        impressions="""SELECT coalesce(e.person, q.person) AS user_id,
                coalesce(e.time::VARCHAR, e.time_text) AS time, q.query, e.product AS product_id,
                e.place AS position, e.id AS query_id
            FROM events e LEFT JOIN queries q USING (id)
            WHERE e.type = 'impression' AND e.product IS NOT NULL""",
        mentioned="""SELECT product AS product_id, NULL::VARCHAR AS title, NULL AS brand,
            NULL AS category, arg_max(price, time) AS price FROM events
            WHERE type IS NOT NULL AND product IS NOT NULL GROUP BY 1""",
        awaits_queries=not raw.of("queries"),
        logins="FROM logins" if raw.of("insights") else None,
        ignored=ignored,
        notes=notes,
    )


def _key(column: str) -> str:
    """SQL: an id of a query as all files write it: some have dashes, some have none."""
    return f"nullif(lower(replace(trim({column}), '-', '')), '')"


def _load_queries(raw: RawFiles) -> None:
    """The table ``queries``, one row per query id."""
    selects = []
    for number, file in enumerate(raw.of("queries")):
        raw.load_csv(f"queries_{number}", file)
        time = file.column("timestamp", "time", "date")
        token = file.column("user_token", "userToken")
        selects.append(
            f"""SELECT {_key(file.column("query_id", "queryID"))} AS id,
                {user_or_null(token)} AS person, {timestamp(time)} AS time, {time} AS time_text,
                {file.column("query")} AS query FROM queries_{number}"""
        )
    none = """SELECT NULL::VARCHAR AS id, NULL::VARCHAR AS person, NULL::TIMESTAMP AS time,
        NULL::VARCHAR AS time_text, NULL::VARCHAR AS query WHERE false"""
    raw.load(
        "queries",
        f"""FROM ({" UNION ALL ".join([none, *selects])})
        QUALIFY id IS NULL OR row_number() OVER (PARTITION BY id ORDER BY time) = 1""",
    )


def _load_events(raw: RawFiles) -> tuple[str, ...]:
    """The table ``events``: a row for each product of an event; returns notes."""
    notes = []
    if not raw.of("queries"):
        notes.append(
            "Insights events hold no queries: the searches are in the log of queries "
            "(query_id, timestamp, user_token, query as CSV); give both"
        )
    selects = [_load_insights(raw)] if raw.of("insights") else []
    for number, file in enumerate(raw.of("clicks")):
        raw.load_csv(f"clicks_{number}", file)
        selects.append(_clicks(raw, file, f"clicks_{number}"))
    none = """SELECT NULL::VARCHAR AS id, NULL::VARCHAR AS person, NULL::TIMESTAMP AS time,
        NULL::VARCHAR AS time_text, NULL::VARCHAR AS product, NULL::BIGINT AS place,
        NULL::VARCHAR AS name, NULL::VARCHAR AS type, false AS is_guess, false AS is_click,
        NULL::VARCHAR AS price
        WHERE false"""
    raw.load("events", " UNION ALL BY NAME ".join([none, *selects]))
    # What both files hold is the same event: clicks.csv knows that it is a purchase.
    raw.connection.execute(
        f"""DELETE FROM events e WHERE NOT is_click AND EXISTS (FROM events o WHERE o.is_click
            AND o.id = e.id AND o.time = e.time AND o.product = e.product
            AND (o.type = e.type OR (e.is_guess AND o.name = '{_CONVERSION}')))"""
    )
    guesses = raw.rows(
        "SELECT type, name, count(*) FROM events WHERE is_guess GROUP BY ALL ORDER BY 3 DESC, 2"
    )
    notes += [
        f"{count:,} conversions ({name}) do not say which: taken as {kind}; give another type as a "
        f"value, such as type:{shown}={'purchase' if kind == 'cart' else 'cart'}"
        for kind, name, count in guesses
        for shown in ("conversion" if name == _CONVERSION else name,)
    ]
    return tuple(notes)


def _load_insights(raw: RawFiles) -> str:
    """The table ``insights`` of whole events; returns SQL for its products."""
    raw.load(
        "insights",
        f"""SELECT {user_or_null("authenticatedUserToken")} AS user_id,
            {user_or_null("userToken")} AS device, timestamp AS time_text,
            {timestamp("timestamp")} AS time, queryID, objectIDs, objectData,
            coalesce(eventName, eventType) AS name, lower(eventType) AS kind,
            lower(eventSubtype) AS subtype, {raw.mapped_type("eventName", "eventType")} AS given
        FROM ({fields(documents(raw.of("insights")), _FIELDS)})""",
    )
    name_persons(raw, "insights")
    raw.connection.execute(
        """UPDATE queries SET person = owner FROM devices
        WHERE devices.device = queries.person AND users = 1"""
    )
    return f"""SELECT coalesce({_key("data->>'queryID'")}, {_key("queryID")}) AS id, person, time,
            time_text, product, place, nullif(trim(data->>'price'), '') AS price,
            CASE WHEN products IS NULL THEN kind || ' of filters' ELSE name END AS name,
            CASE WHEN products IS NULL THEN NULL WHEN given IS NOT NULL THEN given
                WHEN kind = 'view' AND regexp_matches(lower(name), {literal(_SHOWN)})
                THEN 'impression'
                WHEN kind IN ('click', 'view') THEN kind
                WHEN kind <> 'conversion' THEN NULL
                WHEN subtype = 'purchase' THEN 'purchase'
                WHEN subtype = 'addtocart' THEN 'cart'
                WHEN regexp_matches(lower(name), {literal(_CART)}) THEN 'cart'
                WHEN regexp_matches(lower(name), {literal(_PURCHASE)}) THEN 'purchase'
                ELSE 'cart' END AS type,
            kind = 'conversion' AND products IS NOT NULL AND subtype IS NULL AND given IS NULL
                AND NOT regexp_matches(lower(name), {literal(f"{_CART}|{_PURCHASE}")}) AS is_guess,
            false AS is_click
        FROM (SELECT * EXCLUDE (objectData), from_json(objectIDs, '["VARCHAR"]') AS products,
            unnest(list_zip(coalesce(products, [NULL]),
                range(1, greatest(len(coalesce(products, [NULL])), 1) + 1),
                coalesce(from_json(objectData, '["JSON"]'), []))) AS zipped,
            zipped[1] AS product, zipped[2] AS place, zipped[3] AS data FROM insights)"""


def _clicks(raw: RawFiles, file: RawFile, table: str) -> str:
    time, kind = file.column("timestamp", "time"), file.column("event_type", "eventType")
    token = file.column("user_token", "userToken")
    return f"""SELECT {_key(file.column("query_id", "queryID"))} AS id,
        {user_or_null(token)} AS person, {timestamp(time)} AS time, {time} AS time_text,
        nullif(trim({file.column("object_id", "objectID")}), '') AS product, NULL::BIGINT AS place,
        CASE WHEN lower({kind}) = 'conversion' THEN '{_CONVERSION}' ELSE {kind} END
            AS name,
        coalesce({raw.mapped_type(kind)}, CASE lower({kind}) WHEN 'click' THEN 'click'
            WHEN 'view' THEN 'view' WHEN 'conversion' THEN 'purchase'
            WHEN 'purchase' THEN 'purchase' WHEN 'addtocart' THEN 'cart'
            WHEN 'cart' THEN 'cart' END) AS type,
        lower({kind}) = 'conversion' AND {raw.mapped_type(kind)} IS NULL AS is_guess,
        true AS is_click
        FROM {table}"""


PRESET = Preset("algolia", _recognise, _read)
