"""Policies as systems that are evaluated beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..agent.recommend import GROUP
from ..agent.slate import SlateFiller, with_chances
from ..agent.types import Rollout, split_groups
from ..environment.environment import Environment, Example
from ..environment.served_slates import CASES_AT_ONCE, served_slates
from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from .metrics import Ranking


class PolicySystem:
    """A policy as it is served: a group of chains for each case, aggregated to a slate.

    Chains run as the policy was trained unless ``agent`` says otherwise; those of the first
    ``keep`` cases stay in ``rollouts``, by case id.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        environment: Environment,
        agent: AgentConfig | None = None,
        group: int = GROUP,
        seed: int = 0,
        keep: int = 0,
    ) -> None:
        self.name = name
        self.rollouts: dict[int, list[Rollout]] = {}
        self._keep = keep
        self._agent = agent or policy.info.agent
        self._runner = environment.rollout_runner(policy, self._agent, guided=True)
        self._environment, self._filler = environment, SlateFiller(environment.search)
        self._group, self._seed = group, seed
        self._calibration = policy.calibration_of(self._agent)

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Recommend at most ``k`` queries for each example, the best first."""
        rankings: list[Ranking] = []
        for start in range(0, len(examples), CASES_AT_ONCE):
            batch = examples[start : start + CASES_AT_ONCE]
            tasks = [e.task for e in batch]
            rollouts = self._runner.run(tasks, self._group, (self._seed, start))
            groups = split_groups(rollouts, tasks, [self._group] * len(batch))
            slates = served_slates(self._environment, self._filler, self._agent, batch, groups, k)
            for example, group, served in zip(batch, groups, slates, strict=True):
                slate, chains = with_chances(served, self._calibration), group.rollouts
                if len(self.rollouts) < self._keep:
                    self.rollouts[example.case.case_id] = list(chains)
                valid = [r.validated and r.finish == "recommended" for r in chains]
                rankings.append(
                    Ranking(
                        tuple(r.query for r in slate),
                        valid=float(np.mean(valid)),
                        searches=float(np.mean([r.searches for r in chains])),
                        tokens=float(np.mean([len(r.tokens) for r in chains])),
                        scores=tuple(r.score for r in slate),
                        chances=tuple(r.chance for r in slate if r.chance is not None),
                    )
                )
        return rankings
