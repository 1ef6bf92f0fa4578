"""The calibrated chance that a recommended query is the user's next one.

Votes say how sure a policy is, not how often it is right. A chance is learned on validation cases,
from what speaks for a query: the share of the chains that recommend it, the log-probability of the
surest of these answers, and the probability of its line in memory. There are three curves, logistic
ones: for queries that chains recommend, for those that fill the row behind them, and for rows of
memory alone, where no chain was run.

What it is the chance of: that the next search of the user that leads to something (the query of a
case, see `environment.cases`) is this very query.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from msgspec import Meta

from ..types import Evidence
from ..utils.atomic_files import write_json

log = logging.getLogger("qagent.policy")

FORMAT = 1
FILE = "calibration.json"  # in a policy's folder
FEATURES = ("line", "no line", "votes", "logprob")
PRIOR = 1.0  # strength of the prior of each weight, in cases
PRIOR_WEIGHTS = np.array([1.0, 0.0, 0.0, 0.0])  # of `FEATURES`: memory's own probability
FOLDS = 5
LEAST_PROBABILITY = 1e-3  # of a line, in logarithms
LEAST_LOGPROB = -5.0

Kind = Literal["chosen", "others", "memory"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(evidence: Evidence) -> Kind:
    """Which curve it belongs to."""
    if not evidence.chains:
        return "memory"
    return "chosen" if evidence.votes else "others"


def features(evidence: Evidence) -> list[float]:
    """The values of `FEATURES`."""
    line = LEAST_PROBABILITY if evidence.line is None else evidence.line
    line = min(max(line, LEAST_PROBABILITY), 1 - LEAST_PROBABILITY)
    votes, against = evidence.votes, evidence.chains - evidence.votes
    return [
        math.log(line / (1 - line)),
        float(evidence.line is None),
        math.log((votes + 0.5) / (against + 0.5)) if votes else 0.0,
        max(evidence.logprob, LEAST_LOGPROB) if votes else 0.0,
    ]


Weights = Annotated[
    tuple[float, ...], Meta(min_length=len(FEATURES) + 1, max_length=len(FEATURES) + 1)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a policy's votes and memory's lines are worth, as learned on validation cases.

    Attributes:
        cases: How many.
        error: The expected calibration error of first queries, of folds that were not learned from;
            None where the policy's chains recommended none.
        learned: When, in UTC.
        curves: For each of `KINDS` the weights of `FEATURES` and the intercept.
        format: Of the file.
    """

    cases: int
    error: float | None
    learned: str
    curves: dict[Kind, Weights]
    format: int = FORMAT

    def chance(self, evidence: Evidence) -> float:
        """The chance of a query, in (0, 1)."""
        *weights, intercept = self.curves[kind_of(evidence)]
        products = (w * x for w, x in zip(weights, features(evidence), strict=True))
        logit = intercept + sum(products)
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))

    def to_dict(self) -> dict[str, Any]:
        """What is shown of it: cases, error and time."""
        error = None if self.error is None else round(self.error, 4)
        return {"cases": self.cases, "error": error, "learned": self.learned}


@dataclass(frozen=True, slots=True)
class Observation:
    """A query of a row that was made for a case, and whether it was the user's next one.

    ``first`` marks those in the row's first place. The rows of a case share a weight of 1.
    """

    case: int
    evidence: Evidence
    hit: bool
    first: bool
    weight: float = 1.0


def fit(observations: Sequence[Observation]) -> Calibration:
    """Learn the three curves, and measure their error on cases that were left out in turn."""
    cases = sorted({o.case for o in observations})
    fold = {case: i % FOLDS for i, case in enumerate(cases)}
    said: list[float] = []
    hits: list[bool] = []
    for left_out in range(FOLDS):
        curves = _curves([o for o in observations if fold[o.case] != left_out])
        partial = Calibration(cases=0, error=0.0, learned="", curves=curves)
        tested = [
            o
            for o in observations
            if fold[o.case] == left_out and o.first and kind_of(o.evidence) == "chosen"
        ]
        said += [partial.chance(o.evidence) for o in tested]
        hits += [o.hit for o in tested]
    return Calibration(
        cases=len(cases),
        error=calibration_error(np.array(said), np.array(hits, dtype=float)) if said else None,
        learned=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        curves=_curves(observations),
    )


def calibration_error(said: np.ndarray, hits: np.ndarray, bins: int = 10) -> float:
    """The mean gap between chance and share of hits over bins of equal width (arXiv:1706.04599).

    One chance is needed at least.
    """
    index = np.minimum((said * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(index, said, bins) - np.bincount(index, hits, bins))
    return float(gaps.sum() / len(said))


def _curves(observations: Sequence[Observation]) -> dict[Kind, Weights]:
    parts = {kind: [o for o in observations if kind_of(o.evidence) == kind] for kind in KINDS}
    return {kind: _curve(part) for kind, part in parts.items()}


def _curve(observations: Sequence[Observation]) -> Weights:
    """Maximum a posteriori weights of a logistic curve; memory's own probability without cases."""
    prior = np.append(PRIOR_WEIGHTS, 0.0)
    if not observations:
        return tuple(prior.tolist())
    from scipy.optimize import minimize  # half a second that only learning needs

    x = np.array([[*features(o.evidence), 1.0] for o in observations])
    y = np.array([o.hit for o in observations], dtype=float)
    weight = np.array([o.weight for o in observations])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log-posterior and its gradient."""
        logits = x @ theta
        distance = theta - prior
        value = (weight * (np.logaddexp(0, logits) - y * logits)).sum()
        gradient = x.T @ (weight * (1 / (1 + np.exp(-logits)) - y)) + PRIOR * distance
        return float(value + 0.5 * PRIOR * distance @ distance), gradient

    best = minimize(loss, prior, jac=True, method="L-BFGS-B")
    return tuple(best.x.tolist())


def write(folder: Path, calibration: Calibration) -> None:
    """Keep a calibration with the policy of a folder, in place of the one that it has."""
    write_json(folder / FILE, msgspec.to_builtins(calibration))


def read(folder: Path) -> Calibration | None:
    """The calibration of a policy; None where it has none that this version can read."""
    try:
        content = (folder / FILE).read_bytes()
        stored = msgspec.json.decode(content, type=Calibration)
        if stored.format != FORMAT:
            raise ValueError(f"format {stored.format}")
        if stored.curves.keys() != set(KINDS):
            raise ValueError("curves are missing")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read (%s); chances are not known", folder / FILE, error)
        return None
    return stored
