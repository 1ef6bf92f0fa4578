"""Cases: moments of the log at which a query could have been recommended.

The first search of a session that led to an engagement makes a case; its moment is the
session's start. So a session in which somebody tried one query in vain and then another
with success asks for the second one, which is what the chain of retrieval is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import duckdb

from ..errors import QAgentError
from ..types import Case

SPLITS = ("train", "validation", "test")

CASES = """
WITH engaged AS (
    SELECT search_id, product_id, min(ts) AS ts,
           max(CASE type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END) AS level
    FROM events WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL
    GROUP BY search_id, product_id),
ranked AS (
    SELECT search_id, list(product_id ORDER BY level DESC, ts, product_id) AS products
    FROM engaged GROUP BY search_id),
started AS (SELECT session_id, any_value(user_id) AS user_id, min(ts) AS start
            FROM events GROUP BY session_id),
first AS (
    SELECT s.session_id, arg_min(s.event_id, (s.ts, s.event_id)) AS event_id
    FROM events s JOIN ranked r ON r.search_id = s.event_id GROUP BY s.session_id),
earlier AS (
    SELECT st.session_id, count(e.event_id) AS n
    FROM started st LEFT JOIN events e ON e.user_id = st.user_id AND e.ts < st.start
    GROUP BY st.session_id)
SELECT st.user_id, st.start, s.query, s.query_key, r.products, h.n
FROM first f JOIN started st USING (session_id) JOIN events s ON s.event_id = f.event_id
JOIN ranked r ON r.search_id = f.event_id JOIN earlier h ON h.session_id = f.session_id
WHERE st.start >= ? ORDER BY st.start, f.event_id
"""


@dataclass(frozen=True)
class SplitConfig:
    """How cases are chosen and split by time."""

    min_history: int = 1  # events before the moment; 0 lets new users in
    test_share: float = 0.2  # the last part of the cases, by time
    validation_share: float = 0.05  # the part before that
    test_from: str = ""  # ISO time; cuts there instead of by share


def build_cases(
    connection: duckdb.DuckDBPyConnection,
    config: SplitConfig | None = None,
    after: datetime | None = None,
) -> list[Case]:
    """All cases from ``after`` on, in order of time, each with its split.

    Args:
        connection: A shop's database.
        config: Who counts and where to cut.
        after: The index's ``clicks_until``: earlier cases would see what it learned.

    Raises:
        QAgentError: no search in the log led to an engagement, or a split would be empty.
    """
    config = config or SplitConfig()
    rows = connection.execute(CASES, [after or datetime(1970, 1, 1)]).fetchall()
    rows = [r for r in rows if r[5] >= config.min_history]
    if not rows:
        raise QAgentError(
            "the log holds no case: no search by a known user led to a click, cart or purchase; "
            "ingest events of both kinds with user ids"
        )
    cases = [
        Case(
            case_id=i, user_id=user, as_of=start, query=query, query_key=key,
            products=tuple(products), history=history,
        )
        for i, (user, start, query, key, products, history) in enumerate(rows)
    ]
    if config.test_from:
        try:
            cut = datetime.fromisoformat(config.test_from)
        except ValueError:
            raise QAgentError(
                f"test_from {config.test_from!r}: write it as 2011-10-12 or 2011-10-12T00:00"
            ) from None
        first_test = next((i for i, c in enumerate(cases) if c.as_of >= cut), len(cases))
    else:
        first_test = len(cases) - max(1, round(len(cases) * config.test_share))
    first_validation = first_test - max(1, round(len(cases) * config.validation_share))
    if first_validation < 1 or first_test >= len(cases):
        raise QAgentError(
            f"{len(cases)} cases are too few for a train, validation and test split; "
            "ingest a longer log or change test_from"
        )
    return [
        replace(c, split=SPLITS[(i >= first_validation) + (i >= first_test)])
        for i, c in enumerate(cases)
    ]


def of_split(cases: Sequence[Case], split: str) -> list[Case]:
    """The cases of one split."""
    return [c for c in cases if c.split == split]
