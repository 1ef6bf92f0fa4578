"""Finds the candidates of many moments at once, with all that the ranker sees of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from .candidates import Candidates
from .keyed import Keyed, Numbers, first_of_runs
from .neighbours import Needs, Neighbours, kind_shares, modifier_shares
from .statistics_cache import NO_CYCLE, NO_FACTS, DayStatistics, QueryFacts, Trend, Vocabulary
from .user_state import UserState
from .word_echoes import echoes

MAX_CANDIDATES = 32  # own queries, and trends
MAX_ECHOED = 8  # of the user's last queries, whose words are looked for in candidates


class _Own(NamedTuple):
    """The users' own queries as columns; of each moment the last searched first."""

    moments: np.ndarray
    ids: np.ndarray
    ranks: np.ndarray  # from 1
    searches: np.ndarray
    outcomes: np.ndarray
    ages: np.ndarray
    texts: np.ndarray


class _Trends(NamedTuple):
    """What the shop searched before the moments, as columns."""

    moments: np.ndarray
    ids: np.ndarray
    ranks: np.ndarray  # from 1
    shares: np.ndarray
    longer_shares: np.ndarray
    short_shares: np.ndarray


class CandidateFinder:
    """The candidates of some moments: the users' last queries, neighbours, and trends.

    In order of moment and key; those of moment m are rows ``starts[m]:starts[m + 1]``.

    Args:
        states: The user's state at each moment.
        days: The start of each moment's day.
        trends: What the shop searched before each moment's hour.
        near: The queries of people with the same past.
        vocabulary: Knows all these queries.
    """

    def __init__(
        self,
        states: Sequence[UserState],
        days: Sequence[datetime],
        trends: Sequence[Mapping[str, Trend]],
        near: Neighbours,
        vocabulary: Vocabulary,
    ) -> None:
        self._states, self._near, self._vocabulary = states, near, vocabulary
        size = self._size = max(1, len(vocabulary.keys))
        own = self._own = _own_queries(states, vocabulary)
        now = self._trends = _trends(trends, vocabulary)
        last, first = own.ranks <= MAX_CANDIDATES, now.ranks <= MAX_CANDIDATES
        moments = np.concatenate([own.moments[last], near.moments, now.moments[first]])
        ids = np.concatenate([own.ids[last], near.ids, now.ids[first]])
        pairs = np.unique(moments * size + ids)
        order = np.lexsort((vocabulary.key_ranks(pairs % size), pairs // size))
        self._moments, self._ids = np.divmod(pairs[order], size)
        self._rows = Keyed(pairs[order], np.arange(len(pairs)))
        self.starts = np.searchsorted(self._moments, np.arange(len(states) + 1))
        # Facts are asked of candidates and of the users' own queries, each of a day once.
        self._days = Numbers[datetime]()
        self._day_of = self._days.number(days)
        self._asked, self._asked_of = np.unique(
            self._day_of[np.append(self._moments, own.moments)] * size
            + np.append(self._ids, own.ids),
            return_inverse=True,
        )

    def queries(self) -> dict[datetime, set[str]]:
        """The keys of the queries of each day whose facts have to be known."""
        asked: dict[datetime, set[str]] = {day: set() for day in self._days.of}
        days, keys = list(asked.values()), self._vocabulary.keys
        for pair in self._asked.tolist():
            day, query = divmod(pair, self._size)
            days[day].add(keys[query])
        return asked

    def table(
        self, known: Mapping[datetime, DayStatistics], needed: Needs, own_only: bool
    ) -> Candidates:
        """All that is known of the candidates.

        Args:
            known: What the shop knew on each day: the facts of `queries`, and the cycles of
                their categories.
            needed: What each moment's user needs again.
            own_only: Take nothing from how others searched but a query's category.
        """
        table = Candidates.unknown(len(self._ids))
        if not len(table):
            return table
        days = [known[day] for day in self._days.of]
        facts = [
            days[pair // self._size].facts.get(self._vocabulary.keys[pair % self._size], NO_FACTS)
            for pair in self._asked.tolist()
        ]
        if own_only:
            facts = [QueryFacts(leaf=fact.leaf) for fact in facts]
        self._add_wordings(table)
        self._add_own_searches(table)
        self._add_neighbours_and_trends(table)
        asked_of = self._asked_of[: len(table)]
        _add_facts(table, facts, asked_of)
        self._add_categories(table, days, facts, needed)
        self._add_products(table, facts)
        said = self._own.ranks <= MAX_ECHOED
        table.echo_last[:], table.echo_most[:] = echoes(
            (self._moments, self._ids),
            (self._own.moments[said], self._own.ids[said]),
            self._vocabulary.terms,
        )
        return table

    def _pairs(self, moments: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which queries at moments are candidates, and in which rows."""
        known, (rows,) = self._rows.get(moments * self._size + ids)
        return known, rows

    def _add_wordings(self, table: Candidates) -> None:
        vocabulary, moments = self._vocabulary, self._moments
        distinct, query_of = np.unique(self._ids, return_inverse=True)
        ids = distinct.tolist()
        wordings = [vocabulary.wordings[i] for i in ids]
        table.query_key[:] = _texts(vocabulary.keys[i] for i in ids)[query_of]
        table.query[:] = _texts(wording.query for wording in wordings)[query_of]
        table.kind[:] = _texts(wording.kind for wording in wordings)[query_of]
        kinds, modifiers = (column[self._ids] for column in vocabulary.kinds_and_modifiers())
        table.wording[:] = kind_shares(self._states)[moments, kinds]
        for name in ("taste", "typed"):
            shares = [getattr(state, name) for state in self._states]
            getattr(table, name)[:] = modifier_shares(shares, moments, modifiers, vocabulary)

    def _add_own_searches(self, table: Candidates) -> None:
        own = self._own
        known, rows = self._pairs(own.moments, own.ids)
        table.query[rows] = own.texts[known]
        table.recency_rank[rows] = own.ranks[known]
        table.searches[rows] = own.searches[known]
        table.last_outcome[rows] = own.outcomes[known]
        table.age[rows] = own.ages[known]

    def _add_neighbours_and_trends(self, table: Candidates) -> None:
        near, now = self._near, self._trends
        known, rows = self._pairs(near.moments, near.ids)
        table.neighbour_score[rows] = near.scores[known]
        table.source[rows] = near.sources[known]
        table.timing[rows] = near.timing[known]
        known, rows = self._pairs(now.moments, now.ids)
        table.trend_share[rows] = now.shares[known]
        table.longer_share[rows] = now.longer_shares[known]
        table.short_share[rows] = now.short_shares[known]

    def _add_categories(
        self,
        table: Candidates,
        days: Sequence[DayStatistics],
        facts: Sequence[QueryFacts],
        needed: Needs,
    ) -> None:
        """What the users bought, searched and need of the queries' categories."""
        leaves = Numbers[str]()
        leaf = leaves.number(fact.leaf for fact in facts)[self._asked_of]
        table.leaf[:] = _texts(fact.leaf for fact in facts)[self._asked_of[: len(table)]]
        leaf, own_leaf = leaf[: len(table)], leaf[len(table) :]
        rows = np.flatnonzero(leaf >= 0)
        key = leaves.key(self._moments[rows], leaf[rows])
        names = list(leaves.of)
        cycle_of, row_cycle = np.unique(
            leaves.key(self._day_of[self._moments[rows]], leaf[rows]), return_inverse=True
        )
        cycles = [
            days[pair // len(names)].cycles.get(names[pair % len(names)], NO_CYCLE)
            for pair in cycle_of.tolist()
        ]
        table.repurchase[rows] = np.array([cycle.probability for cycle in cycles])[row_cycle]
        usual = np.array([cycle.days or np.nan for cycle in cycles])[row_cycle]
        bought = _of_moments(leaves, [state.bought.items() for state in self._states])
        known, (age,) = bought.get(key)
        table.bought_age[rows[known]] = age
        table.repurchase_pace[rows[known]] = age / usual[known]
        _put(
            table,
            rows,
            key,
            self._searched(leaves, own_leaf),
            ("leaf_outcome", "leaf_age", "leaf_searches"),
        )
        ids = leaves.known(needed.leaves.tolist())
        wanted = np.flatnonzero(ids >= 0)
        columns = (needed.strengths, needed.paces, needed.bought)
        needs = Keyed(
            leaves.key(needed.moments[wanted], ids[wanted]), *(c[wanted] for c in columns)
        )
        _put(table, rows, key, needs, ("need", "need_pace", "need_bought"))

    def _searched(self, leaves: Numbers[str], leaf: np.ndarray) -> Keyed:
        """By moment and category: outcome and age of the last search, and how many there were."""
        own = self._own
        rows = np.flatnonzero(leaf >= 0)
        rows = rows[np.lexsort((own.ranks[rows], leaf[rows], own.moments[rows]))]
        key = leaves.key(own.moments[rows], leaf[rows])
        first = first_of_runs(key)
        searches = np.add.reduceat(own.searches[rows], first) if len(first) else first
        return Keyed(key[first], own.outcomes[rows[first]], own.ages[rows[first]], searches)

    def _add_products(self, table: Candidates, facts: Sequence[QueryFacts]) -> None:
        """What the users did with the product that a query mostly leads to."""
        products = Numbers[str]()
        product = products.number(fact.top_product for fact in facts)
        product = product[self._asked_of[: len(table)]]
        rows = np.flatnonzero(product >= 0)
        engaged = _of_moments(
            products,
            [
                [(p.product_id, (p.bought, p.age)) for p in state.engaged_products]
                for state in self._states
            ],
            columns=2,
        )
        key = products.key(self._moments[rows], product[rows])
        _put(table, rows, key, engaged, ("product_bought", "product_age"))


def _put(
    table: Candidates, rows: np.ndarray, key: np.ndarray, values: Keyed, names: Sequence[str]
) -> None:
    """Set the named columns of the rows whose key has values."""
    known, columns = values.get(key)
    for name, column in zip(names, columns, strict=True):
        getattr(table, name)[rows[known]] = column


def _texts(values: Iterable[str | None]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[np.ndarray]:
    return [np.array(c) for c in zip(*rows, strict=True)] or [np.empty(0, np.int64)] * count


def _of_moments(
    numbers: Numbers[str], moments: Sequence[Iterable[tuple[str, Any]]], columns: int = 1
) -> Keyed:
    """The values of each moment's names, of those that have a number."""
    found = [
        (moment * numbers.size + number, *(values if columns > 1 else (values,)))
        for moment, items in enumerate(moments)
        for name, values in items
        if (number := numbers.of.get(name)) is not None
    ]
    return Keyed(*_columns(found, 1 + columns))


def _own_queries(states: Sequence[UserState], vocabulary: Vocabulary) -> _Own:
    ids = vocabulary.ids
    rows = [
        (moment, number, rank, q.searches, q.last_outcome, q.age, q.text)
        for moment, state in enumerate(states)
        for rank, q in enumerate(state.queries, 1)
        if (number := ids.get(q.key)) is not None
    ]
    *numbers, texts = list(zip(*rows, strict=True)) or [()] * 7
    moments, ids_of, ranks, searches, outcomes = (
        np.array(column, np.int64) for column in numbers[:5]
    )
    ages = np.array(numbers[5], dtype=float)
    return _Own(moments, ids_of, ranks, searches, outcomes, ages, _texts(texts))


def _trends(trends: Sequence[Mapping[str, Trend]], vocabulary: Vocabulary) -> _Trends:
    ids = vocabulary.ids
    distinct = {
        id(hour): np.array(
            [
                (ids[key], trend.rank, trend.share, trend.longer_share, trend.short_share)
                for key, trend in hour.items()
                if key in ids
            ],
            dtype=float,
        ).reshape(-1, 5)
        for hour in {id(hour): hour for hour in trends}.values()
    }
    parts = [distinct[id(hour)] for hour in trends]
    moments = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    numbers, *others = np.concatenate([np.empty((0, 5)), *parts]).T
    return _Trends(moments, numbers.astype(np.int64), *others)


def _add_facts(table: Candidates, facts: Sequence[QueryFacts], fact_of: np.ndarray) -> None:
    """Rates of what became of the queries, each drawn towards a prior."""
    searches, engagements, top, top_ten, followed, repeated = (
        np.array([getattr(fact, name) for fact in facts])[fact_of]
        for name in (
            "searches",
            "engagements",
            "top_engagements",
            "top_ten_engagements",
            "followed",
            "repeated",
        )
    )
    table.success[:] = (engagements + 1.0) / (searches + 2.0)
    table.focus[:] = (top + 0.3) / (engagements + 1.0)
    table.coverage[:] = (top_ten + 1.0) / (engagements + 1.5)
    table.return_rate[:] = (repeated + 0.2) / (followed + 2.0)
