"""Settings of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta


@dataclass(frozen=True)
class ReproduceConfig:
    """What is trained and measured; a number of steps that is None is the stage's default."""

    preset: Annotated[str, Meta(description="Preset that reads the raw files.")] = "generic"
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(min_length=1, description="Seeds; SFT and GRPO are trained once with each."),
    ] = (0, 1, 2)
    pretrain_steps: (
        Annotated[int, Meta(ge=1, description="Training steps of the base policy.")] | None
    ) = None
    size: Annotated[str, Meta(description="Size of the base policy.")] = "tiny"
    sft_steps: Annotated[int, Meta(ge=1, description="Training steps of each SFT.")] | None = None
    grpo_steps: (
        Annotated[int, Meta(ge=1, description="Training steps of each GRPO run.")] | None
    ) = None
    cases: (
        Annotated[int, Meta(ge=2, description="Test cases that are evaluated; all by default.")]
        | None
    ) = None
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
        str,
        Meta(description="ISO time from which cases are test cases; by default the last fifth."),
    ] = ""
