"""What other users did next: queries that follow the user's past, and categories needed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .statistics_cache import KINDS, NO_FOLLOWERS, NO_RETURNS, DayStatistics, Vocabulary
from .user_state import UserState

MAX_NEIGHBOURS = 32
MAX_NEEDS = 8
_LEAST_DAYS = 0.02  # shorter times count as this in logarithms


class Neighbour(NamedTuple):
    """A query that others went on to, with the source that contributes most to its score."""

    score: float
    source: str
    timing: float  # ln(days since the source / usual days until the query); NaN where unknown


class Need(NamedTuple):
    """How much a category is needed again, or next."""

    strength: float
    pace: float  # deviations of ln days from the usual time; negative: it is early
    bought: bool  # what it follows was bought and not only liked


def neighbours(
    state: UserState, day: DayStatistics, vocabulary: Vocabulary
) -> dict[str, Neighbour]:
    """The likeliest next queries of users with the same past, the best first.

    A query's score is the sum over the user's sources of weight x P(query | source), times how
    well its wording fits the user, scaled so that the scores of all queries keep their sum.
    """
    sources = [(source, day.followers.get(source.key, NO_FOLLOWERS)) for source in state.sources]
    sources = [(source, followers) for source, followers in sources if len(followers.ids)]
    if not sources:
        return {}
    sizes = [len(followers.ids) for _, followers in sources]
    values = np.concatenate([followers.probability for _, followers in sources])
    values *= np.repeat([source.weight for source, _ in sources], sizes)
    delays = np.concatenate([followers.delay for _, followers in sources])
    source_of = np.repeat(np.arange(len(sources)), sizes)
    ids, query_of = np.unique(np.concatenate([f.ids for _, f in sources]), return_inverse=True)
    # Sums differ in their last digits from order to order; what is equal must stay equal.
    scores = np.round(0.3 * np.bincount(query_of, values), 12)
    fitted = scores * _wording_fit(state, ids, vocabulary)
    chosen = _largest(np.round(fitted, 12), ids, vocabulary)

    # By contribution and then by key, in whose order the sources are: the last of a query counts.
    rows = np.flatnonzero(np.isin(query_of, chosen))
    rows = rows[np.lexsort((source_of[rows], np.round(values[rows], 12)))]
    strongest = dict(zip(query_of[rows].tolist(), source_of[rows].tolist(), strict=True))
    timed = rows[~np.isnan(delays[rows])]
    usual = dict(zip(query_of[timed].tolist(), delays[timed].tolist(), strict=True))
    scale = float(scores.sum() / fitted.sum())
    nearest = {}
    for query in chosen:
        source, _ = sources[strongest[query]]
        days = usual.get(query, float("nan"))
        timing = float(np.log(max(source.age, _LEAST_DAYS) / days))
        score = float(fitted[query]) * scale
        nearest[vocabulary.keys[ids[query]]] = Neighbour(score, source.key, timing)
    return nearest


def _largest(values: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    """The indices of the `MAX_NEIGHBOURS` largest values; equal ones in order of their keys."""
    indices = np.arange(len(values))
    if len(values) > MAX_NEIGHBOURS:
        indices = np.flatnonzero(values >= np.partition(values, -MAX_NEIGHBOURS)[-MAX_NEIGHBOURS])
    keys = {i: vocabulary.keys[ids[i]] for i in indices.tolist()}
    return sorted(keys, key=lambda i: (-values[i], keys[i]))[:MAX_NEIGHBOURS]


def _wording_fit(state: UserState, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """How well the wording of queries fits the user: (ids,)."""
    kinds, modifiers = vocabulary.kinds_and_modifiers()
    kind_fit = np.array([state.wording.get(kind, 0.0) + 0.15 for kind in KINDS])
    # The last entry is that of queries without a modifier, whose number is -1.
    modifier_fit = np.full(len(vocabulary.modifiers) + 1, 0.07)
    for shares in (state.taste, state.typed):
        for word, share in shares.items():
            if word in vocabulary.modifiers:
                modifier_fit[vocabulary.modifiers[word]] += share
    kind = kinds[ids]
    return np.asarray(kind_fit[kind] * np.where(kind == 0, 0.4, modifier_fit[modifiers[ids]]))


def needs(state: UserState, day: DayStatistics) -> dict[str, Need]:
    """The categories that users came back for who had engaged with the same, as long ago.

    The strength is P(category) times the density of coming back after that time; of several
    engagements the strongest counts.
    """
    needed: dict[str, Need] = {}
    for category, age in state.engaged.items():
        returns = day.returns.get(category, NO_RETURNS)
        paces = (np.log(max(age, _LEAST_DAYS)) - returns.pace) / returns.spread
        density = np.exp(-0.5 * paces**2)
        # Rounded so that equal ones stay equal and the first of them counts everywhere.
        strengths = np.round(returns.probability * density / returns.spread, 12)
        for leaf, strength, pace in zip(
            returns.leaves, strengths.tolist(), paces.tolist(), strict=True
        ):
            if leaf not in needed or strength > needed[leaf].strength:
                needed[leaf] = Need(strength, pace, category.startswith("b:"))
    return needed


def likeliest_needs(needed: Mapping[str, Need]) -> list[str]:
    """The categories that are needed most, the most needed first; see `needs`."""
    return sorted(needed, key=lambda leaf: (-needed[leaf].strength, leaf))[:MAX_NEEDS]
