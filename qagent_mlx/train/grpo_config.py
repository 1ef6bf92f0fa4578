"""Settings of GRPO and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..environment.rewards import COMPONENTS, WEIGHTS, Component, parse_weight
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from .advantages import ESTIMATORS
from .early_stopping import MEASURES
from .fit import learning_rate
from .losses import CLIPS
from .monitors import AlarmConfig


@dataclass(frozen=True)
class GrpoConfig:
    """All settings of a run, with the defaults that measured best (see README)."""

    steps: int = 100
    cases_per_step: int = 16
    group: int = 8
    learning_rate: float = 2e-4
    warmup: int = 5
    schedule: str = "constant"  # of the learning rate after that; "cosine" falls to a tenth
    advantage: str = "dr_grpo"
    loss: str = "dapo"
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    # Weights that change: name -> (step, weight) points, linear between them; steps count from 1.
    curriculum: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    clip_low: float | None = None  # None: as in the loss's paper
    clip_high: float | None = None
    beta: float = 0.02  # weight of the KL to the reference; 0 for none
    epochs: int = 1  # updates on the same chains; from the second on the clip bites
    dynamic_sampling: int = 0  # rounds that may replace groups without signal (DAPO)
    overlong_tokens: int = 0  # sampled tokens of a chain punished in full (DAPO); 0: off
    overlong_cache: int = 8  # tokens before that over which the punishment grows
    overlong_weight: float = 1.0
    max_grad_norm: float = 1.0
    token_budget: int = 8192  # padded tokens of one micro-batch, at most
    solvable: bool = True  # train on cases whose right line of memory is within a chain's reach
    seed: int = 0
    save_every: int = 25
    keep: int = 2  # the last checkpoints that stay; the best one stays as well
    eval_every: int = 0  # steps between evaluations on validation cases; 0: none
    best_by: str = "reward"  # what an evaluation is judged by; the best policy is kept
    stop_after: int = 0  # evaluations without a better one that end the run; 0: never
    logged_groups: int = 0  # groups a step whose chains are written to rollouts.jsonl; 0: all
    measured: int = 100  # validation cases of an evaluation
    lora: LoraConfig = field(default_factory=LoraConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    @property
    def clip(self) -> tuple[float, float]:
        """How far the ratio may fall below and rise above 1."""
        low, high = CLIPS[self.loss]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    def rate(self, number: int) -> float:
        """The learning rate of the step with this number (from 0)."""
        if self.schedule == "cosine":
            return learning_rate(self.learning_rate, self.warmup, self.steps, number)
        return self.learning_rate * min(1.0, (number + 1) / max(1, self.warmup))

    def weights_at(self, number: int) -> dict[str, float]:
        """The reward weights in the step with this number (from 0)."""
        changing = {
            name: float(np.interp(number + 1, [s for s, _ in points], [w for _, w in points]))
            for name, points in self.curriculum.items()
        }
        return {**self.weights, **changing}

    def check(self) -> None:
        """Refuse settings that cannot train anything.

        Raises:
            QAgentError: names the setting and what it may be.
        """
        if self.advantage not in ESTIMATORS:
            raise QAgentError(
                f"--advantage {self.advantage}: choose one of {', '.join(ESTIMATORS)}"
            )
        if self.loss not in CLIPS:
            raise QAgentError(f"--loss {self.loss}: choose one of {', '.join(CLIPS)}")
        if self.schedule not in ("constant", "cosine"):
            raise QAgentError(f"schedule {self.schedule}: choose one of constant, cosine")
        if self.best_by not in MEASURES:
            raise QAgentError(f"--best-by {self.best_by}: choose one of {', '.join(MEASURES)}")
        if self.stop_after and not self.eval_every:
            raise QAgentError("--stop-after needs --eval-every: it counts evaluations")
        low, high = self.clip
        if not (0 <= low < 1 and high >= 0):
            raise QAgentError(
                f"the ratio cannot be clipped to [1 - {low:g}, 1 + {high:g}]; give --clip-low "
                "from 0 to 1 and --clip-high from 0 on"
            )
        if self.overlong_tokens < 0 or self.overlong_cache < 1:
            raise QAgentError("overlong_tokens must be 0 or more, and overlong_cache 1 or more")
        for name, points in self.curriculum.items():
            steps = [step for step, _ in points]
            if not points or steps != sorted(set(steps)) or min(w for _, w in points) < 0:
                raise QAgentError(
                    f"the curriculum of {name} must be points (step, weight) with rising steps "
                    "and no negative weight"
                )
        self.alarms.check()
        if self.group < 2:
            raise QAgentError("--group must be at least 2: advantages compare chains in a group")
        for name in (
            "steps",
            "cases_per_step",
            "epochs",
            "token_budget",
            "save_every",
            "keep",
            "measured",
        ):
            if getattr(self, name) < 1:
                raise QAgentError(f"{name} must be at least 1")
        for name in (
            "warmup",
            "dynamic_sampling",
            "eval_every",
            "stop_after",
            "logged_groups",
            "seed",
            "beta",
            "overlong_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise QAgentError(f"{name} must be a number from 0 on")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise QAgentError(f"{name} must be above 0")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise QAgentError(f"the weight of {name} must be a number from 0 on")
        self.lora.check()


def weighed(
    config: GrpoConfig,
    components: Mapping[str, Component] | None,
    own: Sequence[str] = (),
    pairs: Sequence[str] = (),
) -> GrpoConfig:
    """The configuration with ``NAME=VALUE`` weights put in (`rewards.parse_weight`).

    ``own`` are ``FILE:NAME`` specs; such a reward weighs 1 unless a weight says otherwise.
    """
    known = list(components or COMPONENTS)
    weights = {spec.rpartition(":")[2]: 1.0 for spec in own} | config.weights
    curriculum = dict(config.curriculum)
    for pair in pairs:
        name, value = parse_weight(pair, known)
        curriculum.pop(name, None)
        if isinstance(value, float):
            weights[name] = value
        else:
            curriculum[name] = value
    changed = replace(config, weights=weights, curriculum=curriculum)
    _check_weights(changed, components or COMPONENTS)
    return changed


def _check_weights(config: GrpoConfig, components: Mapping[str, Component]) -> None:
    for name in [*config.weights, *config.curriculum]:
        if name not in components and name not in COMPONENTS:
            raise QAgentError(
                f"there is no reward {name!r} to weigh; known are {', '.join(components)}"
            )
    points = [weight for curve in config.curriculum.values() for _, weight in curve]
    if not any([*points, *(config.weights.get(name, 0.0) for name in components)]):
        raise QAgentError("all rewards have weight 0: nothing would be learned")
