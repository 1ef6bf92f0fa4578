"""The systems of the experiment that runs, beside the policy that recommends."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

from ..agent.recommend import ProfileRecommender, Recommender, RecommendRequest, UserRecommendations
from ..errors import QAgentError
from ..live.experiments import AGENT, MEMORY, Experiment, running
from ..live.interleaving import team_draft
from ..policy.files import load_policy
from ..policy.registry import resolve
from ..shop.policy_folders import reference_of
from ..shop.shop import Shop
from ..utils.text import query_key
from .config import ServeConfig
from .requests import RecommendResponse

log = logging.getLogger("qagent.serve")


class Arms:
    """Policies that an experiment compares with the one that recommends. For the worker's thread.

    An arm's policy reads the profile that the serving policy's memory has written.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._loaded: dict[str, ProfileRecommender] = {}
        self._references: dict[str, str] = {}
        self._chance = random.Random()

    def follow(self, recommender: Recommender, shop: Shop) -> Experiment | None:
        """Load what the shop's experiment needs; None where none runs, or one cannot.

        A server that records nothing takes part in no experiment.
        """
        experiment = None
        if self._config.record and not self._config.read_only:
            experiment = running(shop)
        wanted = {experiment.control, experiment.treatment} if experiment else set()
        wanted -= {AGENT, MEMORY}
        self._loaded = {name: arm for name, arm in self._loaded.items() if name in wanted}
        try:
            for name in wanted:
                if name in self._loaded:
                    self._loaded[name].use_search(recommender.search)
                    continue
                folder = resolve(shop, name)
                policy = load_policy(folder, self._config.dtype)
                self._loaded[name] = ProfileRecommender(recommender.search, policy)
                self._references[name] = reference_of(folder)
        except QAgentError as error:
            log.warning("the experiment cannot be taken part in: %s", error)
            return None
        return experiment

    def reference(self, system: str) -> str:
        """The policy of an arm, with its version."""
        return self._references[system]

    def mixed(
        self, control: RecommendResponse, treatment: RecommendResponse, k: int
    ) -> RecommendResponse:
        """An answer that two systems share (`live.interleaving`)."""
        queries, teams = team_draft(
            control.recommendations,
            treatment.recommendations,
            k,
            lambda item: query_key(item.query),
            self._chance,
        )
        return replace(
            treatment,
            recommendations=tuple(queries),
            source="interleaved",
            reason="experiment",
            teams=tuple(teams),
        )

    def answer(
        self, system: str, requests: Sequence[RecommendRequest], seed: int
    ) -> list[UserRecommendations]:
        """What an arm's policy recommends."""
        return self._loaded[system].answer(requests, seed)
