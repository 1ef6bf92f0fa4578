"""Which queries are the shop's, and which are somebody's own.

What one person has typed may be a name or an address. With ``memory.least_users`` above 1 a
query reaches other people's profiles only once so many people have searched it.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np

from .types import Moment, UserMemory


def drop_private_candidates(
    connection: duckdb.DuckDBPyConnection,
    moments: Sequence[Moment],
    rows: Sequence[UserMemory],
    least: int,
) -> None:
    """Take candidates away that fewer than ``least`` people had searched by a moment.

    A user's own queries stay. Nothing at or after the moment counts.

    Args:
        connection: The shop's database.
        moments: Whose profiles are made.
        rows: What they are made of; changed in place.
        least: People, the user included.
    """
    others = [
        (i, moment.as_of, key)
        for i, (moment, mine) in enumerate(zip(moments, rows, strict=True))
        for key, back in zip(mine.candidates["query_key"], mine.candidates["back"], strict=True)
        if back != back  # NaN: the user has not searched it
    ]
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE asked_of (moment BIGINT, as_of TIMESTAMP, query_key VARCHAR)"
    )
    with connection.appender("asked_of") as appender:
        for row in others:
            appender.append_row(*row)
    shared = set(
        connection.execute(
            """SELECT a.moment, a.query_key FROM asked_of a
            JOIN (SELECT query_key, user_id, min(ts) AS first FROM events
                  WHERE type = 'search' AND query_key IN (SELECT query_key FROM asked_of)
                  GROUP BY ALL) e ON e.query_key = a.query_key AND e.first < a.as_of
            GROUP BY ALL HAVING count(*) >= ?""",
            [least],
        ).fetchall()
    )
    connection.execute("DROP TABLE asked_of")
    for i, mine in enumerate(rows):
        keys, back = mine.candidates["query_key"], mine.candidates["back"]
        kept = np.array(
            [b == b or (i, key) in shared for key, b in zip(keys, back, strict=True)], dtype=bool
        )
        mine.candidates = {name: column[kept] for name, column in mine.candidates.items()}
