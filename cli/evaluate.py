"""``qagent evaluate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.utils.settings import merge

from .console import note, out, waiting
from .options import (
    Changes,
    Output,
    json_option,
    opened,
    setting_options,
    shop_option,
    split_options,
)
from .param_types import BASELINE, DTYPE, FILE, FOLDER, PLAIN, POLICY, SERVING

if TYPE_CHECKING:
    from qagent_mlx.evaluate.report import EvaluationReport

EXAMPLES = 200  # cases whose chains an HTML report chooses its examples from


@click.command()
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=POLICY,
    help=f"A policy, such as sft@2 or promoted; may be repeated.  [default: {SERVING}]",
)
@setting_options(
    EvaluationConfig,
    *("with_baselines", "baselines", "prompted", "ablations", "split", "limit", "group", "by"),
    *("compare", "seed", "dtype"),
    into="changes",
    with_baselines="--baselines",
    baselines={"flags": ("--baseline",), "type": BASELINE, "metavar": "NAME"},
    prompted={"metavar": "FOLDER"},
    ablations={"flags": ("--ablation",), "metavar": "NAME"},
    compare={"type": PLAIN, "metavar": "A:B"},
    dtype={"type": DTYPE},
)
@click.option("--no-search", is_flag=True, help="Also each policy with search switched off.")
@click.option("--no-memory", is_flag=True, help="Also each policy with memory switched off.")
@click.option(
    "--html",
    "html_path",
    type=FILE,
    metavar="FILE",
    help="Also write a report into one file: a verdict against memory's first line, plots, slices, "
    "examples and failures.",
)
@click.option(
    "--trec",
    "trec_path",
    type=FOLDER,
    metavar="FOLDER",
    help="Also write run and qrels files for trec_eval, ir-measures and the like.",
)
@split_options
@shop_option
@json_option
def evaluate(
    policies: tuple[str, ...],
    changes: Changes,
    no_search: bool,
    no_memory: bool,
    html_path: Path | None,
    trec_path: Path | None,
    split: Changes,
    shop_path: Path,
) -> Output:
    """Measure what is recommended against what users searched and engaged with next.

    q_em: the first query equals the user's next one; i_hit@1: its first product is one that
    the user then engaged with; cons@1: both at once. row_hit@10: one of the first ten products of
    one of five queries is; own_words: share of the queries that are no line of memory. Intervals
    are 95 % bootstrap intervals.
    """
    from qagent_mlx.environment.config import SplitConfig
    from qagent_mlx.evaluate.comparisons import FIRST_LINE
    from qagent_mlx.evaluate.html_report import reward_curves, write_page
    from qagent_mlx.evaluate.suite import evaluation_suite
    from qagent_mlx.evaluate.trec import write_trec
    from qagent_mlx.policy.registry import serving_policy

    changes["compare"] = [_pair(text) for text in changes.get("compare", ())]
    config = merge(EvaluationConfig(), changes)
    switched = [name for name, on in (("no search", no_search), ("no memory", no_memory)) if on]
    config = replace(config, ablations=tuple(dict.fromkeys([*switched, *config.ablations])))
    if html_path is not None:
        by = config.by or ("history", "tail", "own", "line")
        baselines = config.baselines if config.with_baselines else (*config.baselines, FIRST_LINE)
        config = replace(config, by=by, details=EXAMPLES, baselines=baselines)
    with opened(shop_path, snapshot=True) as shop:
        if not (policies or config.with_baselines or config.baselines or config.prompted):
            policies = (serving_policy(shop),)
        if not config.prompted:
            _check_compared(policies, config)
        with waiting("reading cases"):
            suite = evaluation_suite(shop, policies, config, merge(SplitConfig(), split))
            curves = reward_curves(shop) if html_path is not None else []
    report = suite.evaluate(Progress())
    if html_path is not None:
        catalog = suite.environment.search.catalog
        write_page(html_path, report, catalog, suite.rollouts(), curves)
        note(f"wrote {html_path}")
    if trec_path is not None:
        files = write_trec(trec_path, suite.environment, report)
        note(f"wrote {len(files)} files to {trec_path}")
    return Output(report.to_dict(), lambda: draw_report(report))


class Progress:
    """Say on stderr how long each system took."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, name: str, cases: int) -> None:
        """A system begins (no cases yet) or has ended."""
        if cases:
            note(f"{name}: {cases:,} cases in {time.perf_counter() - self._start:.1f} s")
        self._start = time.perf_counter()


def draw_report(report: EvaluationReport) -> None:
    """Print the metrics, and the comparisons when there are some."""
    from rich.text import Text

    from qagent_mlx.evaluate.tables import (
        answers_line,
        calibration_lines,
        comparison_table,
        row_table,
        slice_tables,
        table,
    )
    from qagent_mlx.evaluate.verdict import verdict_sentences

    console = out()
    if said := verdict_sentences(report):
        console.print(Text(" ".join(said)))
        console.print()
    report = report.best_first()
    console.print(table(report))
    comparisons = [comparison_table(report)] if report.comparisons else []
    answers = [Text(answers_line(report))] if answers_line(report) else []
    chances = [Text("\n".join(lines))] if (lines := calibration_lines(report)) else []
    for further in [row_table(report), *answers, *chances, *slice_tables(report), *comparisons]:
        console.print()
        console.print(further)


def _pair(text: str) -> tuple[str, str]:
    first, sign, second = text.partition(":")
    if not (sign and first and second) or first == second:
        raise click.ClickException(f"--compare {text}: write it as A:B, with two evaluated systems")
    return first, second


def _check_compared(policies: Sequence[str], config: EvaluationConfig) -> None:
    """Say at once, not after the cases were read, that a compared system is not evaluated."""
    from qagent_mlx.evaluate.baselines.registry import BASELINES

    ablated = {f"{policy} ({part})" for policy in policies for part in config.ablations}
    known = {"*", *policies, *config.baselines, *ablated}
    known |= set(BASELINES) if config.with_baselines else set()
    for name in dict.fromkeys(name for pair in config.compare for name in pair):
        if name not in known:
            flag = "--baseline" if name in BASELINES else "--policy"
            raise click.ClickException(
                f"--compare: {name} is not among the evaluated systems; add {flag} {name}"
            )
