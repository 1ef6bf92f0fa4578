"""Events to sessions, and engagements to the searches that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:
    from ..shop.config import MemoryConfig


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


@dataclass(frozen=True, slots=True)
class SuccessfulSession:
    """A session in which a search led to an engagement.

    ``query`` is the first such search; ``products`` what was engaged with under it, the
    strongest first; ``history`` how many events the user had before the session. Of
    `first_searches` it is the session's first search, and ``products`` may be empty.
    """

    user_id: str
    start: datetime
    query: str
    query_key: str
    products: tuple[str, ...]
    history: int


# {join}: which searches count, those with engagements or all.
_SUCCESSES = """
WITH log AS (SELECT * FROM events WHERE ts < $before),
engaged AS (
    SELECT search_id, product_id, min(ts) AS ts,
           max(CASE type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END) AS level
    FROM log WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL
    GROUP BY search_id, product_id),
ranked AS (
    SELECT search_id, list(product_id ORDER BY level DESC, ts, product_id) AS products
    FROM engaged GROUP BY search_id),
started AS (SELECT session_id, any_value(user_id) AS user_id, min(ts) AS start
            FROM log GROUP BY session_id),
first AS (
    SELECT s.session_id, arg_min(s.event_id, (s.ts, s.event_id)) AS event_id
    FROM log s {join} ranked r ON r.search_id = s.event_id
    WHERE s.type = 'search' GROUP BY s.session_id),
earlier AS (
    SELECT st.session_id, count(e.event_id) AS n
    FROM started st LEFT JOIN log e ON e.user_id = st.user_id AND e.ts < st.start
    GROUP BY st.session_id)
SELECT st.user_id, st.start, s.query, s.query_key, coalesce(r.products, []), h.n
FROM first f JOIN started st USING (session_id) JOIN log s ON s.event_id = f.event_id
{join} ranked r ON r.search_id = f.event_id JOIN earlier h ON h.session_id = f.session_id
WHERE st.start >= $after ORDER BY st.start, f.event_id
"""


def successful_sessions(
    connection: duckdb.DuckDBPyConnection,
    after: datetime | None = None,
    before: datetime | None = None,
) -> list[SuccessfulSession]:
    """The sessions with success that began at ``after`` or later, in the log before ``before``.

    A session that goes on beyond ``before`` counts with its first part: what comes later
    changes nothing.
    """
    return _found(connection, "JOIN", after, before)


def first_searches(
    connection: duckdb.DuckDBPyConnection,
    after: datetime | None = None,
    before: datetime | None = None,
) -> list[SuccessfulSession]:
    """The first search of each session, whatever came of it; limits as `successful_sessions`."""
    return _found(connection, "LEFT JOIN", after, before)


def _found(
    connection: duckdb.DuckDBPyConnection,
    join: str,
    after: datetime | None,
    before: datetime | None,
) -> list[SuccessfulSession]:
    limits = {"after": after or datetime(1, 1, 1), "before": before or datetime(9999, 12, 31)}
    return [
        SuccessfulSession(user, start, query, key, tuple(products), history)
        for user, start, query, key, products, history in connection.execute(
            _SUCCESSES.format(join=join), limits
        ).fetchall()
    ]
