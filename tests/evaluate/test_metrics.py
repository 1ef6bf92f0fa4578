import math
from datetime import datetime

import numpy as np
import pytest
from rich.console import Console

from qagent_mlx.environment.environment import Example
from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.metrics import (
    METRICS,
    Ranking,
    bootstrap,
    calibration,
    diversity,
    holm,
    paired_difference,
    score_case,
)
from qagent_mlx.evaluate.report import MAIN, comparison_table, evaluate, markdown, table
from qagent_mlx.types import Case, Profile

AS_OF = datetime(2026, 1, 10, 12)


def a_case(number=0, query="Red Shoe", key="redshoe", products=("p1", "p2"), user="ann"):
    return Case(number, user, AS_OF, query, key, products, 3, "test")


class Shelf:
    """Retrieves what it was told to, and remembers what it was asked."""

    def __init__(self, found, examples=()):
        self.found, self.examples, self.asked = found, list(examples), []

    def retrieve(self, query, as_of):
        self.asked.append((query, as_of))
        return self.found.get(query, ())

    def of_split(self, split):
        return [e for e in self.examples if e.case.split == split]


class Fixed:
    """Recommends the same queries for every case, or what a function says."""

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    def rank(self, examples, k):
        return [Ranking(tuple(self.answer(e.case))[:k]) for e in examples]


def examples(n):
    made = []
    for i in range(n):
        case = a_case(i, query=f"query {i}", key=f"query{i}", products=(f"p{i}",), user=f"u{i}")
        made.append(Example(case, Profile(case.user_id, AS_OF, "", (), (), 0, 0, {})))
    return made


def test_a_right_query_with_its_product_on_top_scores_everything():
    found = score_case(Shelf({"red-SHOE": ("p2", "p9", "p1")}), a_case(), Ranking(("red-SHOE",)))
    assert tuple(found) == METRICS
    for name in ("q_em", "q_rouge", "q_hit@5", "i_hit@1", "i_hit@10", "cons@1", "mrr", "coverage"):
        assert found[name] == 1.0, name
    best = 1 + 1 / math.log2(3)
    assert found["i_ndcg@10"] == pytest.approx((1 + 1 / math.log2(4)) / best)


def test_query_and_item_are_judged_apart_and_consistency_needs_both():
    shelf = Shelf({"red shoe": ("p9", "p1"), "red boot": ("p1",)})
    query_only = score_case(shelf, a_case(), Ranking(("red shoe",)))
    assert (query_only["q_em"], query_only["i_hit@1"], query_only["cons@1"]) == (1, 0, 0)
    assert query_only["i_hit@10"] == 1
    item_only = score_case(shelf, a_case(), Ranking(("red boot",)))
    assert (item_only["q_em"], item_only["i_hit@1"], item_only["cons@1"]) == (0, 1, 0)
    assert item_only["q_rouge"] == pytest.approx(0.5)  # one word of two, both ways


def test_only_the_top_query_is_searched_and_at_the_moment_of_the_case():
    shelf = Shelf({"boot": ("p1",)})
    found = score_case(shelf, a_case(), Ranking(("hat", "boot", "RED shoe")))
    assert shelf.asked == [("hat", AS_OF)]
    assert found["q_em"] == 0 and found["i_hit@1"] == 0 and found["q_hit@5"] == 1
    assert found["mrr"] == pytest.approx(1 / 3)


def test_places_beyond_five_and_ten_do_not_count():
    late = Ranking(("a", "b", "c", "d", "e", "red shoe"))
    found = score_case(Shelf({"a": (*(f"x{i}" for i in range(10)), "p1")}), a_case(), late)
    assert found["q_hit@5"] == 0 and found["mrr"] == pytest.approx(1 / 6)
    assert found["i_hit@10"] == 0 and found["i_ndcg@10"] == 0


@pytest.mark.parametrize("queries", [(), ("",), ("?!",)])
def test_nothing_recommended_scores_nothing(queries):
    shelf = Shelf({"": ("p1",), "?!": ("p1",)})
    ranking = Ranking(queries, valid=0.25, searches=1.5, tokens=30.0)
    found = score_case(shelf, a_case(), ranking)
    costs = {"valid": 0.25, "searches": 1.5, "tokens": 30.0}
    assert found == {name: costs.get(name, 0.0) for name in METRICS}
    assert shelf.asked == []


def test_bootstrap_holds_the_mean_and_narrows_with_cases():
    random = np.random.default_rng(1)
    small, large = random.random(50), random.random(5000)
    for values in (small, large):
        mean, lo, hi = bootstrap(values, seed=3)
        assert mean == pytest.approx(values.mean())
        assert lo < mean < hi
        error = values.std() / math.sqrt(len(values))
        assert (hi - lo) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap(small, seed=3) == bootstrap(small, seed=3)
    assert bootstrap(small, seed=3) != bootstrap(small, seed=4)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        _, lo, hi = bootstrap(random.random(100) < 0.3, seed=seed, samples=300)
        held += lo <= 0.3 <= hi
    assert 0.89 <= held / 200 <= 0.99


def test_bootstrap_in_chunks_equals_the_same_resamples_at_once(monkeypatch):
    values = np.random.default_rng(2).random(64)
    whole = bootstrap(values, samples=500)
    monkeypatch.setattr("qagent_mlx.evaluate.metrics._CHUNK", 640)
    assert bootstrap(values, samples=500) == pytest.approx(whole)


@pytest.mark.parametrize("values", [np.empty(0), np.ones((2, 3))])
def test_bootstrap_refuses_what_is_not_one_number_a_case(values):
    with pytest.raises(ValueError, match="one number a case"):
        bootstrap(values)


def test_paired_finds_a_difference_that_is_there():
    random = np.random.default_rng(7)
    hard = random.random(400)
    b = (random.random(400) < hard).astype(float)
    a = np.where(random.random(400) < 0.1, 1.0, b)
    found = paired_difference(a, b)
    assert found["diff"] == pytest.approx((a - b).mean())
    assert 0 < found["lo"] < found["diff"] < found["hi"]
    assert found["p"] < 0.001
    back = paired_difference(b, a)
    assert back["diff"] == -found["diff"] and back["hi"] < 0 and back["p"] < 0.001


def test_paired_p_is_uniform_when_there_is_no_difference():
    random = np.random.default_rng(11)
    found = []
    for seed in range(200):
        a, b = random.random((2, 60))
        found.append(paired_difference(a, b, seed=seed, samples=50)["p"])
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
    assert 0.4 <= np.mean(found) <= 0.6


def test_paired_p_equals_the_exact_sign_test_on_wins_and_losses():
    a = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 20)
    b = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 20)
    exact = 2 * sum(math.comb(10, i) for i in range(3)) / 2**10
    assert paired_difference(a, b)["p"] == pytest.approx(exact, abs=0.015)


def test_equal_systems_differ_by_nothing():
    a = np.array([0.0, 1.0, 1.0])
    assert paired_difference(a, a) == {"diff": 0.0, "lo": 0.0, "hi": 0.0, "p": 1.0}


def test_paired_refuses_systems_that_saw_different_cases():
    with pytest.raises(ValueError, match="same cases"):
        paired_difference(np.ones(5), np.ones(1))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def right_for(part):
    """Right for the first ``part`` of every ten cases."""
    return lambda case: [case.query if case.case_id % 10 < part else "nothing"]


def shelf_of(n):
    return Shelf({f"query {i}": (f"p{i}",) for i in range(n)}, examples(n))


def test_evaluate_reports_means_intervals_and_comparisons():
    calls = []
    report = evaluate(
        shelf_of(100),
        [Fixed("good", right_for(6)), Fixed("poor", right_for(2)), Fixed("mute", lambda _: [])],
        compare=[("good", "poor"), ("poor", "mute")],
        on_progress=lambda name, done: calls.append((name, done)),
    )
    assert set(report) == {"split", "cases", "systems", "comparisons", "slices", "details"}
    assert report["split"] == "test" and report["cases"] == 100
    assert [s["name"] for s in report["systems"]] == ["good", "poor", "mute"]
    good, poor, mute = (s["metrics"] for s in report["systems"])
    assert tuple(good) == METRICS
    assert good["cons@1"]["mean"] == pytest.approx(0.6)
    assert poor["q_em"]["mean"] == pytest.approx(0.2)
    assert poor["q_em"]["lo"] < 0.2 < poor["q_em"]["hi"]
    assert mute["coverage"]["mean"] == 0
    assert all(s["latency_ms"] >= 0 for s in report["systems"])
    first = report["comparisons"][0]
    assert (first["a"], first["b"], first["metric"]) == ("good", "poor", "cons@1")
    assert first["diff"] == pytest.approx(0.4) and first["p_holm"] < 0.01
    assert len(report["comparisons"]) == 10
    adjusted = holm([row["p"] for row in report["comparisons"]])
    assert [row["p_holm"] for row in report["comparisons"]] == adjusted
    assert calls == [(n, c) for n in ("good", "poor", "mute") for c in (0, 100)]


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 1000])
def test_a_limit_takes_evenly_spaced_cases(limit):
    seen: list[int] = []

    def watch(case):
        seen.append(case.case_id)
        return []

    report = evaluate(shelf_of(100), [Fixed("x", watch)], limit=limit)
    assert report["cases"] == len(seen) == len(set(seen)) == min(limit, 100)
    steps = np.diff(seen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert 100 - seen[-1] < 100 / min(limit, 100) + 1  # the last part of the split is in


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        ([], {}, "nothing to evaluate"),
        (["x", "x"], {}, "two systems are called x"),
        (["x"], {"compare": [("x", "y")]}, "cannot compare y"),
        (["x"], {"split": "tset"}, "no case in the split 'tset'"),
        (["x"], {"limit": 0}, "a limit of 0"),
    ],
)
def test_evaluate_says_what_is_wrong(systems, options, message):
    with pytest.raises(QAgentError, match=message):
        evaluate(shelf_of(3), [Fixed(name, lambda _: []) for name in systems], **options)


def test_tables_are_whole_in_80_columns():
    names = ["co-occurrence", "consistency-grpo-2"]
    report = evaluate(
        shelf_of(100),
        [Fixed(n, right_for(10 - i)) for i, n in enumerate(names)],
        compare=[(names[1], names[0])],
    )
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(report), comparison_table(report))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in (*names, *MAIN, "100.0 ±0.0", "90.0 ±", "-10.0 ["):
        assert word in text, word


def test_markdown_has_a_row_for_each_system_and_each_pair():
    report = evaluate(
        shelf_of(10), [Fixed("a", right_for(6)), Fixed("b", right_for(2))], compare=[("a", "b")]
    )
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + 1
    assert rows[-1].startswith("| a | b | +40.0 [") and len(rows[-1].split(" | ")) == 2 + 5
    assert rows[2].startswith("| a | 60.0 ±")
    alone = evaluate(shelf_of(10), [Fixed("a", right_for(6))])
    assert markdown(alone).count("| --- |") == 1


def test_diversity_is_one_minus_shared_words():
    assert diversity(("red shoe", "blue boot")) == 1.0
    assert diversity(("red shoe", "shoe RED")) == 0.0
    assert diversity(("red shoe", "red boot", "hat")) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert diversity(("hat",)) == diversity(()) == 0.0


def test_a_first_query_that_finds_nothing_is_a_zero_result():
    assert score_case(Shelf({}), a_case(), Ranking(("hat",)))["zero_result"] == 1.0
    assert score_case(Shelf({"hat": ("p9",)}), a_case(), Ranking(("hat",)))["zero_result"] == 0.0
    assert score_case(Shelf({}), a_case(), Ranking(()))["zero_result"] == 0.0


def test_calibration_is_the_gap_between_said_and_true():
    scores = np.array([0.95] * 10 + [0.25] * 10)
    hits = np.array([1.0] * 9 + [0.0] + [0.0] * 10)
    found = calibration(scores, hits)
    assert found["ece"] == pytest.approx((0.05 + 0.25) / 2)
    assert found["brier"] == pytest.approx(np.mean((scores - hits) ** 2))
    assert [b["cases"] for b in found["bins"]] == [10, 10]
    assert calibration(np.array([1.0, 0.0]), np.array([1.0, 0.0]))["ece"] == 0.0


class Sure(Fixed):
    """Says how sure it is."""

    def rank(self, examples, k):
        return [Ranking(r.queries, scores=(0.5,)) for r in super().rank(examples, k)]


def test_the_report_counts_distinct_queries_and_calibrates_where_it_can():
    systems = [Fixed("same", lambda c: ["hat"]), Sure("right", lambda c: [c.query])]
    report = evaluate(shelf_of(6), systems)
    same, right = report["systems"]
    assert (same["distinct"], same["calibration"]) == (1, None)
    assert right["distinct"] == 6 and right["calibration"]["ece"] == pytest.approx(0.5)


def test_slices_need_a_known_cut():
    with pytest.raises(QAgentError, match="history, tail, own"):
        evaluate(shelf_of(3), [Fixed("a", lambda c: ["x"])], by=("age",))
