"""Which step of a run is best by its evaluations, and when to stop looking."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MEASURES = ("reward", "cons@1", "q_em", "i_hit@1")


@dataclass
class BestEvaluation:
    """The best evaluation so far; a function of the metrics rows alone, so it resumes exactly.

    Args:
        by: One of `MEASURES`.
        patience: Evaluations without a better one after which `exhausted` is true; 0 for never.
    """

    by: str
    patience: int = 0
    step: int = 0
    value: float = -math.inf
    since: int = 0

    def replay(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take the steps of a run that goes on."""
        for row in rows:
            self.take(row)

    def take(self, row: dict[str, Any]) -> None:
        """Look at one step's metrics; only those of an evaluation count. Ties keep the earlier."""
        value = row.get(f"eval_{self.by}")
        if value is None:
            return
        if value > self.value:
            self.step, self.value, self.since = int(row["step"]), float(value), 0
        else:
            self.since += 1

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the run."""
        return bool(self.patience) and self.since >= self.patience
