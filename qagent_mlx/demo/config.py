"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta


@dataclass(frozen=True)
class DemoConfig:
    """How long the story takes."""

    parent: Annotated[str, Meta(description="Base policy that the story trains.")] = "sample"
    sft_steps: Annotated[int, Meta(ge=1, description="Training steps of SFT.")] = 20
    grpo_steps: Annotated[int, Meta(ge=1, description="Training steps of GRPO.")] = 25
    cases: Annotated[int, Meta(ge=2, description="Test cases of the evaluations.")] = 500
    written: Annotated[
        int, Meta(ge=2, description="Test cases in which the writer recommends without a log.")
    ] = 200
    # With a single chain no vote hides what one chain learns.
    chains: Annotated[int, Meta(ge=1, description="Chains of a case in the evaluations.")] = 1
    group: Annotated[int, Meta(ge=2, description="Chains of a case in training.")] = 8
    measured: Annotated[
        int, Meta(ge=1, description="Validation cases of the rewards that training reports.")
    ] = 50
    seed: Annotated[int, Meta(ge=0, description="Seed of training and sampling.")] = 0
