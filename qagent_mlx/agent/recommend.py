"""Recommend queries: chains of many users in one batch, and a slate for each user."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..errors import QAgentError
from ..inventory.types import ProductSearch
from ..live.limits import NO_LIMITS, Limits, LimitsBook
from ..live.shown import ShownAnswer, new_recommendation_id
from ..memory.event_log import start_of_hour
from ..memory.profile import Memory
from ..memory.ranker import MemoryRanker
from ..memory.types import Moment
from ..policy.policy import Policy
from ..policy.registry import open_policy, serving_policy
from ..protocol.config import AgentConfig
from ..protocol.marks import Mark
from ..shop.policy_folders import parse_reference, reference_of
from ..shop.shop import Shop
from ..types import Line, Profile, Recommendation, Slate, UserContext
from ..utils.text import clean_id, query_key
from .rollout import RolloutRunner
from .slate import (
    Fit,
    SlateFiller,
    SlateRequest,
    aggregate_group,
    aggregate_rollouts,
    with_chances,
    with_lines,
)
from .tools import SearchProducts
from .types import Group, Rollout, Task, Turn, split_groups

GROUP = 8  # chains for each user
STAGES = ("chains", "searches", "slates")  # of an answer
GRPO_GROUP = 2  # chains of a policy trained by GRPO mostly agree: two find what eight find


@dataclass(frozen=True, slots=True)
class UserRecommendations:
    """What one user is shown, and how it came about.

    ``latency_ms`` is the time of the batch divided by its number of users.
    """

    user_id: str
    as_of: datetime
    recommendations: Slate
    latency_ms: float
    chains: tuple[Rollout, ...]
    profile: Profile

    def to_dict(self, titles: Mapping[str, str]) -> dict[str, Any]:
        """Plain values for JSON, without chains; ``titles`` maps product ids to titles."""
        return {
            "user": self.user_id,
            "as_of": self.as_of.isoformat(),
            "recommendations": [r.to_dict(titles) for r in self.recommendations],
            "latency_ms": round(self.latency_ms, 1),
        }


@dataclass(frozen=True, slots=True)
class GivenWay:
    """A query that chains recommended and the slate does not show.

    ``votes`` chains chose it, and ``fit`` says what is wrong with it; nothing is where a rule keeps
    it out, or where others add more to a full row.
    """

    query: str
    votes: int
    fit: Fit


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """A user who waits for a slate: their profile at a moment, and how much to compute.

    Attributes:
        profile: What is known of the user.
        as_of: The moment.
        k: Queries, at most.
        group: Chains.
        others: Lines of what the shop searches for; they fill a slate that the profile's own
            queries cannot fill with what is fit to be shown.
        limits: What the slate may hold, and what is pinned in it.
    """

    profile: Profile
    as_of: datetime
    k: int = 5
    group: int = GROUP
    others: tuple[Line, ...] = ()
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        if self.k < 1 or self.group < 1:
            raise QAgentError("ask for at least one query and one chain")

    def tasks(self) -> list[Task]:
        """A task for each chain, with a random stream that follows from user and member."""
        return [
            Task(self.profile, self.as_of, _random_stream(self.profile.user_id, member))
            for member in range(self.group)
        ]


def default_group_size(policy: Policy) -> int:
    """How many chains a policy needs for each user."""
    trained = policy.info.trained
    return GRPO_GROUP if trained and trained[-1].get("stage") == "grpo" else GROUP


class ProfileRecommender:
    """Recommends to users whose profiles are at hand: a policy and a shop's search.

    Attributes:
        spent: Seconds so far in ``chains`` (without their searches), ``searches`` and ``slates``.
    """

    def __init__(
        self, search: ProductSearch, policy: Policy, agent: AgentConfig | None = None
    ) -> None:
        self.search = search
        self._slates = SlateFiller(search)
        self.spent = dict.fromkeys(STAGES, 0.0)
        self._set_policy(policy, agent or policy.info.agent)

    def _set_policy(self, policy: Policy, agent: AgentConfig) -> None:
        self.policy, self.agent = policy, agent
        self.runner = RolloutRunner(policy, SearchProducts(self.search, agent), agent, guided=True)

    def use_policy(self, policy: Policy) -> None:
        """Recommend with another policy from now on."""
        self._set_policy(policy, policy.info.agent)

    def use_search(self, search: ProductSearch) -> None:
        """Search with another engine or another state of the catalog from now on."""
        self.search = search
        self._slates = SlateFiller(search)
        self.runner.use_tools(SearchProducts(search, self.agent))

    def answer(
        self,
        requests: Sequence[RecommendRequest],
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
        watch: Callable[[int, Turn], None] | None = None,
    ) -> list[UserRecommendations]:
        """Run the chains of all requests in one batch and fill a slate for each.

        Each chain has the random stream of its user and member, so nobody's slate depends on
        who else is in the batch. ``progress`` and ``watch`` are those of `RolloutRunner.run`;
        what ``progress`` raises ends the batch.
        """
        start = time.perf_counter()
        chains = [task for request in requests for task in request.tasks()]
        searched = self.runner.tools.seconds
        try:
            rollouts = self.runner.run(chains, 1, (seed,), progress, watch=watch)
        finally:
            searched = self.runner.tools.seconds - searched
            self.spent["searches"] += searched
            self.spent["chains"] += time.perf_counter() - start - searched
        tasks = [Task(request.profile, request.as_of) for request in requests]
        groups = split_groups(rollouts, tasks, [request.group for request in requests])
        ranked = [aggregate_group(self.agent, group) for group in groups]
        slates = self._fill(requests, ranked)
        latency = (time.perf_counter() - start) * 1000 / max(1, len(requests))
        return [
            UserRecommendations(r.profile.user_id, r.as_of, slate, latency, g.rollouts, r.profile)
            for r, g, slate in zip(requests, groups, slates, strict=True)
        ]

    def given_way(self, answer: UserRecommendations) -> list[GivenWay]:
        """What the chains of an answer recommended and its slate does not show, and why."""
        shown = {query_key(item.query) for item in answer.recommendations}
        ranked = aggregate_group(
            self.agent, Group(Task(answer.profile, answer.as_of), answer.chains)
        )
        context = answer.profile.context if self.agent.memory else UserContext()
        request = SlateRequest((), answer.as_of, 0, context)
        return [
            GivenWay(item.query, item.votes, self._slates.fit(item, request))
            for item in ranked
            if item.votes and item.products and query_key(item.query) not in shown
        ]

    def recommend_from_memory(self, requests: Sequence[RecommendRequest]) -> list[Slate]:
        """The slates of the memory ranker: the profiles' queries in order, without any chain."""
        ranked = [aggregate_rollouts((), request.profile) for request in requests]
        return self._fill(requests, ranked)

    def _fill(
        self, requests: Sequence[RecommendRequest], ranked: Sequence[Sequence[Recommendation]]
    ) -> list[Slate]:
        """What is fit to be shown, by the same rules whoever ranked it and with whatever policy."""
        start = time.perf_counter()
        has_memory = self.agent.memory  # without it nothing of it fills up the slate
        slates = self._slates.fill(
            [
                SlateRequest(
                    with_lines(items, r.others) if has_memory else items,
                    r.as_of,
                    r.k,
                    r.profile.context if has_memory else UserContext(),
                    limits=r.limits,
                )
                for r, items in zip(requests, ranked, strict=True)
            ]
        )
        calibration = self.policy.calibration_of(self.agent)
        slates = [
            # Cases have a history; nobody knows how often memory is right about a new user.
            slate if _is_of_new_user(r.profile) else with_chances(slate, calibration)
            for r, slate in zip(requests, slates, strict=True)
        ]
        self.spent["slates"] += time.perf_counter() - start
        return slates


def _is_of_new_user(profile: Profile) -> bool:
    """Whether memory says that it knows nothing of the user."""
    return any(line.text == str(Mark.NEW_USER) for line in profile.lines if line.query is None)


class Recommender(ProfileRecommender):
    """Recommends to users of a shop: a policy, the shop's memory and its search.

    By default chains run as the policy was trained, and each user has as many as it needs.
    """

    def __init__(
        self, shop: Shop, policy: Policy, agent: AgentConfig | None = None, group: int | None = None
    ) -> None:
        from ..inventory.product_search import open_shop_search  # loads all search engines

        self.shop, self.group = shop, group or default_group_size(policy)
        self._others: tuple[datetime, tuple[Line, ...]] | None = None
        super().__init__(open_shop_search(shop), policy, agent)
        self.memory = self.open_memory(shop)
        self.limits = LimitsBook(shop)

    def open_memory(self, shop: Shop, previous: Memory | None = None) -> Memory:
        """The memory of a shop, in the policy's tokens."""
        # A shop that was closed meanwhile, for a training say, has another connection now.
        is_same = previous is not None and previous.connection is shop.connection
        return Memory(
            shop.connection,
            shop.config.memory,
            self.policy.codec.count,
            MemoryRanker.of_shop(shop),
            # What the shop knew at the start of the day is the same for the next memory.
            statistics=previous.loader.statistics if previous and is_same else None,
            settled=shop.is_snapshot,  # which this process alone changes, and then opens another
        )

    def use_shop(self, shop: Shop, search: ProductSearch, memory: Memory) -> None:
        """Recommend from another state of the same shop; the policy stays as it is.

        Args:
            shop: The shop.
            search: Its search.
            memory: From `open_memory`.
        """
        self.use_search(search)
        self.shop, self.memory, self._others = shop, memory, None
        self.limits = LimitsBook(shop)

    def refresh(self) -> None:
        """See events that were stored since; the policy and the search stay as they are."""
        self.memory = self.open_memory(self.shop, self.memory)

    def use_policy(self, policy: Policy) -> None:
        """Recommend with another policy from now on."""
        super().use_policy(policy)
        self._others = None
        self.refresh()

    def profiles(self, users: Sequence[str], as_of: datetime | None = None) -> list[Profile]:
        """The users' profiles as the policy reads them; by default just after the log's end."""
        moment = as_of or self.shop.end_of_log()
        return self.memory.profiles(
            [Moment(clean_id(user), moment) for user in users],
            self.agent.sections,
            self.agent.profile_budget,
        )

    def others(self, as_of: datetime) -> tuple[Line, ...]:
        """The lines of somebody of whom nothing is known: what the shop searches for this hour."""
        hour = start_of_hour(as_of)
        if self._others is None or self._others[0] != hour:
            (profile,) = self.profiles([""], hour)
            self._others = (hour, profile.lines)
        return self._others[1]

    def requests(
        self, profiles: Sequence[Profile], as_of: datetime, k: int, rules_at: datetime | None = None
    ) -> list[RecommendRequest]:
        """What to ask for users with these profiles, at one moment, by the rules of another.

        By default these are the rules of now (`live.limits.shop_time`).
        """
        others = self.others(as_of)
        limits = self.limits.limits([p.user_id for p in profiles], rules_at)
        return [
            RecommendRequest(profile, as_of, k, self.group, others, limit)
            for profile, limit in zip(profiles, limits, strict=True)
        ]

    def recommend(
        self, users: Sequence[str], k: int = 5, as_of: datetime | None = None, seed: int = 0
    ) -> list[UserRecommendations]:
        """Recommend ``k`` queries to each user; all chains run in one batch.

        An unknown user is treated as a new one. Nothing at or after ``as_of`` is used; by default
        it is the moment after the log's last event, so a log of last year gives last year's answer.
        """
        moment = as_of or self.shop.end_of_log()
        start = time.perf_counter()
        profiles = self.profiles(users, moment)
        reading = (time.perf_counter() - start) * 1000 / max(1, len(users))
        answers = self.answer(self.requests(profiles, moment, k, as_of), seed)
        return [replace(a, latency_ms=a.latency_ms + reading) for a in answers]


def shown_answer(policy: Policy, result: UserRecommendations) -> ShownAnswer:
    """What a user is shown, to be recorded (`live.shown`)."""
    queries = [r.query for r in result.recommendations]
    return agent_answer(policy, new_recommendation_id(), result.user_id, result.as_of, queries)


def agent_answer(
    policy: Policy, recommendation_id: str, user: str, as_of: datetime, queries: Sequence[str]
) -> ShownAnswer:
    """An answer of a policy, to be recorded."""
    version = parse_reference(reference_of(policy.folder))[1] if policy.folder else None
    return ShownAnswer(
        recommendation_id,
        *(user, as_of, tuple(queries), (1.0,) * len(queries)),
        *("agent", policy.info.name, version),
    )


def _random_stream(user: str, member: int) -> int:
    """The number of the random stream of a user's chain, the same in every process."""
    return zlib.crc32(f"{member}:{user}".encode("utf-8", "surrogatepass"))


def recommend(
    shop: Shop,
    users: Sequence[str],
    k: int = 5,
    policy: str = "",
    as_of: datetime | None = None,
    seed: int = 0,
) -> list[UserRecommendations]:
    """Recommend ``k`` queries to each user with a policy of the shop; see `Recommender`.

    Without ``policy`` it is the promoted one, see `policy.registry.serving_policy`.
    """
    return Recommender(shop, open_policy(shop, policy or serving_policy(shop))).recommend(
        users, k, as_of, seed
    )
