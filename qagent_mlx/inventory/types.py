"""The search protocol and the values that searches return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from ..types import Hit
from .catalog import Catalog


@dataclass(frozen=True, slots=True)
class Filters:
    """What a search may return, by price and stock at its moment, and by category.

    A category matches by the beginning of its path; a product without a price has none that
    fits a range.
    """

    in_stock: bool = False
    min_price: float | None = None
    max_price: float | None = None
    category: str | None = None


class ProductSearch(Protocol):
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


@dataclass(frozen=True, slots=True)
class StaticRankings:
    """What words and vectors find for a query, whenever it is asked: rows, the best first."""

    lexical: np.ndarray
    bm25: np.ndarray
    dense: np.ndarray
    distances: np.ndarray
    similar: tuple[tuple[str, float], ...]  # (key, similarity) of queries that are written alike


@dataclass(frozen=True, slots=True)
class ClickRanking:
    """What past clicks say at a moment: rows, the best first, and whose clicks they were."""

    rows: np.ndarray
    evidence: np.ndarray
    keys: tuple[str, ...]  # of the similar queries that stood in; empty for the query's own


@dataclass(frozen=True, slots=True)
class RankingContribution:
    """What one ranking says of a hit."""

    rank: int
    score: float  # BM25, cosine similarity, or decayed weight of clicks
    adds: float  # to the fused score


@dataclass(frozen=True, slots=True)
class MatchedWord:
    """A term of the query and the term of the product that it met."""

    typed: str
    matched: str
    how: str  # word, initials, spelling
    score: float  # its part of the BM25 score


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a product was found."""

    hit: Hit
    sides: dict[str, RankingContribution]  # words, vectors, clicks: those that found it
    words: tuple[MatchedWord, ...]  # the one that counts most first
    borrowed: tuple[str, ...]  # similar queries whose clicks stood in

    def to_dict(self) -> dict[str, Any]:
        """For JSON; scores are rounded."""
        sides = {
            name: {"rank": s.rank, "score": round(s.score, 4), "adds": round(s.adds, 6)}
            for name, s in self.sides.items()
        }
        words = [{**asdict(word), "score": round(word.score, 4)} for word in self.words]
        return {"sides": sides, "words": words, "borrowed": list(self.borrowed)}
