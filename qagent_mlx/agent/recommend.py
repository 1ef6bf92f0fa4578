"""Recommending: chains of many users in one batch, and a row of queries for each."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from ..errors import QAgentError
from ..inventory.types import ProductSearch
from ..memory.profile import Memory
from ..memory.ranker import MemoryRanker
from ..memory.types import Moment
from ..policy.policy import Policy
from ..policy.registry import open_policy
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..types import Profile, Recommendation
from .rollout import RolloutRunner
from .slate import SlateFiller, aggregate_group, aggregate_rollouts
from .tools import SearchProducts
from .types import Rollout, Task, Turn

GROUP = 8  # chains a user
# Of a policy trained by GRPO, whose chains mostly agree: on the sample shop's test cases it reached
# cons@1 13.1, 13.5, 13.3 and 13.3 % with 1, 2, 4 and 8 chains; SFT 10.6, 12.3, 12.9 and 13.3 %.
SURE_GROUP = 2


@dataclass(frozen=True, slots=True)
class UserRecommendations:
    """What one user is shown. ``latency_ms`` is the time of the batch shared by its users."""

    user_id: str
    as_of: datetime
    recommendations: tuple[Recommendation, ...]
    latency_ms: float
    chains: tuple[Rollout, ...]
    profile: Profile


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """A user who waits for recommendations: their memory at a moment, and how much to give."""

    profile: Profile
    as_of: datetime
    k: int = 5
    group: int = GROUP  # chains: the budget of this answer

    def __post_init__(self) -> None:
        if self.k < 1 or self.group < 1:
            raise QAgentError("ask for at least one query and one chain")


def default_group_size(policy: Policy) -> int:
    """How many chains a user a policy needs."""
    trained = policy.info.trained
    return SURE_GROUP if trained and trained[-1].get("stage") == "grpo" else GROUP


class ProfileRecommender:
    """A policy and a shop's search, ready to answer those whose memory was read."""

    def __init__(
        self, search: ProductSearch, policy: Policy, agent: AgentConfig | None = None
    ) -> None:
        self.search, self.policy = search, policy
        self.agent = agent or policy.info.agent
        self.runner = self._open_runner()
        self._row = SlateFiller(search)

    def _open_runner(self) -> RolloutRunner:
        return RolloutRunner(
            self.policy, SearchProducts(self.search, self.agent), self.agent, guided=True
        )

    def use(self, policy: Policy) -> None:
        """Answer with another policy from now on."""
        self.policy, self.agent = policy, policy.info.agent
        self.runner = self._open_runner()

    def answer(
        self,
        asks: Sequence[RecommendRequest],
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
        watch: Callable[[int, Turn], None] | None = None,
    ) -> list[UserRecommendations]:
        """Run all chains of some users in one batch, and pool them.

        A user's chains are sampled from a stream of their own (of the seed and the id), so
        nobody's answer depends on who else is in the batch.

        Args:
            asks: Each with its own number of queries and chains.
            seed: Of the sampling.
            progress: Called with the number of chains that have ended; what it raises ends
                the batch.
            watch: Called with a chain's place and its turn, as soon as that has its answer.
        """
        start = time.perf_counter()
        tasks = [
            Task(ask.profile, ask.as_of, _stream(ask.profile.user_id, member))
            for ask in asks
            for member in range(ask.group)
        ]
        rollouts = iter(self.runner.run(tasks, 1, (seed,), progress, watch=watch))
        chains = [tuple(islice(rollouts, ask.group)) for ask in asks]
        pools = [
            aggregate_group(self.agent, c, a.profile) for c, a in zip(chains, asks, strict=True)
        ]
        shown = self._filled(pools, asks, self.agent.search)
        each = (time.perf_counter() - start) * 1000 / max(1, len(asks))
        return [
            UserRecommendations(ask.profile.user_id, ask.as_of, one, each, own, ask.profile)
            for ask, one, own in zip(asks, shown, chains, strict=True)
        ]

    def top_lines(self, asks: Sequence[RecommendRequest]) -> list[tuple[Recommendation, ...]]:
        """What the memory alone recommends, without a chain: the best baseline, at once."""
        return self._filled([aggregate_rollouts((), ask.profile) for ask in asks], asks, False)

    def _filled(
        self,
        pools: Sequence[Sequence[Recommendation]],
        asks: Sequence[RecommendRequest],
        look: bool,
    ) -> list[tuple[Recommendation, ...]]:
        moments = [ask.as_of for ask in asks]
        ks = [ask.k for ask in asks]
        return self._row.filled(pools, moments, ks, [look] * len(asks))


class Recommender(ProfileRecommender):
    """A policy, a shop's memory and its search, ready to recommend.

    Args:
        shop: Read only is enough.
        policy: Recommends.
        agent: How its chains run; as it was trained by default.
        group: Chains a user; as many as the policy needs by default.
    """

    def __init__(
        self, shop: Shop, policy: Policy, agent: AgentConfig | None = None, group: int | None = None
    ) -> None:
        from ..inventory.product_search import open_shop_search

        self.shop, self.group = shop, group or default_group_size(policy)
        super().__init__(open_shop_search(shop), policy, agent)
        self.memory = self._open_memory()

    def _open_memory(self, before: Memory | None = None) -> Memory:
        # A shop that was closed meanwhile, for a training say, has another connection now.
        same = before is not None and before.connection is self.shop.connection
        return Memory(
            self.shop.connection,
            self.shop.config.memory,
            self.policy.codec.count,
            MemoryRanker.of_shop(self.shop),
            # What the shop knew at the start of the day is the same for the next memory.
            statistics=before.loader.statistics if before and same else None,
        )

    def refresh(self) -> None:
        """See events that were stored since; the policy and the search stay as they are."""
        self.memory = self._open_memory(self.memory)

    def use(self, policy: Policy) -> None:
        """Recommend with another policy from now on."""
        super().use(policy)
        self.refresh()

    def profiles(self, users: Sequence[str], as_of: datetime | None = None) -> list[Profile]:
        """The users' memory as the policy reads it; by default at the moment after the log."""
        moment = as_of or self.shop.end_of_log()
        return self.memory.profiles(
            [Moment(user, moment) for user in users], self.agent.sections, self.agent.profile_budget
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
        moment = as_of or self.shop.end_of_log()
        start = time.perf_counter()
        profiles = self.profiles(users, moment)
        spent = (time.perf_counter() - start) * 1000 / max(1, len(users))
        made = self.answer([RecommendRequest(p, moment, k, self.group) for p in profiles], seed)
        return [replace(one, latency_ms=one.latency_ms + spent) for one in made]


def _stream(user: str, member: int) -> int:
    """A number for a user's chain, the same in every process."""
    return zlib.crc32(f"{member}:{user}".encode("utf-8", "surrogatepass"))


def recommend(
    shop: Shop, users: Sequence[str], k: int = 5, policy: str = "grpo", **options: Any
) -> list[UserRecommendations]:
    """Recommend ``k`` queries to each user with a policy of the shop (see `Recommender`)."""
    recommender = Recommender(shop, open_policy(shop, policy))
    return recommender.recommend(users, k, **options)
