"""What a relevance floor changes: how well is found what people chose, and what finds nothing."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..shop.config import SearchConfig
from .encoders.subword import ClickedQuery
from .ir_metrics import ndcg
from .relevance import misspell, noise_word
from .search import HybridSearch
from .stored_index import InventoryIndex

QUERIES = 200


@dataclass(frozen=True, slots=True)
class FloorEffect:
    """The effect on queries that led to a click before the index's ``clicks_until``.

    Searched with words and vectors, as the clicks themselves would tell the answers.

    Attributes:
        queries: How many were searched.
        ndcg_without: NDCG@10 of the products chosen under them, without the floor.
        ndcg: The same with it.
        nothing_typed: Share of the queries that find nothing with it.
        nothing_misspelt: The same with two letters of each wrong.
        nothing_noise: Share of as many words that nobody means anything by that find nothing.
    """

    queries: int
    ndcg_without: float
    ndcg: float
    nothing_typed: float
    nothing_misspelt: float
    nothing_noise: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, rounded."""
        return {
            name: value if isinstance(value, int) else round(value, 4)
            for name, value in asdict(self).items()
        }


def floor_effect(
    index: InventoryIndex, config: SearchConfig, clicked: Sequence[ClickedQuery]
) -> FloorEffect | None:
    """Measure the floor of an index; None where it has none, or nothing was clicked."""
    search = HybridSearch(index, None, config)
    if search.floor is None or not clicked:
        return None
    without = HybridSearch(index, None, replace(config, relevance_floor=False))
    chosen: dict[str, set[str]] = defaultdict(set)
    for pair in clicked:
        chosen[pair.query].add(index.catalog.ids[pair.row])
    draw = random.Random(1)
    queries = draw.sample(sorted(chosen), min(QUERIES, len(chosen)))
    misspelt = [misspell(misspell(query, draw), draw) for query in queries]
    noise = [noise_word(draw) for _ in queries]
    return FloorEffect(
        len(queries),
        _ndcg(without, queries, chosen),
        _ndcg(search, queries, chosen),
        *(_nothing(search, texts) for texts in (queries, misspelt, noise)),
    )


def _ndcg(search: HybridSearch, queries: Sequence[str], chosen: dict[str, set[str]]) -> float:
    found = zip(queries, search.search(queries, 10), strict=True)
    values = [ndcg([hit.product_id for hit in hits], chosen[query], 10) for query, hits in found]
    return float(np.mean(values))


def _nothing(search: HybridSearch, queries: Sequence[str]) -> float:
    return float(np.mean([not hits for hits in search.search(queries, 1)]))
