"""k-anonymity of recommended queries: a query that few have searched stays with its users.

What one person has typed may be a name or an address. With `MemoryConfig.least_users` above 1 a
query reaches other people's profiles only once so many people have searched it; with
`MemoryConfig.hide_personal` never if it looks like somebody's own data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from ..shop.config import MemoryConfig
from ..utils.personal import looks_personal
from .public_queries import PublicQueries
from .types import Moment, UserMemory


def drop_private_candidates(
    public: PublicQueries,
    moments: Sequence[Moment],
    memories: Sequence[UserMemory],
    config: MemoryConfig,
) -> list[UserMemory]:
    """Without the candidates that are nobody else's business at a moment.

    A user's own queries stay. Nothing at or after the moment counts.
    """
    own = [~np.isnan(memory.candidates.recency_rank) for memory in memories]
    if config.least_users > 1:
        public.learn(
            key
            for memory, mine in zip(memories, own, strict=True)
            for key in memory.candidates.query_key[~mine]
        )

    def may_see(key: str, query: str, moment: datetime) -> bool:
        if config.hide_personal and looks_personal(query):
            return False
        return config.least_users <= 1 or public.is_public(key, moment)

    shown = []
    for moment, memory, mine in zip(moments, memories, own, strict=True):
        table = memory.candidates
        rows = np.fromiter(
            (
                is_own or may_see(key, query, moment.as_of)
                for key, query, is_own in zip(table.query_key, table.query, mine, strict=True)
            ),
            bool,
            len(table),
        )
        shown.append(memory if rows.all() else replace(memory, candidates=table[rows]))
    return shown
