"""``qagent evaluate``."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .common import (
    PLAIN,
    default_policy,
    dtype_option,
    emit,
    json_option,
    note,
    opened,
    out,
    shop_option,
    split_config,
    split_options,
    waiting,
)


@click.command()
@click.option(
    "--policy", "policies", multiple=True, type=PLAIN,
    help="A policy; may be repeated.  [default: grpo, else the newest]",
)  # fmt: skip
@click.option("--baselines", is_flag=True, help="Also the recommenders without a model.")
@click.option("--no-search", is_flag=True, help="Also each policy with search switched off.")
@click.option("--no-memory", is_flag=True, help="Also each policy with memory switched off.")
@click.option(
    "--split", default="test", show_default=True,
    type=click.Choice(["train", "validation", "test"]),
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="So many cases, spread over the split.")
@click.option(
    "--group", default=8, show_default=True, type=click.IntRange(1, 256), help="Chains a case."
)
@click.option(
    "--compare", multiple=True, type=PLAIN, metavar="A:B",
    help="Compare two systems case by case; may be repeated.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of sampling.")
@dtype_option
@split_options
@shop_option
@json_option
def evaluate(
    *, policies: tuple[str, ...], baselines: bool, no_search: bool, no_memory: bool, split: str,
    limit: int | None, group: int, compare: tuple[str, ...], seed: int, dtype: str | None,
    test_from: datetime | None, min_history: int | None, test_share: float | None,
    validation_share: float | None, shop_path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Measure what is recommended against what users searched and engaged with next.

    q_em: the first query equals the user's next one; i_hit@1: its first product is one that
    the user then engaged with; cons@1: both at once. Intervals are 95 % bootstrap intervals.
    """
    from qagent_mlx.evaluate.lineup import lineup
    from qagent_mlx.evaluate.report import evaluate as measure

    pairs = _pairs(compare)
    config = split_config(test_from, min_history, test_share, validation_share)
    ablations = [name for name, on in (("no search", no_search), ("no memory", no_memory)) if on]
    with opened(shop_path) as shop:
        if not policies and not baselines:
            policies = (default_policy(shop, "grpo"),)
        with waiting("reading cases"):
            environment, systems = lineup(
                shop, policies, ablations=ablations, with_baselines=baselines, split=config,
                group=group, seed=seed, dtype=dtype or "",
            )  # fmt: skip
    report = measure(
        environment, systems, split, 5, limit, seed=seed, on_progress=Progress(), compare=pairs
    )
    if as_json:
        emit(report)
    else:
        draw_report(report)


class Progress:
    """Says on stderr which system is being measured, and how long each took."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, name: str, cases: int) -> None:
        """A system begins (no cases yet) or has ended."""
        if cases:
            note(f"{name}: {cases:,} cases in {time.perf_counter() - self._started:.1f} s")
        self._started = time.perf_counter()


def draw_report(report: dict[str, Any]) -> None:
    """Print the metrics, and the comparisons when there are some."""
    from qagent_mlx.evaluate.report import comparison_table, table

    console = out()
    console.print(table(report))
    if report["comparisons"]:
        console.print()
        console.print(comparison_table(report))


def _pairs(compare: tuple[str, ...]) -> list[tuple[str, str]]:
    from qagent_mlx.errors import QAgentError

    pairs = []
    for text in compare:
        first, sign, second = text.partition(":")
        if not (sign and first and second) or first == second:
            raise QAgentError(f"--compare {text}: write it as A:B, with two evaluated systems")
        pairs.append((first, second))
    return pairs
