"""What a run records: alerts, sampled chains, and the report of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

Metrics = dict[str, Any]
"""Numbers of one step by name, ``step`` (counted from 1) among them."""

Count = Annotated[int, Meta(ge=-(2**53), le=2**53)]  # a float holds it exactly


@dataclass(frozen=True, slots=True)
class Alert:
    """An alarm that fired."""

    name: str
    action: str  # stop or warn
    step: Count
    reason: str


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """One sampled chain beside what its user then wanted."""

    step: Count
    case_id: Count
    user: str
    member: Count  # place in its group, from 0
    wanted: str
    recommended: str
    finish: str
    reward: float  # weighted mean of `rewards`
    rewards: dict[str, float]  # by component
    advantage: float
    tokens: Count
    sampled_tokens: Count
    chain: str  # its text
    searches: Count = 0


@dataclass(frozen=True)
class TrainingReport:
    """What every training reports; the kinds of training add to it."""

    run: str | None  # None for a training that no run records
    policy: str
    steps: int
    seconds: float  # of this process; a resumed run's earlier ones are no part of it
    tokens_per_s: int
    version: int = field(default=0, kw_only=True)  # of the policy; 0 before it is saved

    @property
    def reference(self) -> str:
        """The policy that was saved, as ``NAME@N``."""
        return f"{self.policy}@{self.version}" if self.version else self.policy

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class LoopResult:
    """How a `TrainingLoop` ended."""

    run: str | None
    history: list[Metrics] = field(repr=False)  # of all steps, those before a resume included
    best_step: int | None  # of the policy that was kept; None without evaluations
    best_value: float | None
    stopped_early: bool
    validation: dict[str, float]  # the last evaluation, of the policy that was kept
    seconds: float

    @property
    def kept_step(self) -> int:
        """The step whose weights the policy has."""
        return self.best_step or len(self.history)

    def total(self, name: str) -> float:
        """The sum of a metric over all steps."""
        return sum(metrics[name] for metrics in self.history)

    def first_and_last(self, name: str) -> tuple[float, float]:
        """Means of a metric over the first and the last tenth of the steps."""
        return first_and_last_mean([metrics[name] for metrics in self.history])


def first_and_last_mean(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last tenth of some values; NaN of none."""
    if not values:
        return float("nan"), float("nan")
    tenth = max(1, len(values) // 10)
    return float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))
