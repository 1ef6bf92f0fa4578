"""Hybrid search: BM25, vectors and past clicks, fused by reciprocal rank (`fusion`).

Ranks alone would let a word more or less decide between a product that nearly all went for and
one that hardly anybody did. Past clicks count the more, the more evidence there is. Ties are
broken by catalog row, so the same query always gets the same hits.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache

from ..errors import QAgentError
from ..shop.config import SearchConfig
from ..shop.shop import Shop
from ..types import Hit
from ..utils.text import query_key
from .click_log import ClickLog, SimilarQueryIndex, read_clicks
from .fusion import click_side, fuse, text_scores, text_sides, vectors_alone
from .index import open_index
from .relevance import RelevanceFloor, encode_queries, is_address
from .stored_index import InventoryIndex
from .types import (
    EMPTY_RANKING,
    ClickRanking,
    Contribution,
    Explanation,
    Filters,
    SimilarQuery,
    TextRankings,
)

if TYPE_CHECKING:
    from .rerank import Reranker

CACHED_QUERIES = 20_000
QUERIES_AT_ONCE = 128  # the scores of thousands take gigabytes in a large shop
CACHED_HITS = 4096  # queries at a moment; those of a batch repeat each other


class HybridSearch:
    """Searches an `InventoryIndex` together with a `ClickLog`. Threads may share it."""

    def __init__(
        self,
        index: InventoryIndex,
        clicks: ClickLog | None,
        config: SearchConfig,
        reranker: Reranker | None = None,
        tells_clicks: bool = True,
    ) -> None:
        """Open the search; without ``tells_clicks`` past clicks rank, and nobody is told them."""
        self.index = index
        self.catalog = index.catalog
        self.click_log = clicks
        self.tells_clicks = tells_clicks
        self.config = config
        self.reranker = reranker
        # Both hold results of unfiltered searches only.
        self._text_rankings: LRUCache[str, TextRankings] = LRUCache(CACHED_QUERIES)
        self._hits: LRUCache[tuple[str, datetime | None, int], list[Hit]] = LRUCache(CACHED_HITS)
        self._lock = threading.Lock()

    @property
    def clicks(self) -> ClickLog | None:
        """The click log, where what others chose under a query may be told."""
        return self.click_log if self.tells_clicks else None

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, best first.

        Args:
            queries: Texts; one without letters or digits has no hits.
            k: Number of hits.
            as_of: A moment for each query: only clicks before it count, and filters see prices
                and stock as they were then. None counts all, and sees them as they are now.
            filters: Applied before ranking.
        """
        moments = list(as_of) if as_of is not None else [None] * len(queries)
        depth = max(k, self.config.rerank_depth) if self.reranker is not None else k
        if filters is None or filters == Filters():
            hits = self._search_unfiltered(queries, moments, depth)
        else:
            hits = self._search_filtered(queries, moments, depth, filters)
        if self.reranker is not None:
            hits = self._rerank(self.reranker, queries, hits)
        return [ranked[:k] for ranked in hits]

    def _search_unfiltered(
        self, queries: Sequence[str], moments: Sequence[datetime | None], k: int
    ) -> list[list[Hit]]:
        keys = [(query, moment, k) for query, moment in zip(queries, moments, strict=True)]
        with self._lock:
            known = {key: self._hits[key] for key in keys if key in self._hits}
        fresh = [key for key in dict.fromkeys(keys) if key not in known]
        texts = self._cached_text_rankings([query for query, _, _ in fresh])
        fused = {key: self._fuse_hits(key[0], texts[key[0]], key[1], None, k) for key in fresh}
        with self._lock:
            self._hits.update(fused)
        return [known[key] if key in known else fused[key] for key in keys]

    def _search_filtered(
        self, queries: Sequence[str], moments: Sequence[datetime | None], k: int, filters: Filters
    ) -> list[list[Hit]]:
        at_moment: dict[datetime | None, list[int]] = defaultdict(list)
        for number, moment in enumerate(moments):
            at_moment[moment].append(number)
        hits: list[list[Hit]] = [[] for _ in queries]
        for moment, numbers in at_moment.items():
            allowed = self._allowed(filters, moment)
            texts = self._rank_texts(dict.fromkeys(queries[i] for i in numbers), allowed)
            for i in numbers:
                hits[i] = self._fuse_hits(queries[i], texts[queries[i]], moment, allowed, k)
        return hits

    def _allowed(self, filters: Filters, moment: datetime | None) -> np.ndarray:
        """Mask of the rows that pass the filters at a moment."""
        prices, in_stock = self.catalog.states_at(moment)
        allowed = np.ones(len(self.catalog), dtype=bool)
        if filters.in_stock:
            allowed &= in_stock
        if filters.min_price is not None:
            allowed &= prices >= filters.min_price
        if filters.max_price is not None:
            allowed &= prices <= filters.max_price
        if filters.category:
            allowed &= self.catalog.in_category(filters.category)
        return allowed

    def _cached_text_rankings(self, queries: Sequence[str]) -> dict[str, TextRankings]:
        with self._lock:
            known = {q: self._text_rankings[q] for q in queries if q in self._text_rankings}
        fresh = self._rank_texts([q for q in dict.fromkeys(queries) if q not in known], None)
        with self._lock:
            self._text_rankings.update(fresh)
        return known | fresh

    def _rank_texts(
        self, queries: Iterable[str], allowed: np.ndarray | None
    ) -> dict[str, TextRankings]:
        """Rank the allowed rows by BM25 and by vectors, for distinct queries."""
        queries, found = list(queries), dict[str, TextRankings]()
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found |= self._rank_block(queries[start : start + QUERIES_AT_ONCE], allowed)
        return found

    def _rank_block(
        self, queries: Sequence[str], allowed: np.ndarray | None
    ) -> Iterator[tuple[str, TextRankings]]:
        index, depth = self.index, self.config.pool
        vectors, lengths = encode_queries(index.encoder, queries)
        dense = index.vectors.search(vectors, depth, allowed)
        terms = [index.lexical.query_terms(query) for query in queries]
        lexical = index.lexical.search(terms, depth, allowed)
        similar: list[list[SimilarQuery]]
        if self._similar_queries is None:
            similar = [[]] * len(queries)
        else:
            similar = self._similar_queries.search(vectors, self.config.similar_clicks)
        for i, query in enumerate(queries):
            others = tuple(s for s in similar[i] if s.key != query_key(query))
            ranked = TextRankings(lexical[i], dense[i], others)
            yield query, self._completed(ranked, float(lengths[i]))

    def _completed(self, texts: TextRankings, length: float) -> TextRankings:
        """The rankings of a query by the floor, with what they add to scores."""
        texts = self._of_floor(texts, length)
        return replace(texts, scores=text_scores(texts, self.config))

    def _of_floor(self, texts: TextRankings, length: float) -> TextRankings:
        """The rankings of a query, with what vectors alone do not find (`relevance`)."""
        floor = self.floor
        if floor is None:
            return texts
        alike = floor.keeps(np.array([query.similarity for query in texts.similar]), length)
        return replace(
            texts,
            similar=tuple(q for q, is_alike in zip(texts.similar, alike, strict=True) if is_alike),
            unlike=frozenset(texts.dense.rows[~floor.keeps(texts.dense.scores, length)].tolist()),
        )

    @property
    def floor(self) -> RelevanceFloor | None:
        """What vectors alone must reach; None where it is switched off or was not learned."""
        return self.index.manifest.relevance if self.config.relevance_floor else None

    @cached_property
    def _similar_queries(self) -> SimilarQueryIndex | None:
        """None where it is switched off, or where encoding all logged queries takes long."""
        config = self.config
        if (
            self.click_log is None
            or not self.index.encoder.is_fast
            or config.similar_clicks > 1
            or config.weight_clicks == 0
        ):
            return None
        return SimilarQueryIndex(self.click_log, self.index.encoder)

    def _rank_clicks(
        self, query: str, texts: TextRankings, moment: datetime | None
    ) -> ClickRanking:
        """Past clicks under the query at a moment; if it has none, under similar queries."""
        if self.click_log is None:
            return ClickRanking(EMPTY_RANKING)
        ranking = self.click_log.ranking(query_key(query), moment)
        if len(ranking) or not texts.similar:
            return ClickRanking(ranking)
        return self.click_log.borrowed_ranking(texts.similar, moment)

    def _fuse_hits(
        self,
        query: str,
        texts: TextRankings,
        moment: datetime | None,
        allowed: np.ndarray | None,
        k: int,
    ) -> list[Hit]:
        """The ``k`` products with the highest fused score, ties by row."""
        if is_address(query):
            return []
        clicks = click_side(self._rank_clicks(query, texts, moment), self.config, allowed)
        best = fuse(texts.scores, clicks, k)
        return [
            Hit(self.catalog.ids[row], score)
            for row, score in zip(best.rows.tolist(), best.scores.tolist(), strict=True)
        ]

    def left_out(self, query: str, as_of: datetime | None = None) -> int:
        """How many of the products nearest to a query the floor leaves out of its hits."""
        texts = self._cached_text_rankings([query])[query]
        clicks = self._rank_clicks(query, texts, as_of)
        return len(vectors_alone(texts, click_side(clicks, self.config, None)))

    def explain(
        self, query: str, k: int = 10, as_of: datetime | None = None, filters: Filters | None = None
    ) -> list[Explanation]:
        """The hits of `search`, best first, with what each ranking adds to their scores."""
        unfiltered = filters is None or filters == Filters()
        allowed = None if unfiltered else self._allowed(filters or Filters(), as_of)
        texts = self._rank_texts([query], allowed)[query]
        clicks = self._rank_clicks(query, texts, as_of)
        contributions = text_sides(texts, self.config)
        contributions["clicks"] = click_side(clicks, self.config, allowed)
        scores = {"words": texts.lexical, "vectors": texts.dense, "clicks": clicks.ranking}
        terms = self.index.lexical.query_terms(query)
        explanations = []
        for hit in self.search([query], k, [as_of], filters)[0]:
            row = self.catalog.row_of[hit.product_id]
            sides: dict[str, Contribution] = {}
            for name, ranking in contributions.items():
                rank = ranking.rank(row)
                if rank is not None:
                    score = scores[name].score(row)
                    sides[name] = Contribution(rank + 1, score, float(ranking.scores[rank]))
            words = tuple(self.index.lexical.explain(terms, row))
            borrowed = clicks.borrowed if "clicks" in sides and self.tells_clicks else ()
            explanations.append(Explanation(hit, sides, words, borrowed))
        return explanations

    def _rerank(
        self, reranker: Reranker, queries: Sequence[str], hits: list[list[Hit]]
    ) -> list[list[Hit]]:
        """Order the first hits by P(yes), scored 1 + P(yes), and leave the others behind them."""
        depth, catalog = self.config.rerank_depth, self.catalog
        pairs = [
            (query, catalog.text(catalog.row_of[hit.product_id]))
            for query, ranked in zip(queries, hits, strict=True)
            for hit in ranked[:depth]
        ]
        probabilities = iter(reranker.score(pairs).tolist())
        reranked = []
        for ranked in hits:
            first = [Hit(hit.product_id, 1 + next(probabilities)) for hit in ranked[:depth]]
            # The sort is stable: equal probabilities keep the order of the fused score.
            first.sort(key=lambda hit: -round(hit.score, 6))
            reranked.append(first + ranked[depth:])
        return reranked


def open_search(shop: Shop, index: InventoryIndex | None = None) -> HybridSearch:
    """The shop's hybrid search, with its click log and its reranker.

    Raises:
        QAgentError: the shop names a reranker that is not there.
    """
    index = index or open_index(shop)
    config = shop.config.search
    reranker = None
    if config.reranker is not None:
        folder = Path(config.reranker)
        if not (folder / "config.json").exists():
            raise QAgentError(
                f"the reranker {folder} is no model folder; correct search.reranker in shop.json"
            )
        from .rerank import Reranker  # needs MLX

        reranker = Reranker(folder, config.encoder_instruction)
    return hybrid_search(shop, index, reranker)


def hybrid_search(
    shop: Shop, index: InventoryIndex, reranker: Reranker | None = None
) -> HybridSearch:
    """The search of an index of the shop's products, with the shop's click log."""
    config = shop.config
    clicks = open_clicks(shop, index)
    return HybridSearch(index, clicks, config.search, reranker, not config.memory.own_only)


def open_clicks(shop: Shop, index: InventoryIndex) -> ClickLog:
    """The shop's engagements by query, for an index of its products."""
    return ClickLog(
        read_clicks(shop.connection), index.catalog.row_of, shop.config.search.click_half_life_days
    )
