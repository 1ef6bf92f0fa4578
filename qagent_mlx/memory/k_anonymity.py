"""k-anonymity of recommended queries: a query that few have searched stays with its users.

What one person has typed may be a name or an address. A query reaches other people's profiles once
as many people have searched it as `PublicQueries` asks, and with `MemoryConfig.hide_personal` never
if it looks like somebody's own data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    if _asks(config):
        public.learn(
            {
                key: query
                for memory, mine in zip(memories, own, strict=True)
                for key, query in zip(
                    memory.candidates.query_key[~mine], memory.candidates.query[~mine], strict=True
                )
            }
        )
    shown = []
    for moment, memory, mine in zip(moments, memories, own, strict=True):
        table = memory.candidates
        rows = np.fromiter(
            (
                is_own or _may_see(public, key, query, moment.as_of, config)
                for key, query, is_own in zip(table.query_key, table.query, mine, strict=True)
            ),
            bool,
            len(table),
        )
        shown.append(memory if rows.all() else replace(memory, candidates=table[rows]))
    return shown


def drop_private_queries(
    public: PublicQueries, queries: Mapping[str, str], as_of: datetime, config: MemoryConfig
) -> dict[str, str]:
    """Of queries (key to text), those that anybody may see at a moment."""
    if _asks(config):
        public.learn(queries)
    return {k: q for k, q in queries.items() if _may_see(public, k, q, as_of, config)}


def _asks(config: MemoryConfig) -> bool:
    """Whether it counts how many people have searched a query."""
    return max(config.least_users, config.least_users_unknown) > 1


def _may_see(
    public: PublicQueries, key: str, query: str, moment: datetime, config: MemoryConfig
) -> bool:
    if config.hide_personal and looks_personal(query):
        return False
    return not _asks(config) or public.is_public(key, moment)
