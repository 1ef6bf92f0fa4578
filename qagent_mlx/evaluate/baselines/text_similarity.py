"""Baselines that retrieve past queries whose text resembles the user's history.

A user's history is their last queries and the titles of their last products. Candidates are
all queries that anybody, the user included, had searched before the case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...inventory.analyzer import product_terms
from ...inventory.encoders.encoder import Encoder
from ...types import Case
from ..metrics import Ranking
from .point_in_time import PointInTimeBaseline
from .search_log import EngagementLog, SearchLog, SweepState

LAST_QUERIES = 5
LAST_PRODUCTS = 5
FADE = 0.7  # weight of each query or product against the one after it
K1, B = 1.2, 0.4  # as the shop's own search


class _TextSimilarity(PointInTimeBaseline):
    """Ranks the queries so far by the similarity of their text to the user's history."""

    def __init__(self, log: SearchLog, engagements: EngagementLog) -> None:
        super().__init__(log)
        self._engagements = engagements

    def _rank_case(self, case: Case, state: SweepState, k: int) -> Ranking:
        own = self.log.last_queries(case.user_id, state.moment, LAST_QUERIES)
        products = self._engagements.last_products(case.user_id, state.moment, LAST_PRODUCTS)
        titles = [self._engagements.titles[product] for product in products]
        history = [
            (text, FADE**position)
            for texts in (own.values(), titles)
            for position, text in enumerate(texts)
        ]
        scores = np.round(self._similarity(history, state.counts > 0), 9) if history else None
        return self._top(k, state, scores, own)

    def _similarity(self, history: Sequence[tuple[str, float]], searched: np.ndarray) -> np.ndarray:
        """A score of each query, (K,), against texts with weights.

        ``searched``, (K,) of bool, are the candidates; the others' scores are not used.
        """
        raise NotImplementedError


class BM25Similarity(_TextSimilarity):
    """BM25 over past queries; document frequencies count the queries so far.

    The inventory's BM25 scores a fixed set of documents; here it grows from case to case.
    """

    name = "bm25"

    def __init__(self, log: SearchLog, engagements: EngagementLog) -> None:
        super().__init__(log, engagements)
        postings: dict[str, list[tuple[int, int]]] = {}
        self._lengths = np.zeros(len(log.spellings))
        for number, text in enumerate(log.spellings.tolist()):
            terms = product_terms(text)
            self._lengths[number] = len(terms)
            for term, count in Counter(terms).items():
                postings.setdefault(term, []).append((number, count))
        self._postings = {term: np.array(pairs).T for term, pairs in postings.items()}

    def _similarity(self, history: Sequence[tuple[str, float]], searched: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(searched))
        size = int(searched.sum())
        mean_length = self._lengths[searched].mean() if size else 1.0
        weights: dict[str, float] = {}
        for text, weight in history:
            for term in product_terms(text):
                weights[term] = weights.get(term, 0.0) + weight
        for term, weight in weights.items():
            if term not in self._postings:
                continue
            queries, counts = self._postings[term][:, searched[self._postings[term][0]]]
            idf = np.log(1 + (size - len(queries) + 0.5) / (len(queries) + 0.5))
            norm = K1 * (1 - B + B * self._lengths[queries] / mean_length)
            scores[queries] += weight * idf * counts * (K1 + 1) / (counts + norm)
        return scores


class DenseSimilarity(_TextSimilarity):
    """Cosine of past queries to the history, in the space of the shop's own encoder."""

    name = "dense"

    def __init__(self, log: SearchLog, engagements: EngagementLog, encoder: Encoder) -> None:
        super().__init__(log, engagements)
        self._encoder = encoder
        self._encoded: dict[str, np.ndarray] = {}
        texts = log.spellings.tolist()
        self._vectors = encoder.encode(texts) if texts else np.zeros((0, encoder.dimensions))

    def _similarity(self, history: Sequence[tuple[str, float]], searched: np.ndarray) -> np.ndarray:
        new = [text for text, _ in history if text not in self._encoded]
        if new:
            self._encoded.update(zip(new, self._encoder.encode(new), strict=True))
        mean = np.sum([weight * self._encoded[text] for text, weight in history], axis=0)
        length = float(np.linalg.norm(mean))
        return np.asarray(self._vectors @ (mean / length if length else mean), dtype=np.float64)
