"""What other users did next: queries that follow the user's past, and categories needed again.

Both are computed for many moments at once, as columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .keyed import Keyed, Numbers, first_of_runs, rank_in_runs
from .statistics_cache import KINDS, NO_FOLLOWERS, NO_RETURNS, DayStatistics, Vocabulary
from .user_state import Source, UserState

MAX_NEIGHBOURS = 32
MAX_NEEDS = 8
_LEAST_DAYS = 0.02  # shorter times count as this in logarithms


class Neighbours(NamedTuple):
    """Queries that others went on to; of each moment the best first.

    ``ids`` are of the vocabulary. ``sources`` are those that contribute most to the scores, and
    ``timing`` is ln(days since the source / usual days until the query); NaN where unknown.
    """

    moments: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    sources: np.ndarray
    timing: np.ndarray


NO_NEIGHBOURS = Neighbours(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, object), np.empty(0)
)


class Needs(NamedTuple):
    """How much categories are needed again, or next; of each moment each category once.

    ``paces`` are deviations of ln days from the usual time; negative: it is early. ``bought``:
    what it follows was bought and not only liked.
    """

    moments: np.ndarray
    leaves: np.ndarray
    strengths: np.ndarray
    paces: np.ndarray
    bought: np.ndarray


def neighbours(
    states: Sequence[UserState], days: Sequence[DayStatistics], vocabulary: Vocabulary
) -> Neighbours:
    """The likeliest next queries of users with the same past, at moments of some days.

    A query's score is the sum over the user's sources of weight x P(query | source), times how
    well its wording fits the user, scaled so that the scores of all queries keep their sum.
    """
    parts = [
        (moment, source, followers)
        for moment, (state, day) in enumerate(zip(states, days, strict=True))
        for source in state.sources
        if len((followers := day.followers.get(source.key, NO_FOLLOWERS)).ids)
    ]
    if not parts:
        return NO_NEIGHBOURS
    sources = [source for _, source, _ in parts]
    sizes = [len(followers.ids) for *_, followers in parts]
    values = np.concatenate([followers.probability for *_, followers in parts])
    values = values * np.repeat([source.weight for source in sources], sizes)
    part_of = np.repeat(np.arange(len(parts)), sizes)
    pairs = np.repeat([moment for moment, *_ in parts], sizes) * len(vocabulary.keys)
    pairs += np.concatenate([followers.ids for *_, followers in parts])
    pairs, pair_of = np.unique(pairs, return_inverse=True)
    moments, ids = np.divmod(pairs, len(vocabulary.keys))
    # Sums differ in their last digits from order to order; what is equal must stay equal.
    scores = np.round(0.3 * np.bincount(pair_of, values), 12)
    fitted = scores * _wording_fit(states, moments, ids, vocabulary)
    chosen = _largest(moments, np.round(fitted, 12), ids, vocabulary)
    scale = np.bincount(moments, scores) / np.maximum(np.bincount(moments, fitted), 1e-300)
    delays = np.concatenate([followers.delay for *_, followers in parts])
    strongest, timing = _contributions(pair_of, part_of, values, delays, chosen, sources)
    names = np.array([source.key for source in sources], dtype=object)
    return Neighbours(
        moments[chosen],
        ids[chosen],
        fitted[chosen] * scale[moments[chosen]],
        names[strongest],
        timing,
    )


def _contributions(
    pair_of: np.ndarray,
    part_of: np.ndarray,
    values: np.ndarray,
    delays: np.ndarray,
    chosen: np.ndarray,
    sources: Sequence[Source],
) -> tuple[np.ndarray, np.ndarray]:
    """For each chosen pair of moment and query: the part that adds most, and the timing."""
    is_chosen = np.zeros(int(pair_of.max()) + 1, dtype=bool)
    is_chosen[chosen] = True
    rows = np.flatnonzero(is_chosen[pair_of])
    # By contribution and then by key, in whose order the sources are: the last of a query counts.
    rows = rows[np.lexsort((part_of[rows], np.round(values[rows], 12), pair_of[rows]))]

    def last_of_pairs(rows: np.ndarray) -> np.ndarray:
        return (
            rows[np.append(first_of_runs(pair_of[rows])[1:], len(rows)) - 1] if len(rows) else rows
        )

    last = last_of_pairs(rows)
    _, (strongest,) = Keyed(pair_of[last], part_of[last]).get(chosen)
    timed = last_of_pairs(rows[~np.isnan(delays[rows])])
    usual = np.full(len(chosen), np.nan)
    known, (days,) = Keyed(pair_of[timed], delays[timed]).get(chosen)
    usual[known] = days
    ages = np.array([source.age for source in sources])[strongest]
    return strongest, np.log(np.maximum(ages, _LEAST_DAYS) / usual)


def _largest(
    moments: np.ndarray, values: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """Where the `MAX_NEIGHBOURS` largest values of each moment are; equal ones by their keys."""
    order = np.lexsort((vocabulary.key_ranks(ids), -values, moments))
    return order[rank_in_runs(moments[order]) < MAX_NEIGHBOURS]


def _wording_fit(
    states: Sequence[UserState], moments: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """How well the wording of queries fits the users of their moments: (ids,)."""
    kinds, modifiers = vocabulary.kinds_and_modifiers()
    kind, modifier = kinds[ids], modifiers[ids]
    modifier_fit = 0.07 + modifier_shares([s.taste for s in states], moments, modifier, vocabulary)
    modifier_fit += modifier_shares([s.typed for s in states], moments, modifier, vocabulary)
    shares = kind_shares(states)
    return np.asarray((shares[moments, kind] + 0.15) * np.where(kind == 0, 0.4, modifier_fit))


def kind_shares(states: Sequence[UserState]) -> np.ndarray:
    """How often each user words queries in each way: (states, `KINDS`)."""
    return np.array([[state.wording.get(kind, 0.0) for kind in KINDS] for state in states])


def modifier_shares(
    shares: Sequence[Mapping[str, float]],
    moments: np.ndarray,
    modifiers: np.ndarray,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """The share of each of some modifiers (-1: none) at its moment; 0 where it has none."""
    numbers, size = vocabulary.modifiers, len(vocabulary.modifiers) + 1
    known = [
        (moment * size + number, share)
        for moment, of_moment in enumerate(shares)
        for word, share in of_moment.items()
        if (number := numbers.get(word)) is not None
    ]
    found = np.zeros(len(moments))
    if known:
        keys, values = (np.array(column) for column in zip(*known, strict=True))
        rows, (share_of,) = Keyed(keys, values).get(
            np.where(modifiers < 0, -1, moments * size + modifiers)
        )
        found[rows] = share_of
    return found


def needs(states: Sequence[UserState], days: Sequence[DayStatistics]) -> Needs:
    """The categories that users came back for who had engaged with the same, as long ago.

    The strength is P(category) times the density of coming back after that time; of several
    engagements the strongest counts.
    """
    parts = [
        (moment, age, category.startswith("b:"), returns)
        for moment, (state, day) in enumerate(zip(states, days, strict=True))
        for category, age in state.engaged.items()
        if (returns := day.returns.get(category, NO_RETURNS)).leaves
    ]
    if not parts:
        return Needs(np.empty(0, np.int64), np.empty(0, object), *(np.empty(0) for _ in range(3)))
    sizes = [len(returns.leaves) for *_, returns in parts]
    probability, pace, spread = (
        np.concatenate([getattr(returns, name) for *_, returns in parts])
        for name in ("probability", "pace", "spread")
    )
    moments, ages, bought = (
        np.repeat([part[column] for part in parts], sizes) for column in range(3)
    )
    paces = (np.log(np.maximum(ages, _LEAST_DAYS)) - pace) / spread
    # Rounded so that equal ones stay equal and the first of them counts everywhere.
    strengths = np.round(probability * np.exp(-0.5 * paces**2) / spread, 12)
    leaves = [leaf for *_, returns in parts for leaf in returns.leaves]
    numbers = Numbers[str]()
    key = numbers.key(moments, numbers.number(leaves))
    order = np.lexsort((-strengths, key))
    chosen = order[first_of_runs(key[order])]
    texts = np.array(leaves, dtype=object)
    return Needs(moments[chosen], texts[chosen], strengths[chosen], paces[chosen], bought[chosen])


def likeliest_needs(strengths: Mapping[str, float]) -> list[str]:
    """The categories that are needed most, the most needed first; see `Needs`."""
    return sorted(strengths, key=lambda leaf: (-strengths[leaf], leaf))[:MAX_NEEDS]
