"""Candidates: the queries that a user may want next, with all that the ranker sees of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from .neighbours import Need, Neighbour
from .statistics_cache import NO_CYCLE, NO_FACTS, DayStatistics, QueryFacts, Trend, Vocabulary
from .user_state import OwnQuery, UserState

MAX_CANDIDATES = 32  # own queries, and trends
MAX_ECHOED = 8  # of the user's last queries, whose words are looked for in candidates


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate queries as columns; ages and delays are in days.

    Where a statement does not apply to a query, a number is NaN and a text None.
    """

    # The query, what its wording names, and the category that it mostly leads to
    query_key: np.ndarray
    query: np.ndarray
    kind: np.ndarray
    leaf: np.ndarray
    source: np.ndarray  # of the neighbour (`user_state.Source`)
    # The user's own searches of it
    recency_rank: np.ndarray  # 1: the user's last query
    searches: np.ndarray
    last_outcome: np.ndarray
    age: np.ndarray
    # As a neighbour
    neighbour_score: np.ndarray
    timing: np.ndarray
    # Its share of the shop's searches just now, against those of a longer and a shorter window
    trend_share: np.ndarray
    longer_share: np.ndarray
    short_share: np.ndarray
    # Its category: the user's last purchase, P(bought again), and age / usual days between
    bought_age: np.ndarray
    repurchase: np.ndarray
    repurchase_pace: np.ndarray
    # Searches of it in the shop, smoothed
    success: np.ndarray  # P(engagement | search)
    focus: np.ndarray  # P(the top product | engagement)
    coverage: np.ndarray  # P(one of the top ten products | engagement)
    return_rate: np.ndarray  # P(searched again in the next session)
    # The user's searches of its category
    leaf_outcome: np.ndarray
    leaf_age: np.ndarray
    leaf_searches: np.ndarray
    # The user's shares of its kind of wording, and of the brand or attribute that it names
    wording: np.ndarray
    taste: np.ndarray
    typed: np.ndarray
    # The product that it mostly leads to, where the user has engaged with that
    product_bought: np.ndarray
    product_age: np.ndarray
    # Jaccard similarity of its words to the user's last query, and the most to one of the last
    echo_last: np.ndarray
    echo_most: np.ndarray
    # How much its category is needed (`neighbours.Need`)
    need: np.ndarray
    need_pace: np.ndarray
    need_bought: np.ndarray

    @classmethod
    def unknown(cls, size: int) -> Candidates:
        """Candidates of which nothing is known."""
        numbers = iter(np.full((len(COLUMNS) - len(TEXTS), size), np.nan))
        return cls(
            **{name: np.full(size, None) if name in TEXTS else next(numbers) for name in COLUMNS}
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of several moments one after the other."""
        parts = parts or [cls.unknown(0)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.query_key)

    def __getitem__(self, rows: slice | np.ndarray) -> Candidates:
        return Candidates(*(getattr(self, name)[rows] for name in COLUMNS))


COLUMNS = tuple(f.name for f in fields(Candidates))
TEXTS = ("query_key", "query", "kind", "leaf", "source")


def candidate_keys(
    state: UserState, near: Mapping[str, Neighbour], trends: Mapping[str, Trend]
) -> set[str]:
    """The keys of the user's last queries, of neighbours and of what is trending."""
    own = {query.key for query in state.queries[:MAX_CANDIDATES]}
    trending = {key for key, trend in trends.items() if trend.rank <= MAX_CANDIDATES}
    return own | near.keys() | trending


def candidates(
    state: UserState,
    near: Mapping[str, Neighbour],
    needed: Mapping[str, Need],
    day: DayStatistics,
    trends: Mapping[str, Trend],
    vocabulary: Vocabulary,
    own_only: bool,
) -> Candidates:
    """The candidates of a moment in order of their keys.

    The statistics of the moment's ``day`` hold the facts of all candidates and of the user's
    queries, and the cycles of their categories; ``trends`` are those of the moment's hour. With
    ``own_only``, all that is taken from how others searched is a query's category.
    """
    keys = sorted(candidate_keys(state, near, trends) & vocabulary.ids.keys())
    table = Candidates.unknown(len(keys))
    if not keys:
        return table
    facts = [day.facts.get(key, NO_FACTS) for key in keys]
    if own_only:
        facts = [QueryFacts(leaf=fact.leaf) for fact in facts]
    wordings = [vocabulary.wordings[vocabulary.ids[key]] for key in keys]
    table.query_key[:] = _texts(keys)
    table.query[:] = _texts([wording.query for wording in wordings])
    table.kind[:] = _texts([wording.kind for wording in wordings])
    table.leaf[:] = _texts([fact.leaf for fact in facts])
    table.wording[:] = [state.wording.get(wording.kind, 0.0) for wording in wordings]
    table.taste[:] = [state.taste.get(wording.modifier or "", 0.0) for wording in wordings]
    table.typed[:] = [state.typed.get(wording.modifier or "", 0.0) for wording in wordings]
    _add_own_searches(table, keys, state.queries)
    _add_neighbours_and_trends(table, keys, near, trends)
    _add_facts(table, facts)
    _add_categories(table, state, needed, day)
    _add_products(table, facts, state)
    _add_echoes(table, keys, state.queries[:MAX_ECHOED], vocabulary)
    return table


def _texts(values: Sequence[str | None]) -> np.ndarray:
    return np.array(values, dtype=object)


def _add_own_searches(table: Candidates, keys: list[str], queries: Sequence[OwnQuery]) -> None:
    place = {key: row for row, key in enumerate(keys)}
    ranked = [(rank, query) for rank, query in enumerate(queries, 1) if query.key in place]
    rows = [place[query.key] for _, query in ranked]
    table.query[rows] = _texts([query.text for _, query in ranked])
    table.recency_rank[rows] = [rank for rank, _ in ranked]
    table.searches[rows] = [query.searches for _, query in ranked]
    table.last_outcome[rows] = [query.last_outcome for _, query in ranked]
    table.age[rows] = [query.age for _, query in ranked]


def _add_neighbours_and_trends(
    table: Candidates, keys: list[str], near: Mapping[str, Neighbour], trends: Mapping[str, Trend]
) -> None:
    rows = [row for row, key in enumerate(keys) if key in near]
    followers = [near[keys[row]] for row in rows]
    table.neighbour_score[rows] = [neighbour.score for neighbour in followers]
    table.source[rows] = _texts([neighbour.source for neighbour in followers])
    table.timing[rows] = [neighbour.timing for neighbour in followers]
    rows = [row for row, key in enumerate(keys) if key in trends]
    shares = [trends[keys[row]] for row in rows]
    table.trend_share[rows] = [trend.share for trend in shares]
    table.longer_share[rows] = [trend.longer_share for trend in shares]
    table.short_share[rows] = [trend.short_share for trend in shares]


def _add_facts(table: Candidates, facts: Sequence[QueryFacts]) -> None:
    """Rates of what became of the queries, each drawn towards a prior."""
    searches = np.array([fact.searches for fact in facts])
    engagements = np.array([fact.engagements for fact in facts])
    table.success[:] = (engagements + 1.0) / (searches + 2.0)
    table.focus[:] = (np.array([f.top_engagements for f in facts]) + 0.3) / (engagements + 1.0)
    top_ten = np.array([fact.top_ten_engagements for fact in facts])
    table.coverage[:] = (top_ten + 1.0) / (engagements + 1.5)
    repeated = np.array([fact.repeated for fact in facts])
    table.return_rate[:] = (repeated + 0.2) / (np.array([f.followed for f in facts]) + 2.0)


def _add_categories(
    table: Candidates, state: UserState, needed: Mapping[str, Need], day: DayStatistics
) -> None:
    """What the user bought, searched and needs of the queries' categories."""
    searched: dict[str, list[OwnQuery]] = defaultdict(list)  # the last searched first
    for query in state.queries:
        if leaf := day.facts.get(query.key, NO_FACTS).leaf:
            searched[leaf].append(query)
    for row, leaf in enumerate(table.leaf):
        if leaf is None:
            continue
        cycle = day.cycles.get(leaf, NO_CYCLE)
        table.repurchase[row] = cycle.probability
        if leaf in state.bought:
            table.bought_age[row] = state.bought[leaf]
            table.repurchase_pace[row] = state.bought[leaf] / (cycle.days or np.nan)
        if leaf in searched:
            last = searched[leaf][0]
            table.leaf_outcome[row], table.leaf_age[row] = last.last_outcome, last.age
            table.leaf_searches[row] = sum(query.searches for query in searched[leaf])
        if leaf in needed:
            table.need[row], table.need_pace[row], table.need_bought[row] = needed[leaf]


def _add_products(table: Candidates, facts: Sequence[QueryFacts], state: UserState) -> None:
    engaged = {product.product_id: product for product in state.engaged_products}
    for row, fact in enumerate(facts):
        if product := engaged.get(fact.top_product or ""):
            table.product_bought[row], table.product_age[row] = product.bought, product.age


def _add_echoes(
    table: Candidates, keys: list[str], queries: Sequence[OwnQuery], vocabulary: Vocabulary
) -> None:
    """Shared words with the user's last queries; a query is not compared with itself."""
    said = [
        (query.key, vocabulary.terms[vocabulary.ids[query.key]])
        for query in queries
        if query.key in vocabulary.ids
    ]
    spoken = frozenset[str]().union(*(terms for _, terms in said))
    table.echo_last[:] = table.echo_most[:] = 0.0
    for row, key in enumerate(keys):
        terms = vocabulary.terms[vocabulary.ids[key]]
        if not spoken.isdisjoint(terms):  # most share none of them
            echoes = [_jaccard(terms, other) if key != own else 0.0 for own, other in said]
            table.echo_last[row], table.echo_most[row] = echoes[0], max(echoes)


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0
