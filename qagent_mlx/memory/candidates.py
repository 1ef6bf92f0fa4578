"""The queries that a user may want next, with all that is known of each: what worth weighs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .statistics_cache import KINDS, NEVER, NOBODY, NOTHING, DayStatistics, Trend, Vocabulary
from .user_state import UserState

CANDIDATES = 32  # queries of each side (own, neighbours, trends) that are weighed
ECHOED = 8  # of the user's last queries: whose words are looked for in other queries

TEXT = ("query_key", "query", "source", "leaf", "kind")
NUMBERS = (
    "times",
    "best",
    "last",
    "age",
    "back",
    "next_score",
    "next_place",
    "timing",
    "share",
    "longer_share",
    "short_share",
    "trend_place",
    "recent",
    "had_age",
    "again",
    "due",
    "success",
    "focus",
    "leaf_last",
    "leaf_age",
    "leaf_times",
    "wording",
    "taste",
    "used",
    "main_bought",
    "main_age",
    "echo_last",
    "echo_own",
    "covered",
    "returned",
    "need",
    "pace",
    "need_bought",
)


def empty_candidates(rows: int) -> dict[str, np.ndarray]:
    """Columns as `candidates` makes them, with nothing known of any row.

    Text is an object array with None where there is nothing, all else float64 with NaN.
    """
    made = {name: np.full(rows, np.nan) for name in NUMBERS}
    return made | {name: np.full(rows, None, dtype=object) for name in TEXT}


class Neighbour(NamedTuple):
    """A query that others went on to, and the source that says most for it."""

    score: float
    place: int
    source: str
    timing: float | None


def neighbours(
    state: UserState, day: DayStatistics, vocabulary: Vocabulary
) -> dict[str, Neighbour]:
    """What people with the user's past went on to search, fitted to the user's taste."""
    found = [(row, day.followers.get(row[0], NOBODY)) for row in state.sources]
    found = [(row, f) for row, f in found if len(f.ids)]
    if not found:
        return {}
    sizes = [len(f.ids) for _, f in found]
    value = np.concatenate([f.chance for _, f in found])
    value *= np.repeat([weight for (_, weight, _), _ in found], sizes)
    ids, place = np.unique(np.concatenate([f.ids for _, f in found]), return_inverse=True)
    # Sums differ in their last digits from order to order; what is equal must stay equal.
    score = np.round(0.3 * np.bincount(place, value), 12)
    fit = _fit(state, ids, vocabulary)
    fitting = score * fit
    ranked = np.round(fitting, 12)
    if len(ids) > CANDIDATES:
        least = np.partition(ranked, -CANDIDATES)[-CANDIDATES]
        top = np.flatnonzero(ranked >= least).tolist()
    else:
        top = list(range(len(ids)))
    keys = {i: vocabulary.keys[ids[i]] for i in top}
    top = sorted(top, key=lambda i: (-ranked[i], keys[i]))[:CANDIDATES]
    says: dict[int, tuple[float, str, float]] = {}
    delays: dict[int, tuple[float, str, float]] = {}
    chosen = np.zeros(len(ids), bool)
    chosen[top] = True
    owner = np.repeat(np.arange(len(found)), sizes)
    delay = np.concatenate([f.delay for _, f in found])
    here = np.flatnonzero(chosen[place])
    for i, o, v, d in zip(
        place[here].tolist(),
        owner[here].tolist(),
        np.round(value[here], 12).tolist(),
        delay[here].tolist(),
        strict=True,
    ):
        source, _, age = found[o][0]
        if i not in says or (v, source) > says[i][:2]:
            says[i] = (v, source, age)
        if d == d and (i not in delays or (v, source) > delays[i][:2]):
            delays[i] = (v, source, d)
    scale = float(score.sum() / fitting.sum())
    made = {}
    for number, i in enumerate(top, 1):
        _, source, age = says[i]
        timing = float(np.log(max(age, 0.02) / delays[i][2])) if i in delays else None
        made[keys[i]] = Neighbour(float(fitting[i]) * scale, number, source, timing)
    return made


class Need(NamedTuple):
    """How much a category is needed again, or next, and what says so."""

    strength: float
    pace: float = 0.0  # deviations of ln days from the usual time: below 0 it is early
    bought: bool = False  # what is followed was bought, and not only liked


def needs(state: UserState, day: DayStatistics) -> dict[str, Need]:
    """What people come back for who engaged with what the user did, as long ago.

    The strength is P(category) times the density of coming back after that time; of several
    engagements the one that says most counts.
    """
    made: dict[str, Need] = {}
    for category, age in state.engaged:
        back = day.returns.get(category, NEVER)
        paces = (np.log(max(age, 0.02)) - back.pace) / back.spread
        # Equal ones stay equal, so that the first of them counts everywhere.
        says = np.round(back.chance * np.exp(-0.5 * paces**2) / back.spread, 12)
        for leaf, strength, pace in zip(back.leaves, says.tolist(), paces.tolist(), strict=True):
            if leaf not in made or strength > made[leaf].strength:
                made[leaf] = Need(strength, pace, category.startswith("b:"))
    return made


def _named(rows: list[list[Any]]) -> dict[str | None, float]:
    return dict(rows)


def _fit(state: UserState, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """How well the wording of queries fits the user: (ids,)."""
    kinds, modifiers = vocabulary.worded()
    share = _named(state.wording)
    worded = np.array([share.get(kind, 0.0) + 0.15 for kind in KINDS])
    liked = np.full(len(vocabulary.modifiers) + 1, 0.07)
    for rows in (state.taste, state.used):
        for word, amount in rows:
            if word in vocabulary.modifiers:
                liked[vocabulary.modifiers[word]] += amount
    kind = kinds[ids]
    return np.asarray(worded[kind] * np.where(kind == 0, 0.4, liked[modifiers[ids]]))


def candidates(
    state: UserState,
    near: dict[str, Neighbour],
    day: DayStatistics,
    trends: dict[str, Trend],
    vocabulary: Vocabulary,
) -> dict[str, np.ndarray]:
    """Columns of `TEXT` and `NUMBERS`, a row a query, in order of the keys.

    Args:
        state: The user's, at the moment.
        near: What `neighbours` says.
        day: With the facts of all the queries read, and the cycles of their categories.
        trends: Of the moment's hour.
        vocabulary: Knows all the queries.
    """
    own = {row[0]: (back, *row[1:]) for back, row in enumerate(state.own, 1)}
    touched: dict[str, list[float]] = {}  # when the user last searched in a category
    for key, _, times, _, last, age in state.own:
        leaf = day.facts.get(key, NOTHING).leaf
        if leaf is None:
            continue
        row = touched.get(leaf)
        if row is None:
            touched[leaf] = [last, age, times]
        else:
            row[2] += times
    had, wording, taste, used = (
        _named(rows) for rows in (state.had, state.wording, state.taste, state.used)
    )
    knows = {product: (float(bought), age) for product, bought, age in state.knows}
    said = [
        (row[0], vocabulary.bags[vocabulary.number[row[0]]])
        for row in state.own[:ECHOED]
        if row[0] in vocabulary.number
    ]
    spoken = frozenset().union(*(bag for _, bag in said))  # their words: most share none of them
    due = needs(state, day)
    keys = sorted(candidate_keys(state, near, trends) & vocabulary.number.keys())
    text: list[tuple[str | None, ...]] = []
    numbers: list[tuple[Any, ...]] = []
    nothing: tuple[Any, ...] = (None,) * 5
    for key in keys:
        back, query, times, best, last, age = own.get(key, (None, *nothing))
        at = vocabulary.number[key]
        known, bag = vocabulary.wordings[at], vocabulary.bags[at]
        fact = day.facts.get(key, NOTHING)
        next_score, next_place, source, timing = near.get(key, nothing[:4])
        share, longer, short, place, recent = trends.get(key, nothing)
        had_age = had.get(fact.leaf)
        again, gap = day.cycles.get(fact.leaf, (None, None)) if fact.leaf else (None, None)
        echo = [0.0]
        if not spoken.isdisjoint(bag):
            echo = [_likeness(bag, other) if key != mine else 0.0 for mine, other in said]
        leaf_last, leaf_age, leaf_times = touched.get(fact.leaf or "", nothing[:3])
        need = due.get(fact.leaf or "", nothing[:3])
        main_bought, main_age = knows.get(fact.main or "", (None, None))
        text.append((key, query or known.query, source, fact.leaf, known.kind))
        numbers.append(
            (
                times,
                best,
                last,
                age,
                back,
                next_score,
                next_place,
                timing,
                share,
                longer,
                short,
                place,
                recent,
                had_age,
                again,
                had_age / gap if had_age is not None and gap else None,
                (fact.met + 1.0) / (fact.asked + 2.0),
                (fact.most + 0.3) / (fact.met + 1.0),
                leaf_last,
                leaf_age,
                leaf_times,
                wording.get(known.kind, 0.0),
                taste.get(known.modifier, 0.0),
                used.get(known.modifier, 0.0),
                main_bought,
                main_age,
                echo[0],
                max(echo),
                (fact.ten + 1.0) / (fact.met + 1.5),
                (fact.same + 0.2) / (fact.followed + 2.0),
                *need,
            )
        )
    if not keys:
        return empty_candidates(0)
    table = np.ascontiguousarray(np.array(numbers, dtype=np.float64).T)
    words = np.array(text, dtype=object).T
    return dict(zip(NUMBERS, table, strict=True)) | dict(zip(TEXT, words, strict=True))


def _likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """Words in both of all words (Jaccard)."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0


def candidate_keys(
    state: UserState, near: dict[str, Neighbour], trends: dict[str, Trend]
) -> set[str]:
    """The keys of the queries that are weighed."""
    made = {row[0] for row in state.own[:CANDIDATES]} | near.keys()
    return made | {key for key, trend in trends.items() if trend.place <= CANDIDATES}
