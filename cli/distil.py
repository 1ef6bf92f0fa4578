"""``qagent distil``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from .console import note, out, safe
from .options import Output, given, json_option, opened, shop_option, split_config, split_options
from .param_types import PLAIN, POLICY
from .progress import TrainingProgress

if TYPE_CHECKING:
    from qagent_mlx.train.distill import DistillReport


@click.command()
@click.option("--teacher", type=POLICY, help="A trained policy.  [default: grpo, else the newest]")
@click.option(
    "--student",
    default="tiny",
    show_default=True,
    type=PLAIN,
    help="nano, tiny or small for a new model; or a policy to put an adapter on.",
)
@click.option("--name", default="distilled", show_default=True, help="Of the student.")
@click.option("--cases", type=click.IntRange(1), help="Training cases.  [default: 1000]")
@click.option("--group", type=click.IntRange(1), help="Teacher's chains a case.  [default: 4]")
@click.option("--steps", type=click.IntRange(1), help="Of the student.  [default: 350]")
@click.option("--batch-size", type=click.IntRange(1), help="Chains a step.  [default: 32]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@split_options
@shop_option
@json_option
def distil(
    *,
    teacher: str | None,
    student: str,
    name: str,
    cases: int | None,
    group: int | None,
    steps: int | None,
    batch_size: int | None,
    seed: int,
    test_from: datetime | None,
    min_history: int | None,
    test_share: float | None,
    validation_share: float | None,
    shop_path: Path,
) -> Output:
    """Train a small policy on the validated chains of a large one, for serving fast."""
    from qagent_mlx.policy.registry import default_policy
    from qagent_mlx.train.distill import DistillConfig
    from qagent_mlx.train.distill import distill as run

    config = DistillConfig(
        seed=seed, **given(cases=cases, group=group, steps=steps, batch_size=batch_size)
    )
    split = split_config(test_from, min_history, test_share, validation_share)
    with opened(shop_path) as shop:
        master = teacher or default_policy(shop, "grpo")
        with TrainingProgress(config.steps, f"distilling {master} -> {name}") as progress:
            report = run(shop, master, student, name, config, split, Sampled(), progress)
    return Output(report.to_dict(), lambda: draw(report))


class Sampled:
    """Says on stderr how far the teacher is, a tenth at a time."""

    def __init__(self) -> None:
        self._said = 0

    def __call__(self, done: int, whole: int) -> None:
        """So many of the teacher's chains have ended."""
        tenth = 10 * done // max(1, whole)
        if tenth > self._said:
            self._said = tenth
            note(f"the teacher has sampled {done:,} of {whole:,} chains")


def draw(report: DistillReport) -> None:
    """Print what came of it."""
    console = out()
    console.print(
        safe(
            f"{report.chains:,} chains of {report.teacher}, {report.validated:,} "
            f"validated, {report.kept:,} learned from"
        ),
        soft_wrap=True,
    )
    for name, size, reward, ms in (
        (report.teacher, report.parameters_teacher, report.reward_teacher, report.ms_teacher),
        (report.policy, report.parameters, report.reward_student, report.ms_student),
    ):
        console.print(
            safe(
                f"{name}: {size / 1e6:,.1f} M parameters, reward {reward:.3f}, {ms:.0f} ms a chain"
            ),
            soft_wrap=True,
        )
    console.print(
        safe(
            f"{report.speedup:.1f} times as fast; next: qagent evaluate --policy "
            f"{quote(report.teacher)} --policy {report.policy}"
        ),
        soft_wrap=True,
    )
