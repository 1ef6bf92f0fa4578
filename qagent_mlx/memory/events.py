"""Events to sessions, and engagements to the searches that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:
    from ..shop import MemoryConfig


def refresh_sessions(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, users: str
) -> None:
    """Number the sessions of some users again and tie their events to searches.

    A session is a run of one user's events with no gap over ``session_gap_minutes``; its
    number is its first event's id. An event belongs to the last search of its session that
    has its query, or to the last search when the event names no query.

    Args:
        connection: The shop's database, open for writing.
        config: Gives the session gap.
        users: SQL that selects the ids of the users to refresh.
    """
    gap = f"INTERVAL '{config.session_gap_minutes * 60:.0f} seconds'"
    connection.execute(
        f"""UPDATE events SET session_id = n.session_id, search_id = n.search_id FROM (
            WITH marked AS (
                SELECT event_id, user_id, ts, type, query_key,
                       CASE WHEN ts - lag(ts) OVER w <= {gap} THEN NULL ELSE event_id END AS first
                FROM events WHERE user_id IN ({users})
                WINDOW w AS (PARTITION BY user_id ORDER BY ts, event_id)),
            numbered AS (
                SELECT *, last_value(first IGNORE NULLS) OVER (
                    PARTITION BY user_id ORDER BY ts, event_id) AS session_id FROM marked),
            tied AS (
                SELECT *, CASE WHEN type = 'search' THEN event_id END AS own FROM numbered)
            SELECT event_id, session_id, CASE
                WHEN query_key IS NULL THEN last_value(own IGNORE NULLS) OVER (
                    PARTITION BY user_id, session_id ORDER BY ts, event_id)
                ELSE last_value(own IGNORE NULLS) OVER (
                    PARTITION BY user_id, session_id, query_key ORDER BY ts, event_id)
                END AS search_id
            FROM tied) n
        WHERE events.event_id = n.event_id
          AND (events.session_id IS DISTINCT FROM n.session_id
               OR events.search_id IS DISTINCT FROM n.search_id)"""
    )
