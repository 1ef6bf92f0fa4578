"""What a line of memory is worth: the chance that its query is what the user wants next.

A conditional logit over all candidate lines of a moment, with an outside option for "none
of these". Its weights start from defaults that fit an average shop and move towards the
shop's own log, as far as that log speaks: the first part of it, which lies before every
case (see `inventory.index.default_clicks_until`), so nothing that is evaluated was seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ..shop import Shop
from . import tables
from .events import successes

AGES = (
    (0.1, "now"), (1.5, "today"), (4.0, "days"), (9.0, "week"), (18.0, "weeks"), (45.0, "month"),
)  # fmt: skip
AGE_WORDS = (*(word for _, word in AGES), "old")
OUTCOMES = ("unmet", "liked", "carted", "bought")

FEATURES = (
    "own", "back", "times", *OUTCOMES, *(f"own {a}" for a in AGE_WORDS), "bought long ago",
    "had", *(f"had {a}" for a in AGE_WORDS), "next", "next score",
    "trend", "trend share", "growth", "success",
)  # fmt: skip
_DEFAULTS = {
    "own": 0.8, "back": -0.3, "unmet": 0.2, "liked": 0.6, "carted": 0.6, "bought": -0.8,
    "own old": -0.5, "bought long ago": 0.3, "had": -0.5, "had now": -0.5, "next": 0.4,
    "next score": 0.8, "trend": 0.3, "trend share": 1.0, "success": 0.4,
}  # fmt: skip
OUTSIDE = 1.5  # the default logit of "none of these"
PULL = 20.0  # how many moments' worth of evidence the defaults are
MAX_MOMENTS = 4000


def age_word(days: float) -> str:
    """A length of time as one word, from ``now`` to ``old``."""
    return next((word for limit, word in AGES if days < limit), "old")


@dataclass(frozen=True)
class Worth:
    """Weights of `FEATURES`, and the logit of the outside option."""

    weights: np.ndarray
    outside: float
    moments: int = 0  # how many moments of the log they were learned from

    @classmethod
    def default(cls) -> Worth:
        """What an average shop would say."""
        return cls(np.array([_DEFAULTS.get(name, 0.0) for name in FEATURES]), OUTSIDE)

    @classmethod
    def of_shop(cls, shop: Shop) -> Worth:
        """The weights that the shop has learned; the defaults before that."""
        stored = shop.meta("line_worth", "")
        if not stored:
            return cls.default()
        values: dict[str, Any] = json.loads(stored)
        if tuple(values["features"]) != FEATURES:
            return cls.default()
        return cls(np.array(values["weights"]), values["outside"], values["moments"])

    def score(self, rows: Sequence[tuple]) -> np.ndarray:
        """The chance of each of one moment's candidate rows (see `tables.candidate_rows`)."""
        if not rows:
            return np.empty(0)
        logits = features(rows) @ self.weights
        top = max(float(logits.max()), self.outside)
        weight = np.exp(logits - top)
        chances: np.ndarray = weight / (weight.sum() + np.exp(self.outside - top))
        return chances


def features(rows: Sequence[tuple]) -> np.ndarray:
    """Candidate rows without their moment -> (rows, len(FEATURES))."""
    made = np.zeros((len(rows), len(FEATURES)))
    at = {name: i for i, name in enumerate(FEATURES)}
    for i, row in enumerate(rows):
        (_, _, times, _, last, age, back, next_score, _, _,
         share, longer, _, _, had, _, success) = row  # fmt: skip
        x = made[i]
        if back:
            x[at["own"]] = 1.0
            x[at["back"]] = np.log(back)
            x[at["times"]] = np.log(times)
            x[at[OUTCOMES[last]]] = 1.0
            x[at[f"own {age_word(age)}"]] = 1.0
            if last == 3:
                x[at["bought long ago"]] = np.log1p(age)
        if had is not None:
            x[at["had"]] = 1.0
            x[at[f"had {age_word(had)}"]] = 1.0
        if next_score:
            x[at["next"]] = 1.0
            x[at["next score"]] = np.log10(max(next_score, 1e-4)) + 2.0
        if share:
            x[at["trend"]] = 1.0
            x[at["trend share"]] = np.log10(max(share, 1e-4)) + 2.0
            x[at["growth"]] = np.clip(np.log(share / max(longer, 1e-4)), -2.0, 2.0)
        x[at["success"]] = np.log(success)
    return made


def learn(shop: Shop, until: datetime | None) -> Worth:
    """Learn the weights from the log before ``until`` and keep them in the shop.

    Args:
        shop: Open for writing.
        until: Nothing at or after this moment is looked at; None keeps the defaults.
    """
    if until is None:
        return Worth.default()
    connection = shop.connection
    found = [s for s in successes(connection, before=until) if s.history > 0][-MAX_MOMENTS:]
    if not found:
        return Worth.default()
    tables.prepare_shop(connection)
    tables.prepare_moments(
        connection,
        ((i, s.user_id, s.start) for i, s in enumerate(found)),
        shop.config.memory,
        shop.config.memory.references,
    )
    grouped: list[list[tuple]] = [[] for _ in found]
    for row in tables.candidate_rows(connection, shop.config.memory.references):
        grouped[row[0]].append(row[1:])
    worth = _fit(grouped, [s.query_key for s in found])
    stored = {
        "features": FEATURES,
        "weights": worth.weights.tolist(),
        "outside": worth.outside,
        "moments": worth.moments,
        "until": until.isoformat(),
    }
    shop.set_meta("line_worth", json.dumps(stored))
    return worth


def _fit(moments: Sequence[list[tuple]], targets: Sequence[str]) -> Worth:
    """Maximum a posteriori weights of the conditional logit."""
    filled = [(rows, key) for rows, key in zip(moments, targets, strict=True) if rows]
    start = Worth.default()
    if not filled:
        return start
    x = np.concatenate([features(rows) for rows, _ in filled])
    sizes = np.array([len(rows) for rows, _ in filled])
    owner = np.repeat(np.arange(len(filled)), sizes)
    hit = np.array([row[0] == key for rows, key in filled for row in rows])
    none = np.ones(len(filled))
    none[owner[hit]] = 0.0
    prior = np.append(start.weights, start.outside)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logits, outside = x @ theta[:-1], theta[-1]
        top = np.maximum(np.maximum.reduceat(logits, np.r_[0, np.cumsum(sizes)[:-1]]), outside)
        weight = np.exp(logits - top[owner])
        other = np.exp(outside - top)
        total = np.bincount(owner, weight, len(filled)) + other
        chance, missed = weight / total[owner], other / total
        pull = theta - prior
        value = -np.log(chance[hit]).sum() - (none * np.log(missed)).sum()
        slope = np.append(x.T @ (chance - hit), (missed - none).sum())
        return float(value + 0.5 * PULL * pull @ pull), slope + PULL * pull

    best = minimize(loss, prior, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return Worth(best.x[:-1], float(best.x[-1]), len(filled))
