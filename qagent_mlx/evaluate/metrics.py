"""Metrics of recommended queries, and how sure a measured number is.

A recommendation is judged by its words (does it equal the user's next query?), by what it
retrieves (is the product that the user then engaged with on top?), and by both at once,
``cons@1`` (Q_EM, I_Hit@1 and Cons@1 of arXiv:2606.05671).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from ..environment.ir_metrics import ndcg
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
)
FLIPS = 10_000  # sign flips of a paired test: no p below 0.0001
_CHUNK = 1 << 20  # how many resampled cases are held at once


class Retrieval(Protocol):
    """The part of an `Environment` that metrics need."""

    def retrieve(self, query: str, as_of: datetime) -> tuple[str, ...]:
        """At most ten products that a query retrieves at a moment, the best first."""
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a system recommends for one case, the best first.

    ``valid`` is the share of its chains that were well formed and searched the query that
    they recommend, ``searches`` and ``tokens`` their mean cost; a system without chains
    keeps the defaults. ``scores`` says how sure it is of each query, in [0, 1]; empty where a
    system does not know.
    """

    queries: tuple[str, ...]
    valid: float = 1.0
    searches: float = 0.0
    tokens: float = 0.0
    scores: tuple[float, ...] = ()


def score_case(environment: Retrieval, case: Case, ranking: Ranking) -> dict[str, float]:
    """Every one of `METRICS` for one case; the means over cases are what is reported.

    ``zero_result``: the first query retrieves nothing. ``diversity``: 1 minus the words that
    two of the queries share (Jaccard), averaged over all pairs.
    """
    top = ranking.queries[0] if ranking.queries else ""
    place = next((i for i, q in enumerate(ranking.queries, 1) if query_key(q) == case.query_key), 0)
    products = environment.retrieve(top, case.as_of)[:10] if query_key(top) else ()
    wanted = set(case.products)
    same_query = place == 1
    same_product = bool(products) and products[0] in wanted
    return {
        "q_em": float(same_query),
        "q_rouge": rouge_l(top, case.query),
        "q_hit@5": float(1 <= place <= 5),
        "i_hit@1": float(same_product),
        "i_hit@10": float(not wanted.isdisjoint(products)),
        "i_ndcg@10": ndcg(products, case.products, 10),
        "cons@1": float(same_query and same_product),
        "mrr": 1 / place if place else 0.0,
        "valid": ranking.valid,
        "coverage": float(bool(query_key(top))),
        "searches": ranking.searches,
        "tokens": ranking.tokens,
        "zero_result": float(bool(query_key(top)) and not products),
        "diversity": diversity(ranking.queries),
    }


def diversity(queries: Sequence[str]) -> float:
    """1 - mean Jaccard likeness of the words of all pairs; 0 where there is no pair."""
    bags = [frozenset(tokens(q)) for q in queries]
    pairs = [(a, b) for a, b in combinations(bags, 2) if a or b]
    return float(np.mean([1 - len(a & b) / len(a | b) for a, b in pairs])) if pairs else 0.0


def calibration(scores: np.ndarray, hits: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Whether what a system says of its first query comes true as often as it says.

    Args:
        scores: What it said, (cases,), each in [0, 1].
        hits: Whether the query was the one, (cases,).
        bins: Equal parts of [0, 1].

    Returns:
        ``ece`` (expected calibration error: the mean gap of a bin, weighted by its cases),
        ``brier`` (mean squared error), ``bins`` (list of ``said``, ``true``, ``cases``).
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    made = [
        {
            "said": float(scores[mine].mean()),
            "true": float(hits[mine].mean()),
            "cases": int(mine.sum()),
        }
        for mine in (place == i for i in range(bins))
        if mine.any()
    ]
    gap = sum(b["cases"] * abs(b["said"] - b["true"]) for b in made)
    return {"ece": gap / len(scores), "brier": float(np.mean((scores - hits) ** 2)), "bins": made}


def bootstrap(values: np.ndarray, seed: int = 0, samples: int = 2000) -> tuple[float, float, float]:
    """The mean with its 95 % percentile bootstrap interval (Efron, 1979).

    Args:
        values: One number a case, (cases,).
        seed: The same seed and number of cases draw the same resamples.
        samples: How many resamples.

    Raises:
        ValueError: there is no case, or ``values`` has more than one axis.
    """
    values = _checked(values)
    means = np.empty(samples)
    random = np.random.default_rng(seed)
    for rows in _chunks(samples, len(values)):
        drawn = random.integers(0, len(values), (rows.stop - rows.start, len(values)))
        means[rows] = values[drawn].mean(axis=1)
    lo, hi = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(lo), float(hi)


def paired_difference(
    a: np.ndarray, b: np.ndarray, seed: int = 0, samples: int = 2000
) -> dict[str, float]:
    """How much better ``a`` is than ``b`` on the same cases.

    Args:
        a: One number a case, (cases,).
        b: The other system's, in the same order.
        seed: Draws resamples and sign flips.
        samples: Resamples of the interval.

    Returns:
        ``diff`` (mean of a - b), its 95 % bootstrap interval ``lo`` and ``hi``, and the
        two-sided ``p`` of a sign-flip permutation test: under the null hypothesis either
        system could have got either of a case's two scores.

    Raises:
        ValueError: the two differ in shape, or there is no case.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"paired systems need the same cases, not {a.shape} and {b.shape}")
    difference = a - b
    mean, lo, hi = bootstrap(difference, seed, samples)
    moved = difference[difference != 0]
    # A sum that equals the observed one may differ from it in the last bits.
    observed = abs(moved.sum()) - 1e-9
    random = np.random.default_rng([seed, 1])
    extreme = 0
    for rows in _chunks(FLIPS, max(len(moved), 1)):
        signs = random.integers(0, 2, (rows.stop - rows.start, len(moved)), dtype=np.int8)
        extreme += int((np.abs((2.0 * signs - 1.0) @ moved) >= observed).sum())
    return {"diff": mean, "lo": lo, "hi": hi, "p": (1 + extreme) / (1 + FLIPS)}


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values adjusted for being several (Holm, 1979), in the order given."""
    adjusted = [0.0] * len(pvalues)
    largest = 0.0
    for done, i in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        largest = max(largest, min(1.0, (len(pvalues) - done) * pvalues[i]))
        adjusted[i] = largest
    return adjusted


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"one number a case is needed, not an array of shape {values.shape}")
    return values


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
