"""Settings of GRPO.

The command line's help reads them, so this module imports nothing that takes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..environment.rewards import COMPONENTS, WEIGHTS, Component, parse_weight
from ..errors import QAgentError
from ..policy.lora import LoraConfig
from ..utils import settings
from ..utils.settings import SettingError
from . import setting_types as types
from .config import AlarmConfig
from .setting_types import at_least

if TYPE_CHECKING:
    from ..runs.loop import LoopConfig

Weight = Annotated[float, Meta(ge=0)]
Schedule = tuple[tuple[float, Weight], ...]
"""(step, weight) points, linear between them; steps count from 1."""


@dataclass(frozen=True)
class GrpoConfig:
    """All settings of a GRPO run, with the defaults that measured best (see README)."""

    steps: types.Steps = 100
    cases_per_step: Annotated[int, at_least(1, "Cases in a step, each with a group of chains.")] = (
        16
    )
    group: Annotated[int, at_least(2, "Chains in a group (G), which advantages compare.")] = 8
    learning_rate: types.LearningRate = 2e-4
    warmup: Annotated[int, at_least(0, "Steps until the learning rate has its peak.", "steps")] = 5
    schedule: Annotated[
        Literal["constant", "cosine"],
        Meta(description="Learning rate after warm-up: constant, or down to a tenth of its peak."),
    ] = "constant"
    advantage: Annotated[
        Literal["dr_grpo", "grpo", "gdpo"],
        Meta(
            description="Advantage estimator: rewards centred in their group (dr_grpo), normalised "
            "too (grpo), or normalised component by component (gdpo)."
        ),
    ] = "dr_grpo"
    step_credit: Annotated[
        float,
        at_least(
            0,
            "Weight of an action's advantage over other actions of its group in the same state "
            "(GiGPO), beside its chain's; 0: all actions of a chain get the same.",
        ),
    ] = 0.0
    row: Annotated[
        int,
        at_least(
            1,
            "Queries of a row: chains are rewarded for what they add to the best of so many of "
            "their group; 1: each for itself.",
            "queries",
        ),
    ] = 1
    row_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of what a chain adds to a row in its reward; the rest is its own.",
        ),
    ] = 1.0
    loss: Annotated[
        Literal["grpo", "dr_grpo", "dapo", "gspo"],
        Meta(
            description="Objective: averages a chain's tokens (grpo), takes them over a constant "
            "(dr_grpo), averages all tokens of a step (dapo), or takes the importance ratios of "
            "whole chains (gspo)."
        ),
    ] = "dapo"
    weights: Annotated[
        dict[str, Weight], Meta(description="Weight of each reward component, by name.")
    ] = field(default_factory=lambda: dict(WEIGHTS))
    curriculum: Annotated[
        dict[str, Schedule],
        Meta(description="Reward weights that change: (step, weight) points, by component."),
    ] = field(default_factory=dict)
    # Both by default as in the paper of the loss.
    clip_low: (
        Annotated[
            float,
            Meta(
                ge=0,
                lt=1,
                description="How far the importance ratio may fall below 1; by default as in the "
                "loss's paper.",
            ),
        ]
        | None
    ) = None
    clip_high: (
        Annotated[
            float,
            at_least(
                0,
                "How far the importance ratio may rise above 1; by default as in the loss's paper.",
            ),
        ]
        | None
    ) = None
    beta: Annotated[float, at_least(0, "Weight of the KL from the parent policy; 0 for none.")] = (
        0.02
    )
    epochs: Annotated[int, at_least(1, "Updates on the same chains.")] = 1
    dynamic_sampling: Annotated[
        int, at_least(0, "Rounds of sampling more cases for groups that are constant.", "rounds")
    ] = 0
    thinning: Annotated[
        float,
        at_least(
            0,
            "Noise that a step may add to its gradient by training on a random part of the groups "
            "with small advantages, as a share of the advantages' squares; 0: on all of them.",
        ),
    ] = 0.0
    overlong_tokens: Annotated[
        int, at_least(0, "Length from which on a chain is penalised in full; 0: never.", "tokens")
    ] = 0
    overlong_cache: Annotated[
        int, at_least(1, "Tokens before that over which the penalty grows.", "tokens")
    ] = 8
    overlong_weight: Annotated[float, at_least(0, "Weight of the overlong penalty.")] = 1.0
    max_grad_norm: Annotated[
        float, Meta(gt=0, description="Norm to which a longer gradient is clipped.")
    ] = 1.0
    token_budget: Annotated[
        int, at_least(1, "Padded tokens that an update computes at once, at most.", "tokens")
    ] = 8192
    solvable: Annotated[
        bool,
        Meta(description="Train only on cases with a relevant line of memory in a chain's reach."),
    ] = True
    seed: types.Seed = 0
    save_every: types.SaveEvery = 25
    keep: types.Keep = 2
    eval_every: Annotated[
        int, at_least(0, "Steps between evaluations, of which the best is kept; 0: none.", "steps")
    ] = 0
    best_by: Annotated[
        Literal["reward", "cons@1", "q_em", "i_hit@1"],
        Meta(
            description="Measure by which evaluations are compared: the reward, or the share of "
            "cases whose query is right (q_em), whose first product is (i_hit@1), or "
            "both (cons@1)."
        ),
    ] = "reward"
    stop_after: Annotated[
        int, at_least(0, "Evaluations without a better one that end the run; 0: never.")
    ] = 0
    logged_groups: Annotated[
        int, at_least(0, "Groups in a step whose chains are logged; 0: all.", "groups")
    ] = 0
    measured: types.Measured = 100
    lora: LoraConfig = field(default_factory=LoraConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    @property
    def clip(self) -> tuple[float, float]:
        """How far the importance ratio may fall below and rise above 1."""
        from .losses import CLIP_RANGES

        low, high = CLIP_RANGES[self.loss]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def loop(self) -> LoopConfig:
        """What of the settings concerns the training loop."""
        from ..runs.loop import LoopConfig

        return LoopConfig(
            self.steps, self.save_every, self.keep, self.eval_every, self.best_by, self.stop_after
        )

    def learning_rate_at(self, number: int) -> float:
        """The learning rate of the step with this number, from 0."""
        from .fit import learning_rate

        if self.schedule == "cosine":
            return learning_rate(self.learning_rate, self.warmup, self.steps, number)
        return self.learning_rate * min(1.0, (number + 1) / max(1, self.warmup))

    def weights_at(self, number: int) -> dict[str, float]:
        """The reward weights in the step with this number, from 0."""
        import numpy as np

        changing = {
            name: float(np.interp(number + 1, [s for s, _ in points], [w for _, w in points]))
            for name, points in self.curriculum.items()
        }
        return {**self.weights, **changing}

    def check(self) -> None:
        """Refuse settings that cannot train anything.

        Raises:
            SettingError: names the setting and what it may be.
        """
        settings.check(self)
        if self.row > self.group:
            raise SettingError("row", f"must be at most group, which is {self.group}")
        if self.stop_after and not self.eval_every:
            raise SettingError("stop_after", "needs eval_every: it counts evaluations")
        for name, points in self.curriculum.items():
            steps = [step for step, _ in points]
            if not points or steps != sorted(set(steps)):
                raise SettingError(
                    "curriculum", f"of {name} must be (step, weight) points with rising steps"
                )
        self.lora.check()

    def check_weights(self, components: Mapping[str, Component]) -> None:
        """Refuse weights of unknown reward components, and weights that are all 0.

        Raises:
            QAgentError: says which components there are.
        """
        for name in [*self.weights, *self.curriculum]:
            if name not in components and name not in COMPONENTS:
                raise QAgentError(
                    f"there is no reward {name!r} to weigh; known are {', '.join(components)}"
                )
        scheduled = [weight for points in self.curriculum.values() for _, weight in points]
        if not any([*scheduled, *(self.weights.get(name, 0.0) for name in components)]):
            raise SettingError("weights", "must not be 0 for all rewards: nothing would be learned")


def with_weights(
    config: GrpoConfig,
    components: Mapping[str, Component] | None,
    custom: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> GrpoConfig:
    """The configuration with reward weights put in.

    Args:
        config: Is not changed.
        components: All reward components; `COMPONENTS` by default.
        custom: ``FILE:NAME`` of custom rewards; each weighs 1 unless a weight says otherwise.
        assignments: ``NAME=VALUE`` weights, see `rewards.parse_weight`.
    """
    components = components or COMPONENTS
    weights = {spec.rpartition(":")[2]: 1.0 for spec in custom} | config.weights
    curriculum = dict(config.curriculum)
    for assignment in assignments:
        name, value = parse_weight(assignment, list(components))
        curriculum.pop(name, None)
        if isinstance(value, float):
            weights[name] = value
        else:
            curriculum[name] = value
    config = replace(config, weights=weights, curriculum=curriculum)
    config.check_weights(components)
    return config
