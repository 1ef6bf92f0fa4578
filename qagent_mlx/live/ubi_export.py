"""What users were shown and did, as OpenSearch's User Behavior Insights has it (UBI 1.3).

    ubi_queries.jsonl   searches (``s`` and their event id) and answers of recommended queries
    ubi_events.jsonl    impressions, clicks on recommended queries, and what was done to products

``qagent ingest --preset ubi`` reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from ..shop.shop import Shop
from ..shop.traces import note_export
from ..utils.atomic_files import replacing
from ..utils.database import literal
from .outcomes import time_limits

APPLICATION = "qagent-mlx"  # of the documents
RECOMMENDED = "recommended_query"  # the object_id_field of recommended queries
IN_SESSION = "session"  # query_id_from: of events without a query, which follow a search

_TIME = "strftime(ts, '%Y-%m-%dT%H:%M:%S.%fZ')"
_QUERY_FIELDS = "f(query_id, client_id, timestamp, user_query, query_attributes, ts)"
_EVENT_FIELDS = "f(action_name, query_id, client_id, timestamp, user_query, event_attributes, ts)"
_WITHIN = "ts >= $since AND ts < $until"
_SEARCHES = f"""SELECT 's' || event_id AS query_id, user_id AS client_id, {_TIME} AS timestamp,
    query AS user_query, CASE WHEN recommendation_id IS NOT NULL THEN
        json_object('recommendation_id', recommendation_id, 'position', position) END
        AS query_attributes, ts
FROM events WHERE type = 'search' AND {_WITHIN}"""
_ANSWERS = f"""SELECT recommendation_id AS query_id, user_id AS client_id, {_TIME} AS timestamp,
    NULL AS user_query, json_object('source', source, 'policy', policy, 'version', version,
        'experiment', experiment, 'arm', arm) AS query_attributes, ts
FROM recommendations WHERE {_WITHIN} AND position <= 1"""
_SHOWN = f"""SELECT 'impression' AS action_name, recommendation_id AS query_id,
    user_id AS client_id, {_TIME} AS timestamp, NULL AS user_query,
    json_object('object', json_object('object_id', query, 'object_id_field', '{RECOMMENDED}'),
        'position', json_object('ordinal', position), 'propensity', propensity)
        AS event_attributes, ts
FROM recommendations WHERE {_WITHIN} AND position > 0"""
_SHOWN_PRODUCTS = f"""SELECT 'impression', query_id, user_id, {_TIME}, query,
    json_object('object', json_object('object_id', product_id, 'object_id_field', 'product_id'),
        'position', json_object('ordinal', position)), ts
FROM impressions WHERE {_WITHIN}"""
_TAKEN = f"""SELECT 'click', recommendation_id, user_id, {_TIME}, query,
    json_object('object', json_object('object_id', query, 'object_id_field', '{RECOMMENDED}'),
        'position', json_object('ordinal', position)), ts
FROM events WHERE type = 'search' AND recommendation_id IS NOT NULL AND {_WITHIN}"""
_ENGAGED = f"""SELECT CASE type WHEN 'cart' THEN 'add_to_cart' ELSE type::VARCHAR END,
    coalesce(recommendation_id, 's' || search_id), user_id, {_TIME}, query,
    json_merge_patch(json_object(
        'object', json_object('object_id', product_id, 'object_id_field', 'product_id'),
        'query_id_from', CASE WHEN query IS NULL THEN '{IN_SESSION}' END),
        CASE WHEN recommendation_id IS NOT NULL THEN json_object('recommendation_id',
            recommendation_id, 'position', json_object('ordinal', position)) ELSE '{{}}' END), ts
FROM events WHERE type <> 'search' AND {_WITHIN}"""


@dataclass(frozen=True, slots=True)
class UbiExport:
    """What was written: the folder, and how many documents."""

    folder: str
    queries: int
    events: int


def export_ubi(
    shop: Shop, folder: Path, since: datetime | None = None, until: datetime | None = None
) -> UbiExport:
    """Write the log and all that was shown in a time into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    # A shop of an older version knows of no recommendation.
    has_shown = shop.has_table("recommendations")
    missing = "" if has_shown else ", NULL::VARCHAR AS recommendation_id, NULL::INT AS position"
    log = f"SELECT *{missing} FROM main.events"
    queries = [_SEARCHES, *([_ANSWERS] if has_shown else [])]
    events = [*([_SHOWN, _TAKEN] if has_shown else []), _ENGAGED]
    if shop.has_table("impressions"):
        events.append(_SHOWN_PRODUCTS)
    limits = time_limits(since, until)
    sizes = [
        _write(shop.connection, log, documents, folder / f"{name}.jsonl", limits)
        for name, documents in (
            ("ubi_queries", f"({' UNION ALL '.join(queries)}) {_QUERY_FIELDS}"),
            ("ubi_events", f"({' UNION ALL '.join(events)}) {_EVENT_FIELDS}"),
        )
    ]
    note_export(shop.path, folder)
    return UbiExport(str(folder), *sizes)


def _write(
    connection: duckdb.DuckDBPyConnection,
    log: str,
    documents: str,
    path: Path,
    limits: dict[str, datetime],
) -> int:
    with replacing(path) as temporary:
        ((count,),) = connection.execute(
            f"""COPY (WITH events AS ({log})
                SELECT '{APPLICATION}' AS application, * EXCLUDE ts FROM {documents}
                ORDER BY ts, query_id, client_id)
            TO {literal(temporary)} (FORMAT json)""",
            limits,
        ).fetchall()
    return int(count)
