"""Which step of a run is best by its evaluations, and when more of them are pointless."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class BestEvaluation:
    """The best evaluation so far; a function of the steps' metrics alone, so it resumes exactly."""

    measure: str  # what evaluations are compared by, such as ``cons@1``
    patience: int = 0  # evaluations without a better one until `exhausted`; 0: never
    step: int = 0  # 0 before the first evaluation
    value: float = -math.inf
    evaluations_since: int = 0

    def update(self, metrics: dict[str, Any]) -> None:
        """Take one step's metrics; those without an evaluation are ignored, ties keep the older."""
        value = metrics.get(f"eval_{self.measure}")
        if value is None:
            return
        if value > self.value:
            self.step, self.value = int(metrics["step"]), float(value)
            self.evaluations_since = 0
        else:
            self.evaluations_since += 1

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the run."""
        return bool(self.patience) and self.evaluations_since >= self.patience
