from __future__ import annotations

import json

import pytest
from qagent_cli.runs import sparkline


@pytest.fixture
def trained(cli, tmp_path):
    """A shop with an unfinished GRPO run that was written by hand."""
    from qagent_mlx.runs.run import Run
    from qagent_mlx.shop.shop import Shop

    with Shop.create(tmp_path / "runs-shop") as shop:
        run = Run.create(
            shop,
            "grpo",
            {
                "kind": "grpo",
                "policy": "grpo",
                "base": "sft",
                "train": {"steps": 9, "seed": 0},
                "rewards": ["query"],
            },
        )
    run.append(
        "metrics",
        [
            {"step": i + 1, "reward": i / 4, "reward_query": i / 4, "kl": 0.0, "seconds": 1.0}
            for i in range(4)
        ],
    )
    chain = "<task><fetch_memory/><profile>likes [bold]tents[/bold]<r0> \x1b[31mred</profile>"
    run.append(
        "rollouts",
        [
            {
                "step": i + 1,
                "case_id": i,
                "user": "ann",
                "member": 0,
                "wanted": "tent",
                "recommended": f"q{i}",
                "finish": "recommended",
                "reward": r,
                "rewards": {"query": r},
                "advantage": 0.5,
                "tokens": 9,
                "sampled_tokens": 3,
                "chain": f"{chain}<search><r0></search><results><s1>none</results>"
                "<recommend><s1></recommend>",
            }
            for i, r in enumerate((0.2, 0.9, 0.1))
        ],
    )
    return tmp_path / "runs-shop"


def test_list_and_show(cli, trained):
    (one,) = cli.json("runs", "list", "--shop", trained)["runs"]
    assert (one["run"], one["steps"], one["planned"], one["state"]) == ("grpo", 4, 9, "unfinished")
    assert (one["reward_first"], one["reward_last"]) == (0.0, 0.75)
    assert "4/9" in cli.run("runs", "list", "--shop", trained).stdout
    shown = cli.run("runs", "show", "--shop", trained).stdout
    assert "▁▃▆█" in shown and "seed: 0" in shown
    assert len(cli.json("runs", "show", "grpo", "--shop", trained)["metrics"]) == 4


def test_rollouts_are_chosen_and_safe(cli, trained):
    def queries(*options):
        rows = cli.json("runs", "rollouts", *options, "--shop", trained)["rollouts"]
        return [row["recommended"] for row in rows]

    assert queries("--best", "-n", "1") == ["q1"]
    assert queries("--worst", "-n", "2") == ["q2", "q0"]
    assert queries("--step", "3") == ["q2"]
    assert queries("--case", "7") == []
    shown = cli.run("runs", "rollouts", "--shop", trained).stdout
    assert "\x1b" not in shown and "[bold]tents[/bold]" in shown
    assert "advantage +0.50" in shown


def test_errors(cli, trained):
    assert "runs: grpo" in cli.error("runs", "show", "nosuch", "--shop", trained)
    with (trained / "runs" / "grpo" / "metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    assert "is damaged" in cli.error("runs", "show", "--shop", trained)


def test_resume_refuses_what_cannot_change(cli, trained):
    result = cli.run("train", "grpo", "--resume", "--group", "4", "--shop", trained, code=2)
    assert "--group cannot change" in result.stderr
    (trained / "runs" / "grpo" / "summary.json").write_text(json.dumps({"steps": 9}))
    assert "no GRPO run is unfinished" in cli.error("train", "grpo", "--resume", "--shop", trained)


def test_sparkline_spans_its_values():
    assert sparkline([0.0, 1.0], 10) == "▁█"
    assert sparkline([2.0] * 3, 10) == "▄▄▄"
    assert sparkline([float("nan")], 10) == ""
    assert len(sparkline([float(i) for i in range(1000)], 50)) == 50


def test_filters_sql_diff_and_page(cli, trained):
    rows = cli.json("runs", "rollouts", "--min-reward", "0.15", "--shop", trained)["rollouts"]
    assert [row["recommended"] for row in rows] == ["q0", "q1"]
    answer = cli.json(
        "runs",
        "rollouts",
        "--sql",
        "SELECT recommended, advantage FROM rollouts WHERE step = 2",
        "--shop",
        trained,
    )
    assert answer["columns"] == ["recommended", "advantage"]
    assert answer["rows"] == [["q1", 0.5]]
    assert "0.75" in cli.run("runs", "show", "--sql", "FROM metrics", "--shop", trained).stdout
    assert "sql failed: " in cli.error("runs", "show", "--sql", "SELEC", "--shop", trained)
    same = cli.run("runs", "diff", "grpo", "grpo", "--shop", trained).stdout
    assert "the settings are the same" in same and "the first 4" in same
    cli.run("runs", "show", "--html", "report.html", "--shop", trained)
    with open("report.html", encoding="utf-8") as file:
        assert "<svg" in file.read()
    assert "cannot write" in cli.error(
        "runs", "show", "--html", "report.html/inside.html", "--shop", trained
    )
