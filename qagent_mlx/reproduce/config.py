"""Settings of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Steps = Annotated[int, Meta(ge=1)]
Seeds = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]


@dataclass(frozen=True)
class ReproduceConfig:
    """What is trained and measured; a number of steps that is None is the stage's default."""

    preset: Annotated[str, Meta(description="Preset that reads the raw files.")] = "generic"
    seeds: Annotated[Seeds, Meta(description="Seeds that SFT and GRPO are trained with.")] = (
        0,
        1,
        2,
    )
    pretrain_steps: Annotated[
        Steps | None, Meta(description="Training steps of the base policy.")
    ] = None
    size: Annotated[str, Meta(description="Size of the base policy.")] = "tiny"
    sft_steps: Annotated[Steps | None, Meta(description="Training steps of each SFT.")] = None
    grpo_steps: Annotated[Steps | None, Meta(description="Training steps of each GRPO run.")] = None
    cases: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description="Test cases that are evaluated; all by default."),
    ] = None
    users: Annotated[int, Meta(ge=2, description="Simulated shoppers of the A/B tests.")] = 500
    group: Annotated[
        int, Meta(ge=1, le=256, description="Chains that a policy samples for a case.")
    ] = 8
    quick: Annotated[
        bool, Meta(description="Make every stage very small, to see that all of them run.")
    ] = False
    min_history: Annotated[
        int, Meta(ge=0, description="Events that a user needs before a case.")
    ] = 1
    test_from: Annotated[
        str, Meta(description="ISO time from which cases test; by default the last fifth does.")
    ] = ""
