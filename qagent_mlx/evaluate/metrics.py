"""Metrics of recommended queries.

A recommendation is judged by its words (does it equal the user's next query?), by what it
retrieves (is its top product one that the user then engaged with?), and by both at once:
Q_EM, I_Hit@1 and Cons@1 of arXiv:2606.05671.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Protocol

import numpy as np

from ..environment.environment import Environment, Example
from ..inventory.ir_metrics import ndcg
from ..types import Case
from ..utils.text import query_key, rouge_l, tokens

METRICS = (
    "q_em",
    "q_rouge",
    "q_hit@5",
    "i_hit@1",
    "i_hit@10",
    "i_ndcg@10",
    "cons@1",
    "mrr",
    "valid",
    "coverage",
    "searches",
    "tokens",
    "zero_result",
    "diversity",
    "row_hit@10",
    "own_words",
)
ROW = 5  # queries of a row

Confidence = Literal["chance", "votes"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The queries that a system recommends for one case, the best first.

    Systems without chains keep the defaults of ``valid``, ``searches`` and ``tokens``, which
    are means over the case's chains.
    """

    queries: tuple[str, ...]
    valid: float = 1.0  # share of chains that are well formed and searched what they recommend
    searches: float = 0.0
    tokens: float = 0.0
    scores: tuple[float, ...] = ()  # votes for each query, in [0, 1], where there are some
    chances: tuple[float, ...] = ()  # of each query to be right, where that was learned
    lines: tuple[str, ...] | None = None  # queries of the profile, where it is the system's own


class System(Protocol):
    """Anything that recommends queries: a policy or a baseline."""

    @property
    def name(self) -> str:
        """The system's name in reports."""
        ...

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        ...


def score_case(
    environment: Environment, case: Case, ranking: Ranking, lines: Sequence[str] = ()
) -> dict[str, float]:
    """Compute all `METRICS` of one case; reports give their means over cases.

    ``zero_result``: the first query retrieves nothing. ``coverage``: there is a first query.
    ``row_hit@10``: one of the first ten products of one of the first `ROW` queries is one that the
    user then engaged with. ``own_words``: the share of these queries that none of the ``lines``
    has, the queries of the profile.
    """
    top = ranking.queries[0] if ranking.queries else ""
    keys = [query_key(query) for query in ranking.queries]
    matches = (i for i, key in enumerate(keys, 1) if key and key == case.query_key)
    rank = next(matches, 0)  # of the user's next query, from 1; 0 where it is not recommended
    row = [q for q, key in zip(ranking.queries[:ROW], keys, strict=False) if key]
    shown = [found[:10] for found in environment.retrieve_all(row, case.as_of)] if row else []
    products = shown[0] if query_key(top) else ()
    relevant = set(case.products)
    known = {query_key(line) for line in lines}
    query_match = rank == 1
    product_match = bool(products) and products[0] in relevant
    return {
        "q_em": float(query_match),
        "q_rouge": rouge_l(top, case.query),
        "q_hit@5": float(1 <= rank <= 5),
        "i_hit@1": float(product_match),
        "i_hit@10": float(not relevant.isdisjoint(products)),
        "i_ndcg@10": ndcg(products, case.products, 10),
        "cons@1": float(query_match and product_match),
        "mrr": 1 / rank if rank else 0.0,
        "valid": ranking.valid,
        "coverage": float(bool(query_key(top))),
        "searches": ranking.searches,
        "tokens": ranking.tokens,
        "zero_result": float(bool(query_key(top)) and not products),
        "diversity": diversity(ranking.queries),
        "row_hit@10": float(any(not relevant.isdisjoint(found) for found in shown)),
        "own_words": float(np.mean([query_key(q) not in known for q in row])) if row else 0.0,
    }


def diversity(queries: Sequence[str]) -> float:
    """1 minus the mean Jaccard similarity of the words of all pairs; 0 for fewer than two."""
    bags = [frozenset(tokens(q)) for q in queries]
    pairs = [(a, b) for a, b in combinations(bags, 2) if a or b]
    return float(np.mean([1 - len(a & b) / len(a | b) for a, b in pairs])) if pairs else 0.0


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Queries of similar confidence: its mean, the share that was right, and their number."""

    confidence: float
    accuracy: float
    cases: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a confidence predicts hits (arXiv:1706.04599)."""

    ece: float  # mean gap between confidence and accuracy of a bin, weighted by its cases
    brier: float  # mean squared error of the confidence
    bins: tuple[CalibrationBin, ...]  # those that hold a case
    of: Confidence = "votes"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of reports."""
        bins = [{"said": b.confidence, "true": b.accuracy, "cases": b.cases} for b in self.bins]
        return {"of": self.of, "ece": self.ece, "brier": self.brier, "bins": bins}


def calibration(
    scores: np.ndarray, hits: np.ndarray, of: Confidence = "votes", bins: int = 10
) -> Calibration:
    """Compare confidences, (cases,) in [0, 1], with hits, (cases,) of 0 or 1."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    filled = [
        CalibrationBin(
            float(scores[members].mean()), float(hits[members].mean()), int(members.sum())
        )
        for members in (index == i for i in range(bins))
        if members.any()
    ]
    gap = sum(b.cases * abs(b.confidence - b.accuracy) for b in filled)
    brier = float(np.mean((scores - hits) ** 2))
    return Calibration(gap / len(scores), brier, tuple(filled), of)
