"""OpenSearch User Behavior Insights (UBI), schema 1.0 to 1.3."""

from __future__ import annotations

from ...live.ubi_export import APPLICATION, IN_SESSION, RECOMMENDED
from ..parse_fields import text_or_null, timestamp, user_or_null
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, documents, parquet_relation
from .sql import event_types, fields, ignored_names, merge_searches, text_at

_TYPES = {
    "click": "click click_through item_click product_click on_click",
    "view": "view product_view view_item item_view watch",
    "cart": "add_to_cart addtocart add_item_to_cart cart",
    "purchase": "purchase product_purchase buy order checkout_completed",
    "search": "search on_search query",
    "impression": "impression",
}
_FIELDS = (
    "application action_name query_id client_id user_id user_query timestamp message_type "
    "message query_response_hit_ids:JSON query_attributes:JSON event_attributes:JSON"
)


def _recognise(file: RawFile) -> str | None:
    if file.form not in ("json", "parquet"):
        return None
    if file.has("action_name", "timestamp") and (
        file.has("event_attributes") or file.has("query_id")
    ):
        return "events"
    return "queries" if file.has("user_query", "query_id") else None


def _read(raw: RawFiles) -> Extract:
    """Searches from ``ubi_queries``, all other events and impressions from ``ubi_events``.

    A query document is a search of ``user_query``; of several with one ``query_id``, which
    aggregations make, the one with hits counts. An event is of ``user_id``, else
    ``event_attributes.user_id``, else ``client_id``; its product is
    ``event_attributes.object.object_id``, its query ``user_query``, else that of its
    ``query_id``. ``position.ordinal`` (a number, or ``{"index": n}`` in 1.0) is an impression's
    position, from 1 on. Actions such as ``page_exit`` are ignored, and so are ``query`` and
    ``query_response_hit_ids``, which nobody may have seen. Impressions of objects whose
    ``object_id_field`` is ``recommended_query`` are recommendations, and clicks on them searches
    that came of one, as `export_ubi` writes them.
    """
    _load_documents(raw)
    ignored = {}
    ((repeats,),) = raw.rows(
        "SELECT count(id) - count(DISTINCT id) FROM documents WHERE NOT is_event"
    )
    if repeats:
        ignored["further document of a query_id"] = repeats
    notes = _load_searches(raw)
    # What a shop of ours exported is a log already, of which nothing is to be merged.
    raw.load("final", "SELECT *, NULL::VARCHAR AS merged FROM searches WHERE is_final")
    raw.connection.execute("DELETE FROM searches WHERE is_final")
    ignored |= merge_searches(raw, "searches", is_typing_logged=True)
    raw.connection.execute("INSERT INTO searches BY NAME FROM final")
    ignored |= ignored_names(raw, "SELECT action AS name FROM events WHERE type IS NULL")
    return Extract(
        events="""SELECT user_id, coalesce(time::VARCHAR, time_text) AS time, 'search' AS type,
                query, NULL AS product_id, shown AS recommendation_id, shown_at AS position
            FROM searches
            UNION ALL SELECT person, coalesce(time::VARCHAR, time_text), type, query, product,
                shown, CASE WHEN shown IS NOT NULL THEN position + base END
            FROM events JOIN bases USING (application)
            WHERE type NOT IN ('search', 'impression') AND NOT is_recommended""",
        recommendations="""SELECT e.id AS recommendation_id, e.person AS user_id,
                coalesce(e.time::VARCHAR, e.time_text) AS time, e.object AS query,
                e.position + base AS position, e.propensity, a.*
            FROM events e JOIN bases USING (application)
            LEFT JOIN answers a ON a.answer_id = e.id
            WHERE e.type = 'impression' AND e.is_recommended""",
        impressions="""SELECT person AS user_id, coalesce(time::VARCHAR, time_text) AS time, query,
                product AS product_id, position + base AS position, id AS query_id
            FROM events JOIN bases USING (application)
            WHERE type = 'impression' AND NOT is_recommended""",
        mentioned="""SELECT product AS product_id, arg_max(name, time) AS title, NULL AS brand,
                NULL AS category, NULL AS price
            FROM events WHERE type <> 'search' AND product IS NOT NULL AND NOT is_recommended
            GROUP BY 1""",
        awaits_queries=not raw.of("queries"),
        ignored=ignored,
        notes=notes,
    )


def _load_documents(raw: RawFiles) -> None:
    """The tables ``documents``, and of those ``queries``, one per id, and ``events``."""
    files = [file for file in raw.of("events", "queries") if file.form == "json"]
    tables = [f"({fields(documents(files), _FIELDS)})"] if files else []
    names = [name.partition(":")[0] for name in _FIELDS.split()]
    for file in raw.of("events", "queries"):
        if file.form == "parquet":
            columns = ", ".join(
                f"to_json({file.column(name)})"
                if name in ("event_attributes", "query_attributes", "query_response_hit_ids")
                else f"{file.column(name)}::VARCHAR"
                for name in names
            )
            tables.append(f"(SELECT {columns} FROM {parquet_relation(file)})")
    position = "event_attributes, '$.position.ordinal"
    people = ["user_id", *(text_at("event_attributes", p) for p in ("user_id", "object.user_id"))]
    raw.load(
        "documents",
        f"""SELECT coalesce(application, '') AS application, action_name AS action,
            action_name IS NOT NULL AS is_event,
            lower(replace(replace(trim(action_name), '-', '_'), ' ', '_')) AS name_of_type,
            nullif(query_id, '') AS id,
            coalesce({", ".join(user_or_null(p) for p in (*people, "client_id"))}) AS person,
            {timestamp("timestamp")} AS time, timestamp AS time_text,
            coalesce(nullif(trim(user_query), ''), CASE WHEN upper(message_type) = 'QUERY'
                THEN nullif(trim(message), '') END) AS query,
            {text_or_null(text_at("event_attributes", "object.object_id", "object.internal_id"))}
                AS product,
            {text_at("event_attributes", "object.name", "object.description", "object.title")}
                AS name,
            coalesce(try_cast(json_extract_string({position}.index') AS INT),
                try_cast(json_extract_string({position}') AS INT)) AS position,
            coalesce(json_array_length(query_response_hit_ids), 0) AS hits,
            coalesce({text_at("event_attributes", "object.object_id_field")} = '{RECOMMENDED}',
                false) AS is_recommended,
            {text_at("event_attributes", "object.object_id")} AS object,
            {text_at("event_attributes", "propensity")} AS propensity,
            {text_at("event_attributes", "recommendation_id")} AS shown,
            {text_at("query_attributes", "recommendation_id")} AS search_shown,
            {text_at("query_attributes", "position")} AS search_shown_at,
            coalesce({text_at("event_attributes", "query_id_from")} = '{IN_SESSION}', false)
                AS has_no_query,
            coalesce(application, '') = '{APPLICATION}' AS is_final, query_attributes
        FROM ({" UNION ALL ".join(f"FROM {table}" for table in tables)})""",
    )
    _load_queries_and_events(raw)


def _load_queries_and_events(raw: RawFiles) -> None:
    """The tables that are made of ``documents``, and how each application counts positions."""
    raw.load(
        "queries",
        """SELECT * FROM documents WHERE NOT is_event AND query IS NOT NULL
        QUALIFY id IS NULL OR row_number() OVER (PARTITION BY id ORDER BY hits DESC, time) = 1""",
    )
    raw.load(
        "events",
        f"""SELECT d.* REPLACE (coalesce(d.person, q.person) AS person,
            CASE WHEN NOT d.has_no_query THEN coalesce(d.query, q.query) END AS query),
            coalesce({raw.mapped_type("d.action")}, names.type) AS type
        FROM documents d LEFT JOIN queries q ON q.id = d.id
        LEFT JOIN {event_types(_TYPES)} ON names.name = d.name_of_type WHERE d.is_event""",
    )
    answer = ", ".join(
        f"any_value({text_at('query_attributes', name)}) AS {name}"
        for name in ("source", "policy", "version", "experiment", "arm")
    )
    raw.load(
        "answers",
        f"""SELECT id AS answer_id, {answer} FROM documents
        WHERE NOT is_event AND query IS NULL AND id IS NOT NULL GROUP BY 1""",
    )
    # Some count positions from 0 on.
    raw.load(
        "bases",
        """SELECT application, CASE WHEN min(position) = 0 THEN 1 ELSE 0 END AS base
        FROM events GROUP BY 1""",
    )


def _load_searches(raw: RawFiles) -> tuple[str, ...]:
    """The table ``searches``, each once; returns notes."""
    raw.load(
        "searches",
        """WITH used AS (SELECT DISTINCT id FROM events
            WHERE type IN ('click', 'view', 'cart', 'purchase')),
        typed AS (
            SELECT person AS user_id, time, time_text, query, id, search_shown AS shown,
                search_shown_at AS shown_at, is_final FROM queries
            UNION ALL SELECT person, time, time_text, query, id, NULL, NULL, is_final FROM events
            WHERE type = 'search' AND (id IS NULL OR id NOT IN (
                SELECT id FROM queries WHERE id IS NOT NULL))
            QUALIFY id IS NULL OR row_number() OVER (PARTITION BY id ORDER BY time) = 1),
        logged AS (FROM typed UNION ALL
            SELECT person, time, time_text, coalesce(query, object), NULL, id, position + base,
                is_final
            FROM events e JOIN bases USING (application) WHERE type = 'click' AND is_recommended
            AND NOT EXISTS (FROM queries q WHERE q.search_shown = e.id AND q.time = e.time))
        SELECT l.*, used.id IS NOT NULL AS is_used FROM logged l LEFT JOIN used USING (id)""",
    )
    ((searches, queries, typed),) = raw.rows(
        """SELECT (SELECT count(*) FROM searches), (SELECT count(*) FROM queries),
        (SELECT count(*) FROM events WHERE query IS NOT NULL AND id IS NOT NULL
            AND NOT is_recommended)"""
    )
    if searches or not typed:
        missing = (
            "no ubi_queries file was given: events have a query_id and no query; read it, too, "
            "and then the events again, which get their queries"
        )
        return () if queries or typed else (missing,)
    raw.load(
        "searches",
        """SELECT any_value(person) AS user_id, min(time) AS time, min(time_text) AS time_text,
            any_value(query) AS query, id, NULL::VARCHAR AS shown, NULL::VARCHAR AS shown_at,
            false AS is_final,
            true AS is_used
        FROM events WHERE id IS NOT NULL AND query IS NOT NULL AND NOT is_recommended
        GROUP BY id""",
    )
    return (
        "no ubi_queries file was given: each query_id of the events is a search of their "
        "user_query at the time of the first of them",
    )


PRESET = Preset("ubi", _recognise, _read)
