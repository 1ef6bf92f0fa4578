"""GRPO in any environment that speaks text, see `environment.text_environment`.

    policy = trainable("sample", LoraConfig())
    result = train_in_text(policy, LookupEnvironment(), GrpoConfig(steps=40))

The step is `grpo.GrpoTrainer`'s, with its advantages, objectives, alarms and checks; what differs
is who answers a chain and who rewards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..agent.types import Rollout
from ..environment.cases import evenly_spaced
from ..environment.rewards import weighted_reward
from ..environment.text_environment import TextEnvironment
from ..environment.text_rollouts import TextRollout, TextRunner, examples_of
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from ..policy.policy import Policy
from ..policy.registry import derive
from ..runs.loop import OnStep, TrainingLoop
from ..runs.records import LoopResult
from ..utils.settings import SettingError
from .grpo import GrpoTrainer
from .grpo_config import GrpoConfig
from .monitors import AlarmMonitor, FirstUpdateCheck, alarms_for


class TextGrpoTrainer(GrpoTrainer):
    """Trains a policy by GRPO in a text environment; weights are the environment's.

    Args:
        policy: With an adapter.
        environment: Gives cases, answers and rewards.
        config: Of its settings, those of shops (``solvable``, ``curriculum``) mean nothing, nor
            do those of a run's files (``save_every``, ``keep``, ``logged_groups``).

    Raises:
        SettingError: ``best_by`` names what only a shop measures.
    """

    environment: Any  # a TextEnvironment

    def __init__(self, policy: Policy, environment: TextEnvironment, config: GrpoConfig) -> None:
        if config.best_by != "reward":
            raise SettingError("best_by", "must be reward: other measures are of shops")
        weights = dict(environment.weights)
        config = replace(config, weights=weights, curriculum={}, solvable=False)
        super().__init__(policy, environment, config, dict.fromkeys(weights, _of_the_environment))  # type: ignore[arg-type]

    def open_environment(self) -> None:
        """Take the environment's cases."""
        self.runner = TextRunner(self.policy, self.environment)
        self.examples = examples_of(self.environment, "train")  # type: ignore[assignment]
        needed = ["train", *(["validation"] if self.config.eval_every else [])]
        for split in needed:
            if not self.environment.cases(split):
                raise QAgentError(f"the environment has no cases in {split}; let it return some")

    def rewards(self, rollout: Rollout, example: Any) -> list[float]:
        """The rewards that the environment gave a chain.

        Raises:
            QAgentError: one is missing in the last step, or not in [0, 1].
        """
        assert isinstance(rollout, TextRollout)
        given = rollout.step.rewards
        for name in self.components:
            if name not in given:
                raise QAgentError(
                    f"the environment ended an episode without the reward {name!r}, which it has a "
                    "weight for; let the last step have all of them, and that of give_up"
                )
            if not 0.0 <= given[name] <= 1.0:
                raise QAgentError(
                    f"the environment's reward {name} is {given[name]}; rewards lie between 0 and 1"
                )
        return [float(given[name]) for name in self.components]

    def evaluate(self) -> dict[str, float]:
        """Means over greedy chains on validation cases, ``reward`` and each component.

        Empty where there are no such cases.
        """
        self.policy.model.eval()
        cases = evenly_spaced(examples_of(self.environment, "validation"), self.config.measured)
        if not cases:
            return {}
        steps = [r.step for r in self.runner.run([e.task for e in cases], 1, None)]  # type: ignore[attr-defined, misc]
        rewards = [weighted_reward(step.rewards, self.config.weights) for step in steps]
        return {"reward": _mean(rewards)} | {
            name: _mean([step.rewards[name] for step in steps]) for name in self.components
        }


def trainable(policy: str | Path, lora: LoraConfig | None = None, seed: int = 0) -> Policy:
    """A policy or model, by its name or folder, with a new adapter on it."""
    return derive(None, str(policy), "grpo", lora or LoraConfig(), seed)


def train_in_text(
    policy: Policy,
    environment: TextEnvironment,
    config: GrpoConfig | None = None,
    on_step: OnStep | None = None,
) -> LoopResult:
    """Train a policy in a text environment; it is changed in place, and `Policy.save` keeps it.

    Args:
        policy: With an adapter, see `trainable`.
        environment: Gives cases, answers and rewards.
        config: Steps, groups, learning rate and more. With ``eval_every`` it ends with the weights
            of the best evaluation, as a run does.
        on_step: Called after each step with its metrics.
    """
    trainer = TextGrpoTrainer(policy, environment, config or GrpoConfig())
    # What is recommended and searched is a shop's.
    alarms = replace(alarms_for(trainer.config.alarms, policy), searches="off", distinct="off")
    monitors = (FirstUpdateCheck(policy), AlarmMonitor(alarms))
    loop = replace(trainer.config.loop, save_every=0)  # there is no run to keep checkpoints in
    return TrainingLoop(trainer, loop, monitors=monitors, on_step=on_step).run()


def _of_the_environment(_outcome: Any) -> float:
    raise NotImplementedError  # rewards come with the last step


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
