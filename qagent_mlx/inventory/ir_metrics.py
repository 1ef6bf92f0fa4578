"""Metrics of ranked retrieval, for the index, for rewards and for evaluation."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def ndcg(retrieved: Sequence[str], relevant: Collection[str], k: int) -> float:
    """NDCG@k with binary relevance, in [0, 1]; 0 when nothing is relevant."""
    relevant_ids = set(relevant)
    gain = sum(1 / math.log2(i + 2) for i, p in enumerate(retrieved[:k]) if p in relevant_ids)
    ideal = sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant_ids))))
    return gain / ideal if ideal else 0.0
