"""Settings that several kinds of training share, and short ways to describe others."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta


def at_least(minimum: float, description: str, unit: str = "") -> Meta:
    """A number of at least ``minimum``."""
    return Meta(ge=minimum, description=description, extra={"unit": unit} if unit else None)


def share(description: str) -> Meta:
    """A number from 0 to 1."""
    return Meta(ge=0, le=1, description=description)


Steps = Annotated[int, at_least(1, "Training steps.")]
BatchSize = Annotated[int, at_least(1, "Demonstrations in a step.")]
LearningRate = Annotated[
    float, Meta(gt=0, description="Peak learning rate, reached after warm-up.")
]
Seed = Annotated[int, at_least(0, "Seed of everything random.")]
SaveEvery = Annotated[int, at_least(1, "Steps between checkpoints.", "steps")]
Keep = Annotated[int, at_least(1, "Last checkpoints that stay; the best one stays as well.")]
Measured = Annotated[
    int, at_least(1, "Validation cases in an evaluation, spread evenly over all.", "cases")
]
VocabSize = Annotated[int, at_least(256, "Tokens in the vocabulary of a new model.")]
Disguise = Annotated[float, share("Share of demonstrations that are delexicalised.")]
Words = Annotated[
    bool, Meta(description="Demonstrate cases without a relevant line by writing the query.")
]
Read = Annotated[float, share("Share of the tokens it reads that a new model learns to predict.")]
