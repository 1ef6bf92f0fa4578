"""An evaluation as one HTML file: plots as inline SVG, no script, nothing from elsewhere.

The markup is in ``report.html``; here is what it is filled with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..agent.types import Rollout
from ..inventory.catalog import Catalog
from ..runs.run import Run, run_names
from ..shop.shop import Shop
from ..utils.atomic_files import write_text
from ..utils.html import render
from .comparisons import COMPARED, SIGNIFICANCE_LEVEL
from .report import Answer, CaseDetail, EvaluationReport
from .tables import answers_line, compared_pairs
from .verdict import verdict_sentences

EXAMPLES = 4  # example chains of each kind

Rollouts = Mapping[str, Mapping[int, Sequence[Rollout]]]  # by system and case id


@dataclass(frozen=True, slots=True)
class RewardCurve:
    """The mean reward of each step of a GRPO run."""

    run: str
    steps: list[int]
    rewards: list[float]


@dataclass(frozen=True, slots=True)
class ExampleChain:
    """A case, what a policy answered, and one of its chains."""

    detail: CaseDetail
    answer: Answer
    rollout: Rollout


def reward_curves(shop: Shop) -> list[RewardCurve]:
    """The reward curve of each GRPO run of a shop."""
    curves = []
    for name in run_names(shop):
        rows = [r for r in Run.open(shop, name).rows("metrics") if "reward" in r and "step" in r]
        if len(rows) > 1:
            curves.append(RewardCurve(name, [r["step"] for r in rows], [r["reward"] for r in rows]))
    return curves


def write_page(
    path: Path,
    report: EvaluationReport,
    catalog: Catalog,
    rollouts: Rollouts | None = None,
    curves: Sequence[RewardCurve] = (),
) -> None:
    """Write the page; see `page`."""
    titles = dict(zip(catalog.ids, catalog.titles, strict=True))
    write_text(path, page(report, titles, rollouts or {}, curves))


def page(
    report: EvaluationReport,
    titles: Mapping[str, str],
    rollouts: Rollouts,
    curves: Sequence[RewardCurve] = (),
) -> str:
    """The whole page as text; ``titles`` name the products, by their ids.

    Examples are chosen from the report's details, and of the ``rollouts`` of the first system.
    """
    system = next(iter(rollouts), "")
    successes, failures = _examples(report, system, rollouts.get(system, {}))
    return render(
        "evaluate/report.html",
        report=report.best_first(),
        verdict=verdict_sentences(report),
        answers=answers_line(report),
        pairs=compared_pairs(report),
        compared=COMPARED,
        level=SIGNIFICANCE_LEVEL,
        curves=curves,
        system=system,
        successes=successes,
        failures=failures,
        titles=titles,
        ticks=_ticks,
        polylines=_polylines,
    )


def _ticks(highest: float) -> list[float]:
    """At most six round numbers from 0 to ``highest``, a share."""
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if highest / s <= 5.5)
    return [i * step for i in range(int(highest / step) + 1)]


def _polylines(curve: RewardCurve, width: int, height: int, left: int, low: int) -> tuple[str, str]:
    """The points of a curve as it is, and smoothed by a trailing mean over a tenth of it."""
    steps, rewards = curve.steps, curve.rewards
    bottom = min(rewards)
    span = (max(rewards) - bottom) or 1.0

    def point(step: float, value: float) -> str:
        x = left + (step - steps[0]) / ((steps[-1] - steps[0]) or 1) * (width - left - 12)
        y = 10 + (1 - (value - bottom) / span) * (height - low - 16)
        return f"{x:.1f},{y:.1f}"

    window = max(1, len(rewards) // 10)
    recent = [rewards[max(0, i - window) : i + 1] for i in range(len(rewards))]
    smooth = [sum(values) / len(values) for values in recent]
    thin, thick = (" ".join(map(point, steps, values)) for values in (rewards, smooth))
    return thin, thick


def _examples(
    report: EvaluationReport, system: str, rollouts: Mapping[int, Sequence[Rollout]]
) -> tuple[list[ExampleChain], list[ExampleChain]]:
    """Successes, those with most searches first, and failures, spread over the split's time."""
    details = [d for d in report.details if d.example.case.case_id in rollouts]

    def example(detail: CaseDetail) -> ExampleChain:
        answer = detail.answers[system]
        top = answer.queries[0] if answer.queries else ""
        # The chain that ends in what was recommended, the longest of those.
        chain = max(
            rollouts[detail.example.case.case_id], key=lambda c: (c.query == top, len(c.turns))
        )
        return ExampleChain(detail, answer, chain)

    def most_searches_first(detail: CaseDetail) -> tuple[int, int]:
        case_id = detail.example.case.case_id
        return -max(chain.searches for chain in rollouts[case_id]), case_id

    successes = sorted(
        (d for d in details if d.answers[system].metrics["cons@1"]), key=most_searches_first
    )
    failures = [d for d in details if not d.answers[system].metrics["q_em"]]
    failures = failures[:: max(1, len(failures) // EXAMPLES)]
    return [*map(example, successes[:EXAMPLES])], [*map(example, failures[:EXAMPLES])]
