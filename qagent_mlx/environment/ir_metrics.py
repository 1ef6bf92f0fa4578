"""Metrics of ranked retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ndcg(retrieved: Sequence[str], relevant: Sequence[str], k: int) -> float:
    """NDCG@k with binary relevance."""
    wanted = set(relevant)
    gain = sum(1 / math.log2(i + 2) for i, p in enumerate(retrieved[:k]) if p in wanted)
    best = sum(1 / math.log2(i + 2) for i in range(min(k, len(wanted))))
    return gain / best if best else 0.0
