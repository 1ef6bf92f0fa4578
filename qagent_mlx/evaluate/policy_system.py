"""Policies as systems that can be evaluated beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..agent.recommend import GROUP
from ..agent.slate import SlateFiller, aggregate_group
from ..agent.types import Rollout
from ..environment.environment import Environment, Example
from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..types import Recommendation
from .metrics import Ranking

CASES_AT_ONCE = 16  # 128 chains; larger batches copy more cache than they save


class PolicySystem:
    """A policy as it is served: a group of chains a case, pooled."""

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
        self.kept: dict[int, list[Rollout]] = {}  # case id -> chains, of the first ``keep``
        self._keep = keep
        self._agent = agent or policy.info.agent
        self._roller = environment.rollout_runner(policy, self._agent, guided=True)
        self._environment, self._row = environment, SlateFiller(environment.search)
        self._group, self._seed = group, seed

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """What the policy recommends for each example, the best first."""
        made: list[Ranking] = []
        for at in range(0, len(examples), CASES_AT_ONCE):
            part = examples[at : at + CASES_AT_ONCE]
            rollouts = self._roller.run([e.task for e in part], self._group, (self._seed, at))
            groups = [rollouts[i * self._group : (i + 1) * self._group] for i in range(len(part))]
            for example, chains, recommended in zip(
                part, groups, self._rows(part, groups, k), strict=True
            ):
                if len(self.kept) < self._keep:
                    self.kept[example.case.case_id] = chains
                made.append(
                    Ranking(
                        tuple(r.query for r in recommended),
                        valid=float(
                            np.mean([c.validated and c.finish == "recommended" for c in chains])
                        ),
                        searches=float(np.mean([c.searches for c in chains])),
                        tokens=float(np.mean([len(c.tokens) for c in chains])),
                        scores=tuple(r.score for r in recommended),
                    )
                )
        return made

    def _rows(
        self, examples: Sequence[Example], groups: Sequence[Sequence[Rollout]], k: int
    ) -> list[Sequence[Recommendation]]:
        pools = [
            aggregate_group(self._agent, chains, example.profile)
            for example, chains in zip(examples, groups, strict=True)
        ]
        if not self._agent.search:
            return [pool[:k] for pool in pools]
        moments = [e.case.as_of for e in examples]
        # A case of a time before stock was followed can't tell what could be had then.
        look = [self._environment.search.catalog.knows_stock_at(moment) for moment in moments]
        return [*self._row.filled(pools, moments, [k] * len(pools), look)]
