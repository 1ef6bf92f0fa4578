"""Features of candidate queries for the memory ranker."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..protocol.marks import AGES, OUTCOMES, Scale

# The time since a purchase against the usual time until such a thing is bought again.
DUE = Scale((0.4, 0.7, 0.9, 1.15, 1.6), ("early", "soon", "nearly", "due", "late", "over"))
# The time since what led to a neighbour against the usual time until people follow it.
TIMING = Scale(
    (0.3, 0.6, 1.2, 2.2), ("much too early", "early", "in time", "late", "much too late")
)
# How much a category is needed, and how far from the usual time (see `candidates.needs`).
NEED = Scale(
    (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
    ("none", "trace", "faint", "slight", "some", "fair", "good", "strong", "sure"),
)
PACE = Scale(
    (-2.0, -1.0, -0.4, 0.4, 1.0, 2.0),
    ("far too early", "too early", "early", "in time", "late", "too late", "far too late"),
)
PRESSING = 0.1  # of what is needed as much as that, wording and taste decide
SOURCE_KINDS = {"c": "category", "p": "product", "q": "query", "r": "retry"}


def _bins(values: np.ndarray, scale: Scale) -> np.ndarray:
    """The bin of each value: 0 to ``len(scale.limits)``."""
    return np.searchsorted(scale.limits, values, side="right")


def _log(values: np.ndarray, add: float = 0.0) -> np.ndarray:
    return np.log(np.maximum(values + add, 1e-9))


def _with_ages(name: str) -> list[str]:
    return [f"{name} {word}" for word in AGES.words]


FEATURES = (
    "own",
    "back",
    "times",
    *(name for outcome in OUTCOMES for name in (str(outcome), *_with_ages(outcome))),
    *_with_ages("own"),
    "bought long ago",
    "had",
    *_with_ages("had"),
    "again",
    *(n for word in DUE.words for n in (word, f"{word} again")),
    "next",
    "next score",
    *(f"{name} {word}" for name in SOURCE_KINDS.values() for word in TIMING.words),
    "trend",
    "trend share",
    "short share",
    "long share",
    "trend weight",
    "short weight",
    "growth",
    "success",
    "focus",
    "leaf",
    "leaf times",
    *(n for outcome in OUTCOMES for n in (f"leaf {outcome}", *_with_ages(f"leaf {outcome}"))),
    "main",
    "main unsearched",
    "main bought",
    *_with_ages("main"),
    "kind plain",
    "kind brand",
    "kind attribute",
    "wording",
    "own wording",
    "taste",
    "used",
    "echo last",
    "echo own",
    "covered",
    "returned",
    "own returned",
    *(f"need {word}" for word in NEED.words),
    *(f"after {what} {word}" for what in ("liked", "bought") for word in PACE.words),
    "pressing own",
    "pressing next",
    "pressing worded",
    "pressing taste",
)
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
    last, age = c["last"][own].astype(int), _bins(c["age"][own], AGES)
    put("own", own)
    put("back", own, _log(c["back"][own]))
    put("times", own, _log(c["times"][own]))
    outcome = last * (1 + len(AGES.words))
    put_word(OUTCOMES[0], own, outcome)
    put_word(OUTCOMES[0], own, outcome + 1 + age)
    put_word("own now", own, age)
    bought = own[last == 3]
    put("bought long ago", bought, np.log1p(c["age"][bought]))

    had = np.flatnonzero(~np.isnan(c["had_age"]))
    again = np.nan_to_num(c["again"])
    put("had", had)
    put_word("had now", had, _bins(c["had_age"][had], AGES))
    put("again", had, _log(again[had], 0.02))
    due = had[~np.isnan(c["due"][had])]
    word = _bins(c["due"][due], DUE)
    put_word(DUE.words[0], due, word, step=2)
    put_word(f"{DUE.words[0]} again", due, word, again[due], step=2)

    follows = np.flatnonzero(~np.isnan(c["next_score"]))
    put("next", follows)
    put("next score", follows, np.log10(np.maximum(c["next_score"][follows], 1e-4)) + 2.0)
    kinds = list(SOURCE_KINDS)
    source = np.array([kinds.index(s[0]) for s in c["source"][follows].tolist()], dtype=int)
    timing = _bins(np.exp(c["timing"][follows]), TIMING)
    first = f"{SOURCE_KINDS[kinds[0]]} {TIMING.words[0]}"
    put_word(first, follows, source * len(TIMING.words) + timing)

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
    outcome = c["leaf_last"][leaf].astype(int) * (1 + len(AGES.words))
    put("leaf", leaf)
    put("leaf times", leaf, _log(c["leaf_times"][leaf]))
    put_word(f"leaf {OUTCOMES[0]}", leaf, outcome)
    put_word(f"leaf {OUTCOMES[0]}", leaf, outcome + 1 + _bins(c["leaf_age"][leaf], AGES))
    known = np.flatnonzero(~np.isnan(c["main_age"]))
    put("main", known)
    put("main unsearched", known[np.isnan(c["back"][known])])
    put("main bought", known, np.nan_to_num(c["main_bought"][known]))
    put_word("main now", known, _bins(c["main_age"][known], AGES))

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
    put_word(f"need {NEED.words[0]}", needed, _bins(c["need"][needed], NEED))
    pace = _bins(c["pace"][needed], PACE)
    pace += len(PACE.words) * c["need_bought"][needed].astype(int)
    put_word(f"after liked {PACE.words[0]}", needed, pace)
    pressing = np.nan_to_num(c["need"]) > PRESSING
    put("pressing own", own[pressing[own]])
    put("pressing next", follows[pressing[follows]])
    worded = worded[pressing[worded]]
    put("pressing worded", worded)
    put("pressing taste", worded, _log(c["taste"][worded], 0.05))
    return table
