"""An evaluation's report as tables: for a terminal (rich), and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from .report import COMPARED, MAIN, SIGNIFICANCE_LEVEL, Comparison, EvaluationReport, SystemResult


def table(report: EvaluationReport) -> Table:
    """The main metrics in percent, with half of their 95 % interval; fits 80 columns."""
    metrics = _table(
        f"{report.split}, {report.cases:,} cases, percent ± half of the 95% interval"
        + _derived(report)
    )
    metrics.add_column("system", overflow="fold")
    for name in (*MAIN, "ms"):
        metrics.add_column(name, justify="right", no_wrap=True)
    for system in report.systems:
        metrics.add_row(*map(Text, _system_cells(system)))
    return metrics


def slice_tables(report: EvaluationReport) -> list[Table]:
    """``cons@1`` in percent: a table for each cut, with a column for each of its slices."""
    tables = []
    for cut in dict.fromkeys(result.by for result in report.slices):
        slices = [result for result in report.slices if result.by == cut]
        by_slice = _table(f"cons@1 by {cut}, percent (cases)")
        by_slice.add_column("system", overflow="fold")
        for result in slices:
            title = f"{result.slice} ({result.cases:,})"
            by_slice.add_column(title, justify="right", overflow="fold")
        for i, system in enumerate(report.systems):
            means = [result.systems[i].metrics["cons@1"].mean for result in slices]
            by_slice.add_row(*map(Text, [system.name, *(f"{100 * mean:.1f}" for mean in means)]))
        tables.append(by_slice)
    return tables


def comparison_table(report: EvaluationReport) -> Table:
    """The comparisons in percentage points, with their 95 % interval; fits 80 columns."""
    comparisons = _table("a - b on the same cases, percentage points [95% interval]")
    for name in ("a", "b"):
        comparisons.add_column(name, overflow="fold")
    comparisons.add_column("metric", no_wrap=True)
    for name in ("diff", "p", "p Holm"):
        comparisons.add_column(name, justify="right", no_wrap=True)
    for c in report.comparisons:
        cells = (c.a, c.b, c.metric, _difference(c), _p(c.p), _p(c.p_holm))
        comparisons.add_row(*map(Text, cells))
    return comparisons


def markdown(report: EvaluationReport) -> str:
    """Metrics, and comparisons where there are some, as tables for a README."""
    parts = [
        f"Split `{report.split}`, {report.cases:,} cases; percent ± half of the 95 % "
        f"bootstrap interval{_derived(report)}.",
        _markdown(
            ("system", *MAIN, "ms a case"), map(_system_cells, report.systems), left_aligned=1
        ),
    ]
    if report.comparisons:
        parts += [
            "a - b on the same cases, in percentage points with the 95 % bootstrap interval; "
            "* where p by sign flips, corrected for all comparisons here (Holm), is below "
            f"{SIGNIFICANCE_LEVEL}.",
            _markdown(
                ("a", "b", *COMPARED),
                ([*pair, *map(_marked, row)] for pair, row in compared_pairs(report).items()),
                left_aligned=2,
            ),
        ]
    return "\n\n".join(parts) + "\n"


def compared_pairs(report: EvaluationReport) -> dict[tuple[str, str], list[Comparison]]:
    """The comparisons of each pair of systems, one for each of `COMPARED`."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in report.comparisons:
        pairs.setdefault((comparison.a, comparison.b), []).append(comparison)
    return pairs


def _derived(report: EvaluationReport) -> str:
    return f"; derived queries ({report.derived})" if report.derived else ""


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        min_width=min(len(title), 80),  # a title folds at the table's width
    )


def _system_cells(system: SystemResult) -> list[str]:
    cells = []
    for name in MAIN:
        value = system.metrics[name]
        cells.append(f"{100 * value.mean:.1f} ±{100 * ((value.hi - value.lo) / 2):.1f}")
    ms = system.latency_ms
    return [system.name, *cells, f"{ms:.0f}" if ms >= 10 else f"{ms:.2f}"]


def _difference(c: Comparison) -> str:
    return f"{100 * c.diff:+.1f} [{100 * c.lo:+.1f}, {100 * c.hi:+.1f}]"


def _marked(c: Comparison) -> str:
    return _difference(c) + (" *" if c.p_holm < SIGNIFICANCE_LEVEL else "")


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left_aligned: int) -> str:
    rule = ["---" if i < left_aligned else "---:" for i in range(len(header))]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
