from __future__ import annotations

import shutil
from datetime import datetime
from types import SimpleNamespace

import pytest

from qagent_mlx.demo import story as module
from qagent_mlx.demo.config import DemoConfig
from qagent_mlx.demo.story import changed_answer, story
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.evaluate.report import EvaluationReport
from qagent_mlx.types import Case


def report(*answers, wanted=("tent", "lamp", "mug")):
    """A report of some cases, with the first queries of ``old`` and ``new`` in each."""
    cases = [
        Case(i, f"u{i}", datetime(2026, 3, 1), query, query, (), 0, "test")
        for i, query in enumerate(wanted[: len(answers)])
    ]
    rankings = {
        name: [Ranking((pair[place],) if pair[place] else ()) for pair in answers]
        for place, name in enumerate(("old", "new"))
    }
    examples = tuple(SimpleNamespace(case=case) for case in cases)
    return EvaluationReport("test", len(cases), (), examples=examples, rankings=rankings)


def test_the_case_that_is_shown_is_one_that_training_gained():
    shown = changed_answer(report(("tent", "mug"), ("mug", "Lamp"), ("", "mug")), "old", "new")
    assert (shown.gained, shown.lost, shown.cases) == (2, 1, 3)
    assert shown.case.query == "lamp"
    assert shown.queries == {"old": ("mug",), "new": ("Lamp",)}


@pytest.mark.parametrize(
    ("answers", "user"),
    [([("tent", "tent"), ("lamp", "mug")], "u1"), ([("tent", "tent"), ("mug", "mug")], "u0")],
)
def test_where_training_gained_nothing_it_is_said(answers, user):
    shown = changed_answer(report(*answers), "old", "new")
    assert (shown.gained, shown.case.user_id) == (0, user)


def test_the_story_goes_from_files_to_a_user_and_its_numbers_are_those_of_its_shop(
    simulated_folder, tmp_path, monkeypatch
):
    def small_shop(path, on_stage, name):
        shutil.copytree(simulated_folder, path)
        return SimpleNamespace(to_dict=dict)

    monkeypatch.setattr(module, "create_sample_shop", small_shop)
    config = DemoConfig(sft_steps=1, grpo_steps=1, group=2, cases=6, measured=2, written=6)
    scenes = list(story(tmp_path / "shop", config))
    assert [s.name for s in scenes[::2]] == [s.name for s in scenes[1::2]]
    assert all(s.data is None and s.title for s in scenes[::2])
    data = {s.name: s.data for s in scenes[1::2]}
    names = ["ingest", "memory", "search", "sft", "before", "grpo", "after", "user", "writing"]
    assert list(data) == names
    before, after = data["before"], data["after"]
    assert {"grpo", "sft", "top-line"} <= {result.name for result in after.systems}
    for name in ("sft", "top-line"):  # ranked once, and the same in both evaluations
        assert before.system(name) == after.system(name)
    assert {("grpo", "top-line"), ("sft", "top-line")} <= {(c.a, c.b) for c in after.verdict}
    gained = after.system("grpo").metrics["q_em"].mean - after.system("sft").metrics["q_em"].mean
    assert data["user"].gained - data["user"].lost == pytest.approx(6 * gained)
    assert data["writing"].report.cases == 6
