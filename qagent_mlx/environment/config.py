"""Settings of the split into train, validation and test cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

ScenarioName = Literal["full", "no_query_log", "own_only", "new", "sold_out"]


@dataclass(frozen=True)
class SplitConfig:
    """Which moments of the log are cases, and how time splits them."""

    min_history: Annotated[
        int, Meta(ge=0, description="Events a user must have before a case; 0 lets new users in.")
    ] = 1
    test_share: Annotated[
        float,
        Meta(ge=0, le=0.9, description="Share of the cases that are test cases, the last ones."),
    ] = 0.2
    validation_share: Annotated[
        float, Meta(ge=0, le=0.9, description="Share of the cases just before the test cases.")
    ] = 0.05
    test_from: Annotated[
        str,
        Meta(description="Cases from this ISO 8601 moment on are test cases, instead of a share."),
    ] = ""
    learn_from: Annotated[
        Literal["successes", "searches"],
        Meta(
            description="What training and validation cases ask for: each session's first "
            "successful search, or its first search whatever came of it."
        ),
    ] = "successes"
    scenario: Annotated[
        ScenarioName,
        Meta(
            description="What the shop is taken to have: its full log, no query log, nobody's "
            "queries for anybody else, products that are new in the test period, or first lines "
            "of memory that are sold out."
        ),
    ] = "full"
    new_share: Annotated[
        float,
        Meta(gt=0, le=0.9, description="Share of the products that the scenario new has as new."),
    ] = 0.2
