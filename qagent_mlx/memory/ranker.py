"""The memory ranker: how probable each candidate is the query that the user wants next.

A conditional logit over all candidates of a moment, with an outside option for "none of them". A
moment whose own query retrieves nothing that its user went on to engage with counts less (see
`session_weights`): a recommendation is worth what it leads to. The weights start from defaults
that fit an average shop and move towards the shop's own log, as far as that log is informative.
They are learned repeatedly along the log, each time from what lay before, and a moment is served
by the last weights that were learned before it: so nothing that is evaluated was seen in training.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
import numpy as np

from ..shop.config import MemoryConfig
from ..shop.shop import Shop
from ..utils.sparse import sparse
from .candidates import Candidates
from .loader import MemoryLoader
from .log_digest import log_digests
from .ranking_features import FEATURE_INDEX, FEATURES, features
from .sessions import SuccessfulSession, successful_sessions
from .store import fingerprint
from .types import Moment

_DEFAULTS = {
    **{"own": 0.8, "back": -0.3, "unmet": 0.2, "liked": 0.6, "carted": 0.6, "bought": -0.8},
    **{"own old": -0.5, "bought long ago": 0.3, "had": -0.5, "had now": -0.5},
    **{"next": 0.4, "next score": 0.8, "trend": 0.3, "trend share": 1.0, "success": 0.4},
}
OUTSIDE = 1.5  # the default logit of "none of them"
PRIOR_MOMENTS = 5.0  # the strength of the defaults
MAX_MOMENTS = 3000  # the latest of the log that weights are learned from
MAX_STEPS = 6  # along the log
MIN_STEP = timedelta(days=7)
# The weight of a moment in learning, by what its own query retrieves there: nothing that the user
# engaged with, such a product among the first ten, or one in the first place.
NOTHING_FOUND, AMONG_TEN, FIRST = 0.2, 0.6, 1.0
# Of how weights are learned. Raise it in the commit that changes what is learned from the same log:
# shops then learn anew, and so does the sample shop (`make line-worth`).
LEARNING = 1
_META = "line_worth"  # the key under which a shop keeps learned weights
_BLOCK = 50_000  # candidates whose dense features are computed at once

# The products that each of some queries retrieves at its moment, the best first.
Retrieve = Callable[[Sequence[str], Sequence[datetime]], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class RankerWeights:
    """Weights of `FEATURES` and the logit of the outside option, learned before a moment."""

    values: np.ndarray
    outside: float
    moments: int = 0  # of the log that they were learned from
    until: datetime = datetime.min
    source: str = ""  # a digest of all that they were learned from; empty where it is not known

    @classmethod
    def default(cls) -> RankerWeights:
        """The weights of an average shop."""
        return cls(np.array([_DEFAULTS.get(name, 0.0) for name in FEATURES]), OUTSIDE)

    def probabilities(self, table: np.ndarray) -> np.ndarray:
        """The probability of each of a moment's candidates: (n,) from features (n, `FEATURES`)."""
        if not len(table):
            return np.empty(0)
        logits = table @ self.values
        top = max(float(logits.max()), self.outside)
        odds = np.exp(logits - top)
        probabilities: np.ndarray = odds / (odds.sum() + np.exp(self.outside - top))
        return probabilities


class _StoredStep(msgspec.Struct):
    until: datetime
    moments: int
    outside: float
    weights: list[float]
    source: str = ""


class _StoredRanker(msgspec.Struct):
    features: list[str] = []
    steps: list[_StoredStep] = []


@dataclass(frozen=True)
class MemoryRanker:
    """The weights along the log, by the moment from which they serve."""

    steps: tuple[RankerWeights, ...]

    @classmethod
    def default(cls) -> MemoryRanker:
        """The weights of an average shop, at any time."""
        return cls((RankerWeights.default(),))

    @classmethod
    def of_shop(cls, shop: Shop) -> MemoryRanker:
        """What the shop has learned; the defaults before that."""
        return cls.from_json(shop.meta(_META, ""))

    @classmethod
    def from_json(cls, text: str) -> MemoryRanker:
        """Weights as `to_json` writes them; the defaults for an empty text."""
        stored = msgspec.json.decode(text or "{}", type=_StoredRanker)
        places = {name: place for place, name in enumerate(stored.features)}
        if not places or not places.keys() <= FEATURE_INDEX.keys():
            return cls.default()
        # Weights that an earlier version learned are 0 for features that came since.
        order = np.array([places.get(name, -1) for name in FEATURES])
        learned = (
            RankerWeights(np.append(s.weights, 0.0)[order], s.outside, s.moments, s.until, s.source)
            for s in stored.steps
        )
        return cls((RankerWeights.default(), *learned))

    def keep(self, shop: Shop) -> None:
        """Let a shop that is open for writing use this ranker from now on."""
        if self.moments or shop.meta(_META):
            shop.set_meta(_META, self.to_json())

    def to_json(self) -> str:
        """The learned weights as text."""
        steps = [
            _StoredStep(step.until, step.moments, step.outside, step.values.tolist(), step.source)
            for step in self.steps[1:]
        ]
        return msgspec.json.encode(_StoredRanker(list(FEATURES), steps)).decode()

    def at(self, as_of: datetime) -> RankerWeights:
        """The last weights that were learned from before a moment."""
        return self.steps[bisect_right([step.until for step in self.steps], as_of) - 1]

    @property
    def moments(self) -> int:
        """The number of moments of the log that the last weights were learned from."""
        return self.steps[-1].moments


def session_weights(
    sessions: Sequence[SuccessfulSession], retrieve: Retrieve | None
) -> list[float]:
    """The weight of each session in learning: `NOTHING_FOUND`, `AMONG_TEN` or `FIRST`.

    It agrees with the reward of a chain, so the most probable candidate is the one whose query is
    right where it finds something. Without a search, all sessions count in full.
    """
    if retrieve is None:
        return [FIRST] * len(sessions)
    results = retrieve([s.query for s in sessions], [s.start for s in sessions])
    weights = []
    for session, products in zip(sessions, results, strict=True):
        hits = [product in session.products for product in products[:10]]
        weights.append(FIRST if any(hits[:1]) else AMONG_TEN if any(hits) else NOTHING_FOUND)
    return weights


def fit_ranker(
    shop: Shop,
    since: datetime | None,
    retrieve: Retrieve | None = None,
    source: str = "",
    anew: bool = False,
    known: MemoryRanker | None = None,
) -> MemoryRanker:
    """Learn weights along the log and keep them in the shop.

    The first weights are learned from all before ``since``, then again each `MIN_STEP`, or less
    often in a long log; None keeps the defaults. What the shop has learned already stays, where
    nothing has changed of what it was learned from.

    Args:
        shop: Open for writing, or a snapshot.
        since: The first moment.
        retrieve: The shop's search, which tells what the right queries led to.
        source: What that search was built from; where it is not said, all is learned anew.
        anew: Learn all of it again.
        known: What was learned elsewhere from this very log, for a shop that has learned nothing.
    """
    if since is None:
        return MemoryRanker.default()
    connection = shop.connection
    ((end,),) = connection.execute("SELECT max(ts) FROM events").fetchall()
    end = end or since
    source = source and f"{source} {learning_of(shop.config.memory)}"
    learned = _still_good(shop, since, "" if anew else source)
    if known is not None and len(learned) == 1:
        learned += _as_of_this_shop(shop, known.steps[1:], source)
    cuts = _cuts(since, end, [step.until for step in learned[1:]])
    # A session that goes on beyond a cut counts with what it was by then.
    parts = [
        successful_sessions(connection, before=cut, known=True, last=MAX_MOMENTS) for cut in cuts
    ]
    sessions = list(dict.fromkeys(s for part in parts for s in part))
    if sessions:
        weights = dict(zip(sessions, session_weights(sessions, retrieve), strict=True))
        moments = list(dict.fromkeys(Moment(s.user_id, s.start) for s in sessions))
        number = {moment: i for i, moment in enumerate(moments)}
        asked = [[number[Moment(s.user_id, s.start)] for s in part] for part in parts]
        blocks = MemoryLoader(connection, shop.config.memory).candidates(moments)
        digests = log_digests(connection, cuts, source) if source else [""] * len(cuts)
        learning = zip(cuts, parts, digests, choices_of_parts(blocks, asked), strict=True)
        for cut, part, digest, choices in learning:
            fitted = fit_weights(
                choices, [s.query_key for s in part], [weights[s] for s in part], learned[-1]
            )
            learned.append(replace(fitted, until=cut, source=digest))
    ranker = MemoryRanker(tuple(learned))
    ranker.keep(shop)
    return ranker


def learning_of(config: MemoryConfig) -> str:
    """What learned weights follow from, beside the log and its search."""
    version = "" if LEARNING == 1 else f" {LEARNING}"
    return f"{fingerprint(config)} {FEATURES} {_DEFAULTS}{version}"


def _still_good(shop: Shop, since: datetime, source: str) -> list[RankerWeights]:
    """The default weights, and those of the shop where learning them again would give the same."""
    default, *stored = MemoryRanker.of_shop(shop).steps
    if not source or not stored or stored[0].until != since:
        return [default]
    digests = log_digests(shop.connection, [step.until for step in stored], source)
    is_good = digests == [step.source for step in stored]
    return [default, *stored] if is_good else [default]


def _as_of_this_shop(
    shop: Shop, steps: Sequence[RankerWeights], source: str
) -> list[RankerWeights]:
    """Weights that were learned from a log like this shop's, as if they had been learned here."""
    digests = log_digests(shop.connection, [step.until for step in steps], source)
    return [replace(step, source=digest) for step, digest in zip(steps, digests, strict=True)]


def _cuts(since: datetime, end: datetime, before: Sequence[datetime]) -> list[datetime]:
    """The moments along a log at which weights are learned, behind those of ``before``."""
    step = max(MIN_STEP, (end - since) / MAX_STEPS)
    if len(before) > 1:
        step = before[-1] - before[-2]
    cuts = [] if before else [since]
    latest = before[-1] if before else since
    while latest + step <= end:
        latest += step
        cuts.append(latest)
    return cuts


class Choices(NamedTuple):
    """The candidates of some moments: those of moment m are rows ``starts[m]:ends[m]``."""

    table: sparse.csr_matrix  # their features
    keys: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class _Block(NamedTuple):
    """The choices of moments that were computed together; moment n is ``place[n]`` of them."""

    place: dict[int, int]
    choices: Choices


def _block(numbers: Sequence[int], candidates: Candidates, first: np.ndarray) -> _Block:
    tables = [
        sparse.csr_matrix(features(candidates[start : start + _BLOCK]))
        for start in range(0, len(candidates), _BLOCK)
    ]
    choices = Choices(_stacked(tables), candidates.query_key, first[:-1], first[1:])
    return _Block({number: place for place, number in enumerate(numbers)}, choices)


def choices_of_parts(
    blocks: Iterable[tuple[Sequence[int], Candidates, np.ndarray]], parts: Sequence[Sequence[int]]
) -> Iterator[Choices]:
    """The choices of the moments of each part, in its order.

    A block is read when a part needs it and held until the last one that does, so that what is
    held does not grow with the log.

    Args:
        blocks: Of all moments, see `MemoryLoader.candidates`.
        parts: Numbers of moments.
    """
    unread, held = iter(blocks), list[_Block]()
    last_part = {moment: number for number, part in enumerate(parts) for moment in part}
    for number, part in enumerate(parts):
        missing = set(part).difference(*(block.place for block in held))
        while missing:
            held.append(_block(*next(unread)))
            missing -= held[-1].place.keys()
        yield _joined(held, part)
        held = [b for b in held if any(last_part[moment] > number for moment in b.place)]


def _joined(blocks: Sequence[_Block], moments: Sequence[int]) -> Choices:
    """The choices of some moments, each of them in one of the blocks."""
    first_row, spans = 0, dict[int, tuple[int, int]]()
    for place, choices in blocks:
        bounds = list(zip(choices.starts.tolist(), choices.ends.tolist(), strict=True))
        spans |= {m: (first_row + bounds[p][0], first_row + bounds[p][1]) for m, p in place.items()}
        first_row += len(choices.keys)
    starts, ends = np.array([spans[m] for m in moments], np.int64).reshape(-1, 2).T
    table = _stacked([choices.table for _, choices in blocks])
    keys = [np.empty(0, object), *(choices.keys for _, choices in blocks)]
    return Choices(table, np.concatenate(keys), starts, ends)


def _stacked(tables: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
    return sparse.vstack([sparse.csr_matrix((0, len(FEATURES))), *tables], format="csr")


def fit_weights(
    choices: Choices, targets: Sequence[str], weights: Sequence[float], start: RankerWeights
) -> RankerWeights:
    """Maximum a posteriori weights of the conditional logit; the optimiser begins at ``start``.

    Each moment has a target, the key of its query, among the candidates or not, and a weight;
    moments without candidates are left out.
    """
    filled = np.flatnonzero(choices.starts < choices.ends).tolist()
    prior = RankerWeights.default()
    if not filled:
        return prior
    parts = [np.arange(choices.starts[i], choices.ends[i]) for i in filled]
    moment_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    first = np.flatnonzero(np.diff(moment_of, prepend=-1))
    rows = np.concatenate(parts)
    x = choices.table[rows].astype(float)  # once, and not for each product
    transposed = x.T.tocsr()
    weight = np.array([weights[i] for i in filled])
    target = np.array([targets[i] for i in filled], dtype=object)
    right = (choices.keys[rows] == target[moment_of]) * weight[moment_of]
    outside = weight - np.bincount(moment_of, right, len(filled))  # the target is no candidate
    hit, gain = np.flatnonzero(right), np.zeros(len(right))
    centre = np.append(prior.values, prior.outside)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log-posterior and its gradient."""
        logits, outside_logit = x @ theta[:-1], theta[-1]
        top = np.maximum(np.maximum.reduceat(logits, first), outside_logit)
        odds = np.exp(logits - top[moment_of])
        outside_odds = np.exp(outside_logit - top)
        total = np.bincount(moment_of, odds, len(filled)) + outside_odds
        p, p_outside = odds / total[moment_of], outside_odds / total
        distance = theta - centre
        gain[hit] = right[hit] * np.log(np.maximum(p[hit], 1e-300))
        value = -gain.sum()
        value -= (outside * np.log(np.maximum(p_outside, 1e-300))).sum()
        gradient = np.append(
            transposed @ (weight[moment_of] * p - right), (weight * p_outside - outside).sum()
        )
        value += 0.5 * PRIOR_MOMENTS * distance @ distance
        return float(value), gradient + PRIOR_MOMENTS * distance

    from scipy.optimize import minimize  # half a second that only learning needs

    initial, options = np.append(start.values, start.outside), {"maxiter": 100, "ftol": 1e-7}
    best = minimize(loss, initial, jac=True, method="L-BFGS-B", options=options)
    return RankerWeights(best.x[:-1], float(best.x[-1]), len(filled))
