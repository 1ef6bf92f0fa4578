"""Team-draft interleaving: two systems share each answer, and users choose between them.

The systems take turns to name their best query that is not there yet, by a coin in each round, as
two captains choose teams (Radlinski et al., CIKM 2008). An answer is won by the system whose
queries were taken more often. That takes far fewer users than two arms, and says who is preferred,
not how much more is earned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from ..shop.shop import Shop
from .experiment_report import (
    PLANNED_USERS,
    ExperimentReport,
    anytime_half_width,
    excludes_zero,
    experiment_report,
    two_sided_p,
)
from .experiments import Arm, Experiment
from .outcomes import LINES, line_limits

T = TypeVar("T")
CREDITS = {  # name -> what a system is credited with for its queries
    "taken": "taken::INT",
    "bought": "(purchases > 0)::INT",
}


@dataclass(frozen=True, slots=True)
class Preference:
    """How often each system won an answer.

    ``margin`` is the treatment's wins less the control's over all answers; ``lo`` and ``hi`` bound
    it at all times at once, and ``p`` is that of a test at one moment that was planned. They are
    None where nothing can be said yet.
    """

    control: int
    treatment: int
    margin: float
    lo: float | None
    hi: float | None
    p: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the interval holds no zero."""
        return excludes_zero(self.lo, self.hi)


@dataclass(frozen=True, slots=True)
class InterleavingReport:
    """Which of two systems users preferred so far."""

    experiment: Experiment
    until: datetime
    users: int
    answers: int
    preferences: dict[str, Preference]  # by the names of `CREDITS`

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "experiment": self.experiment.to_dict(),
            "until": self.until.isoformat(),
            "users": self.users,
            "answers": self.answers,
            **{
                name: {**asdict(preference), "significant": preference.is_significant}
                for name, preference in self.preferences.items()
            },
        }


def team_draft(
    control: Sequence[T],
    treatment: Sequence[T],
    k: int,
    key: Callable[[T], Hashable],
    chance: random.Random,
) -> tuple[list[T], list[Arm]]:
    """At most ``k`` items of two rankings, each with the system that is credited for it.

    Args:
        control: The control's ranking, the best first.
        treatment: The treatment's.
        k: Items, at most.
        key: What makes two items the same.
        chance: Throws the coins.
    """
    rest: dict[Arm, list[T]] = {"control": list(control), "treatment": list(treatment)}
    chosen: list[T] = []
    teams: list[Arm] = []
    seen: set[Hashable] = set()
    while len(chosen) < k and any(rest.values()):
        order: list[Arm] = ["control", "treatment"]
        chance.shuffle(order)
        for arm in order:
            rest[arm] = [item for item in rest[arm] if key(item) not in seen]
            if rest[arm] and len(chosen) < k:
                item = rest[arm].pop(0)
                seen.add(key(item))
                chosen.append(item)
                teams.append(arm)
    return chosen, teams


def interleaving_report(
    shop: Shop, experiment: Experiment, now: datetime, planned_users: int = PLANNED_USERS
) -> InterleavingReport:
    """What an interleaved experiment has shown until now, or until it was stopped."""
    until = experiment.stopped or now
    credits = ", ".join(
        f"coalesce(sum({what}) FILTER (arm = '{arm}'), 0) AS {arm}_{name}"
        for name, what in CREDITS.items()
        for arm in ("control", "treatment")
    )
    wins = ", ".join(
        f"count(*) FILTER ({arm}_{name} > {other}_{name})::DOUBLE AS {arm}_{name}"
        for name in CREDITS
        for arm, other in (("control", "treatment"), ("treatment", "control"))
    )
    columns = shop.connection.execute(
        f"""SELECT user_id, count(*)::DOUBLE AS answers, {wins} FROM (
            SELECT user_id, recommendation_id, {credits} FROM ({LINES})
            WHERE experiment = $name AND arm IS NOT NULL GROUP BY ALL)
        GROUP BY user_id ORDER BY user_id""",
        {**line_limits(experiment.started, until), "name": experiment.name},
    ).fetchnumpy()
    table = {name: np.ma.getdata(column) for name, column in columns.items()}
    answers = np.asarray(table["answers"], dtype=float)
    return InterleavingReport(
        experiment,
        until,
        len(answers),
        int(answers.sum()),
        {
            name: prefer(
                table[f"control_{name}"], table[f"treatment_{name}"], answers, planned_users
            )
            for name in CREDITS
        },
    )


def prefer(
    control: np.ndarray,
    treatment: np.ndarray,
    answers: np.ndarray,
    planned_users: int = PLANNED_USERS,
) -> Preference:
    """Which system won more answers, with users as units.

    Args:
        control: Answers of each user that the control won, (users,).
        treatment: Those that the treatment won, (users,).
        answers: All answers of each user, (users,).
        planned_users: The interval is narrowest at about so many.
    """
    won = int(control.sum()), int(treatment.sum())
    users = len(answers)
    if users < 2:
        margin = (won[1] - won[0]) / float(answers.sum()) if users else 0.0
        return Preference(*won, margin, None, None, None)
    difference = np.asarray(treatment - control, dtype=float)
    margin = float(difference.sum() / answers.sum())
    residual = (difference - margin * answers) / answers.mean()
    variance = float(residual.var(ddof=1)) / users
    if variance <= 0:
        return Preference(*won, margin, None, None, None)
    half = anytime_half_width(variance, users, planned_users)
    p = two_sided_p(margin, variance)
    return Preference(*won, margin, margin - half, margin + half, p)


def report_of(
    shop: Shop, experiment: Experiment, now: datetime
) -> ExperimentReport | InterleavingReport:
    """The report of an experiment of either kind."""
    report = interleaving_report if experiment.kind == "interleave" else experiment_report
    return report(shop, experiment, now)
