import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ranked import Fixed, Sure, examples, right_for, shelf_of
from rich.console import Console
from shelf import Shelf

from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.comparisons import COMPARED
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.html_report import page
from qagent_mlx.evaluate.metrics import METRICS, Ranking
from qagent_mlx.evaluate.report import MAIN, ROWS, evaluate
from qagent_mlx.evaluate.significance import holm
from qagent_mlx.evaluate.tables import (
    answers_line,
    calibration_lines,
    compared_pairs,
    comparison_table,
    markdown,
    row_table,
    table,
)


def test_evaluate_reports_means_intervals_and_comparisons():
    calls = []
    report = evaluate(
        shelf_of(100),
        [Fixed("good", right_for(6)), Fixed("poor", right_for(2)), Fixed("mute", lambda _: [])],
        EvaluationConfig(compare=(("good", "poor"), ("poor", "mute"))),
        on_progress=lambda name, done: calls.append((name, done)),
    )
    assert report.split == "test" and report.cases == 100
    assert [s.name for s in report.systems] == ["good", "poor", "mute"]
    good, poor, mute = (s.metrics for s in report.systems)
    assert tuple(good) == METRICS
    assert good["cons@1"].mean == pytest.approx(0.6)
    assert poor["q_em"].mean == pytest.approx(0.2)
    assert poor["q_em"].lo < 0.2 < poor["q_em"].hi
    assert mute["coverage"].mean == 0
    assert all(s.latency_ms >= 0 for s in report.systems)
    first = report.comparisons[0]
    assert (first.a, first.b, first.metric) == ("good", "poor", "cons@1")
    assert first.diff == pytest.approx(0.4) and first.p_holm < 0.01
    assert len(report.comparisons) == 2 * len(COMPARED)
    adjusted = holm([comparison.p for comparison in report.comparisons])
    assert [comparison.p_holm for comparison in report.comparisons] == adjusted
    assert calls == [(n, c) for n in ("good", "poor", "mute") for c in (0, 100)]


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 1000])
def test_a_limit_takes_evenly_spaced_cases(limit):
    seen: list[int] = []

    def watch(case):
        seen.append(case.case_id)
        return []

    report = evaluate(shelf_of(100), [Fixed("x", watch)], EvaluationConfig(limit=limit))
    assert report.cases == len(seen) == len(set(seen)) == min(limit, 100)
    steps = np.diff(seen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert 100 - seen[-1] < 100 / min(limit, 100) + 1  # the last part of the split is in


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        ([], {}, "nothing to evaluate"),
        (["x", "x"], {}, "two systems are called x"),
        (["x"], {"compare": (("x", "y"),)}, "cannot compare y"),
        (["x"], {"split": "tset"}, "split must be one of train, validation, test, not 'tset'"),
        (["x"], {"split": "train"}, "no case in the split 'train'"),
        (["x"], {"limit": 0}, "limit must be .* of at least 1, not 0"),
        (["x"], {"by": ("age",)}, "by must hold only history, tail, own, line"),
    ],
)
def test_evaluate_says_what_is_wrong(systems, options, message):
    with pytest.raises(QAgentError, match=message):
        evaluate(
            shelf_of(3),
            [Fixed(name, lambda _: []) for name in systems],
            EvaluationConfig(**options),
        )


def test_tables_are_whole_in_80_columns():
    names = ["co-occurrence", "consistency-grpo-2"]
    report = evaluate(
        shelf_of(100),
        [Fixed(n, right_for(10 - i)) for i, n in enumerate(names)],
        EvaluationConfig(compare=((names[1], names[0]),)),
    )
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(report), row_table(report), comparison_table(report))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in (
        *names,
        *(f"{m}:" for m in ("q_em", "q_hit@5", "cons@1", *ROWS)),
        *MAIN,
        "100.0 ±0.0",
        "90.0 ±",
        "-10.0 [",
    ):
        assert word in text, word


def test_markdown_has_a_row_for_each_system_and_each_pair():
    report = evaluate(
        shelf_of(10),
        [Fixed("a", right_for(6)), Fixed("b", right_for(2))],
        EvaluationConfig(compare=(("a", "b"),)),
    )
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + 1
    assert rows[-1].startswith("| a | b | +40.0 [") and len(rows[-1].split(" | ")) == 2 + len(
        COMPARED
    )
    assert rows[2].startswith("| a | 60.0 ±")
    alone = evaluate(shelf_of(10), [Fixed("a", right_for(6))])
    assert markdown(alone).count("| --- |") == 1


def test_a_report_says_where_the_answers_could_be_taken_from():
    cases = examples(10)
    lines = [replace(e, profile=replace(e.profile, references=(e.case.query,))) for e in cases[:3]]
    untyped = [replace(e, case=replace(e.case, query="", query_key="")) for e in cases[8:]]
    shelf = Shelf({}, [*lines, *cases[3:8], *untyped])
    found = {i: i < 4 for i in range(8)}
    report = evaluate(shelf, [Fixed("x", lambda case: [])], found=found)
    assert report.answers.lines.mean == pytest.approx(3 / 8)
    assert report.answers.candidates.mean == pytest.approx(4 / 8)
    assert report.answers.typed is None
    line = answers_line(report)
    assert "one of memory's lines 37.5 ±" in line and "among its candidates 50.0 ±" in line
    assert line[1:] in markdown(report) and "typed by" not in line
    unknown = evaluate(Shelf({}, untyped), [Fixed("x", lambda case: [])])
    assert answers_line(unknown) == ""


def test_the_report_counts_distinct_queries_and_calibrates_where_it_can():
    systems = [Fixed("same", lambda c: ["hat"]), Sure("right", lambda c: [c.query])]
    report = evaluate(shelf_of(6), systems)
    same, right = report.systems
    assert (same.distinct, same.calibration) == (1, None)
    assert right.distinct == 6 and right.calibration.ece == pytest.approx(0.5)


class Learned(Fixed):
    """Gives each query of a row its chance, and is unanimous about the first."""

    def rank(self, examples, k):
        rows = super().rank(examples, k)
        return [Ranking(r.queries, scores=(1.0, 0.0), chances=(0.5, 0.1)) for r in rows]


def test_the_page_plots_what_was_said_against_what_was_true():
    """A circle's place is its chance from the left and its truth from below, in a frame of 172."""
    ask = Learned("learned", lambda c: [c.query if c.case_id % 2 else "hat", "never"])
    report = evaluate(shelf_of(6), [ask, Fixed("same", lambda c: ["hat"])])
    text = page(report, {}, {})
    plots = re.findall(r'<svg[^>]*aria-label="calibration of (.*?)">(.*?)</svg>', text, re.S)
    assert [name for name, _ in plots] == [
        "learned, first queries",
        "learned, all queries of a row",
    ]
    circle = r'<circle cx="([\d.]+)" cy="([\d.]+)".*?<title>(.*?)</title>'
    places = {
        title: ((float(x) - 34) / 172, 1 - (float(y) - 34) / 172)
        for _, plot in plots
        for x, y, title in re.findall(circle, plot, re.S)
    }
    assert places == {
        "said 0.50, true 0.50, 6 queries": pytest.approx((0.5, 0.5)),
        "said 0.10, true 0.00, 6 queries": pytest.approx((0.1, 0.0), abs=0.01),
    }
    row = report.systems[0].row_calibration
    assert f"error of the chance {row.ece:.3f}, Brier {row.brier:.3f}" in text


def test_chances_are_what_is_calibrated_where_a_policy_has_learned_them():
    """Right in half of the cases; the second query never is."""
    ask = Learned("learned", lambda c: [c.query if c.case_id % 2 else "hat", "never"])
    (system,) = evaluate(shelf_of(6), [ask]).systems
    assert system.calibration.of == "chance" and system.row_calibration.of == "chance"
    assert system.calibration.ece == pytest.approx(0.0)  # by votes it would be 0.5
    assert system.row_calibration.ece == pytest.approx(0.05)
    assert [(b.confidence, b.accuracy, b.cases) for b in system.row_calibration.bins] == [
        pytest.approx((0.1, 0.0, 6)),
        pytest.approx((0.5, 0.5, 6)),
    ]
    (line,) = calibration_lines(evaluate(shelf_of(6), [ask]))
    assert (
        line
        == "learned: calibration error 0.000 of the first query's chance, 0.050 of all queries'"
    )
    (line,) = calibration_lines(evaluate(shelf_of(6), [Sure("votes", lambda c: [c.query])]))
    assert "share of votes" in line and "qagent policies calibrate" in line


def test_slices_need_the_searches():
    with pytest.raises(ValueError, match="the shop's searches"):
        evaluate(shelf_of(3), [Fixed("a", lambda c: ["x"])], EvaluationConfig(by=("own",)))


def test_a_star_compares_with_every_other_system():
    systems = [Fixed(name, lambda c: ["x"]) for name in "abc"]
    report = evaluate(shelf_of(3), systems, EvaluationConfig(compare=(("b", "*"),)))
    assert list(compared_pairs(report)) == [("b", "a"), ("b", "c")]


def test_the_json_has_the_keys_that_others_read():
    systems = [Fixed("same", lambda c: ["hat"]), Sure("right", lambda c: [c.query])]
    config = EvaluationConfig(compare=(("same", "right"),), details=2)
    report = evaluate(shelf_of(6), systems, config)
    assert [list(d.answers) for d in report.details] == [["same", "right"]] * 2
    values = json.loads(json.dumps(report.to_dict()))
    assert set(values) == {
        *("split", "cases", "systems", "verdict", "comparisons", "slices"),
        *("derived", "simulated", "shop", "snapshot", "scenario", "answers"),
    }
    same, right = values["systems"]
    assert set(same) == {
        *("name", "metrics", "latency_ms", "distinct"),
        *("calibration", "row_calibration"),
    }
    assert set(same["metrics"]["q_em"]) == {"mean", "lo", "hi"}
    assert same["calibration"] is None
    assert set(right["calibration"]) == {"of", "ece", "brier", "bins"}
    assert right["calibration"]["bins"] == [{"said": 0.5, "true": 1.0, "cases": 6}]
    assert set(values["comparisons"][0]) == {"a", "b", "metric", "diff", "lo", "hi", "p", "p_holm"}
