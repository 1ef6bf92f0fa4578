"""What an experiment has shown so far, with intervals that may be looked at any time.

Users are the units: each brings the sums of their answers, and a rate is a ratio of two sums
(linearised, Deng et al. 2018). What users did before the experiment takes noise out of it (CUPED,
Deng et al. 2013). The interval holds at all times at once (asymptotic confidence sequences,
Waudby-Smith et al., arXiv:2103.06476); ``p`` is that of a test at one moment that was planned.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np

from ..shop.shop import Shop
from .experiments import Experiment
from .outcomes import LINES, line_limits

ALPHA = 0.05
PLANNED_USERS = 2000  # the sequence of intervals is narrowest at about so many
SPLIT_ALARM = 0.001  # p of the split's check, below which no result is to be believed
BEFORE = timedelta(days=28)  # looked at for CUPED
METRICS = {  # name -> (what is summed, over what)
    "ctr": ("taken", "answers"),
    "cvr": ("bought", "answers"),
    "orders": ("purchases", "answers"),
    "revenue": ("revenue", "answers"),
}
_USERS = f"""
WITH lines AS (FROM ({LINES}) WHERE experiment = $name),
answers AS (
    SELECT user_id, arm, recommendation_id, (count(*) FILTER (taken) > 0)::INT AS taken,
        (sum(purchases) > 0)::INT AS bought, sum(purchases) AS purchases,
        sum(revenue) AS revenue, (count(*) FILTER (position > 0) = 0)::INT AS empty,
        any_value(latency_ms) AS latency_ms, any_value(source = 'trending' OR (
            source = 'top-line' AND CASE arm WHEN 'treatment' THEN $treatment ELSE $control END
                <> 'memory')) AS is_fallback
    FROM lines GROUP BY ALL),
before AS (
    SELECT user_id, count(*) AS events, count(*) FILTER (type = 'purchase') AS bought_before
    FROM events WHERE ts >= $before AND ts < $since AND user_id IN (SELECT user_id FROM answers)
    GROUP BY ALL)
SELECT user_id, arm, count(*) AS answers, sum(taken) AS taken, sum(bought) AS bought,
    sum(purchases) AS purchases, sum(revenue) AS revenue, sum(empty) AS empty,
    count(*) FILTER (is_fallback) AS fallbacks, sum(latency_ms) AS latency,
    coalesce(any_value(b.events), 0) AS events_before,
    coalesce(any_value(b.bought_before), 0) AS bought_before
FROM answers LEFT JOIN before b USING (user_id) GROUP BY user_id, arm ORDER BY user_id, arm
"""


def excludes_zero(lo: float | None, hi: float | None) -> bool:
    """Whether an interval holds no zero; False where nothing can be said yet."""
    return lo is not None and hi is not None and not lo <= 0 <= hi


@dataclass(frozen=True, slots=True)
class Effect:
    """A rate in both arms, and their difference.

    ``lo`` and ``hi`` bound the difference at all times at once; they and ``lift`` are None where
    nothing can be said yet.
    """

    control: float
    treatment: float
    difference: float
    lo: float | None
    hi: float | None
    lift: float | None  # relative to the control
    p: float | None  # two-sided, of one look at a planned moment
    variance_saved: float  # share of the variance that CUPED took away

    @property
    def is_significant(self) -> bool:
        """Whether the interval holds no zero."""
        return excludes_zero(self.lo, self.hi)


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """Both arms of an experiment so far."""

    experiment: Experiment
    until: datetime
    users: dict[str, int]
    answers: dict[str, int]
    effects: dict[str, Effect]
    guardrails: dict[str, dict[str, float]]  # name -> arm -> value
    split_p: float  # of the users' shares, if the experiment assigned them as it should
    switched: int  # users who were shown both arms; they are left out

    @property
    def is_split_broken(self) -> bool:
        """Whether the arms' sizes cannot be chance, so that nothing here is to be believed."""
        return self.split_p < SPLIT_ALARM

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "experiment": self.experiment.to_dict(),
            "until": self.until.isoformat(),
            "users": self.users,
            "answers": self.answers,
            **{
                name: {**asdict(effect), "significant": effect.is_significant}
                for name, effect in self.effects.items()
            },
            "guardrails": self.guardrails,
            "split": {"p": self.split_p, "broken": self.is_split_broken},
            "switched": self.switched,
        }


def experiment_report(
    shop: Shop, experiment: Experiment, now: datetime, planned_users: int = PLANNED_USERS
) -> ExperimentReport:
    """What an experiment has shown until now, or until it was stopped."""
    until = experiment.stopped or now
    values = {
        **line_limits(experiment.started, until),
        "name": experiment.name,
        "control": experiment.control,
        "treatment": experiment.treatment,
        "before": experiment.started - BEFORE,
    }
    columns = shop.connection.execute(_USERS, values).fetchnumpy()
    table = {name: np.ma.getdata(column) for name, column in columns.items()}
    users, times = np.unique(table["user_id"].astype(str), return_counts=True)
    switched = users[times > 1]
    kept = ~np.isin(table["user_id"].astype(str), switched)
    numbers = {
        name: np.asarray(column[kept], dtype=float)
        for name, column in table.items()
        if name not in ("user_id", "arm")
    }
    is_treated = np.asarray(table["arm"][kept] == "treatment", dtype=bool)
    arms = {"control": ~is_treated, "treatment": is_treated}
    sizes = {arm: int(rows.sum()) for arm, rows in arms.items()}
    before = np.column_stack([numbers["events_before"], numbers["bought_before"]])
    effects = {
        name: compare(numbers[top], numbers[bottom], is_treated, before, planned_users)
        for name, (top, bottom) in METRICS.items()
    }
    guardrails = {
        name: {
            arm: float(numbers[column][rows].sum() / max(1.0, numbers["answers"][rows].sum()))
            for arm, rows in arms.items()
        }
        for name, column in (
            ("latency_ms", "latency"),
            ("fallbacks", "fallbacks"),
            ("empty", "empty"),
        )
    }
    return ExperimentReport(
        experiment,
        until,
        sizes,
        {arm: int(numbers["answers"][rows].sum()) for arm, rows in arms.items()},
        effects,
        guardrails,
        split_check(sizes["treatment"], sum(sizes.values()), experiment.share),
        len(switched),
    )


def compare(
    top: np.ndarray,
    bottom: np.ndarray,
    is_treated: np.ndarray,
    before: np.ndarray | None = None,
    planned_users: int = PLANNED_USERS,
) -> Effect:
    """The difference of a ratio of sums between two arms.

    Args:
        top: What is counted of each user, (users,).
        bottom: Over what, (users,).
        is_treated: Who is in the treatment.
        before: What is known of each user from before, (users, n); taken out of the noise.
        planned_users: Of both arms; the interval is narrowest at about so many.
    """
    is_treated = np.asarray(is_treated, dtype=bool)
    rates, values, raw = [], np.zeros(len(top)), np.zeros(len(top))
    for rows in (~is_treated, is_treated):
        total = bottom[rows].sum()
        rate = float(top[rows].sum() / total) if total else 0.0
        rates.append(rate)
        if total:
            # Its mean over the arm's users is the rate, its spread that of the ratio.
            raw[rows] = rate + (top[rows] - rate * bottom[rows]) / bottom[rows].mean()
    values = raw if before is None else _without_history(raw, is_treated, before)
    groups = [values[~is_treated], values[is_treated]]
    control, treatment = rates
    difference = treatment - control
    if min(map(len, groups)) < 2:
        return Effect(control, treatment, difference, None, None, None, None, 0.0)
    difference = float(groups[1].mean() - groups[0].mean())
    variance = sum(float(group.var(ddof=1)) / len(group) for group in groups)
    plain = sum(
        float(raw[rows].var(ddof=1)) / int(rows.sum()) for rows in (~is_treated, is_treated)
    )
    if variance <= 0:
        return Effect(control, treatment, difference, None, None, None, None, 0.0)
    half = anytime_half_width(variance, len(top), planned_users)
    p = two_sided_p(difference, variance)
    lift = difference / control if control else None
    saved = max(0.0, 1 - variance / plain) if plain > 0 else 0.0
    return Effect(
        control, treatment, difference, difference - half, difference + half, lift, p, saved
    )


def _without_history(values: np.ndarray, is_treated: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Values less what the users' time before says of them (CUPED), by a common regression."""
    varying = before[:, before.std(axis=0) > 0] if len(before) else before
    if not varying.shape[1] or len(values) < 10 * varying.shape[1]:
        return values
    centred = varying - varying.mean(axis=0)
    within = values.copy()
    for rows in (~is_treated, is_treated):
        within[rows] -= values[rows].mean() if rows.any() else 0.0
    slope, *_ = np.linalg.lstsq(centred, within, rcond=None)
    return np.asarray(values - centred @ slope)


def anytime_half_width(variance: float, users: int, planned_users: int) -> float:
    """Half the width of an interval that holds at all times at once (arXiv:2103.06476, eq. 14)."""
    rho2 = (-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA) + 1)) / planned_users
    grown = users * rho2 + 1
    scale = 2 * grown / (users * rho2) * math.log(math.sqrt(grown) / ALPHA)
    return math.sqrt(variance * scale)


def two_sided_p(difference: float, variance: float) -> float:
    """The p-value of a difference with this variance, against none."""
    return 2 * NormalDist().cdf(-abs(difference) / math.sqrt(variance))


def split_check(treated: int, users: int, share: float) -> float:
    """The p-value of the arms' sizes (sample ratio mismatch), by a two-sided binomial test."""
    if not users:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(treated, users, share).pvalue)


def users_needed(shop: Shop, lift: float, power: float = 0.8) -> int | None:
    """Users in both arms together who show a lift of CTR in a test at one planned moment.

    From what was shown in the shop so far; None where that is too little.
    """
    if not shop.has_table("recommendations"):
        return None
    columns = shop.connection.execute(
        f"""SELECT count(*) AS answers, sum(taken)::DOUBLE AS taken FROM (
            SELECT user_id, recommendation_id, (count(*) FILTER (taken) > 0)::INT AS taken
            FROM ({LINES}) GROUP BY ALL) GROUP BY user_id""",
        line_limits(None, None),
    ).fetchnumpy()
    answers, taken = (np.ma.getdata(columns[name]).astype(float) for name in ("answers", "taken"))
    if len(answers) < 30 or not taken.sum():
        return None
    rate = taken.sum() / answers.sum()
    spread = ((taken - rate * answers) / answers.mean()).var(ddof=1)
    quantile = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(power)
    return math.ceil(4 * spread * quantile**2 / (lift * rate) ** 2)
