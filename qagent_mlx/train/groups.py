"""The groups of chains that a step of GRPO samples, and what the step reports of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..agent.types import Rollout
from ..environment.environment import Example
from ..environment.rewards import weighted_reward
from ..protocol.codec import AnyCodec
from ..runs.records import RolloutRecord
from .advantages import has_signal
from .step_credit import action_lengths


@dataclass(frozen=True, slots=True)
class Groups:
    """A group of G chains for each of C cases, with R rewards for each chain."""

    examples: list[Example]  # C
    rollouts: list[Rollout]  # C * G, group by group
    rewards: np.ndarray  # (C, G, R)

    def extended(self, more: Groups) -> Groups:
        """These groups followed by more of them, which are renumbered."""
        first = len(self.examples)
        renumbered = [replace(r, case=r.case + first) for r in more.rollouts]
        return Groups(
            self.examples + more.examples,
            self.rollouts + renumbered,
            np.concatenate([self.rewards, more.rewards]),
        )

    @property
    def sampled_tokens(self) -> np.ndarray:
        """(C, G) tokens of each chain that the policy chose."""
        lengths = np.array([sum(r.sampled) for r in self.rollouts])
        return lengths.reshape(self.rewards.shape[:2])


@dataclass(frozen=True, slots=True)
class CreditedChain:
    """A chain to train on: its advantage, and that of each of its actions."""

    rollout: Rollout
    advantage: float
    actions: tuple[float, ...]

    @classmethod
    def as_one(cls, rollout: Rollout, advantage: float) -> CreditedChain:
        """A chain whose actions have no advantage of their own."""
        return cls(rollout, advantage, (advantage,) * len(action_lengths(rollout)))

    @property
    def token_advantages(self) -> np.ndarray:
        """The advantage of each token that the policy chose, (trained tokens,)."""
        return np.repeat(self.actions, action_lengths(self.rollout))


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """The groups of a step with their advantages."""

    groups: Groups
    weights: dict[str, float]  # of the R reward components, by name
    advantages: np.ndarray  # (C, G)
    actions: list[np.ndarray]  # C * G, the advantage of each action of a chain
    differing: np.ndarray  # (C,) whether the group's chains score differently in some component

    @property
    def informative(self) -> np.ndarray:
        """(C,) whether the estimator leaves a group something to learn from."""
        return has_signal(self.advantages)

    def training_chains(self) -> list[CreditedChain]:
        """The chains of the informative groups, with their advantages."""
        group, informative = self.advantages.shape[1], self.informative
        return [
            CreditedChain(
                rollout,
                float(self.advantages[i // group, i % group]),
                tuple(self.actions[i].tolist()),
            )
            for i, rollout in enumerate(self.groups.rollouts)
            if informative[i // group]
        ]

    def metrics(self, changing: Collection[str]) -> dict[str, Any]:
        """What a step reports of its groups; the weights of ``changing`` components too."""
        rollouts, rewards = self.groups.rollouts, self.groups.rewards
        weights = np.array(list(self.weights.values()))
        means = rewards @ weights / max(weights.sum(), 1e-9)
        informative = self.informative
        kept = self.advantages[informative]
        return {
            "reward": float(means.mean()),
            **{f"reward_{n}": float(rewards[..., i].mean()) for i, n in enumerate(self.weights)},
            **{f"weight_{n}": w for n, w in self.weights.items() if n in changing},
            "recommended": float(np.mean([r.finish == "recommended" for r in rollouts])),
            "groups": len(self.groups.examples),
            "dropped_groups": int((~informative).sum()),
            # Of those: chains score differently, but by almost nothing, or it cancels out in sum.
            "flat_groups": int((self.differing & ~informative).sum()),
            "advantage_variance": float(kept.var()) if kept.size else 0.0,
            **_habits(rollouts, len(self.groups.examples)),
            "sampled_tokens": sum(sum(r.sampled) for r in rollouts),
            "tokens": sum(len(r.tokens) for r in rollouts),
        }

    def records(self, step: int, codec: AnyCodec, max_groups: int = 0) -> list[RolloutRecord]:
        """The chains as the run's files keep them; of the first groups alone with a limit."""
        group = self.advantages.shape[1]
        records = []
        for i, rollout in enumerate(self.groups.rollouts[: max_groups * group or None]):
            case = self.groups.examples[i // group].case
            values = self.groups.rewards[i // group, i % group].tolist()
            rewards = dict(zip(self.weights, values, strict=True))
            records.append(
                RolloutRecord(
                    step=step,
                    case_id=case.case_id,
                    user=case.user_id,
                    member=rollout.member,
                    wanted=case.query,
                    recommended=rollout.query,
                    finish=rollout.finish,
                    reward=weighted_reward(rewards, self.weights),
                    rewards=rewards,
                    advantage=float(self.advantages[i // group, i % group]),
                    tokens=len(rollout.tokens),
                    sampled_tokens=sum(rollout.sampled),
                    chain=codec.decode(rollout.tokens),
                    searches=rollout.searches,
                )
            )
        return records


def _habits(rollouts: Sequence[Rollout], groups: int) -> dict[str, float]:
    """What the policy does whatever it is asked, by which a collapse shows.

    ``first_line`` is the share of chains that search the first line of memory and nothing else,
    ``words`` the share of searches that are written rather than pointed at, ``distinct`` the
    number of distinct recommendations for each group, ``surprise`` the mean of -log p of sampled
    tokens: the entropy, also where nothing is updated.
    """
    searches = [[t for t in r.turns if t.kind == "search"] for r in rollouts]
    first = [len(turns) == 1 and turns[0].reference == "r0" for turns in searches]
    written = [not turn.reference for turns in searches for turn in turns]
    logprobs = [value for r in rollouts for value in r.sampled_logprobs]
    return {
        "searches": float(np.mean([len(turns) for turns in searches])),
        "first_line": float(np.mean(first)),
        "words": float(np.mean(written)) if written else 0.0,
        "distinct": len({r.query_key for r in rollouts if r.query}) / groups,
        "surprise": -float(np.mean(logprobs)) if logprobs else 0.0,
    }
