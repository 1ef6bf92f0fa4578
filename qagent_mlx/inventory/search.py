"""Hybrid search: BM25, vectors and past clicks, fused by reciprocal rank.

score(product) = sum over rankings of  weight / (rrf_k + rank)      (Cormack et al., 2009)
                 + weight_shares * its share of the query's past clicks

Ranks alone would let a word more or less decide between a product that nearly all went for and
one that hardly anybody did. Past clicks count the more, the more evidence there is. Ties are
broken by catalog row, so the same question always gets the same answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import QAgentError
from ..shop.config import SearchConfig
from ..shop.shop import Shop
from ..types import Hit
from ..utils.text import query_key
from .click_log import ClickLog, SimilarQueries, read_clicks, similar_ranking
from .index import InventoryIndex, load_index, open_index
from .index_files import read_manifest
from .rerank import Reranker
from .types import (
    ClickRanking,
    Explanation,
    Filters,
    MatchedWord,
    RankingContribution,
    StaticRankings,
)

K = TypeVar("K")
V = TypeVar("V")

ENOUGH = 2.0  # weight of past clicks from which they count more than half of what they can
CACHED_QUERIES = 20_000
CACHED_ANSWERS = 4096  # queries at a moment: those of a batch ask much the same


_Asked = tuple[str, datetime | None, int]  # query, moment, depth
_NOTHING = np.empty(0, dtype=np.int64)


class HybridSearch:
    """Searches an `InventoryIndex` together with a `ClickLog`. Threads may share it."""

    def __init__(
        self,
        index: InventoryIndex,
        clicks: ClickLog | None,
        config: SearchConfig,
        reranker: Reranker | None = None,
    ) -> None:
        self.index = index
        self.catalog = index.catalog
        self.clicks = clicks
        self.config = config
        self.reranker = reranker
        self._static: OrderedDict[str, StaticRankings] = OrderedDict()
        self._answers: OrderedDict[_Asked, list[Hit]] = OrderedDict()
        self._lock = threading.Lock()

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
            as_of: A moment a query; only clicks before it count, and filters see prices and
                stock as they were then. None counts all, and sees them as they are now.
            filters: Applied before ranking.
        """
        moments = list(as_of) if as_of is not None else [None] * len(queries)
        masks = self._masks(filters, moments)
        depth = max(k, self.config.rerank_depth) if self.reranker is not None else k
        asked = [(query, moment, depth) for query, moment in zip(queries, moments, strict=True)]
        free = all(mask is None for mask in masks)
        known = self._remembered(self._answers, asked) if free else {}
        fresh = [i for i, key in enumerate(asked) if key not in known]
        sides = self._sides([queries[i] for i in fresh], [masks[i] for i in fresh])
        made: list[list[Hit]] = [known.get(key, []) for key in asked]
        for i, side in zip(fresh, sides, strict=True):
            found = self._best(side, self.clicked(queries[i], side, moments[i]), masks[i], depth)
            made[i] = [Hit(self.catalog.ids[row], score) for row, score in found]
        if free:
            self._remember(self._answers, {asked[i]: made[i] for i in fresh}, CACHED_ANSWERS)
        if self.reranker is not None:
            made = self._rerank(queries, made)
        return [hits[:k] for hits in made]

    def reopened(self) -> HybridSearch:
        """A search of the index as it is on disk now; this one while nothing has changed.

        Replace a search that is being served with it after the catalog was updated. It reads
        no database; the click log stays the one that was read.

        Raises:
            QAgentError: the index on disk is gone or damaged; this search goes on working.
        """
        folder = self.index.folder
        if read_manifest(folder)["generation"] == self.index.manifest["generation"]:
            return self
        index = load_index(folder)
        clicks = self.clicks
        if clicks is not None:
            clicks = clicks.moved(self.catalog.ids, index.catalog.row_of)
        return HybridSearch(index, clicks, self.config, self.reranker)

    def explain(
        self, query: str, k: int = 10, as_of: datetime | None = None, filters: Filters | None = None
    ) -> list[Explanation]:
        """The hits of `search` with what each side says of them, the best first."""
        (mask,) = self._masks(filters, [as_of])
        (sides,) = self._sides([query], [mask])
        clicked = self.clicked(query, sides, as_of)
        parts = self._parts(sides, clicked, mask)
        groups = self.index.lexical.groups(query)
        made = []
        for hit in self.search([query], k, [as_of], filters)[0]:
            row = self.catalog.row_of[hit.product_id]
            found: dict[str, RankingContribution] = {}
            for name, (rows, adds) in parts.items():
                at = np.flatnonzero(rows == row)
                if len(at):
                    place = int(at[0])
                    raw = self._raw(name, row, sides, clicked)
                    found[name] = RankingContribution(place + 1, raw, float(adds[place]))
            words = tuple(
                MatchedWord(group.typed, term, group.how, value)
                for group, term, value in self.index.lexical.why(groups, row)
            )
            borrowed = clicked.keys if "clicks" in found else ()
            made.append(Explanation(hit, found, words, borrowed))
        return made

    @staticmethod
    def _raw(name: str, row: int, sides: StaticRankings, clicked: ClickRanking) -> float:
        """A side's own score of a row: BM25, cosine similarity, or decayed weight of clicks."""
        rows, values = {
            "words": (sides.lexical, sides.bm25),
            "vectors": (sides.dense, 1 - sides.distances),
            "clicks": (clicked.rows, clicked.evidence),
        }[name]
        return float(values[np.flatnonzero(rows == row)[0]])

    # ------------------------------------------------------------ filters

    def _masks(
        self, filters: Filters | None, moments: Sequence[datetime | None]
    ) -> list[np.ndarray | None]:
        """Which rows may be found, for each moment; None where all may."""
        if filters is None or filters == Filters():
            return [None] * len(moments)
        made = {moment: self._allowed(filters, moment) for moment in dict.fromkeys(moments)}
        return [made[moment] for moment in moments]

    def _allowed(self, filters: Filters, moment: datetime | None) -> np.ndarray:
        prices, in_stock = self.catalog.states_at(moment)
        kept = np.ones(len(self.catalog), dtype=bool)
        if filters.in_stock:
            kept &= in_stock
        if filters.min_price is not None:
            kept &= prices >= filters.min_price
        if filters.max_price is not None:
            kept &= prices <= filters.max_price
        if filters.category:
            kept &= self.catalog.within(filters.category)
        return kept

    # ------------------------------------------------------------ words and vectors

    def _sides(
        self, queries: Sequence[str], masks: Sequence[np.ndarray | None]
    ) -> list[StaticRankings]:
        """What words and vectors find for each query; remembered where nothing is filtered."""
        made: dict[tuple[str, int], StaticRankings] = {}
        groups: dict[int, list[str]] = {}
        of_group = {id(mask): mask for mask in masks}
        plain = [q for q, mask in zip(queries, masks, strict=True) if mask is None]
        remembered = self._remembered(self._static, plain)
        for query, mask in zip(queries, masks, strict=True):
            key = (query, id(mask))
            if key in made:
                continue
            known = remembered.get(query) if mask is None else None
            if known is not None:
                made[key] = known
            elif query not in groups.setdefault(id(mask), []):
                groups[id(mask)].append(query)
        for group, fresh in groups.items():
            mask = of_group[group]
            ranked = dict(zip(fresh, self._rank(fresh, mask), strict=True))
            made |= {(query, group): found for query, found in ranked.items()}
            if mask is None:
                self._remember(self._static, ranked, CACHED_QUERIES)
        return [made[query, id(mask)] for query, mask in zip(queries, masks, strict=True)]

    def _remembered(self, kept: OrderedDict[K, V], keys: Sequence[K]) -> dict[K, V]:
        """What is known of some keys, in any thread."""
        found: dict[K, V] = {}
        with self._lock:
            for key in keys:
                if key in kept:
                    kept.move_to_end(key)
                    found[key] = kept[key]
        return found

    def _remember(self, kept: OrderedDict[K, V], found: Mapping[K, V], most: int) -> None:
        with self._lock:
            kept.update(found)
            while len(kept) > most:
                kept.popitem(last=False)

    def _rank(self, queries: Sequence[str], allowed: np.ndarray | None) -> list[StaticRankings]:
        vectors = self.index.encoder.encode(queries, queries=True)
        dense = self.index.vectors.search(vectors, self.config.pool, allowed)
        alike: list[list[tuple[str, float]]] = [[] for _ in queries]
        if self._alike is not None and len(queries):
            alike = self._alike.find(vectors, self.config.similar_clicks)
        made = []
        for query, near, words, (rows, distances) in zip(
            queries, alike, self._words(queries, allowed), dense, strict=True
        ):
            key = query_key(query)
            similar = tuple(item for item in near if item[0] != key)
            made.append(StaticRankings(*words, rows, distances, similar))
        return made

    @cached_property
    def _alike(self) -> SimilarQueries | None:
        """The log's queries by likeness; None where that is off or encoding them costs much."""
        if (
            self.clicks is None
            or not self.index.encoder.cheap
            or self.config.similar_clicks > 1
            or self.config.weight_clicks == 0
        ):
            return None
        return SimilarQueries(self.clicks, self.index.encoder)

    def _words(
        self, queries: Sequence[str], allowed: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows whose words fit best, and their scores, for each query."""
        lexical = self.index.lexical
        made = []
        for rows, scores in lexical.found([lexical.groups(query) for query in queries]):
            if allowed is not None:
                kept = allowed[rows]
                rows, scores = rows[kept], scores[kept]
            best = _top(rows, scores, self.config.pool)
            made.append((rows[best].astype(np.int64), scores[best]))
        return made

    # ------------------------------------------------------------ clicks and fusion

    def clicked(self, query: str, sides: StaticRankings, moment: datetime | None) -> ClickRanking:
        """The ranking of past clicks at a moment; similar queries stand in for a new one."""
        if self.clicks is None:
            return ClickRanking(_NOTHING, np.empty(0), ())
        rows, evidence = self.clicks.ranking(query_key(query), moment)
        if len(rows) or not sides.similar:
            return ClickRanking(rows, evidence, ())
        rows, evidence, keys = similar_ranking(self.clicks, sides.similar, moment)
        return ClickRanking(rows, evidence, tuple(keys))

    def _parts(
        self, sides: StaticRankings, clicked: ClickRanking, allowed: np.ndarray | None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each ranking's rows, the best first, and what it adds to the score of each."""
        config = self.config
        rows, evidence = clicked.rows, clicked.evidence
        if allowed is not None:
            kept = allowed[rows]
            rows, evidence = rows[kept], evidence[kept]
        total = float(evidence.sum())
        known = total + ENOUGH
        of_clicks = config.weight_clicks * total / known * self._by_rank(rows)
        if not clicked.keys:  # what similar queries led to says less of how much
            of_clicks += config.weight_shares * evidence / known
        return {
            "words": (sides.lexical, config.weight_lexical * self._by_rank(sides.lexical)),
            "vectors": (sides.dense, config.weight_dense * self._by_rank(sides.dense)),
            "clicks": (rows, of_clicks),
        }

    def _by_rank(self, rows: np.ndarray) -> np.ndarray:
        """1 / (rrf_k + rank) of rows that are in order: (rows,)."""
        return np.asarray(1.0 / (self.config.rrf_k + np.arange(1, len(rows) + 1)))

    def _best(
        self, sides: StaticRankings, clicked: ClickRanking, allowed: np.ndarray | None, k: int
    ) -> list[tuple[int, float]]:
        """The ``k`` rows with the highest fused score, ties by row."""
        parts = self._parts(sides, clicked, allowed).values()
        rows, place = np.unique(np.concatenate([rows for rows, _ in parts]), return_inverse=True)
        if not len(rows):
            return []
        scores = np.bincount(place, np.concatenate([adds for _, adds in parts]))
        best = np.lexsort((rows, -np.round(scores, 12)))[:k]
        return list(zip(rows[best].tolist(), scores[best].tolist(), strict=True))

    # ------------------------------------------------------------ reranking

    def _rerank(self, queries: Sequence[str], found: list[list[Hit]]) -> list[list[Hit]]:
        """The best hits by P(yes), each with a score of 1 + P(yes); then the others."""
        assert self.reranker is not None
        depth = self.config.rerank_depth
        row_of = self.catalog.row_of
        pairs = [
            (query, self._text(row_of[hit.product_id]))
            for query, hits in zip(queries, found, strict=True)
            for hit in hits[:depth]
        ]
        answers = iter(self.reranker.score(pairs).tolist())
        made = []
        for hits in found:
            read = [Hit(hit.product_id, 1 + next(answers)) for hit in hits[:depth]]
            # A stable sort: equal answers keep the order of the fused score.
            read.sort(key=lambda hit: -round(hit.score, 6))
            made.append(read + hits[depth:])
        return made

    def _text(self, row: int) -> str:
        return self.catalog.text(row)


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
        reranker = Reranker(folder, config.encoder_instruction)
    return HybridSearch(index, open_clicks(shop, index), config, reranker)


def open_clicks(shop: Shop, index: InventoryIndex) -> ClickLog:
    """The shop's engagements by query, for an index of its products."""
    return ClickLog.from_rows(
        read_clicks(shop.connection), index.catalog.row_of, shop.config.search.click_half_life_days
    )


def _top(rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the ``k`` best scores over zero, to five decimals, the best first; ties by row."""
    places: np.ndarray = np.arange(len(scores))
    if len(scores) > k:
        # Rounding keeps the order, so the best and what may tie with them are among these.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least - 2e-5)
    near = np.round(scores[places], 5)
    places, near = places[near > 0], near[near > 0]
    return places[np.lexsort((rows[places], -near))][:k]
