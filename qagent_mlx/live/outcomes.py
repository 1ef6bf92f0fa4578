"""What came of recommendations: searches that took one, and what was engaged with under them.

An event that names its recommendation belongs to it. A search that names none belongs to the
user's last answer that held its query, if that was shown within `ATTRIBUTION` before; such
lines are marked as ``attributed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import fetch_dicts

ATTRIBUTION = timedelta(minutes=30)
Grouping = Literal["policy", "source", "position", "arm"]
_GROUPS: dict[str, str] = {
    "policy": "policy || coalesce('@' || version, '')",
    "source": "source",
    "position": "position::VARCHAR",
    "arm": "coalesce(experiment || ': ' || arm, '(none)')",
}

# One row for each query that was shown from $since until $until, with what came of it.
LINES = """
WITH shown AS (FROM recommendations WHERE ts >= $since AND ts < $until),
named AS (
    SELECT s.recommendation_id, s.position, e.event_id, e.type, 'named' AS how
    FROM shown s JOIN events e ON e.recommendation_id = s.recommendation_id
        AND e.user_id = s.user_id -- nobody takes what another one was shown
        AND (e.query_key = s.query_key OR (e.position = s.position
            AND (e.query_key IS NULL OR e.type <> 'search')))
    QUALIFY row_number() OVER (PARTITION BY e.event_id
        ORDER BY coalesce(e.query_key = s.query_key, false) DESC, s.position) = 1),
attributed AS (
    SELECT s.recommendation_id, s.position, e.event_id, e.type, 'attributed' AS how
    FROM shown s JOIN events e ON e.user_id = s.user_id AND e.query_key = s.query_key
        AND e.type = 'search' AND e.recommendation_id IS NULL
        AND e.ts >= s.ts AND e.ts <= s.ts + $window
    QUALIFY row_number() OVER (PARTITION BY e.event_id
        ORDER BY s.ts DESC, s.recommendation_id, s.position) = 1),
led AS (FROM named UNION ALL FROM attributed),
taken AS (
    SELECT recommendation_id, position, bool_or(how = 'named') AS is_named FROM led GROUP BY ALL),
belonging AS ( -- each event once for a line
    SELECT recommendation_id, position, event_id FROM named WHERE type <> 'search'
    UNION SELECT l.recommendation_id, l.position, e.event_id
    FROM led l JOIN events e ON e.search_id = l.event_id
    WHERE l.type = 'search' AND e.type <> 'search'),
counts AS (
    SELECT b.recommendation_id, b.position, count(*) FILTER (e.type = 'click') AS clicks,
        count(*) FILTER (e.type = 'cart') AS carts,
        count(*) FILTER (e.type = 'purchase') AS purchases,
        coalesce(sum(coalesce(h.price, p.price)) FILTER (e.type = 'purchase'), 0) AS revenue
    FROM belonging b JOIN events e USING (event_id)
    LEFT JOIN products p ON p.product_id = e.product_id
    ASOF LEFT JOIN product_history h ON h.product_id = e.product_id AND h.ts <= e.ts
    GROUP BY ALL)
SELECT s.*, t.recommendation_id IS NOT NULL AS taken,
    CASE WHEN t.is_named THEN 'named' WHEN t.recommendation_id IS NOT NULL THEN 'attributed' END
        AS how,
    coalesce(c.clicks, 0) AS clicks, coalesce(c.carts, 0) AS carts,
    coalesce(c.purchases, 0) AS purchases, coalesce(c.revenue, 0) AS revenue
FROM shown s LEFT JOIN taken t USING (recommendation_id, position)
LEFT JOIN counts c USING (recommendation_id, position)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the answers of a group.

    ``ctr`` is the share of answers of which a query was taken, ``cvr`` of which it also led to a
    purchase. ``attributed`` counts the taken queries whose events named no recommendation.
    """

    group: str
    answers: int
    queries: int
    users: int
    taken: int
    attributed: int
    clicks: int
    carts: int
    purchases: int
    revenue: float
    ctr: float
    cvr: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


def outcomes(
    shop: Shop,
    by: Grouping = "policy",
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Outcome]:
    """What came of all that was shown in a time, by groups; the one shown most comes first.

    By position an answer counts in the group of each of its queries.

    Raises:
        QAgentError: there is no such grouping.
    """
    if by not in get_args(Grouping):
        raise QAgentError(f"there is no grouping {by!r}; use one of {', '.join(_GROUPS)}")
    if not shop.has_table("recommendations"):
        return []
    rows = shop.connection.execute(
        f"""SELECT name, count(*), sum(queries)::BIGINT, count(DISTINCT user_id),
            sum(taken)::BIGINT, sum(attributed)::BIGINT, sum(clicks)::BIGINT, sum(carts)::BIGINT,
            sum(purchases)::BIGINT, sum(revenue),
            round(avg((taken > 0)::INT), 6),
            round(avg((purchases > 0)::INT), 6)
        FROM (SELECT recommendation_id, {_GROUPS[by]} AS name, any_value(user_id) AS user_id,
                count(*) FILTER (position > 0) AS queries, count(*) FILTER (taken) AS taken,
                count(*) FILTER (how = 'attributed') AS attributed, sum(clicks) AS clicks,
                sum(carts) AS carts, sum(purchases) AS purchases, sum(revenue) AS revenue
            FROM ({LINES}) GROUP BY ALL)
        GROUP BY name ORDER BY count(*) DESC, name""",
        line_limits(since, until),
    ).fetchall()
    found = [Outcome(*row) for row in rows]
    return [replace(o, revenue=round(o.revenue, 2)) for o in found]


def shown_answers(shop: Shop, user: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The answers that were shown last, of one user or of all, with what came of each query."""
    if not shop.has_table("recommendations"):
        return []
    lines = fetch_dicts(
        shop.connection.execute(
            f"""FROM ({LINES}) WHERE recommendation_id IN (
                SELECT recommendation_id FROM recommendations
                WHERE $user IS NULL OR user_id = $user
                GROUP BY ALL ORDER BY max(ts) DESC, recommendation_id LIMIT $limit)
            ORDER BY ts DESC, recommendation_id, position""",
            {**line_limits(None, None), "user": user, "limit": limit},
        )
    )
    answers: dict[str, dict[str, Any]] = {}
    of_answer = ("recommendation_id", "user_id", "ts", "source", "policy", "version")
    of_query = ("position", "query", "propensity", "taken", "how", "clicks", "carts", "purchases")
    for line in lines:
        answer = answers.setdefault(
            line["recommendation_id"],
            {name: line[name] for name in (*of_answer, "experiment", "arm")} | {"queries": []},
        )
        if line["position"]:
            answer["queries"].append({name: line[name] for name in of_query})
    for answer in answers.values():
        answer["ts"] = answer["ts"].isoformat()
    return list(answers.values())


def shown_query(shop: Shop, user: str, recommendation_id: str, position: int) -> str | None:
    """The query that a user was shown at a position of an answer; None where there was none."""
    if not shop.has_table("recommendations"):
        return None
    found = shop.connection.execute(
        """SELECT query FROM recommendations
        WHERE recommendation_id = ? AND user_id = ? AND position = ?""",
        [recommendation_id, user, position],
    ).fetchone()
    return found[0] if found else None


def line_limits(since: datetime | None, until: datetime | None) -> Mapping[str, Any]:
    """The parameters of `LINES`."""
    return {**time_limits(since, until), "window": ATTRIBUTION}


def time_limits(since: datetime | None, until: datetime | None) -> dict[str, datetime]:
    """The parameters ``since`` and ``until`` of a query, where each may be left open."""
    return {"since": since or datetime(1, 1, 1), "until": until or datetime(9999, 12, 31)}
