"""From a group of chains to a row of queries worth showing.

The agent decides what comes first. What fills the row behind it are queries that the agent did
not choose, mostly ones that it never searched; so they are searched here, and a query whose
first product is sold out comes after those whose first product can be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from ..inventory.types import ProductSearch
from ..protocol.config import AgentConfig
from ..types import Profile, Recommendation
from ..utils.text import query_key, words
from .tools import KEPT, empty_profile
from .types import Rollout


def aggregate_group(
    agent: AgentConfig, rollouts: Sequence[Rollout], profile: Profile
) -> list[Recommendation]:
    """`aggregate_rollouts` by the rules that a group of chains ran under."""
    # Without memory no line of it may fill the answer up.
    read = profile if agent.memory else empty_profile(profile)
    return aggregate_rollouts(rollouts, read, validated=agent.search)


def aggregate_rollouts(
    rollouts: Sequence[Rollout], profile: Profile, validated: bool = True
) -> list[Recommendation]:
    """Rank what a group of chains recommends.

    Validated recommendations come first, by votes, then by the best log-probability of the
    answer. Queries that some chain searched and that found products follow, in the order of
    how many chains searched them, and last the other lines of memory; these have no products
    yet. Near-duplicates and queries of which a chain found that they retrieve nothing are left
    out.

    Args:
        rollouts: The chains of one user; without any, the lines of memory in their order.
        profile: What they read; says why a query was in reach.
        validated: Only queries that found products count; off where search is switched off.
    """
    votes: dict[str, int] = {}
    surest: dict[str, float] = {}
    looked: dict[str, int] = {}
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    searched: set[str] = set()
    for rollout in rollouts:
        for turn in rollout.turns:
            if turn.kind != "search":
                continue
            key = query_key(turn.query)
            searched.add(key)
            if turn.products or not validated:
                found.setdefault(key, (turn.query, turn.products))
                looked[key] = looked.get(key, 0) + 1
        if rollout.query and not validated:
            found.setdefault(rollout.key, (rollout.query, ()))
            looked.setdefault(rollout.key, 0)
        if rollout.key in found and (rollout.validated or not validated):
            votes[rollout.key] = votes.get(rollout.key, 0) + 1
            surest[rollout.key] = max(surest.get(rollout.key, -np.inf), rollout.answer_logprob)
    order = sorted(
        found, key=lambda key: (-votes.get(key, 0), -surest.get(key, -np.inf), -looked[key], key)
    )
    reasons = {}
    for line in profile.lines:
        if line.query is not None:
            key = query_key(line.query)
            reasons[key] = line.reason
            if key not in found and key not in searched:
                found[key] = (line.query, ())
                order.append(key)
    made: list[Recommendation] = []
    seen: set[frozenset[str]] = set()
    for key in order:
        query, products = found[key]
        bag = frozenset(words(query))
        if bag in seen:
            continue
        seen.add(bag)
        made.append(
            Recommendation(
                query=query,
                score=round(votes.get(key, 0) / max(1, len(rollouts)), 4),
                products=products,
                reason=reasons.get(key, "") or "composed from your memory",
                votes=votes.get(key, 0),
            )
        )
    return made


class SlateFiller:
    """Fills rows of queries, with the products of each."""

    def __init__(self, search: ProductSearch) -> None:
        self._search = search
        self._place = search.catalog.row_of

    def filled(
        self,
        pools: Sequence[Sequence[Recommendation]],
        moments: Sequence[datetime],
        ks: Sequence[int],
        look: Sequence[bool],
    ) -> list[tuple[Recommendation, ...]]:
        """The row that each user is shown.

        The first query of a pool stays first where a chain recommends it. Of the others as
        many are searched as it takes to fill the row with queries whose first product is in
        stock; those whose is not follow them. What finds nothing is left out. The search is
        asked a few times, about all users at once.

        Args:
            pools: Of each user, the best first (`aggregate_rollouts`).
            moments: Of each user; stock is as of then.
            ks: How many queries a row has at most.
            look: Of each user, whether stock counts; otherwise the pool's order stays.
        """
        shown: list[list[Recommendation]] = [[] for _ in pools]
        sold_out: list[list[Recommendation]] = [[] for _ in pools]
        at = [0] * len(pools)  # what comes next of each pool
        while True:
            now = [
                pool[i : i + k - len(row)]
                for pool, i, k, row in zip(pools, at, ks, shown, strict=True)
            ]
            if not any(now):
                break
            for user, some in enumerate(self._searched(now, moments)):
                at[user] += len(now[user])
                for item in some:
                    chosen = not shown[user] and bool(item.votes)
                    kept = (
                        chosen or not look[user] or self._in_stock(item.products[0], moments[user])
                    )
                    (shown if kept else sold_out)[user].append(item)
        return [tuple([*row, *rest][:k]) for row, rest, k in zip(shown, sold_out, ks, strict=True)]

    def _searched(
        self, items: Sequence[Sequence[Recommendation]], moments: Sequence[datetime]
    ) -> list[list[Recommendation]]:
        """The items with products; without those that find nothing."""
        asked = list(
            dict.fromkeys(
                (item.query, moment)
                for some, moment in zip(items, moments, strict=True)
                for item in some
                if not item.products
            )
        )
        found: dict[tuple[str, datetime], tuple[str, ...]] = {}
        if asked:
            hits = self._search.search([q for q, _ in asked], KEPT, [m for _, m in asked])
            for key, retrieved in zip(asked, hits, strict=True):
                found[key] = tuple(hit.product_id for hit in retrieved)
        made = [
            [replace(i, products=i.products or found[i.query, moment]) for i in some]
            for some, moment in zip(items, moments, strict=True)
        ]
        return [[item for item in some if item.products] for some in made]

    def _in_stock(self, product: str, moment: datetime) -> bool:
        return self._search.catalog.state_at(self._place[product], moment)[1]
