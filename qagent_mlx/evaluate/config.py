"""Settings of an evaluation and of a simulated A/B test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from ..utils.settings import Natural, Positive

Split = Literal["train", "validation", "test"]
Cut = Literal["history", "tail", "own", "line"]
Dtype = Literal["", "float32", "bfloat16", "float16", "4bit", "stored"]
Group = Annotated[int, Meta(ge=1, le=256)]


@dataclass(frozen=True)
class EvaluationConfig:
    """Which cases are evaluated, which systems stand beside the policies, and what is reported."""

    split: Annotated[Split, Meta(description="Split whose cases are evaluated.")] = "test"
    limit: Annotated[
        Positive | None, Meta(description="Number of cases, spread over the split; all by default.")
    ] = None
    k: Annotated[Positive, Meta(description="Queries recommended for a case; q_hit@5 needs 5.")] = 5
    group: Annotated[Group, Meta(description="Chains that a policy samples for a case.")] = 8
    seed: Annotated[Natural, Meta(description="Seed of sampling and of the resampling tests.")] = 0
    with_baselines: Annotated[
        bool, Meta(description="Also evaluate all baselines that train no model.")
    ] = False
    baselines: Annotated[
        tuple[str, ...],
        Meta(description="A baseline to evaluate; sasrec trains a model first. May be repeated."),
    ] = ()
    prompted: Annotated[
        tuple[str, ...],
        Meta(description="Folder of a chat model that is asked for queries in one prompt."),
    ] = ()
    ablations: Annotated[
        tuple[str, ...],
        Meta(
            description='Also evaluate each policy with a part switched off, such as "no '
            'refinement" or "no trending".'
        ),
    ] = ()
    compare: Annotated[
        tuple[tuple[str, str], ...],
        Meta(description='Two systems to compare case by case; "*" as the second is all others.'),
    ] = ()
    by: Annotated[
        tuple[Cut, ...],
        Meta(
            description="Slices to report: by the user's history, by how common the query is, by "
            "whether the query is the user's own, and by whether it is a line of memory."
        ),
    ] = ()
    details: Annotated[
        int, Meta(ge=0, description="Cases whose answers are kept as examples for a report.")
    ] = 0
    dtype: Annotated[
        Dtype,
        Meta(
            description="Precision of the policies' weights; by default float32 on a CPU and as "
            "stored on a GPU."
        ),
    ] = ""


@dataclass(frozen=True)
class AbConfig:
    """Size and seed of a simulated A/B test."""

    users: Annotated[int, Meta(ge=2, description="Fresh simulated shoppers.")] = 500
    visits: Annotated[
        Positive, Meta(description="First visits of a shopper that take part, at most.")
    ] = 3
    k: Annotated[int, Meta(ge=1, le=20, description="Queries that are shown at a visit.")] = 5
    draws: Annotated[
        int, Meta(ge=1, le=1000, description="Simulations of each visit, with other random draws.")
    ] = 10
    seed: Annotated[Natural, Meta(description="Seed of the shoppers and of all draws.")] = 0
    detect: Annotated[
        float, Meta(gt=0, le=10, description="Relative lift that the sample sizes are for.")
    ] = 0.03
