"""Candidates: the queries that a user may want next, with all that the ranker sees of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate queries as columns; ages and delays are in days.

    Where a statement does not apply to a query, a number is NaN and a text None.
    """

    # The query, what its wording names, and the category that it mostly leads to
    query_key: np.ndarray
    query: np.ndarray
    kind: np.ndarray
    leaf: np.ndarray
    source: np.ndarray  # of the neighbour (`user_state.Source`)
    # The user's own searches of it
    recency_rank: np.ndarray  # 1: the user's last query
    searches: np.ndarray
    last_outcome: np.ndarray
    age: np.ndarray
    # As a neighbour
    neighbour_score: np.ndarray
    timing: np.ndarray
    # Its share of the shop's searches just now, against those of a longer and a shorter window
    trend_share: np.ndarray
    longer_share: np.ndarray
    short_share: np.ndarray
    # Its category: the user's last purchase, P(bought again), and age / usual days between
    bought_age: np.ndarray
    repurchase: np.ndarray
    repurchase_pace: np.ndarray
    # Searches of it in the shop, smoothed
    success: np.ndarray  # P(engagement | search)
    focus: np.ndarray  # P(the top product | engagement)
    coverage: np.ndarray  # P(one of the top ten products | engagement)
    return_rate: np.ndarray  # P(searched again in the next session)
    # The user's searches of its category
    leaf_outcome: np.ndarray
    leaf_age: np.ndarray
    leaf_searches: np.ndarray
    # The user's shares of its kind of wording, and of the brand or attribute that it names
    wording: np.ndarray
    taste: np.ndarray
    typed: np.ndarray
    # The product that it mostly leads to, where the user has engaged with that
    product_bought: np.ndarray
    product_age: np.ndarray
    # Jaccard similarity of its words to the user's last query, and the most to one of the last
    echo_last: np.ndarray
    echo_most: np.ndarray
    # How much its category is needed (`neighbours.Need`)
    need: np.ndarray
    need_pace: np.ndarray
    need_bought: np.ndarray

    @classmethod
    def unknown(cls, size: int) -> Candidates:
        """Candidates of which nothing is known."""
        numbers = iter(np.full((len(COLUMNS) - len(TEXTS), size), np.nan))
        return cls(
            **{name: np.full(size, None) if name in TEXTS else next(numbers) for name in COLUMNS}
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of several moments one after the other."""
        parts = parts or [cls.unknown(0)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.query_key)

    def __getitem__(self, rows: slice | np.ndarray) -> Candidates:
        return Candidates(*(getattr(self, name)[rows] for name in COLUMNS))


COLUMNS = tuple(f.name for f in fields(Candidates))
TEXTS = ("query_key", "query", "kind", "leaf", "source")
