"""``qagent evaluate``."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import note, out, waiting
from .options import (
    Output,
    dtype_option,
    json_option,
    opened,
    shop_option,
    split_config,
    split_options,
)
from .param_types import BASELINE, PLAIN, POLICY

if TYPE_CHECKING:
    from qagent_mlx.evaluate.report import EvaluationReport

EXAMPLES = 200  # cases whose chains an HTML report chooses its examples from


@click.command()
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=POLICY,
    help="A policy; may be repeated.  [default: grpo, else the newest]",
)
@click.option("--baselines", is_flag=True, help="Also the recommenders without a model.")
@click.option(
    "--baseline",
    "named",
    multiple=True,
    type=BASELINE,
    metavar="NAME",
    help="One of the baselines, also sasrec, which trains a model first; may be repeated.",
)
@click.option(
    "--prompted",
    multiple=True,
    type=PLAIN,
    metavar="FOLDER",
    help="A chat model that is asked for queries in one prompt: any mlx-lm model folder.",
)
@click.option(
    "--ablation",
    "ablations",
    multiple=True,
    type=PLAIN,
    metavar="NAME",
    help='Also each policy with a part switched off, e.g. "no refinement", "no trending".',
)
@click.option("--no-search", is_flag=True, help="Also each policy with search switched off.")
@click.option("--no-memory", is_flag=True, help="Also each policy with memory switched off.")
@click.option(
    "--split", default="test", show_default=True, type=click.Choice(["train", "validation", "test"])
)
@click.option("--limit", type=click.IntRange(1), help="So many cases, spread over the split.")
@click.option(
    "--group", default=8, show_default=True, type=click.IntRange(1, 256), help="Chains a case."
)
@click.option(
    "--compare",
    multiple=True,
    type=PLAIN,
    metavar="A:B",
    help="Compare two systems case by case; may be repeated.",
)
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["history", "tail", "own"]),
    help="Also slices: how much history, how common the query, whether it is the user's own.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a report with plots, slices, examples and failures: one file.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of sampling.")
@dtype_option
@split_options
@shop_option
@json_option
def evaluate(
    *,
    policies: tuple[str, ...],
    baselines: bool,
    named: tuple[str, ...],
    prompted: tuple[str, ...],
    ablations: tuple[str, ...],
    no_search: bool,
    no_memory: bool,
    split: str,
    limit: int | None,
    group: int,
    compare: tuple[str, ...],
    by: tuple[str, ...],
    html_path: Path | None,
    seed: int,
    dtype: str | None,
    test_from: datetime | None,
    min_history: int | None,
    test_share: float | None,
    validation_share: float | None,
    shop_path: Path,
) -> Output:
    """Measure what is recommended against what users searched and engaged with next.

    q_em: the first query equals the user's next one; i_hit@1: its first product is one that
    the user then engaged with; cons@1: both at once. Intervals are 95 % bootstrap intervals.
    """
    from qagent_mlx.evaluate.config import EvaluationConfig
    from qagent_mlx.evaluate.suite import evaluation_suite
    from qagent_mlx.policy.registry import default_policy

    pairs = _pairs(compare)
    switched = [name for name, on in (("no search", no_search), ("no memory", no_memory)) if on]
    parts = tuple(dict.fromkeys([*switched, *ablations]))
    config = EvaluationConfig(
        split=split,  # type: ignore[arg-type]
        limit=limit,
        group=group,
        seed=seed,
        with_baselines=baselines,
        baselines=named,
        prompted=prompted,
        ablations=parts,
        compare=tuple(pairs),
        by=by or (("history", "tail", "own") if html_path else ()),  # type: ignore[arg-type]
        details=EXAMPLES if html_path else 0,
        dtype=dtype or "",  # type: ignore[arg-type]
    )
    with opened(shop_path) as shop:
        if not (policies or baselines or named or prompted):
            policies = (default_policy(shop, "grpo"),)
        if not prompted:
            _check_names(pairs, policies, parts, named, baselines)
        with waiting("reading cases"):
            suite = evaluation_suite(
                shop,
                policies,
                config,
                split_config(test_from, min_history, test_share, validation_share),
            )
            if html_path is not None:
                from qagent_mlx.evaluate.html_report import reward_curves

                curves = reward_curves(shop)
    report = suite.evaluate(Progress())
    if html_path is not None:
        from qagent_mlx.evaluate.html_report import write_page

        catalog = suite.environment.search.catalog
        write_page(html_path, report, catalog, suite.rollouts(), curves)
        note(f"wrote {html_path}")
    return Output(report.to_dict(), lambda: draw_report(report))


class Progress:
    """Says on stderr which system is being measured, and how long each took."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, name: str, cases: int) -> None:
        """A system begins (no cases yet) or has ended."""
        if cases:
            note(f"{name}: {cases:,} cases in {time.perf_counter() - self._started:.1f} s")
        self._started = time.perf_counter()


def draw_report(report: EvaluationReport) -> None:
    """Print the metrics, and the comparisons when there are some."""
    from qagent_mlx.evaluate.tables import comparison_table, slice_tables, table

    console = out()
    console.print(table(report))
    for one in slice_tables(report):
        console.print()
        console.print(one)
    if report.comparisons:
        console.print()
        console.print(comparison_table(report))


def _check_names(
    pairs: list[tuple[str, str]],
    policies: tuple[str, ...],
    parts: tuple[str, ...],
    named: tuple[str, ...],
    baselines: bool,
) -> None:
    """Say at once, not after the cases were read, that a compared system is not evaluated."""
    from qagent_mlx.errors import QAgentError
    from qagent_mlx.evaluate.baselines.registry import BASELINES

    known = {"*", *policies, *named, *(f"{p} ({part})" for p in policies for part in parts)}
    known |= set(BASELINES) if baselines else set()
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        if name not in known:
            option = "--baseline" if name in BASELINES else "--policy"
            raise QAgentError(
                f"--compare: {name} is not among the evaluated systems; add {option} {name}"
            )


def _pairs(compare: tuple[str, ...]) -> list[tuple[str, str]]:
    from qagent_mlx.errors import QAgentError

    pairs = []
    for text in compare:
        first, sign, second = text.partition(":")
        if not (sign and first and second) or first == second:
            raise QAgentError(f"--compare {text}: write it as A:B, with two evaluated systems")
        pairs.append((first, second))
    return pairs
