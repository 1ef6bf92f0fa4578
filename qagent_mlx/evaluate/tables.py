"""An evaluation's report as tables: for a terminal (rich), and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from .comparisons import COMPARED, SIGNIFICANCE_LEVEL, Comparison
from .report import MAIN, ROWS, EvaluationReport, SystemResult
from .significance import Interval

LEGEND = (  # of the main table
    "q_em: the first query is the user's next one; q_hit@5: one of the first five is; i_hit@k: the "
    "user went for one of the first query's first k products; cons@1: q_em and i_hit@1 at once"
)
ROW_LEGEND = (
    "row_hit@10: the user went for one of the first ten products of one of the queries; own_words: "
    "queries that no line of memory has"
)


def table(report: EvaluationReport) -> Table:
    """The main metrics in percent, with half of their 95 % interval; fits 80 columns."""
    metrics = _table(
        f"{report.split}, {report.cases:,} cases, percent ± half of the 95% interval"
        + _scenario(report)
        + _derived(report),
        LEGEND,
    )
    metrics.add_column("system", overflow="fold")
    for name in (*MAIN, "ms"):
        metrics.add_column(name, justify="right", no_wrap=True)
    for system in report.systems:
        metrics.add_row(*map(Text, _system_cells(system)))
    return metrics


def row_table(report: EvaluationReport) -> Table:
    """What a row of five queries leads to, and how much of it the system wrote; in percent."""
    rows = _table("rows of five queries, percent ± half of the 95% interval", ROW_LEGEND)
    rows.add_column("system", overflow="fold")
    for name in ROWS:
        rows.add_column(name, justify="right", no_wrap=True)
    for system in report.systems:
        rows.add_row(*map(Text, [system.name, *_percents(system, ROWS)]))
    return rows


def calibration_lines(report: EvaluationReport) -> list[str]:
    """How far each policy's confidence in its first query can be trusted, a sentence each."""
    lines = []
    for system in report.systems:
        if (found := system.calibration) is None:
            continue
        what = "chance" if found.of == "chance" else "share of votes"
        line = f"{system.name}: calibration error {found.ece:.3f} of the first query's {what}"
        if (row := system.row_calibration) is not None:
            line += f", {row.ece:.3f} of all queries'"
        if found.of == "votes" and "(" not in system.name:
            line += "; its chances were not learned: qagent policies calibrate"
        lines.append(line)
    return lines


def answers_line(report: EvaluationReport) -> str:
    """Where the answers could have been taken from, as a sentence; nothing where it is unknown."""
    places = (
        ("one of memory's lines", report.answers.lines),
        ("among its candidates", report.answers.candidates),
        ("typed by somebody before", report.answers.typed),
    )
    shares = [f"{place} {percent(share)} %" for place, share in places if share is not None]
    return f"the query typed next is {', '.join(shares)} of the time" if shares else ""


def slice_tables(report: EvaluationReport) -> list[Table]:
    """``cons@1`` and ``row_hit@10`` in percent: a table for each cut, a column for each slice."""
    cuts = dict.fromkeys(result.by for result in report.slices)
    return [_slice_table(report, cut, name) for cut in cuts for name in ("cons@1", "row_hit@10")]


def _slice_table(report: EvaluationReport, cut: str, metric: str) -> Table:
    slices = [result for result in report.slices if result.by == cut]
    by_slice = _table(f"{metric} by {cut}, percent (cases)")
    by_slice.add_column("system", overflow="fold")
    for result in slices:
        title = f"{result.slice} ({result.cases:,})"
        by_slice.add_column(title, justify="right", overflow="fold")
    for i, system in enumerate(report.systems):
        means = [result.systems[i].metrics[metric].mean for result in slices]
        by_slice.add_row(*map(Text, [system.name, *(f"{100 * mean:.1f}" for mean in means)]))
    return by_slice


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
        f"bootstrap interval{_scenario(report)}{_derived(report)}.",
        _markdown(
            ("system", *MAIN, *ROWS, "ms a case"),
            (_system_cells(system, ROWS) for system in report.systems),
            left_aligned=1,
        ),
    ]
    if line := answers_line(report):
        parts.append(f"{line[0].upper()}{line[1:]}.")
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


def _scenario(report: EvaluationReport) -> str:
    return f"; scenario {report.scenario}" if report.scenario != "full" else ""


def _derived(report: EvaluationReport) -> str:
    return f"; derived queries ({report.derived})" if report.derived else ""


def _table(title: str, legend: str = "") -> Table:
    """A table; its ``legend`` says below what the columns are, once for all tables of a kind."""
    return Table(
        title=title,
        title_justify="left",
        caption=legend or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        min_width=min(len(title), 80),  # a title folds at the table's width
    )


def _system_cells(system: SystemResult, further: Sequence[str] = ()) -> list[str]:
    ms = system.latency_ms
    cells = _percents(system, (*MAIN, *further))
    return [system.name, *cells, f"{ms:.0f}" if ms >= 10 else f"{ms:.2f}"]


def _percents(system: SystemResult, metrics: Iterable[str]) -> list[str]:
    return [percent(system.metrics[name]) for name in metrics]


def percent(value: Interval) -> str:
    """A share in percent, with half of its interval."""
    return f"{100 * value.mean:.1f} ±{100 * ((value.hi - value.lo) / 2):.1f}"


def _difference(c: Comparison) -> str:
    return f"{100 * c.diff:+.1f} [{100 * c.lo:+.1f}, {100 * c.hi:+.1f}]"


def _marked(c: Comparison) -> str:
    return _difference(c) + (" *" if c.is_beyond_chance else "")


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left_aligned: int) -> str:
    rule = ["---" if i < left_aligned else "---:" for i in range(len(header))]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
