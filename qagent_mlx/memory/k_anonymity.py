"""k-anonymity of recommended queries: a query that few have searched stays with its users.

What one person has typed may be a name or an address. With `MemoryConfig.least_users` above 1 a
query reaches other people's profiles only once so many people have searched it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import duckdb
import numpy as np

from .sql import sql
from .types import Moment, UserMemory


def drop_private_candidates(
    connection: duckdb.DuckDBPyConnection,
    moments: Sequence[Moment],
    memories: Sequence[UserMemory],
    least_users: int,
) -> list[UserMemory]:
    """Without the candidates that fewer than ``least_users`` people had searched by a moment.

    A user's own queries stay. Nothing at or after the moment counts.
    """
    own = [~np.isnan(memory.candidates.recency_rank) for memory in memories]
    asked = [
        (number, moment.as_of, key)
        for number, (moment, memory) in enumerate(zip(moments, memories, strict=True))
        for key in memory.candidates.query_key[~own[number]]
    ]
    numbers, times, keys = map(list, zip(*asked, strict=True)) if asked else ([], [], [])
    values = {"numbers": numbers, "times": times, "keys": keys, "least_users": least_users}
    public = set(connection.execute(sql("public_queries"), values).fetchall())
    public_or_own = (
        own[number]
        | np.array([(number, key) in public for key in memory.candidates.query_key], bool)
        for number, memory in enumerate(memories)
    )
    return [
        replace(memory, candidates=memory.candidates[rows])
        for memory, rows in zip(memories, public_or_own, strict=True)
    ]
