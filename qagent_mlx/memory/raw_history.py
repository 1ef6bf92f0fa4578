"""The raw history as a profile: what abstraction has to beat at the same token budget.

The newest events that fit into the budget, an event a line, the newest first. A search's
line can be named by its reference, as lines of an abstracted profile can, so that the same
policy reads and acts on both.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from ..protocol.escape import safe
from ..protocol.marks import AGES
from ..types import Line
from .types import Moment

RAW = "raw"

_NEWEST = """
SELECT m.moment, e.type, e.query_key,
       coalesce(CASE WHEN e.type = 'search' THEN e.query END, p.title, e.query, '') AS text,
       epoch(m.as_of - e.ts) / 86400 AS age
FROM (SELECT unnest($numbers) AS moment, unnest($users) AS user_id,
             unnest($times)::TIMESTAMP AS as_of) m
JOIN events e ON e.user_id = m.user_id AND e.ts < m.as_of
LEFT JOIN products p USING (product_id)
QUALIFY row_number() OVER (PARTITION BY m.moment ORDER BY e.ts DESC, e.event_id DESC) <= {most}
ORDER BY m.moment, e.ts DESC, e.event_id DESC
"""


def raw_lines(
    connection: duckdb.DuckDBPyConnection, moments: Sequence[Moment], budget: int
) -> list[list[Line]]:
    """The newest events of each moment as lines, the newest first.

    Args:
        connection: The shop's database.
        moments: In any order.
        budget: Tokens that a profile may have; no line is shorter than a token.
    """
    made: list[list[Line]] = [[] for _ in moments]
    seen: list[set[str]] = [set() for _ in moments]
    query = _NEWEST.format(most=max(0, budget))
    values = {
        "numbers": list(range(len(moments))),
        "users": [m.user_id for m in moments],
        "times": [m.as_of for m in moments],
    }
    for number, kind, key, text, age in connection.execute(query, values).fetchall():
        lines = made[number]
        # One reference a query: the same query searched again is a line without one.
        named = kind == "search" and key not in seen[number]
        if named:
            seen[number].add(key)
        lines.append(
            Line(
                section=RAW,
                text=f"{kind} {safe(text)} {AGES.word(age)}",
                score=round(1 / (2 + len(lines)), 12),
                query=text if named else None,
                reason="from your history" if named else "",
            )
        )
    return made
