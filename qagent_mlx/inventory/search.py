"""Hybrid search: BM25, vectors and past clicks, fused by reciprocal rank.

score(product) = sum over rankings of  weight / (rrf_k + rank)      (Cormack et al., 2009)

The ranking of past clicks counts the more, the more evidence it has. Ties are broken by
catalog row, so the same question always gets the same answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np

from ..shop import SearchConfig, Shop
from ..text import query_key
from ..types import Hit
from .clicks import ClickLog, read_clicks
from .index import EXACT_BELOW, Catalog, InventoryIndex, ensure
from .terms import product_terms

CACHED_QUERIES = 20_000


@dataclass(frozen=True, slots=True)
class Filters:
    """What a search may return. A category matches by prefix of its path."""

    in_stock: bool = False
    min_price: float | None = None
    max_price: float | None = None
    category: str | None = None


class Search(Protocol):
    """A product search; a shop's own engine can stand in for `HybridSearch`."""

    catalog: Catalog

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, the best first."""
        ...


class HybridSearch:
    """Searches an `InventoryIndex` together with a `ClickLog`."""

    def __init__(
        self, index: InventoryIndex, clicks: ClickLog | None, config: SearchConfig
    ) -> None:
        self.index = index
        self.catalog = index.catalog
        self.clicks = clicks
        self.config = config
        self._static: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, the best first.

        Args:
            queries: Texts; one without letters or digits finds nothing.
            k: How many hits.
            as_of: A moment a query; only clicks before it count. None counts all.
            filters: Applied before ranking.
        """
        allowed = self._allowed(filters)
        static = self._static_rankings(queries, allowed)
        moments = as_of if as_of is not None else [None] * len(queries)
        return [
            self._fuse(query, ranks, moment, k, allowed)
            for query, ranks, moment in zip(queries, static, moments, strict=True)
        ]

    def _allowed(self, filters: Filters | None) -> np.ndarray | None:
        if filters is None or filters == Filters():
            return None
        kept = np.ones(len(self.catalog), dtype=bool)
        if filters.in_stock:
            kept &= self.catalog.in_stock
        if filters.min_price is not None:
            kept &= self.catalog.prices >= filters.min_price
        if filters.max_price is not None:
            kept &= self.catalog.prices <= filters.max_price
        if filters.category:
            wanted = filters.category.lower()
            kept &= np.array(
                [(c or "").lower().startswith(wanted) for c in self.catalog.categories]
            )
        return kept

    def _static_rankings(
        self, queries: Sequence[str], allowed: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(lexical rows, dense rows) for each query, the best first."""
        if allowed is not None:
            unique = list(dict.fromkeys(queries))
            found = dict(zip(unique, self._rank(unique, allowed), strict=True))
            return [found[q] for q in queries]
        fresh = [q for q in dict.fromkeys(queries) if q not in self._static]
        for query, ranks in zip(fresh, self._rank(fresh, None), strict=True):
            self._static[query] = ranks
        made = []
        for query in queries:
            self._static.move_to_end(query)
            made.append(self._static[query])
        while len(self._static) > CACHED_QUERIES:
            self._static.popitem(last=False)
        return made

    def _rank(
        self, queries: Sequence[str], allowed: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        if not queries:
            return []
        dense = self._dense(queries, allowed)
        return [(self._lexical(q, allowed), d) for q, d in zip(queries, dense, strict=True)]

    def _lexical(self, query: str, allowed: np.ndarray | None) -> np.ndarray:
        ids = self.index.lexical.get_tokens_ids(product_terms(query))
        if not ids:
            return np.empty(0, dtype=np.int64)
        scores = self.index.lexical.get_scores_from_ids(ids)
        if allowed is not None:
            scores = scores * allowed
        return _top(np.round(scores, 5), self.config.pool, 0.0)

    def _dense(self, queries: Sequence[str], allowed: np.ndarray | None) -> list[np.ndarray]:
        vectors = self.index.encoder.encode(queries)
        empty = np.abs(vectors).sum(axis=1) == 0
        size = len(self.catalog)
        exact = size <= EXACT_BELOW
        pool = self.config.pool
        # Filters act after the vector search, so a filtered one fetches more.
        fetch = min(size, pool if allowed is None else (size if exact else pool * 20))
        found = self.index.vectors.search(vectors, fetch, exact=exact)
        keys = np.atleast_2d(found.keys).astype(np.int64)
        distances = np.atleast_2d(found.distances)
        made = []
        for i in range(len(queries)):
            if empty[i]:
                made.append(np.empty(0, dtype=np.int64))
                continue
            rows, near = keys[i], np.round(distances[i], 5)
            if allowed is not None:
                kept = allowed[rows]
                rows, near = rows[kept], near[kept]
            made.append(rows[np.lexsort((rows, near))][:pool])
        return made

    def _fuse(
        self,
        query: str,
        ranks: tuple[np.ndarray, np.ndarray],
        moment: datetime | None,
        k: int,
        allowed: np.ndarray | None,
    ) -> list[Hit]:
        config = self.config
        scores: dict[int, float] = {}

        def add(rows: np.ndarray, weight: float) -> None:
            for rank, row in enumerate(rows.tolist(), 1):
                scores[row] = scores.get(row, 0.0) + weight / (config.rrf_k + rank)

        add(ranks[0], config.weight_lexical)
        add(ranks[1], config.weight_dense)
        if self.clicks is not None:
            rows, evidence = self.clicks.ranking(query_key(query), moment)
            if allowed is not None:
                kept = allowed[rows]
                rows, evidence = rows[kept], evidence[kept]
            if len(rows):
                total = float(evidence.sum())
                add(rows, config.weight_clicks * total / (total + 2.0))
        best = sorted(scores.items(), key=lambda item: (-round(item[1], 12), item[0]))[:k]
        return [Hit(self.catalog.ids[row], score) for row, score in best]


def open_search(shop: Shop, index: InventoryIndex | None = None) -> HybridSearch:
    """The shop's hybrid search, with its click log."""
    index = index or ensure(shop)
    log = ClickLog.from_rows(
        read_clicks(shop.connection), index.catalog.rows_of(),
        shop.config.search.click_half_life_days,
    )
    return HybridSearch(index, log, shop.config.search)


def _top(scores: np.ndarray, k: int, above: float) -> np.ndarray:
    """Rows of the ``k`` best scores over ``above``, ties by row."""
    rows = np.flatnonzero(scores > above)
    if len(rows) > k:
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    return rows[np.lexsort((rows, -scores[rows]))][:k]


