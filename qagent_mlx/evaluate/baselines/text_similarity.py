"""Baselines that retrieve past queries by their text: what is worded like the user's history.

A user's history is their last queries and the titles of their last products. Candidates are
all queries that anybody, the user included, had searched before the moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...inventory.analyzer import product_terms
from ...inventory.encoders.subword import Encoder
from ..metrics import Ranking
from .search_log import EngagementLog, SearchLog, ranking, top_queries

if TYPE_CHECKING:
    from ...environment.environment import Example

LAST_QUERIES = 5
LAST_PRODUCTS = 5
FADE = 0.7  # how much less each earlier query or product counts
K1, B = 1.2, 0.4  # as the shop's own search


class _ByText:
    """Ranks the queries so far by a score of their text against the user's history."""

    name = ""

    def __init__(self, log: SearchLog, engaged: EngagementLog) -> None:
        self._log, self._engaged = log, engaged

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        made = [Ranking(())] * len(examples)
        for i, moment, counts in log.sweep(examples):
            user = examples[i].case.user_id
            own = log.last_of(user, moment, LAST_QUERIES)
            titles = [
                self._engaged.titles[p] for p in self._engaged.last_of(user, moment, LAST_PRODUCTS)
            ]
            texts = [
                (text, FADE**place)
                for found in (list(own.values()), titles)
                for place, text in enumerate(found)
            ]
            scores = None
            if texts:
                scores = np.round(self._score(texts, counts > 0), 9)
            made[i] = ranking(log, top_queries(k, counts, scores), own)
        return made

    def _score(self, texts: Sequence[tuple[str, float]], seen: np.ndarray) -> np.ndarray:
        """A score of each query, (K,), for weighted texts; ``seen`` are the queries so far."""
        raise NotImplementedError


class BM25Similarity(_ByText):
    """BM25 over past queries; word statistics are those of the queries so far."""

    name = "bm25"

    def __init__(self, log: SearchLog, engaged: EngagementLog) -> None:
        super().__init__(log, engaged)
        postings: dict[str, list[tuple[int, int]]] = {}
        self._lengths = np.zeros(len(log.spellings))
        for number, text in enumerate(log.spellings.tolist()):
            terms = product_terms(text)
            self._lengths[number] = len(terms)
            for term, count in Counter(terms).items():
                postings.setdefault(term, []).append((number, count))
        self._postings = {
            term: (np.array([n for n, _ in pairs]), np.array([c for _, c in pairs], dtype=float))
            for term, pairs in postings.items()
        }

    def _score(self, texts: Sequence[tuple[str, float]], seen: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(seen))
        size = int(seen.sum())
        mean = self._lengths[seen].mean() if size else 1.0
        wanted: dict[str, float] = {}
        for text, weight in texts:
            for term in product_terms(text):
                wanted[term] = wanted.get(term, 0.0) + weight
        for term, weight in wanted.items():
            if term not in self._postings:
                continue
            numbers, counts = self._postings[term]
            kept = seen[numbers]
            numbers, counts = numbers[kept], counts[kept]
            idf = np.log(1 + (size - len(numbers) + 0.5) / (len(numbers) + 0.5))
            norm = K1 * (1 - B + B * self._lengths[numbers] / mean)
            scores[numbers] += weight * idf * counts * (K1 + 1) / (counts + norm)
        return scores


class DenseSimilarity(_ByText):
    """Cosine of past queries to the history, in the space of the shop's own encoder."""

    name = "dense"

    def __init__(self, log: SearchLog, engaged: EngagementLog, encoder: Encoder) -> None:
        super().__init__(log, engaged)
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}
        texts = log.spellings.tolist()
        self._vectors = encoder.encode(texts) if texts else np.zeros((0, encoder.dimensions))

    def _score(self, texts: Sequence[tuple[str, float]], seen: np.ndarray) -> np.ndarray:
        fresh = [text for text, _ in texts if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self._encoder.encode(fresh), strict=True))
        mean = np.sum([weight * self._known[text] for text, weight in texts], axis=0)
        length = float(np.linalg.norm(mean))
        return np.asarray(self._vectors @ (mean / length if length else mean), dtype=np.float64)
