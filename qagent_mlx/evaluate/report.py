"""Systems measured on the cases of a split, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from ..environment.environment import Example
from ..errors import QAgentError
from ..utils.text import query_key
from .baselines.popularity import System
from .baselines.search_log import SearchLog, moment_of
from .metrics import (
    METRICS,
    Ranking,
    Retrieval,
    bootstrap,
    calibration,
    holm,
    paired_difference,
    score_case,
)
from .slices import CUTS, groups

MAIN = ("q_em", "q_hit@5", "i_hit@1", "i_hit@10", "cons@1")
COMPARED = ("cons@1", "i_hit@1", "i_hit@10", "q_em", "q_hit@5")
SURE = 0.05
Report = dict[str, Any]


class Cases(Retrieval, Protocol):
    """The part of an `Environment` that an evaluation needs."""

    def of_split(self, split: str) -> list[Example]:
        """The examples of a split, in order of time."""
        ...


def evaluate(
    environment: Cases,
    systems: Sequence[System],
    split: str = "test",
    k: int = 5,
    limit: int | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[str, int], None] | None = None,
    compare: Sequence[tuple[str, str]] = (),
    log: SearchLog | None = None,
    by: Sequence[str] = (),
    details: int = 0,
) -> Report:
    """Rank every case with every system, and score what they recommend.

    Args:
        environment: Cases, and the inventory as it was at each of their moments.
        systems: Each with a name of its own.
        split: ``train``, ``validation`` or ``test``.
        k: Queries to ask for; ``q_hit@5`` needs 5.
        limit: Take this many cases, evenly spaced over the split.
        seed: Draws the resamples of the intervals.
        on_progress: Called with a system's name and how many cases it has done: none, then all.
        compare: Names of systems (a, b) to compare, case by case.
        log: The shop's searches; gives the metric ``popularity`` (the share of all earlier
            searches that were the first query) and is needed for slices.
        by: Of `slices.CUTS`: also the main metrics of each slice.
        details: Keep what each system answered for the first so many cases.

    Returns:
        ``split``, ``cases``, ``systems`` (list of ``name``, ``metrics``: name -> ``mean``,
        ``lo``, ``hi``, ``latency_ms`` a case, ``distinct``: different first queries,
        ``calibration`` of the score where there is one), ``comparisons`` (list of ``a``, ``b``,
        ``metric``, ``diff``, ``lo``, ``hi``, ``p``, ``p_holm``, the last over all of them),
        ``slices`` (list of ``by``, ``slice``, ``cases``, ``systems``), ``details``.

    Raises:
        QAgentError: no case, no system, two of one name, or a comparison of unknown ones.
    """
    names = [system.name for system in systems]
    _check(names, compare, by, log)
    examples = _spread(environment.of_split(split), split, limit)
    kept: list[Report] = [_described(e) for e in examples[:details]]
    scores: dict[str, dict[str, np.ndarray]] = {}
    measured = []
    for system in systems:
        if on_progress is not None:
            on_progress(system.name, 0)
        started = perf_counter()
        rankings = system.rank(examples, k)
        seconds = perf_counter() - started
        rows = [
            score_case(environment, example.case, ranking)
            for example, ranking in zip(examples, rankings, strict=True)
        ]
        values = {name: np.array([row[name] for row in rows]) for name in METRICS}
        if log is not None:
            values["popularity"] = _popularity(log, examples, rankings)
        scores[system.name] = values
        measured.append(
            {
                "name": system.name,
                "metrics": _intervals(values, seed),
                "latency_ms": 1000 * seconds / len(examples),
                "distinct": len({query_key(r.queries[0]) for r in rankings if r.queries}),
                "calibration": _calibration(rankings, values["q_em"]),
            }
        )
        for number, (ranking, row) in enumerate(zip(rankings[:details], rows, strict=False)):
            kept[number]["systems"][system.name] = {
                "queries": list(ranking.queries),
                "q_em": row["q_em"],
                "i_hit@1": row["i_hit@1"],
                "cons@1": row["cons@1"],
            }
        if on_progress is not None:
            on_progress(system.name, len(examples))
    comparisons: list[Report] = [
        {
            "a": a,
            "b": b,
            "metric": name,
            **paired_difference(scores[a][name], scores[b][name], seed),
        }
        for a, b in compare
        for name in COMPARED
    ]
    for row, p in zip(comparisons, holm([row["p"] for row in comparisons]), strict=True):
        row["p_holm"] = p
    return {
        "split": split,
        "cases": len(examples),
        "systems": measured,
        "comparisons": comparisons,
        "slices": [
            {
                "by": cut,
                "slice": name,
                "cases": len(places),
                "systems": [
                    {
                        "name": system,
                        "metrics": _intervals({m: scores[system][m][places] for m in MAIN}, seed),
                    }
                    for system in names
                ],
            }
            for cut in by
            for name, places in groups(cut, examples, log).items()  # type: ignore[arg-type]
        ],
        "details": kept,
    }


def _intervals(values: dict[str, np.ndarray], seed: int) -> Report:
    made = {}
    for name, row in values.items():
        mean, lo, hi = bootstrap(row, seed)
        made[name] = {"mean": mean, "lo": lo, "hi": hi}
    return made


def _popularity(
    log: SearchLog, examples: Sequence[Example], rankings: Sequence[Ranking]
) -> np.ndarray:
    made = np.zeros(len(examples))
    for i, (example, ranking) in enumerate(zip(examples, rankings, strict=True)):
        if ranking.queries:
            moment = moment_of(example.case.as_of)
            made[i] = log.count(ranking.queries[0], moment) / max(log.before(moment), 1)
    return made


def _calibration(rankings: Sequence[Ranking], hits: np.ndarray) -> Report | None:
    known = [i for i, r in enumerate(rankings) if r.scores]
    if not known:
        return None
    return calibration(np.array([rankings[i].scores[0] for i in known]), hits[known])


def _described(example: Example) -> Report:
    case = example.case
    return {
        "case": case.case_id,
        "user": case.user_id,
        "as_of": case.as_of.isoformat(),
        "query": case.query,
        "products": list(case.products),
        "profile": example.profile.text,
        "systems": {},
    }


def _check(
    names: Sequence[str],
    compare: Sequence[tuple[str, str]],
    by: Sequence[str],
    log: SearchLog | None,
) -> None:
    wrong = [cut for cut in by if cut not in CUTS]
    if wrong:
        raise QAgentError(f"cases cannot be cut by {wrong[0]!r}; use {', '.join(CUTS)}")
    if by and log is None:
        raise ValueError("slices need the shop's searches")
    if not names:
        raise QAgentError("there is nothing to evaluate; name a policy or ask for the baselines")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QAgentError(f"two systems are called {twice[0]}; give each a name of its own")
    unknown = sorted({name for pair in compare for name in pair} - set(names))
    if unknown:
        raise QAgentError(f"cannot compare {', '.join(unknown)}; evaluated are {', '.join(names)}")


def _spread(examples: Sequence[Example], split: str, limit: int | None) -> Sequence[Example]:
    if not examples:
        raise QAgentError(f"there is no case in the split {split!r}; use train, validation or test")
    if limit is None or limit >= len(examples):
        return examples
    if limit < 1:
        raise QAgentError(f"a limit of {limit} leaves no case; use 1 or more")
    return [examples[i * len(examples) // limit] for i in range(limit)]


# ---------------------------------------------------------------- for people


def table(report: Report) -> Table:
    """The main metrics in percent, with half of their 95 % interval; fits 80 columns."""
    made = _table(
        f"{report['split']}, {report['cases']:,} cases, percent ± half of the 95% interval"
        + _mark(report)
    )
    made.add_column("system", overflow="fold")
    for name in (*MAIN, "ms"):
        made.add_column(name, justify="right", no_wrap=True)
    for system in report["systems"]:
        made.add_row(*map(Text, _system_cells(system)))
    return made


def slice_tables(report: Report) -> list[Table]:
    """``cons@1`` in percent: a table a cut, a row a system, a column a slice."""
    made = []
    for cut in dict.fromkeys(row["by"] for row in report["slices"]):
        rows = [row for row in report["slices"] if row["by"] == cut]
        one = _table(f"cons@1 by {cut}, percent (cases)")
        one.add_column("system", overflow="fold")
        for row in rows:
            one.add_column(f"{row['slice']} ({row['cases']:,})", justify="right", overflow="fold")
        for i, system in enumerate(report["systems"]):
            values = [row["systems"][i]["metrics"]["cons@1"]["mean"] for row in rows]
            one.add_row(*map(Text, [system["name"], *(f"{100 * v:.1f}" for v in values)]))
        made.append(one)
    return made


def comparison_table(report: Report) -> Table:
    """The comparisons in percentage points, with their 95 % interval; fits 80 columns."""
    made = _table("a - b on the same cases, percentage points [95% interval]")
    for name in ("a", "b"):
        made.add_column(name, overflow="fold")
    made.add_column("metric", no_wrap=True)
    for name in ("diff", "p", "p Holm"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in report["comparisons"]:
        made.add_row(*map(Text, _comparison_cells(row)))
    return made


def markdown(report: Report) -> str:
    """Both tables for a README; the second only when something was compared."""
    parts = [
        f"Split `{report['split']}`, {report['cases']:,} cases; percent ± half of the 95 % "
        f"bootstrap interval{_mark(report)}.",
        _markdown(
            ("system", *MAIN, "ms a case"), map(_system_cells, report["systems"]), right_from=1
        ),
    ]
    if report["comparisons"]:
        parts += [
            "a - b on the same cases, in percentage points with the 95 % bootstrap interval; "
            f"* where p by sign flips, corrected for all comparisons here (Holm), is below {SURE}.",
            _markdown(
                ("a", "b", *COMPARED),
                ([a, b, *map(_difference, rows)] for a, b, rows in compared_pairs(report)),
                right_from=2,
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _mark(report: Report) -> str:
    """Says so where nobody typed the queries."""
    return f"; derived queries ({report['derived']})" if report.get("derived") else ""


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        min_width=min(len(title), 80),  # a title folds at the table's width
    )


def _system_cells(system: Report) -> list[str]:
    cells = []
    for name in MAIN:
        value = system["metrics"][name]
        half = (value["hi"] - value["lo"]) / 2
        cells.append(f"{100 * value['mean']:.1f} ±{100 * half:.1f}")
    ms = system["latency_ms"]
    return [system["name"], *cells, f"{ms:.0f}" if ms >= 10 else f"{ms:.2f}"]


def _comparison_cells(row: Report) -> list[str]:
    diff, lo, hi = (100 * row[name] for name in ("diff", "lo", "hi"))
    return [
        row["a"],
        row["b"],
        row["metric"],
        f"{diff:+.1f} [{lo:+.1f}, {hi:+.1f}]",
        _p(row["p"]),
        _p(row["p_holm"]),
    ]


def compared_pairs(report: Report) -> list[tuple[str, str, list[Report]]]:
    """The comparisons by pair: a, b, and a row for each of `COMPARED`."""
    made: dict[tuple[str, str], list[Report]] = {}
    for row in report["comparisons"]:
        made.setdefault((row["a"], row["b"]), []).append(row)
    return [(a, b, rows) for (a, b), rows in made.items()]


def _difference(row: Report) -> str:
    diff, lo, hi = (100 * row[name] for name in ("diff", "lo", "hi"))
    return f"{diff:+.1f} [{lo:+.1f}, {hi:+.1f}]" + (" *" if row["p_holm"] < SURE else "")


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _markdown(header: Sequence[str], rows: Any, right_from: int) -> str:
    rule = ["---" if i < right_from else "---:" for i in range(len(header))]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
