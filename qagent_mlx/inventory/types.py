"""The search protocol and the values that searches return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import numpy as np

from ..types import Hit
from .catalog import Catalog

MatchKind = Literal["word", "initials", "spelling"]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which products a search may return, by price and stock at its moment, and by category.

    A category matches by the beginning of its path; a product without a price is in no range.
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
        """For each query at most ``k`` hits, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """Catalog rows in order, best first, and the score of each."""

    rows: np.ndarray  # int64
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def filtered(self, allowed: np.ndarray | None) -> Ranking:
        """Only the rows that a mask over the catalog allows; all where it is None."""
        if allowed is None:
            return self
        passes = allowed[self.rows]
        return Ranking(self.rows[passes], self.scores[passes])

    def rank(self, row: int) -> int | None:
        """Position of a row, from 0; None where it is not in the ranking."""
        positions = np.flatnonzero(self.rows == row)
        return int(positions[0]) if len(positions) else None

    def score(self, row: int) -> float:
        """Score of a row that is in the ranking."""
        return float(self.scores[np.flatnonzero(self.rows == row)[0]])


EMPTY_RANKING = Ranking(np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class SimilarQuery:
    """A query of the log that is worded like another one."""

    key: str
    similarity: float  # cosine of their vectors


@dataclass(frozen=True, slots=True)
class TextScores:
    """What words and vectors add to the scores of rows, best first, ties by row.

    Attributes:
        rows: Catalog rows; behind the first ``found`` are those that vectors alone do not find.
        scores: (rows,) float64.
        found: How many rows are found without past clicks.
    """

    rows: np.ndarray
    scores: np.ndarray
    found: int


@dataclass(frozen=True, slots=True)
class TextRankings:
    """The rankings that a query's text retrieves, at any moment."""

    lexical: Ranking  # by BM25
    dense: Ranking  # by cosine similarity
    similar: tuple[SimilarQuery, ...]  # most similar first
    unlike: frozenset[int] = frozenset()  # rows of `dense` that vectors alone do not find
    scores: TextScores = TextScores(EMPTY_RANKING.rows, EMPTY_RANKING.scores, 0)  # of all these


@dataclass(frozen=True, slots=True)
class ClickRanking:
    """The ranking by engagements of earlier users, as known at a moment."""

    ranking: Ranking  # by decayed weight of clicks
    borrowed: tuple[str, ...] = ()  # keys of similar queries that stood in for the query's own


@dataclass(frozen=True, slots=True)
class Contribution:
    """The part of a hit's fused score that comes from one ranking."""

    rank: int
    score: float  # BM25, cosine similarity, or decayed weight of clicks
    adds: float


@dataclass(frozen=True, slots=True)
class MatchedWord:
    """A term of the query and the term of the product that it matched."""

    typed: str
    matched: str
    how: MatchKind
    score: float  # its part of the BM25 score


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a product was found."""

    hit: Hit
    sides: dict[str, Contribution]  # by ranking ("words", "vectors", "clicks") that holds the hit
    words: tuple[MatchedWord, ...]  # the one that counts most first
    borrowed: tuple[str, ...]  # similar queries whose clicks stood in

    def to_dict(self) -> dict[str, Any]:
        """For JSON; scores are rounded."""
        sides = {
            name: {"rank": c.rank, "score": round(c.score, 4), "adds": round(c.adds, 6)}
            for name, c in self.sides.items()
        }
        words = [{**asdict(word), "score": round(word.score, 4)} for word in self.words]
        return {"sides": sides, "words": words, "borrowed": list(self.borrowed)}
