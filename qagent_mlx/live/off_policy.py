"""What another system would have earned, estimated from what was shown (off-policy evaluation).

Logged answers have the probability with which each query was placed where it stood. A query that
the other system would have placed there, too, counts by one over that probability (item-position
model, Li et al., KDD 2018): IPS, its self-normalised form (SNIPS), and doubly robust (DR, Dudík et
al. 2011), which corrects a model of the rewards where the log contradicts it. Users are the units
of the intervals.

Where nothing was left to chance, only answers on which both systems agree say anything; the
estimate then assumes that agreeing has nothing to do with what users want.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np

from ..shop.shop import Shop
from ..utils.text import query_key
from .outcomes import LINES, line_limits

SHUFFLED = 5  # first positions that exploration may shuffle
SLOPE = 0.4  # of the weights by rank: how far exploration leaves a query from its place
CONFIDENCE = 0.95
LEAST_SUPPORTED = 0.95  # share of places below which intervals do not hold what they promise


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """An answer that was shown: its queries, their propensities, and which were taken."""

    user_id: str
    moment: datetime
    keys: tuple[str, ...]
    propensities: tuple[float, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Taken queries an answer, with a 95 % interval; None where the log says nothing."""

    value: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True, slots=True)
class OffPolicyReport:
    """What a system would have earned, by several estimators, beside what was earned.

    Attributes:
        agreeing: Share of the places at which the other system would have shown the same.
        supported: Share of the other system's places at which the log's system had any chance to
            show the same; of the others the log says nothing.
        explored: Share of the answers whose order was left to chance, if only in part.
        effective: Answers that the weighted ones are worth (Kish).
    """

    answers: int
    users: int
    logged: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate
    agreeing: float
    supported: float
    explored: float
    effective: float

    @property
    def assumption(self) -> str:
        """What has to be believed beside the numbers; empty where the log answers the question."""
        if not self.explored:
            return (
                "nothing was left to chance: where both systems show the same must have nothing to "
                "do with what users want"
            )
        if self.supported < LEAST_SUPPORTED:
            return (
                f"{1 - self.supported:.0%} of what the other system shows could not have been "
                "shown where it stands, so the log does not say what came of it: IPS and SNIPS "
                "leave it out, DR guesses, and the intervals need not hold the truth; an "
                "experiment tells"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {**asdict(self), "assumption": self.assumption}


def shuffled(size: int, draw: np.random.Generator) -> list[int]:
    """A random order of a slate: Plackett-Luce by rank in the first places, the rest stay."""
    first = min(size, SHUFFLED)
    # The order of exponential races is that of Plackett-Luce.
    races = draw.exponential(size=first) / _weights(first)
    return [*np.argsort(races, kind="stable").tolist(), *range(first, size)]


def propensities(order: Sequence[int], share: float) -> tuple[float, ...]:
    """The probability of each query of an answer to stand where it does.

    Args:
        order: The rank that the query at each position had.
        share: Of the answers that are `shuffled`; the others keep the ranks.
    """
    table = _marginals(min(len(order), SHUFFLED))
    return tuple(
        (1 - share) * (rank == position)
        + share * (table[position, rank] if max(position, rank) < len(table) else rank == position)
        for position, rank in enumerate(order)
    )


def _weights(size: int) -> np.ndarray:
    return np.exp(-SLOPE * np.arange(size))


@lru_cache(maxsize=SHUFFLED + 1)
def _marginals(size: int) -> np.ndarray:
    """P(the query of a rank stands at a position) of `shuffled`, (position, rank), exactly."""
    weights = _weights(size)
    table = np.zeros((size, size))
    for order in permutations(range(size)):
        probability, rest = 1.0, float(weights.sum())
        for rank in order:
            probability *= weights[rank] / rest
            rest -= weights[rank]
        table[range(size), order] += probability
    return table


def logged_answers(shop: Shop, **limits: Any) -> list[LoggedAnswer]:
    """What was shown in a time (``since``, ``until``), in order, with what was taken of it.

    Answers that two systems shared are left out: another draft would have mixed them otherwise.
    """
    if not shop.has_table("recommendations"):
        return []
    rows = shop.connection.execute(
        f"""SELECT any_value(user_id), any_value(ts), list(query_key ORDER BY position),
            list(propensity ORDER BY position), list(taken::INT::DOUBLE ORDER BY position)
        FROM ({LINES}) WHERE position > 0 AND source <> 'interleaved'
        GROUP BY recommendation_id ORDER BY 2, 1""",
        line_limits(limits.get("since"), limits.get("until")),
    ).fetchall()
    return [LoggedAnswer(u, t, tuple(k), tuple(p), tuple(r)) for u, t, k, p, r in rows]


def estimate(logged: Sequence[LoggedAnswer], slates: Sequence[Sequence[str]]) -> OffPolicyReport:
    """What slates would have earned that another system would have shown in place of the log's.

    Args:
        logged: The answers.
        slates: For each the other system's queries, the first at position 1.
    """
    model = _reward_model(logged)
    rows = []
    for answer, slate in zip(logged, slates, strict=True):
        wanted = [query_key(query) for query in slate]
        weight = reward = weighted = correction = 0.0
        squares, same, supported = 0.0, 0, 0
        places = list(zip(answer.keys, answer.propensities, answer.rewards, strict=True))
        for position, (key, propensity, taken) in enumerate(places):
            reward += taken
            if position < len(wanted) and wanted[position] == key:
                same += 1
                weight += 1 / propensity
                squares += 1 / propensity**2
                weighted += taken / propensity
                correction += (taken - model(key, position)) / propensity
            supported += _might_show(answer, position, wanted)
        direct = sum(model(key, position) for position, key in enumerate(wanted[: len(places)]))
        explored = any(p < 1 for p in answer.propensities)
        counts = (same, supported, len(places), explored)
        rows.append((reward, weighted, weight, direct + correction, *counts, squares))
    table = np.array(rows, dtype=float).reshape(-1, 9)
    users = np.array([answer.user_id for answer in logged])
    return _summarised(table, users)


def _might_show(answer: LoggedAnswer, position: int, wanted: Sequence[str]) -> bool:
    """Whether what another system shows at a position had a chance to be shown there."""
    if position >= len(wanted):
        return True  # it shows nothing there, and earns nothing
    if answer.keys[position] == wanted[position]:
        return True
    first = answer.keys[:SHUFFLED]
    return position < len(first) and wanted[position] in first and answer.propensities[position] < 1


def _summarised(table: np.ndarray, users: np.ndarray) -> OffPolicyReport:
    reward, weighted, weight, robust, same, supported, places, explored, squares = table.T
    names, owner = np.unique(users, return_inverse=True)
    ones = np.ones(len(table))
    total = places.sum()
    # A place's weight is one on average: what is missing or too much is divided out.
    expected = float(places.mean()) if len(table) else 1.0
    return OffPolicyReport(
        answers=len(table),
        users=len(names),
        logged=_ratio(reward, ones, owner),
        ips=_ratio(weighted, ones, owner),
        snips=_ratio(weighted, weight, owner, scale=expected),
        dr=_ratio(robust, ones, owner),
        agreeing=float(same.sum() / total) if total else 0.0,
        supported=float(supported.sum() / total) if total else 0.0,
        explored=float(explored.mean()) if len(table) else 0.0,
        effective=float(weight.sum() ** 2 / squares.sum()) if squares.sum() else 0.0,
    )


def _ratio(top: np.ndarray, bottom: np.ndarray, owner: np.ndarray, scale: float = 1.0) -> Estimate:
    """A ratio of sums over answers with an interval over users (linearised)."""
    from scipy.stats import t as student_t

    count = int(owner.max()) + 1 if len(owner) else 0
    tops, bottoms = np.bincount(owner, top, count), np.bincount(owner, bottom, count)
    if count < 2 or not bottoms.sum():
        return Estimate(None, None, None)
    ratio = tops.sum() / bottoms.sum()
    residual = (tops - ratio * bottoms) / bottoms.mean()
    error = math.sqrt(residual.var(ddof=1) / count)
    # A few large weights are as little to go by as a few users.
    squares = float((residual**2).sum())
    worth = float(np.abs(residual).sum()) ** 2 / squares if squares else count
    half = error * float(student_t.ppf((1 + CONFIDENCE) / 2, max(1.0, min(worth, count) - 1)))
    low, high = ratio - half, ratio + half
    return Estimate(float(scale * ratio), float(scale * low), float(scale * high))


def _reward_model(logged: Sequence[LoggedAnswer]) -> Callable[[str, int], float]:
    """P(taken) of a query at a position: the position's rate times how the query does, smoothed."""
    shown: dict[int, list[float]] = {}
    for answer in logged:
        for position, taken in enumerate(answer.rewards):
            shown.setdefault(position, []).append(taken)
    rates = {position: float(np.mean(values)) for position, values in shown.items()}
    taken_of: dict[str, float] = {}
    expected_of: dict[str, float] = {}
    for answer in logged:
        for position, (key, taken) in enumerate(zip(answer.keys, answer.rewards, strict=True)):
            taken_of[key] = taken_of.get(key, 0.0) + taken
            expected_of[key] = expected_of.get(key, 0.0) + rates[position]
    prior = 1.0  # expected takes that stand against what a query's own say

    def model(key: str, position: int) -> float:
        lift = (taken_of.get(key, 0.0) + prior) / (expected_of.get(key, 0.0) + prior)
        return min(1.0, rates.get(position, 0.0) * lift)

    return model
