"""What a line of memory is worth: the chance that its query is what the user wants next.

A conditional logit over all candidate lines of a moment, with an outside option for "none
of these". A moment whose own query retrieves nothing that its user went on to engage with
teaches less (see `satisfied`): a recommendation is worth what it leads to. The weights start
from defaults that fit an average shop and move towards the shop's own log, as far as that log
speaks. They are learned again and again along the log, each time from what lay before, and a
moment is served by the last weights that were learned before it: so nothing that is evaluated
was seen, and the last cases profit from most of the log.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from scipy import sparse

from ..shop.shop import Shop
from .ranking_features import _PLACE, FEATURES, features
from .sessions import SuccessfulSession, successful_sessions

_DEFAULTS = {
    "own": 0.8,
    "back": -0.3,
    "unmet": 0.2,
    "liked": 0.6,
    "carted": 0.6,
    "bought": -0.8,
    "own old": -0.5,
    "bought long ago": 0.3,
    "had": -0.5,
    "had now": -0.5,
    "next": 0.4,
    "next score": 0.8,
    "trend": 0.3,
    "trend share": 1.0,
    "success": 0.4,
}
OUTSIDE = 1.5  # the default logit of "none of these"
PULL = 5.0  # how many moments' worth of evidence the defaults are
MAX_MOMENTS = 3000  # the latest of the log that weights are learned from
STEPS = 6  # how often, at most, they are learned along the log
MIN_STEP = timedelta(days=7)
# What a moment counts, by what its own query retrieves there: nothing that the user engaged with,
# such a product among the first ten, or one in the first place.
NOTHING_FOUND, AMONG_TEN, FIRST = 0.2, 0.6, 1.0

# The products that each of some queries retrieves at its moment, the best first.
Retrieve = Callable[[Sequence[str], Sequence[datetime]], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class RankerWeights:
    """Weights of `FEATURES` and the logit of the outside option, learned before a moment."""

    values: np.ndarray
    outside: float
    moments: int = 0  # how many moments of the log they were learned from
    until: datetime = datetime.min

    @classmethod
    def default(cls) -> RankerWeights:
        """What an average shop would say."""
        return cls(np.array([_DEFAULTS.get(name, 0.0) for name in FEATURES]), OUTSIDE)

    def probabilities(self, table: np.ndarray) -> np.ndarray:
        """The chance of each of one moment's candidates: (rows,) of (rows, len(FEATURES))."""
        if not len(table):
            return np.empty(0)
        logits = table @ self.values
        top = max(float(logits.max()), self.outside)
        weight = np.exp(logits - top)
        chances: np.ndarray = weight / (weight.sum() + np.exp(self.outside - top))
        return chances


@dataclass(frozen=True)
class MemoryRanker:
    """The weights along the log, by the moment from which they serve."""

    steps: tuple[RankerWeights, ...]

    @classmethod
    def default(cls) -> MemoryRanker:
        """What an average shop would say, at any time."""
        return cls((RankerWeights.default(),))

    @classmethod
    def of_shop(cls, shop: Shop) -> MemoryRanker:
        """What the shop has learned; the defaults before that."""
        return cls.of_text(shop.meta("line_worth", ""))

    @classmethod
    def of_text(cls, stored: str) -> MemoryRanker:
        """The weights as `fit_ranker` keeps them; the defaults for an empty text."""
        values: dict[str, Any] = json.loads(stored) if stored else {}
        known = {name: place for place, name in enumerate(values.get("features", ()))}
        if not known or not known.keys() <= _PLACE.keys() or "steps" not in values:
            return cls.default()
        # What an earlier version learned says nothing of features that came since.
        places = np.array([known.get(name, -1) for name in FEATURES])
        learned = (
            RankerWeights(
                np.append(step["weights"], 0.0)[places],
                step["outside"],
                step["moments"],
                datetime.fromisoformat(step["until"]),
            )
            for step in values["steps"]
        )
        return cls((RankerWeights.default(), *learned))

    def at(self, as_of: datetime) -> RankerWeights:
        """The last weights that were learned from before a moment."""
        return self.steps[bisect_right([w.until for w in self.steps], as_of) - 1]

    @property
    def moments(self) -> int:
        """How many moments of the log the last weights were learned from."""
        return self.steps[-1].moments


def satisfied(sessions: Sequence[SuccessfulSession], retrieve: Retrieve | None) -> list[float]:
    """What the moment of each session counts: `NOTHING_FOUND`, `AMONG_TEN` or `FIRST`.

    The same things that the reward of a chain asks for: the likeliest line is then the one whose
    query is right where it finds something. All count in full without a search.
    """
    if retrieve is None:
        return [FIRST] * len(sessions)
    found = retrieve([s.query for s in sessions], [s.start for s in sessions])
    made = []
    for session, products in zip(sessions, found, strict=True):
        hits = [product in session.products for product in products[:10]]
        made.append(FIRST if any(hits[:1]) else AMONG_TEN if any(hits) else NOTHING_FOUND)
    return made


def fit_ranker(
    shop: Shop, since: datetime | None, retrieve: Retrieve | None = None
) -> MemoryRanker:
    """Learn the weights along the log and keep them in the shop.

    Args:
        shop: Open for writing.
        since: The first time that something is learned, from all before it; then again each
            `MIN_STEP`, or less often in a long log. None keeps the defaults.
        retrieve: The shop's search, which tells what the right queries led to.
    """
    if since is None:
        return MemoryRanker.default()
    from .loader import MemoryLoader, concatenate_candidates
    from .types import Moment

    connection = shop.connection
    row = connection.execute("SELECT max(ts) FROM events").fetchone()
    end = row[0] if row and row[0] else since
    step = max(MIN_STEP, (end - since) / STEPS)
    cuts = [since]
    while cuts[-1] + step <= end:
        cuts.append(cuts[-1] + step)
    # A session that goes on beyond a cut counts with what it was by then.
    known = [
        [s for s in successful_sessions(connection, before=cut) if s.history > 0][-MAX_MOMENTS:]
        for cut in cuts
    ]
    moments = {(s.user_id, s.start): s for part in known for s in part}
    place = {key: i for i, key in enumerate(moments)}
    sessions = list(dict.fromkeys(s for part in known for s in part))
    counts = dict(zip(sessions, satisfied(sessions, retrieve), strict=True))
    learned: list[RankerWeights] = []
    if moments:
        rows = MemoryLoader(connection, shop.config.memory).computed(
            [Moment(*key) for key in moments]
        )
        columns = concatenate_candidates(rows)
        start = np.r_[0, np.cumsum([len(r.candidates["back"]) for r in rows])]
        table = _sparse(columns)
        keys = columns["query_key"]
        before = RankerWeights.default()
        for cut, part in zip(cuts, known, strict=True):
            numbers = [place[s.user_id, s.start] for s in part]
            targets, weight = [s.query_key for s in part], [counts[s] for s in part]
            before = _fit(table, keys, start, numbers, targets, weight, before)
            learned.append(RankerWeights(before.values, before.outside, before.moments, cut))
    stored = {
        "features": FEATURES,
        "steps": [
            {
                "until": w.until.isoformat(),
                "moments": w.moments,
                "outside": w.outside,
                "weights": w.values.tolist(),
            }
            for w in learned
        ],
    }
    shop.set_meta("line_worth", json.dumps(stored))
    return MemoryRanker((RankerWeights.default(), *learned))


def _sparse(columns: Mapping[str, np.ndarray], block: int = 50_000) -> sparse.csr_matrix:
    rows = len(columns["back"])
    parts = [
        sparse.csr_matrix(features({n: v[i : i + block] for n, v in columns.items()}))
        for i in range(0, rows, block)
    ]
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, len(FEATURES)))


def _fit(
    table: sparse.csr_matrix,
    keys: np.ndarray,
    starts: np.ndarray,
    moments: Sequence[int],
    targets: Sequence[str],
    counts: Sequence[float],
    start: RankerWeights,
) -> RankerWeights:
    """Maximum a posteriori weights of the conditional logit, found from ``start`` on.

    Rows ``starts[m]:starts[m + 1]`` of ``table`` and ``keys`` belong to moment ``m``, which counts
    ``counts[m]`` times.
    """
    filled = [
        (slice(int(starts[m]), int(starts[m + 1])), key, count)
        for m, key, count in zip(moments, targets, counts, strict=True)
        if starts[m + 1] > starts[m]
    ]
    prior = RankerWeights.default()
    if not filled:
        return prior
    x = table[np.concatenate([np.arange(s.start, s.stop) for s, _, _ in filled])]
    sizes = np.array([s.stop - s.start for s, _, _ in filled])
    first = np.r_[0, np.cumsum(sizes)[:-1]]
    owner = np.repeat(np.arange(len(filled)), sizes)
    weight = np.array([count for *_, count in filled])
    of_row = weight[owner]
    right = np.concatenate([keys[s] == key for s, key, _ in filled]) * of_row
    none = weight - np.bincount(owner, right, len(filled))
    centre = np.append(prior.values, prior.outside)
    turned = x.T.tocsr()
    from scipy.optimize import minimize  # half a second that only learning needs

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logits, outside = x @ theta[:-1], theta[-1]
        top = np.maximum(np.maximum.reduceat(logits, first), outside)
        odds = np.exp(logits - top[owner])
        other = np.exp(outside - top)
        total = np.bincount(owner, odds, len(filled)) + other
        chance, missed = odds / total[owner], other / total
        pull = theta - centre
        value = -(right * np.log(np.maximum(chance, 1e-300))).sum()
        value -= (none * np.log(np.maximum(missed, 1e-300))).sum()
        slope = np.append(turned @ (of_row * chance - right), (weight * missed - none).sum())
        return float(value + 0.5 * PULL * pull @ pull), slope + PULL * pull

    best = minimize(
        loss,
        np.append(start.values, start.outside),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 100, "ftol": 1e-7},
    )
    return RankerWeights(best.x[:-1], float(best.x[-1]), len(filled))
