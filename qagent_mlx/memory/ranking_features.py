"""The features of candidate queries that the memory ranker weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..protocol.marks import AGES, OUTCOMES, Scale
from .candidates import Candidates

# The time since a purchase against the usual time until such a thing is bought again.
DUE = Scale((0.4, 0.7, 0.9, 1.15, 1.6), ("early", "soon", "nearly", "due", "late", "over"))
# The time since the source of a neighbour against the usual time until the query follows it.
TIMING = Scale(
    (0.3, 0.6, 1.2, 2.2), ("much too early", "early", "in time", "late", "much too late")
)
NEED = Scale(
    (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
    ("none", "trace", "faint", "slight", "some", "fair", "good", "strong", "sure"),
)
PACE = Scale(
    (-2.0, -1.0, -0.4, 0.4, 1.0, 2.0),
    ("far too early", "too early", "early", "in time", "late", "too late", "far too late"),
)
PRESSING = 0.1  # where the need is greater, wording and taste decide
SOURCE_KINDS = {"c": "category", "p": "product", "q": "query", "r": "retry"}
TOGETHER = 64  # moments whose features are computed together


def _with_ages(name: str) -> list[str]:
    return [f"{name} {word}" for word in AGES.words]


def _with_outcomes(prefix: str = "") -> list[str]:
    return [
        name
        for outcome in OUTCOMES
        for name in (f"{prefix}{outcome}", *_with_ages(f"{prefix}{outcome}"))
    ]


FEATURES = (
    *("own", "back", "times", *_with_outcomes(), *_with_ages("own"), "bought long ago"),
    *("had", *_with_ages("had"), "again"),
    *(name for word in DUE.words for name in (word, f"{word} again")),
    *("next", "next score"),
    *(f"{kind} {word}" for kind in SOURCE_KINDS.values() for word in TIMING.words),
    *("trend", "trend share", "short share", "long share", "trend weight", "short weight"),
    *("growth", "success", "focus", "leaf", "leaf times", *_with_outcomes("leaf ")),
    *("main", "main unsearched", "main bought", *_with_ages("main")),
    *("kind plain", "kind brand", "kind attribute", "wording", "own wording", "taste", "used"),
    *("echo last", "echo own", "covered", "returned", "own returned"),
    *(f"need {word}" for word in NEED.words),
    *(f"after {outcome} {word}" for outcome in ("liked", "bought") for word in PACE.words),
    *("pressing own", "pressing next", "pressing worded", "pressing taste"),
)
FEATURE_INDEX = {name: index for index, name in enumerate(FEATURES)}
_A_OUTCOME = 1 + len(AGES.words)  # features of each outcome


class _FeatureTable:
    """A feature matrix that is filled by the names of features."""

    def __init__(self, rows: int) -> None:
        self.values = np.zeros((rows, len(FEATURES)), dtype=np.float32)

    def put(self, name: str, rows: np.ndarray | slice, values: np.ndarray | float = 1.0) -> None:
        """Set a feature of some rows."""
        self.values[rows, FEATURE_INDEX[name]] = values

    def put_bin(
        self, first: str, rows: np.ndarray, bins: np.ndarray, values: np.ndarray | float = 1.0
    ) -> None:
        """Set one feature a row: the one that comes ``bins`` after the feature ``first``."""
        self.values[rows, FEATURE_INDEX[first] + bins] = values


def features(candidates: Candidates) -> np.ndarray:
    """Features of each candidate: (candidates, `FEATURES`), float32; 0 where one does not apply."""
    table = _FeatureTable(len(candidates))
    own = _known(candidates.recency_rank)
    follows = _known(candidates.neighbour_score)
    _put_own_searches(table, candidates, own)
    _put_repurchases(table, candidates)
    _put_neighbours(table, candidates, follows)
    _put_trends(table, candidates)
    _put_shop_rates(table, candidates, own)
    _put_leaf_searches(table, candidates)
    _put_top_product(table, candidates)
    _put_wording(table, candidates, own)
    _put_need(table, candidates, own, follows)
    return table.values


def feature_tables(parts: Sequence[Candidates]) -> Iterator[np.ndarray]:
    """`features` of each moment's candidates, computed for some moments at once."""
    for start in range(0, len(parts), TOGETHER):
        batch = parts[start : start + TOGETHER]
        table = features(Candidates.concatenate(batch))
        end = np.cumsum([len(part) for part in batch])[:-1]
        # Copied, as a sum over columns must not depend on what lies beside it in memory.
        yield from (part.copy() for part in np.split(table, end))


def _known(column: np.ndarray) -> np.ndarray:
    """The rows in which a column is not NaN."""
    return np.flatnonzero(~np.isnan(column))


def _bins(values: np.ndarray, scale: Scale) -> np.ndarray:
    """The bin of each value: 0 to ``len(scale.limits)``."""
    return np.searchsorted(scale.limits, values, side="right")


def _log(values: np.ndarray, add: float = 0.0) -> np.ndarray:
    return np.log(np.maximum(values + add, 1e-9))


def _log10(values: np.ndarray) -> np.ndarray:
    """Logarithms of shares and scores, scaled so that 0.01 is 0 and less than 0.0001 is -2."""
    return np.log10(np.maximum(values, 1e-4)) + 2.0


def _put_own_searches(table: _FeatureTable, c: Candidates, own: np.ndarray) -> None:
    outcome, age = c.last_outcome[own].astype(int), _bins(c.age[own], AGES)
    table.put("own", own)
    table.put("back", own, _log(c.recency_rank[own]))
    table.put("times", own, _log(c.searches[own]))
    table.put_bin(OUTCOMES[0], own, outcome * _A_OUTCOME)
    table.put_bin(OUTCOMES[0], own, outcome * _A_OUTCOME + 1 + age)
    table.put_bin("own now", own, age)
    bought = own[outcome == 3]
    table.put("bought long ago", bought, np.log1p(c.age[bought]))


def _put_repurchases(table: _FeatureTable, c: Candidates) -> None:
    had = _known(c.bought_age)
    again = np.nan_to_num(c.repurchase)
    table.put("had", had)
    table.put_bin("had now", had, _bins(c.bought_age[had], AGES))
    table.put("again", had, _log(again[had], 0.02))
    due = _known(c.repurchase_pace)
    bins = 2 * _bins(c.repurchase_pace[due], DUE)
    table.put_bin(DUE.words[0], due, bins)
    table.put_bin(f"{DUE.words[0]} again", due, bins, again[due])


def _put_neighbours(table: _FeatureTable, c: Candidates, follows: np.ndarray) -> None:
    table.put("next", follows)
    table.put("next score", follows, _log10(c.neighbour_score[follows]))
    kinds = list(SOURCE_KINDS)
    kind = np.array([kinds.index(source[0]) for source in c.source[follows].tolist()], dtype=int)
    bins = kind * len(TIMING.words) + _bins(np.exp(c.timing[follows]), TIMING)
    table.put_bin(f"{SOURCE_KINDS[kinds[0]]} {TIMING.words[0]}", follows, bins)


def _put_trends(table: _FeatureTable, c: Candidates) -> None:
    trends = _known(c.trend_share)
    share, longer, short = (x[trends] for x in (c.trend_share, c.longer_share, c.short_share))
    table.put("trend", trends)
    table.put("trend share", trends, _log10(share))
    table.put("short share", trends, _log10(short))
    table.put("long share", trends, _log10(longer))
    table.put("trend weight", trends, 10.0 * share)
    table.put("short weight", trends, 10.0 * short)
    growth = np.clip(_log(share / np.maximum(longer, 1e-4)), -2.0, 2.0)
    table.put("growth", trends, growth)


def _put_shop_rates(table: _FeatureTable, c: Candidates, own: np.ndarray) -> None:
    table.put("success", slice(None), np.log(c.success))
    table.put("focus", slice(None), c.focus)
    table.put("covered", slice(None), np.log(c.coverage))
    table.put("returned", slice(None), _log(c.return_rate))
    table.put("own returned", own, _log(c.return_rate[own]))


def _put_leaf_searches(table: _FeatureTable, c: Candidates) -> None:
    leaf = _known(c.leaf_outcome)
    outcome = c.leaf_outcome[leaf].astype(int) * _A_OUTCOME
    table.put("leaf", leaf)
    table.put("leaf times", leaf, _log(c.leaf_searches[leaf]))
    table.put_bin(f"leaf {OUTCOMES[0]}", leaf, outcome)
    table.put_bin(f"leaf {OUTCOMES[0]}", leaf, outcome + 1 + _bins(c.leaf_age[leaf], AGES))


def _put_top_product(table: _FeatureTable, c: Candidates) -> None:
    known = _known(c.product_age)
    table.put("main", known)
    table.put("main unsearched", known[np.isnan(c.recency_rank[known])])
    table.put("main bought", known, np.nan_to_num(c.product_bought[known]))
    table.put_bin("main now", known, _bins(c.product_age[known], AGES))


def _put_wording(table: _FeatureTable, c: Candidates, own: np.ndarray) -> None:
    table.put("wording", slice(None), _log(c.wording, 0.1))
    table.put("own wording", own, _log(c.wording[own], 0.1))
    for kind in ("plain", "brand", "attribute"):
        table.put(f"kind {kind}", np.flatnonzero(c.kind == kind))
    named = np.flatnonzero(c.kind != "plain")
    table.put("taste", named, _log(c.taste[named], 0.05))
    table.put("used", named, _log(c.typed[named], 0.05))
    table.put("echo last", slice(None), np.nan_to_num(c.echo_last))
    table.put("echo own", slice(None), np.nan_to_num(c.echo_most))


def _put_need(table: _FeatureTable, c: Candidates, own: np.ndarray, follows: np.ndarray) -> None:
    needed = _known(c.need)
    table.put_bin(f"need {NEED.words[0]}", needed, _bins(c.need[needed], NEED))
    bins = _bins(c.need_pace[needed], PACE)
    bins += len(PACE.words) * c.need_bought[needed].astype(int)
    table.put_bin(f"after liked {PACE.words[0]}", needed, bins)
    pressing = np.nan_to_num(c.need) > PRESSING
    table.put("pressing own", own[pressing[own]])
    table.put("pressing next", follows[pressing[follows]])
    named = np.flatnonzero((c.kind != "plain") & pressing)
    table.put("pressing worded", named)
    table.put("pressing taste", named, _log(c.taste[named], 0.05))
