"""What `qagent runs` reads: chosen chains, two runs side by side, SQL, the HTML page."""

import re
from html.parser import HTMLParser

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.runs.html_report import page
from qagent_mlx.runs.reader import (
    compare_runs,
    curves,
    filter_rollouts,
    overview,
    query,
    read_metrics,
    read_rollouts,
)
from qagent_mlx.runs.run import Run
from qagent_mlx.shop.shop import Shop

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m'


def made(shop, name, rate=0.1, shift=0.0, evil=""):
    run = Run.create(
        shop,
        name,
        {
            "kind": "grpo",
            "policy": name + evil,
            "base": "sft",
            "train": {"steps": 9, "learning_rate": rate, "lora": {"rank": 4}},
            "rewards": ["query"],
        },
    )
    metrics = [{"step": 1, "reward": 0.0, "reward_query": 0.0, "seconds": 1.0}]
    metrics += [
        {"step": i, "reward": i / 4 + shift, "reward_query": i / 4, "kl": 0.5, "seconds": i / 7}
        for i in range(2, 6)
    ]
    run.append("metrics", metrics)
    run.append(
        "rollouts",
        [
            {
                "step": i,
                "case_id": i % 2,
                "user": "ann" + evil,
                "member": 0,
                "wanted": "tent" + evil,
                "recommended": f"q{i}{evil}",
                "finish": "recommended" if i else "length",
                "reward": i / 4,
                "rewards": {"query" + evil: i / 4},
                "advantage": 0.5,
                "tokens": 9,
                "sampled_tokens": 3,
                "chain": f"<task>{evil}<recommend><s1></recommend>",
            }
            for i in range(4)
        ],
    )
    return run


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        yield shop


def test_chains_are_chosen_by_reward_case_step_user_and_end(shop):
    rollouts = read_rollouts(made(shop, "one"))

    def steps(**how):
        return [rollout.step for rollout in filter_rollouts(rollouts, **how)]

    assert steps(min_reward=0.5) == [2, 3]
    assert steps(max_reward=0.25) == [0, 1]
    assert steps(case=1, min_reward=0.5) == [3]
    assert steps(step=2) == [2]
    assert steps(user="bob") == []
    assert steps(finish="length") == [0]


def test_curves_skip_the_steps_that_lack_a_number(shop):
    run = made(shop, "one")
    found = curves(read_metrics(run))
    assert [s for s, _ in found["kl"]] == [2, 3, 4, 5]
    assert list(found)[:2] == ["reward", "reward_query"] and "loss" not in found


def test_a_difference_names_settings_and_the_first_step_that_differs(shop):
    found = compare_runs(made(shop, "one"), made(shop, "two", rate=0.2, shift=0.5))
    assert found.settings["train.learning_rate"] == [0.1, 0.2]
    assert "train.lora.rank" not in found.settings
    assert found.same_until == 1
    assert found.metrics["reward"] == [[0.0, 1.25], [0.0, 1.75]]


def test_runs_answer_sql(shop):
    run = made(shop, "one")
    columns, rows = query(run, "SELECT max(reward) AS best, count(kl) AS n FROM metrics")
    assert (columns, rows) == (["best", "n"], [(1.25, 4)])
    assert query(run, "SELECT count(*) FROM rollouts WHERE rewards.query > 0")[1] == [(3,)]
    with pytest.raises(QAgentError, match="sql .*nosuch"):
        query(run, "SELECT * FROM nosuch")


def test_an_alarm_that_ended_a_run_is_its_state(shop):
    run = made(shop, "one")
    run.append("alarms", [{"name": "kl", "action": "stop", "step": 5, "reason": "KL runaway"}])
    assert overview(run).state == "alarm kl"
    run.append("metrics", [{"step": 6, "reward": 0.0, "seconds": 1.0}])
    assert overview(run).state == "unfinished"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_text_from_data_never_becomes_markup(shop):
    run = made(shop, "one", evil=EVIL)
    run.append("alarms", [{"name": "kl", "action": "stop", "step": 5, "reason": EVIL}])
    text = page(run)
    parser = Tags()
    parser.feed(text)
    assert not {"script", "img", "iframe", "object"} & set(parser.tags)
    assert not [name for name in parser.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "\x1b" not in text
    assert not re.search(r"(src|href)=[\"']?(http|//)", text)


def test_a_page_draws_a_curve_for_every_metric_and_shows_the_chains(shop):
    run = made(shop, "one")
    text = page(run)
    assert text.count("<svg") == len(curves(read_metrics(run)))
    assert "nan" not in text.lower().replace("financ", "")
    assert text.count("<details>") == 3 * 4
    assert "0.1" in text and "train.learning rate" in text


def test_a_run_without_steps_has_a_page(shop):
    run = Run.create(shop, "new", {"kind": "sft", "policy": "p", "base": "b"})
    assert "<svg" not in page(run)
