"""Who is ahead of whom is said in words, and only where it is beyond chance."""

import re

import numpy as np
import pytest
from ranked import Fixed, Sure, right_for, shelf_of

from qagent_mlx.evaluate.comparisons import verdict
from qagent_mlx.evaluate.report import evaluate
from qagent_mlx.evaluate.verdict import verdict_sentences


def said(*systems, cases=100):
    return verdict_sentences(evaluate(shelf_of(cases), systems))


def test_the_first_sentence_says_whether_the_agent_is_ahead_of_memorys_first_line():
    agent, line = Sure("grpo", right_for(6)), Fixed("top-line", right_for(3))
    first = said(line, Fixed("popular", right_for(1)), agent)[0]
    assert first.startswith("grpo is ahead of memory's first line (top-line), beyond chance: ")
    assert "cons@1 (share of cases" in first and "60.0 against 30.0 %, +30.0 points [" in first
    worse = said(Sure("grpo", right_for(1)), line)[0]
    assert worse.startswith("grpo is behind memory's first line (top-line), beyond chance: ")


def test_a_difference_that_may_be_chance_is_never_called_ahead():
    one = Sure("grpo", lambda c: [c.query if c.case_id % 10 < 3 or c.case_id == 9 else "hat"])
    first = said(one, Fixed("top-line", right_for(3)))[0]
    assert "cannot be told apart" in first and "may be chance" in first
    assert "31.0 against 30.0 %" in first and "ahead" not in first


def test_without_memorys_first_line_the_question_stays_open():
    first = said(Fixed("popular", right_for(1)), Sure("sft", right_for(2)))[0]
    assert re.match("Whether sft is ahead of memory's first line.* is open: .*add it", first)


def test_baselines_alone_are_told_apart_and_one_system_says_nothing():
    sentences = said(Fixed("poor", right_for(1)), Fixed("good", right_for(5)))
    assert sentences[0].startswith("good is ahead of poor, beyond chance")
    assert said(Fixed("alone", right_for(5))) == []


def test_where_no_query_can_be_right_products_decide():
    shelf = shelf_of(60)
    for example in shelf.examples:
        object.__setattr__(example.case, "query_key", "")
    report = evaluate(shelf, [Sure("grpo", right_for(6)), Fixed("top-line", right_for(2))])
    assert report.verdict[0].metric == "i_hit@1"
    assert "i_hit@1 (share of cases" in verdict_sentences(report)[0]


def test_the_best_agent_meets_the_next_one_and_the_best_of_either_kind_of_baselines():
    names = ("sft", "grpo", "top-line", "in-stock", "mixed", "popular", "sasrec")
    shares = (0.5, 0.6, 0.3, 0.55, 0.1, 0.05, 0.2)
    cases = np.arange(200) / 200
    scores = {n: {"cons@1": (cases < s).astype(float)} for n, s in zip(names, shares, strict=True)}
    pairs = [(c.a, c.b) for c in verdict(scores, ("sft", "grpo"), 0)]
    assert pairs == [
        *(("grpo", "top-line"), ("sft", "top-line")),
        *(("grpo", "sft"), ("grpo", "in-stock"), ("grpo", "sasrec")),
    ]


def test_p_values_are_corrected_for_the_comparisons_of_the_verdict():
    agents = [Sure(n, right_for(k)) for n, k in (("a", 5), ("b", 4))]
    report = evaluate(shelf_of(50), [*agents, Fixed("top-line", right_for(3))])
    assert len(report.verdict) == 3
    assert all(c.p_holm >= c.p for c in report.verdict)
    assert "corrected for these 3 comparisons" in verdict_sentences(report)[-1]


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_the_best_system_comes_first_wherever_it_was_named(order):
    systems = [Fixed(f"s{k}", right_for(k)) for k in order]
    report = evaluate(shelf_of(30), systems).best_first()
    assert [s.name for s in report.systems] == ["s2", "s1", "s0"]
    assert [s.metrics["q_em"].mean for s in report.systems] == pytest.approx([0.2, 0.1, 0.0])
