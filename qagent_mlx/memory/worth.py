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
from .events import Success, successes

AGES = (
    (0.1, "now"), (1.5, "today"), (4.0, "days"), (9.0, "week"), (18.0, "weeks"), (45.0, "month"),
)  # fmt: skip
AGE_WORDS = (*(word for _, word in AGES), "old")
OUTCOMES = ("unmet", "liked", "carted", "bought")
# The time since a purchase against the usual time until such a thing is bought again.
DUE = ((0.4, "early"), (0.7, "soon"), (0.9, "nearly"), (1.15, "due"), (1.6, "late"))
DUE_WORDS = (*(word for _, word in DUE), "over")
# The time since what led to a neighbour against the usual time until people follow it.
TIMING = ((0.3, "much too early"), (0.6, "early"), (1.2, "in time"), (2.2, "late"))
TIMING_WORDS = (*(word for _, word in TIMING), "much too late")
# How much a category is needed, and how far from the usual time (see `candidates.needs`).
NEED = (
    (0.003, "none"), (0.01, "trace"), (0.02, "faint"), (0.05, "slight"), (0.1, "some"),
    (0.2, "fair"), (0.4, "good"), (0.8, "strong"),
)  # fmt: skip
NEED_WORDS = (*(word for _, word in NEED), "sure")
PACE = (
    (-2.0, "far too early"), (-1.0, "too early"), (-0.4, "early"), (0.4, "in time"), (1.0, "late"),
    (2.0, "too late"),
)  # fmt: skip
PACE_WORDS = (*(word for _, word in PACE), "far too late")
PRESSING = 0.1  # of what is needed as much as that, wording and taste decide
SOURCE_KINDS = {"c": "category", "p": "product", "q": "query", "r": "retry"}

_DEFAULTS = {
    "own": 0.8, "back": -0.3, "unmet": 0.2, "liked": 0.6, "carted": 0.6, "bought": -0.8,
    "own old": -0.5, "bought long ago": 0.3, "had": -0.5, "had now": -0.5, "next": 0.4,
    "next score": 0.8, "trend": 0.3, "trend share": 1.0, "success": 0.4,
}  # fmt: skip
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


def age_word(days: float) -> str:
    """A length of time as one word, from ``now`` to ``old``."""
    return next((word for limit, word in AGES if days < limit), "old")


def _words(values: np.ndarray, scale: Sequence[tuple[float, str]]) -> np.ndarray:
    """Which word of a scale each value is: 0 to len(scale), as `age_word` tells."""
    return np.searchsorted([limit for limit, _ in scale], values, side="right")


def _log(values: np.ndarray, add: float = 0.0) -> np.ndarray:
    return np.log(np.maximum(values + add, 1e-9))


def _with_ages(name: str) -> list[str]:
    return [f"{name} {word}" for word in AGE_WORDS]


FEATURES = (
    "own", "back", "times",
    *(name for outcome in OUTCOMES for name in (outcome, *_with_ages(outcome))),
    *_with_ages("own"), "bought long ago",
    "had", *_with_ages("had"), "again", *(n for word in DUE_WORDS for n in (word, f"{word} again")),
    "next", "next score",
    *(f"{name} {word}" for name in SOURCE_KINDS.values() for word in TIMING_WORDS),
    "trend", "trend share", "short share", "long share", "trend weight", "short weight", "growth",
    "success", "focus", "leaf", "leaf times",
    *(n for outcome in OUTCOMES for n in (f"leaf {outcome}", *_with_ages(f"leaf {outcome}"))),
    "main", "main unsearched", "main bought", *_with_ages("main"),
    "kind plain", "kind brand", "kind attribute", "wording", "own wording", "taste", "used",
    "echo last", "echo own", "covered", "returned", "own returned",
    *(f"need {word}" for word in NEED_WORDS),
    *(f"after {what} {word}" for what in ("liked", "bought") for word in PACE_WORDS),
    "pressing own", "pressing next", "pressing worded", "pressing taste",
)  # fmt: skip
_PLACE = {name: place for place, name in enumerate(FEATURES)}


def features(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the logit sees: (rows, len(FEATURES)), float32; what does not apply to a row is 0."""
    c = columns
    rows = len(c["back"])
    table = np.zeros((rows, len(FEATURES)), dtype=np.float32)
    every = np.arange(rows)

    def put(name: str, at: np.ndarray, values: np.ndarray | float = 1.0) -> None:
        table[at, _PLACE[name]] = values

    def put_word(
        name: str, at: np.ndarray, word: np.ndarray, values: np.ndarray | float = 1.0, step: int = 1
    ) -> None:
        """In the feature that comes ``word`` times ``step`` places after the named one."""
        table[at, _PLACE[name] + word * step] = values

    own = np.flatnonzero(~np.isnan(c["back"]))
    last, age = c["last"][own].astype(int), _words(c["age"][own], AGES)
    put("own", own)
    put("back", own, _log(c["back"][own]))
    put("times", own, _log(c["times"][own]))
    outcome = last * (1 + len(AGE_WORDS))
    put_word(OUTCOMES[0], own, outcome)
    put_word(OUTCOMES[0], own, outcome + 1 + age)
    put_word("own now", own, age)
    bought = own[last == 3]
    put("bought long ago", bought, np.log1p(c["age"][bought]))

    had = np.flatnonzero(~np.isnan(c["had_age"]))
    again = np.nan_to_num(c["again"])
    put("had", had)
    put_word("had now", had, _words(c["had_age"][had], AGES))
    put("again", had, _log(again[had], 0.02))
    due = had[~np.isnan(c["due"][had])]
    word = _words(c["due"][due], DUE)
    put_word(DUE_WORDS[0], due, word, step=2)
    put_word(f"{DUE_WORDS[0]} again", due, word, again[due], step=2)

    follows = np.flatnonzero(~np.isnan(c["next_score"]))
    put("next", follows)
    put("next score", follows, np.log10(np.maximum(c["next_score"][follows], 1e-4)) + 2.0)
    kinds = list(SOURCE_KINDS)
    source = np.array([kinds.index(s[0]) for s in c["source"][follows].tolist()], dtype=int)
    timing = _words(np.exp(c["timing"][follows]), TIMING)
    first = f"{SOURCE_KINDS[kinds[0]]} {TIMING_WORDS[0]}"
    put_word(first, follows, source * len(TIMING_WORDS) + timing)

    trends = np.flatnonzero(~np.isnan(c["share"]))
    share, short, longer = (c[n][trends] for n in ("share", "short_share", "longer_share"))
    put("trend", trends)
    for name, values in (("trend share", share), ("short share", short), ("long share", longer)):
        put(name, trends, np.log10(np.maximum(values, 1e-4)) + 2.0)
    put("trend weight", trends, 10.0 * share)
    put("short weight", trends, 10.0 * short)
    put("growth", trends, np.clip(_log(share / np.maximum(longer, 1e-4)), -2.0, 2.0))

    put("success", every, np.log(c["success"]))
    put("focus", every, c["focus"])
    leaf = np.flatnonzero(~np.isnan(c["leaf_last"]))
    outcome = c["leaf_last"][leaf].astype(int) * (1 + len(AGE_WORDS))
    put("leaf", leaf)
    put("leaf times", leaf, _log(c["leaf_times"][leaf]))
    put_word(f"leaf {OUTCOMES[0]}", leaf, outcome)
    put_word(f"leaf {OUTCOMES[0]}", leaf, outcome + 1 + _words(c["leaf_age"][leaf], AGES))
    known = np.flatnonzero(~np.isnan(c["main_age"]))
    put("main", known)
    put("main unsearched", known[np.isnan(c["back"][known])])
    put("main bought", known, np.nan_to_num(c["main_bought"][known]))
    put_word("main now", known, _words(c["main_age"][known], AGES))

    named = c["kind"]
    put("wording", every, _log(c["wording"], 0.1))
    put("own wording", own, _log(c["wording"][own], 0.1))
    for kind in ("plain", "brand", "attribute"):
        put(f"kind {kind}", np.flatnonzero(named == kind))
    worded = np.flatnonzero(named != "plain")
    put("taste", worded, _log(c["taste"][worded], 0.05))
    put("used", worded, _log(c["used"][worded], 0.05))
    put("echo last", every, np.nan_to_num(c["echo_last"]))
    put("echo own", every, np.nan_to_num(c["echo_own"]))
    put("covered", every, np.log(c["covered"]))
    put("returned", every, _log(c["returned"]))
    put("own returned", own, _log(c["returned"][own]))
    needed = np.flatnonzero(~np.isnan(c["need"]))
    put_word(f"need {NEED_WORDS[0]}", needed, _words(c["need"][needed], NEED))
    pace = _words(c["pace"][needed], PACE)
    pace += len(PACE_WORDS) * c["need_bought"][needed].astype(int)
    put_word(f"after liked {PACE_WORDS[0]}", needed, pace)
    pressing = np.nan_to_num(c["need"]) > PRESSING
    put("pressing own", own[pressing[own]])
    put("pressing next", follows[pressing[follows]])
    worded = worded[pressing[worded]]
    put("pressing worded", worded)
    put("pressing taste", worded, _log(c["taste"][worded], 0.05))
    return table


@dataclass(frozen=True)
class Weights:
    """Weights of `FEATURES` and the logit of the outside option, learned before a moment."""

    values: np.ndarray
    outside: float
    moments: int = 0  # how many moments of the log they were learned from
    until: datetime = datetime.min

    @classmethod
    def default(cls) -> Weights:
        """What an average shop would say."""
        return cls(np.array([_DEFAULTS.get(name, 0.0) for name in FEATURES]), OUTSIDE)

    def chances(self, table: np.ndarray) -> np.ndarray:
        """The chance of each of one moment's candidates: (rows,) of (rows, len(FEATURES))."""
        if not len(table):
            return np.empty(0)
        logits = table @ self.values
        top = max(float(logits.max()), self.outside)
        weight = np.exp(logits - top)
        chances: np.ndarray = weight / (weight.sum() + np.exp(self.outside - top))
        return chances


@dataclass(frozen=True)
class Worth:
    """The weights along the log, by the moment from which they serve."""

    steps: tuple[Weights, ...]

    @classmethod
    def default(cls) -> Worth:
        """What an average shop would say, at any time."""
        return cls((Weights.default(),))

    @classmethod
    def of_shop(cls, shop: Shop) -> Worth:
        """What the shop has learned; the defaults before that."""
        return cls.of_text(shop.meta("line_worth", ""))

    @classmethod
    def of_text(cls, stored: str) -> Worth:
        """The weights as `learn` keeps them; the defaults for an empty text."""
        values: dict[str, Any] = json.loads(stored) if stored else {}
        known = {name: place for place, name in enumerate(values.get("features", ()))}
        if not known or not known.keys() <= _PLACE.keys() or "steps" not in values:
            return cls.default()
        # What an earlier version learned says nothing of features that came since.
        places = np.array([known.get(name, -1) for name in FEATURES])
        learned = (
            Weights(
                np.append(step["weights"], 0.0)[places], step["outside"], step["moments"],
                datetime.fromisoformat(step["until"]),
            )
            for step in values["steps"]
        )
        return cls((Weights.default(), *learned))

    def at(self, as_of: datetime) -> Weights:
        """The last weights that were learned from before a moment."""
        return self.steps[bisect_right([w.until for w in self.steps], as_of) - 1]

    @property
    def moments(self) -> int:
        """How many moments of the log the last weights were learned from."""
        return self.steps[-1].moments


def satisfied(sessions: Sequence[Success], retrieve: Retrieve | None) -> list[float]:
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


def learn(shop: Shop, since: datetime | None, retrieve: Retrieve | None = None) -> Worth:
    """Learn the weights along the log and keep them in the shop.

    Args:
        shop: Open for writing.
        since: The first time that something is learned, from all before it; then again each
            `MIN_STEP`, or less often in a long log. None keeps the defaults.
        retrieve: The shop's search, which tells what the right queries led to.
    """
    if since is None:
        return Worth.default()
    from .reader import Moment, Reader, joined

    connection = shop.connection
    row = connection.execute("SELECT max(ts) FROM events").fetchone()
    end = row[0] if row and row[0] else since
    step = max(MIN_STEP, (end - since) / STEPS)
    cuts = [since]
    while cuts[-1] + step <= end:
        cuts.append(cuts[-1] + step)
    # A session that goes on beyond a cut counts with what it was by then.
    known = [[s for s in successes(connection, before=cut) if s.history > 0][-MAX_MOMENTS:]
             for cut in cuts]
    moments = {(s.user_id, s.start): s for part in known for s in part}
    place = {key: i for i, key in enumerate(moments)}
    sessions = list(dict.fromkeys(s for part in known for s in part))
    counts = dict(zip(sessions, satisfied(sessions, retrieve), strict=True))
    learned: list[Weights] = []
    if moments:
        rows = Reader(connection, shop.config.memory).computed([Moment(*key) for key in moments])
        columns = joined(rows)
        start = np.r_[0, np.cumsum([len(r.candidates["back"]) for r in rows])]
        table = _sparse(columns)
        keys = columns["query_key"]
        before = Weights.default()
        for cut, part in zip(cuts, known, strict=True):
            numbers = [place[s.user_id, s.start] for s in part]
            targets, weight = [s.query_key for s in part], [counts[s] for s in part]
            before = _fit(table, keys, start, numbers, targets, weight, before)
            learned.append(Weights(before.values, before.outside, before.moments, cut))
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
    return Worth((Weights.default(), *learned))


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
    start: Weights,
) -> Weights:
    """Maximum a posteriori weights of the conditional logit, found from ``start`` on.

    Rows ``starts[m]:starts[m + 1]`` of ``table`` and ``keys`` belong to moment ``m``, which counts
    ``counts[m]`` times.
    """
    filled = [
        (slice(int(starts[m]), int(starts[m + 1])), key, count)
        for m, key, count in zip(moments, targets, counts, strict=True)
        if starts[m + 1] > starts[m]
    ]
    prior = Weights.default()
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
        loss, np.append(start.values, start.outside), jac=True, method="L-BFGS-B",
        options={"maxiter": 100, "ftol": 1e-7},
    )
    return Weights(best.x[:-1], float(best.x[-1]), len(filled))
