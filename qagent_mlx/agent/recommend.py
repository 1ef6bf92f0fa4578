"""From a group of chains to a short list of queries worth showing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from ..errors import QAgentError
from ..memory.profile import Memory, Moment
from ..memory.worth import Worth
from ..policy.model import AgentConfig, Policy
from ..policy.registry import open_policy
from ..shop import Shop
from ..text import query_key, words
from ..types import Profile, Recommendation
from .rollout import Roller, Rollout, Task
from .tools import SearchProducts

GROUP = 8  # chains a user


@dataclass(frozen=True, slots=True)
class UserRecommendations:
    """What one user is shown. ``latency_ms`` is the time of the batch shared by its users."""

    user_id: str
    as_of: datetime
    recommendations: tuple[Recommendation, ...]
    latency_ms: float
    chains: tuple[Rollout, ...]
    profile: Profile


def pool(
    rollouts: Sequence[Rollout], profile: Profile, k: int, validated: bool = True
) -> list[Recommendation]:
    """Rank what a group of chains recommends.

    Validated recommendations come first, by votes, then by the best log-probability of the
    answer. Queries that some chain searched and that found products follow, in the order of
    how many chains searched them, and last, to fill up to ``k``, the other lines of memory;
    these have no products yet. Near-duplicates and queries that find nothing are left out.

    Args:
        rollouts: The chains of one user.
        profile: What they read; says why a query was in reach.
        k: How many queries at most.
        validated: Only queries that found products count; off where search is switched off.
    """
    votes: dict[str, int] = {}
    surest: dict[str, float] = {}
    looked: dict[str, int] = {}
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for rollout in rollouts:
        for turn in rollout.turns:
            if turn.kind == "search" and (turn.products or not validated):
                key = query_key(turn.query)
                found.setdefault(key, (turn.query, turn.products))
                looked[key] = looked.get(key, 0) + 1
        if rollout.query and not validated:
            found.setdefault(rollout.key, (rollout.query, ()))
            looked.setdefault(rollout.key, 0)
        if rollout.key in found and (rollout.validated or not validated):
            votes[rollout.key] = votes.get(rollout.key, 0) + 1
            surest[rollout.key] = max(
                surest.get(rollout.key, -np.inf), rollout.answer_logprob
            )
    order = sorted(
        found,
        key=lambda key: (-votes.get(key, 0), -surest.get(key, -np.inf), -looked[key], key),
    )
    reasons = {}
    for line in profile.lines:
        if line.query is not None:
            key = query_key(line.query)
            reasons[key] = line.reason
            if key not in found and not any(key in r.searched for r in rollouts):
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
                score=round(votes.get(key, 0) / len(rollouts), 4),
                products=products,
                reason=reasons.get(key, "") or "composed from your memory",
                votes=votes.get(key, 0),
            )
        )
        if len(made) == k:
            break
    return made


class Recommender:
    """A policy, a shop's memory and its search, ready to recommend."""

    def __init__(
        self, shop: Shop, policy: Policy, agent: AgentConfig | None = None, group: int = GROUP
    ) -> None:
        from ..inventory.engines import shop_search

        self.shop, self.policy, self.group = shop, policy, group
        self.agent = agent or policy.info.agent
        self.search = shop_search(shop)
        self.memory = Memory(
            shop.connection, shop.config.memory, policy.codec.count, Worth.of_shop(shop)
        )
        self.roller = Roller(
            policy, SearchProducts(self.search, self.agent), self.agent, guided=True
        )

    def recommend(
        self, users: Sequence[str], k: int = 5, as_of: datetime | None = None, seed: int = 0
    ) -> list[UserRecommendations]:
        """Recommend ``k`` queries to each user; all chains run in one batch.

        Args:
            users: Ids; somebody unknown is treated as a new user.
            k: Queries a user.
            as_of: Nothing at or after this moment is used; by default the moment after the
                log's last event, so that a log of last year gives last year's answer.
            seed: Of the sampling.
        """
        moment = as_of or after_log(self.shop)
        start = time.perf_counter()
        profiles = self.memory.profiles(
            [Moment(user, moment) for user in users], self.agent.sections,
            self.agent.profile_budget,
        )
        tasks = [Task(profile, moment) for profile in profiles]
        rollouts = self.roller.run(tasks, self.group, (seed,))
        each = (time.perf_counter() - start) * 1000 / max(1, len(users))
        made = []
        for i, (user, profile) in enumerate(zip(users, profiles, strict=True)):
            chains = rollouts[i * self.group : (i + 1) * self.group]
            pooled = self._with_products(pool(chains, profile, k), moment)
            made.append(
                UserRecommendations(user, moment, tuple(pooled), each, tuple(chains), profile)
            )
        return made

    def _with_products(
        self, pooled: Sequence[Recommendation], moment: datetime
    ) -> list[Recommendation]:
        """Search what no chain has searched; what finds nothing is not shown."""
        bare = [r.query for r in pooled if not r.products]
        found = dict(zip(bare, self.search.search(bare, 10, [moment] * len(bare)), strict=True))
        made = []
        for item in pooled:
            products = item.products or tuple(h.product_id for h in found[item.query])
            if products:
                made.append(replace(item, products=products))
        return made


def after_log(shop: Shop) -> datetime:
    """The moment after the last event.

    Raises:
        QAgentError: the log is empty.
    """
    row = shop.connection.execute("SELECT max(ts) + INTERVAL 1 SECOND FROM events").fetchone()
    if row is None or row[0] is None:
        raise QAgentError(f"{shop.path} has no events; run: qagent ingest events FILE")
    moment: datetime = row[0]
    return moment


def recommend(
    shop: Shop, users: Sequence[str], k: int = 5, policy: str = "grpo", **options: Any
) -> list[UserRecommendations]:
    """Recommend ``k`` queries to each user with a policy of the shop (see `Recommender`)."""
    recommender = Recommender(shop, open_policy(shop, policy))
    return recommender.recommend(users, k, **options)
