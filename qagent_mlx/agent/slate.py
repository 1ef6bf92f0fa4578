"""From a group of chains to a slate: the queries that one user is shown.

The agent decides which query comes first. The rest of a slate are queries that the agent did
not choose, mostly ones that it never searched; so they are searched here, and a query whose
top product is sold out ranks behind those whose top product can be bought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from ..inventory.types import ProductSearch
from ..protocol.config import AgentConfig
from ..types import Profile, Recommendation, Slate
from ..utils.text import query_key, words
from .tools import RETRIEVED
from .types import Group, Rollout


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
    return aggregate_rollouts(group.rollouts, profile, validated=agent.search)


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
    reasons = {}
    for line in profile.lines:
        if line.query is None:
            continue
        key = query_key(line.query)
        reasons[key] = line.reason
        if key not in candidates and key not in searched:
            candidates[key] = _Candidate(line.query)
            ranked.append(key)
    recommendations: list[Recommendation] = []
    seen: set[frozenset[str]] = set()
    for key in ranked:
        candidate = candidates[key]
        bag = frozenset(words(candidate.query))
        if bag in seen:
            continue
        seen.add(bag)
        recommendations.append(
            Recommendation(
                query=candidate.query,
                score=round(candidate.votes / max(1, len(rollouts)), 4),
                products=candidate.products,
                reason=reasons.get(key, "") or "composed from your memory",
                votes=candidate.votes,
            )
        )
    return recommendations


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


class SlateFiller:
    """Fills slates from ranked queries, and adds the products that each query retrieves."""

    def __init__(self, search: ProductSearch) -> None:
        self._search = search
        self._catalog = search.catalog

    def fill(
        self,
        ranked: Sequence[Sequence[Recommendation]],
        moments: Sequence[datetime],
        sizes: Sequence[int],
        check_stock: Sequence[bool],
    ) -> list[Slate]:
        """Choose what each user is shown.

        The first query stays first where a chain recommends it. Of the others, as many are
        searched as it takes to fill the slate with queries whose top product is in stock;
        queries whose top product is sold out follow them, and queries that retrieve nothing
        are left out. Each round searches for all users in one call.

        Args:
            ranked: The queries of each user, best first (`aggregate_rollouts`).
            moments: The moment of each user, as of which products are in stock.
            sizes: How many queries each user is shown at most.
            check_stock: Whether stock counts for a user; otherwise the order stays.
        """
        users = range(len(ranked))
        available: list[list[Recommendation]] = [[] for _ in users]
        sold_out: list[list[Recommendation]] = [[] for _ in users]
        position = [0] * len(ranked)  # in the ranked queries of each user
        while True:
            missing = [
                ranked[user][position[user] :][: sizes[user] - len(available[user])]
                for user in users
            ]
            if not any(missing):
                break
            for user, searched in enumerate(self._search_all(missing, moments)):
                position[user] += len(missing[user])
                for item in searched:
                    is_choice = not available[user] and item.votes > 0
                    is_shown = (
                        is_choice
                        or not check_stock[user]
                        or self._in_stock(item.products[0], moments[user])
                    )
                    (available if is_shown else sold_out)[user].append(item)
        return [tuple([*available[u], *sold_out[u]][: sizes[u]]) for u in users]

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

    def _in_stock(self, product: str, moment: datetime) -> bool:
        return self._catalog.state_at(self._catalog.row_of[product], moment)[1]
