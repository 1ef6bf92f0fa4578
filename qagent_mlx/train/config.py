"""Settings of pretraining, SFT, distillation and alarms; GRPO's are in `grpo_config`.

The command line's help reads them, so this module imports nothing that takes long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from ..policy.lora import LoraConfig
from ..utils import settings
from . import setting_types as types
from .setting_types import at_least, share

Action = Literal["stop", "warn", "off"]


@dataclass(frozen=True)
class PretrainConfig:
    """Size of the model and how long it learns."""

    size: Annotated[
        Literal["nano", "tiny", "small"], Meta(description="Size of the new model.")
    ] = "tiny"
    vocab_size: types.VocabSize = 2048
    steps: types.Steps = 350
    batch_size: types.BatchSize = 32
    learning_rate: types.LearningRate = 1e-3  # at 3e-3 a tiny model does not learn to read results
    read: types.Read = 0.3
    drop_lines: Annotated[
        float, share("Probability of a line of memory to be left out of a demonstration.")
    ] = 0.15
    disguise: types.Disguise = 0.5
    words: types.Words = False
    seed: types.Seed = 0


@dataclass(frozen=True)
class SftConfig:
    """How the cold start is done."""

    steps: types.Steps = 60
    batch_size: types.BatchSize = 32
    learning_rate: types.LearningRate = 5e-4
    compare: Annotated[
        float, share("Share of demonstrations that search on after the relevant line.")
    ] = 0.1
    # By default as the base was pretrained, and 1 where there are so few cases that each is
    # demonstrated more than `sft.MAX_PASSES` times.
    disguise: types.Disguise | None = None
    words: types.Words | None = None  # by default as the base was pretrained
    seed: types.Seed = 0
    save_every: types.SaveEvery = 25
    keep: types.Keep = 2
    measured: types.Measured = 100
    lora: LoraConfig = field(default_factory=LoraConfig)

    def check(self) -> None:
        """Refuse settings that cannot train anything.

        Raises:
            SettingError: names the setting and what it may be.
        """
        settings.check(self)
        self.lora.check()


@dataclass(frozen=True)
class DistillConfig:
    """How many chains are sampled, and how the student learns them."""

    cases: Annotated[int, at_least(1, "Training cases, evenly spaced over the log.")] = 1000
    group: Annotated[int, at_least(1, "Chains that the teacher samples for each case.")] = 4
    steps: types.Steps = 350
    batch_size: types.BatchSize = 32
    learning_rate: types.LearningRate = 1e-3
    vocab_size: types.VocabSize = 2048
    read: types.Read = 0.3
    measured: types.Measured = 100
    seed: types.Seed = 0
    lora: LoraConfig = field(default_factory=LoraConfig)  # of a student that exists already


def alarm(trouble: str) -> Meta:
    """What an alarm does."""
    return Meta(description=f"What to do when {trouble}.")


@dataclass(frozen=True)
class AlarmConfig:
    """What each alarm does, and from where on."""

    format: Annotated[Action, alarm("chains no longer end in a recommendation")] = "stop"
    format_floor: Annotated[
        float, at_least(0, "Share of chains that must end in a recommendation.")
    ] = 0.2
    entropy: Annotated[Action, alarm("the policy samples the same chain again and again")] = "warn"
    entropy_floor: Annotated[float, at_least(0, "Entropy that a token must have.", "nats")] = 0.005
    kl: Annotated[Action, alarm("the policy runs away from its reference")] = "stop"
    kl_ceiling: Annotated[
        float, at_least(0, "KL divergence from the reference that a token may have.", "nats")
    ] = 5.0
    gradient: Annotated[Action, alarm("a step's gradient is far larger than usual")] = "warn"
    gradient_ceiling: Annotated[
        float, Meta(gt=0, description="Norm that a gradient may have before it is clipped.")
    ] = 20.0
    dropped: Annotated[Action, alarm("the chains of every group score the same")] = "warn"
    searches: Annotated[
        Action, alarm("chains search the first line of memory and nothing else")
    ] = "warn"
    first_line_ceiling: Annotated[
        float, share("Share of chains that may search the first line of memory and nothing else.")
    ] = 0.98
    words: Annotated[Action, alarm("chains of an agent that may write no longer do")] = "warn"
    words_floor: Annotated[
        float, share("Share of searches that must be in words, not a line of memory alone.")
    ] = 0.01
    distinct: Annotated[Action, alarm("much the same is recommended to everybody")] = "warn"
    distinct_floor: Annotated[
        float, at_least(0, "Distinct recommendations that there must be, for each group.")
    ] = 0.5
    ratio: Annotated[Action, alarm("the policy scores its own samples differently")] = "warn"
    # By default 0.05, and 1 in half precision, where single unlikely tokens differ much.
    ratio_ceiling: (
        Annotated[
            float,
            at_least(
                0, "Difference that a token's log-probability may have, sampled and scored.", "nats"
            ),
        ]
        | None
    ) = None
    memory: Annotated[Action, alarm("a run's estimated memory exceeds the machine's")] = "stop"
    memory_share: Annotated[
        float, at_least(0, "Share of the machine's memory that a run may use.")
    ] = 0.9
    patience: Annotated[
        int,
        at_least(
            1, "Steps in a row before an alarm fires; ratio and gradient fire at once.", "steps"
        ),
    ] = 5
