"""From a group of chains to a slate: the queries that one user is shown.

The agent ranks queries by its votes, and memory's lines follow. Most of these were never
searched; so they are searched here, and what is not fit to be shown ranks behind what is: queries
that lead to what is sold out, to what the user has bought just now, or, if an agent wrote them, to
nothing that has all their words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from itertools import chain

import numpy as np

from ..inventory.analyzer import product_terms
from ..inventory.types import ProductSearch
from ..live.limits import NO_LIMITS, PINNED, Limits, with_pins
from ..policy.calibration import Calibration
from ..protocol.config import AgentConfig
from ..types import Evidence, Line, Profile, Recommendation, Slate, UserContext
from ..utils.personal import looks_personal
from ..utils.text import query_key, words
from .tools import RETRIEVED
from .types import Group, Rollout

UNPROVEN = 0.03  # chance of a query that neither votes nor memory speak for
COVERING_SHARE = 0.4  # of a row's places, the last ones, go to what adds most products to it
LOOKED_AT = 5  # products by whose categories a query is judged


@dataclass(slots=True)
class _Candidate:
    """A query of the chains or of the profile, and what speaks for it."""

    query: str
    products: tuple[str, ...] = ()
    votes: int = 0  # chains that recommend it
    logprob: float = -np.inf  # of the most certain recommendation
    searches: int = 0

    @property
    def preference(self) -> tuple[float, ...]:
        """Candidates with lower values rank higher."""
        return (-self.votes, -self.logprob, -self.searches)


def aggregate_group(agent: AgentConfig, group: Group) -> list[Recommendation]:
    """`aggregate_rollouts` of a group, by the rules that its chains ran under."""
    # Without memory no line of the profile may fill up the slate.
    profile = group.task.profile if agent.memory else group.task.profile.without_memory()
    ranked = aggregate_rollouts(group.rollouts, profile, validated=agent.search)
    return covering(ranked) if agent.writes else ranked


def covering(ranked: Sequence[Recommendation], kept: int = 1) -> list[Recommendation]:
    """The queries in an order in which their products add to those of the queries before.

    Several queries often word one need, and a user looks at what a whole row leads to. So the first
    ``kept`` queries stay, and each next one is that which retrieves most of what may be wanted and
    no query before it retrieves: greedy maximum coverage, as Agrawal et al. (WSDM 2009) diversify
    results. A product is wanted by the chances of the queries that retrieve it. Queries without
    products stay behind.
    """
    left = [item for item in ranked if item.products]
    demand: defaultdict[str, float] = defaultdict(float)
    for item in left:
        for product in item.products[:RETRIEVED]:
            demand[product] += _chance(item)
    ordered, left = left[:kept], left[kept:]
    shown = {product for item in ordered for product in item.products[:RETRIEVED]}
    while left:
        gains = [sum(demand[p] for p in set(i.products[:RETRIEVED]) - shown) for i in left]
        item = left.pop(int(np.argmax(gains)))  # of equal ones the one that ranks higher
        ordered.append(item)
        shown.update(item.products[:RETRIEVED])
    return ordered + [item for item in ranked if not item.products]


def _chance(item: Recommendation) -> float:
    """How likely a query is wanted: by the share of votes, else by the line's score."""
    line = item.evidence.line if item.evidence else None
    return item.score or line or UNPROVEN


def aggregate_rollouts(
    rollouts: Sequence[Rollout], profile: Profile, validated: bool = True
) -> list[Recommendation]:
    """Rank the queries of a group of chains and of the profile that they read.

    Recommended queries come first, by votes, then by the log-probability of the most certain
    vote. Queries that chains searched follow, the most often searched first, and then the
    other lines of the profile in its order; these have no products yet. Queries of equal words
    and queries that retrieved nothing are left out.

    Args:
        rollouts: The chains of one user; without any, the profile's queries in their order.
        profile: What the chains read; it says why a query is recommended.
        validated: Only queries that retrieved products count; off where search is off.
    """
    candidates = _candidates(rollouts, validated)
    ranked = sorted(candidates, key=lambda key: (candidates[key].preference, key))
    searched = {query_key(t.query) for r in rollouts for t in r.turns if t.kind == "search"}
    lines: dict[str, Line] = {}
    for line in profile.lines:
        if line.query is None:
            continue
        key = query_key(line.query)
        lines[key] = line
        if key not in candidates and key not in searched:
            candidates[key] = _Candidate(line.query)
            ranked.append(key)
    # Queries of the profile may be shown to the user; one that a policy composed may hold what it
    # remembers of somebody else.
    ranked = [key for key in ranked if key in lines or not looks_personal(candidates[key].query)]
    recommendations: list[Recommendation] = []
    seen: set[frozenset[str]] = set()
    for key in ranked:
        candidate, line_of_it = candidates[key], lines.get(key)
        bag = frozenset(words(candidate.query))
        if bag in seen:
            continue
        seen.add(bag)
        recommendations.append(
            Recommendation(
                query=candidate.query,
                score=round(candidate.votes / max(1, len(rollouts)), 4),
                products=candidate.products,
                reason=(line_of_it and line_of_it.reason) or "composed from your memory",
                votes=candidate.votes,
                evidence=Evidence(
                    len(rollouts),
                    candidate.votes,
                    candidate.logprob if candidate.votes else 0.0,
                    line_of_it.score if line_of_it else None,
                ),
            )
        )
    return recommendations


def with_lines(ranked: Sequence[Recommendation], lines: Sequence[Line]) -> list[Recommendation]:
    """Ranked queries, and behind them the queries of some lines that have other words."""
    queries = list(ranked)
    chains = ranked[0].evidence.chains if ranked and ranked[0].evidence else 0
    seen = {frozenset(words(item.query)) for item in ranked}
    for line in lines:
        if line.query is not None and (bag := frozenset(words(line.query))) not in seen:
            seen.add(bag)
            evidence = Evidence(chains, line=line.score)
            queries.append(Recommendation(line.query, 0.0, (), line.reason, evidence=evidence))
    return queries


def with_chances(slate: Slate, calibration: Calibration | None) -> Slate:
    """The slate with the chance of each query, where that has been learned."""
    if calibration is None:
        return slate
    return tuple(
        replace(item, chance=calibration.chance(item.evidence)) if item.evidence else item
        for item in slate
    )


def _candidates(rollouts: Sequence[Rollout], validated: bool) -> dict[str, _Candidate]:
    """The queries that chains searched or recommend, by their normalised form."""
    candidates: dict[str, _Candidate] = {}
    for rollout in rollouts:
        for turn in rollout.turns:
            if turn.kind == "search" and (turn.products or not validated):
                key = query_key(turn.query)
                candidate = candidates.setdefault(key, _Candidate(turn.query, turn.products))
                candidate.searches += 1
        if rollout.query and not validated:
            candidates.setdefault(rollout.query_key, _Candidate(rollout.query))
        recommended = candidates.get(rollout.query_key)
        if recommended is not None and (rollout.validated or not validated):
            recommended.votes += 1
            recommended.logprob = max(recommended.logprob, rollout.answer_logprob)
    return candidates


class Fit(IntEnum):
    """How fit a query is to be shown; what is fitter comes first, whoever ranked it."""

    FIT = 0
    FIRST_SOLD_OUT = 1  # the product that it leads to first, but not all of them
    UNANSWERED = 2  # an agent wrote it, and no product that it leads to has all its words
    JUST_BOUGHT = 3  # it leads to a category that the user has bought just now
    SOLD_OUT = 4  # all that it leads to


@dataclass(frozen=True, slots=True)
class SlateRequest:
    """A user who waits for a slate.

    Attributes:
        ranked: The user's queries, best first (`aggregate_rollouts`).
        moment: As of it products are in stock.
        size: How many queries the user is shown at most.
        context: What the user has bought just now.
        check_stock: Off where nobody knows what was in stock then.
        limits: What the slate may hold, and what is pinned in it.
    """

    ranked: Sequence[Recommendation]
    moment: datetime
    size: int
    context: UserContext = field(default_factory=UserContext)
    check_stock: bool = True
    limits: Limits = NO_LIMITS


def _covering_places(size: int) -> int:
    """How many places of a row go to the queries that add most products to it."""
    return int(COVERING_SHARE * size)


def _pool(size: int) -> int:
    """How many fit queries a row is chosen from."""
    return 2 * size if _covering_places(size) else size


class SlateFiller:
    """Fills slates from ranked queries, and adds the products that each query retrieves.

    This is the one place that decides what is fit to show: the agent's slates, its fallbacks and
    those of memory alone all come from here.
    """

    def __init__(self, search: ProductSearch) -> None:
        self._search = search
        self._catalog = search.catalog

    def fill(self, requests: Sequence[SlateRequest]) -> list[Slate]:
        """Choose what each user is shown.

        Fit queries come first, in their order but for the last places, which go to those that add
        most products (`covering`); the others follow only where these do not fill the slate
        (`Fit`), and what retrieves nothing is left out. Each round searches for all users in one
        call.
        """
        allowed = [[i for i in r.ranked if r.limits.allows(i.query)] for r in requests]
        users = range(len(requests))
        found: list[list[list[Recommendation]]] = [[[] for _ in Fit] for _ in users]
        position = [0] * len(requests)  # in the ranked queries of each user
        while True:
            missing = [
                ranked[at:][: _pool(request.size) - len(levels[Fit.FIT])]
                for request, ranked, at, levels in zip(
                    requests, allowed, position, found, strict=True
                )
            ]
            if not any(missing):
                break
            searched = self._search_all(missing, [request.moment for request in requests])
            for user, items in enumerate(searched):
                position[user] += len(missing[user])
                for item in self._trimmed(items, requests[user].limits):
                    found[user][self.fit(item, requests[user])].append(item)
        slates = []
        for request, (fit, *others) in zip(requests, found, strict=True):
            row = covering(fit, request.size - _covering_places(request.size))
            slates.append(tuple(chain(row, *others))[: request.size])
        return self._pin(slates, requests)

    def _pin(self, slates: Sequence[Slate], requests: Sequence[SlateRequest]) -> list[Slate]:
        """The slates with the queries that the shop pins, where they retrieve something."""
        pins = [
            request.limits.pinned(slate, self._category_of)
            for slate, request in zip(slates, requests, strict=True)
        ]
        if not any(pins):
            return list(slates)
        items = [[Recommendation(q, 0.0, (), PINNED) for _, q in of_user] for of_user in pins]
        found = self._search_all(items, [request.moment for request in requests])
        pinned = []
        for slate, of_user, searched, request in zip(slates, pins, found, requests, strict=True):
            shown = {item.query: item for item in self._trimmed(searched, request.limits)}
            placed = [(place, shown[query]) for place, query in of_user if query in shown]
            pinned.append(with_pins(slate, placed, request.size))
        return pinned

    def _trimmed(self, items: Sequence[Recommendation], limits: Limits) -> list[Recommendation]:
        """The items that may be shown, with the products that they may show."""
        trimmed = (limits.trim(item, self._category_of) for item in items)
        return [item for item in trimmed if item is not None]

    def _category_of(self, product: str) -> str:
        return self._catalog.categories[self._catalog.row_of[product]] or ""

    def fit(self, item: Recommendation, request: SlateRequest) -> Fit:
        """How fit a query is that retrieves products, one at least."""
        rows = [self._catalog.row_of[product] for product in item.products]
        first_sold_out = False
        if request.check_stock:
            first_sold_out = not self._in_stock(rows[0], request.moment)
            if first_sold_out and not any(self._in_stock(r, request.moment) for r in rows[1:]):
                return Fit.SOLD_OUT
        if self._just_bought(rows, request.context):
            return Fit.JUST_BOUGHT
        if not self._is_answered(item, rows):
            return Fit.UNANSWERED
        return Fit.FIRST_SOLD_OUT if first_sold_out else Fit.FIT

    def _is_answered(self, item: Recommendation, rows: Sequence[int]) -> bool:
        """Whether a product has all words of a query; asked of those that an agent wrote.

        A search finds dog food for "black dog food", too, and so no reward tells them apart.
        """
        if item.evidence is None or item.evidence.line is not None:
            return True  # memory names it
        wanted = set(product_terms(item.query))
        return any(wanted.issubset(product_terms(self._catalog.text(row))) for row in rows)

    def _in_stock(self, row: int, moment: datetime) -> bool:
        return self._catalog.state_at(row, moment)[1]

    def _just_bought(self, rows: Sequence[int], context: UserContext) -> bool:
        """Whether the first product, or most of the first, are what the user has bought now."""
        if not context.just_bought and not context.just_bought_products:
            return False
        had = [
            leaf in context.just_bought
            if (leaf := self._catalog.leaf(row))
            else self._catalog.ids[row] in context.just_bought_products
            for row in rows[:LOOKED_AT]
        ]
        return had[0] or 2 * sum(had) > len(had)

    def _search_all(
        self, queries: Sequence[Sequence[Recommendation]], moments: Sequence[datetime]
    ) -> list[list[Recommendation]]:
        """Each user's queries with their products, without those that retrieve nothing."""
        requests = list(
            dict.fromkeys(
                (item.query, moment)
                for items, moment in zip(queries, moments, strict=True)
                for item in items
                if not item.products
            )
        )
        products: dict[tuple[str, datetime], tuple[str, ...]] = {}
        if requests:
            texts, times = [query for query, _ in requests], [moment for _, moment in requests]
            results = self._search.search(texts, RETRIEVED, times)
            for request, hits in zip(requests, results, strict=True):
                products[request] = tuple(hit.product_id for hit in hits)
        completed = [
            [replace(i, products=i.products or products[i.query, moment]) for i in items]
            for items, moment in zip(queries, moments, strict=True)
        ]
        return [[item for item in items if item.products] for items in completed]
