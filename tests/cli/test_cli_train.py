"""Training by the command line: settings files, a SIGTERM, and going on."""

from __future__ import annotations

import json
import shutil

import pytest

REWARD = """
import os, signal
from pathlib import Path
MARK = Path(__file__).with_name("stopped")

def varied(outcome):
    # Ends the first run in its first step, as a supervisor would.
    if not MARK.exists():
        MARK.write_text("")
        os.kill(os.getpid(), signal.SIGTERM)
    return (sum(outcome.rollout.tokens) % 7) / 7
"""
CONFIG = """
policy = "sample"
name = "mine"
rewards = ["rewards.py:varied"]
[train]
steps = 2
cases_per_step = 2
group = 2
measured = 2
solvable = false
[train.lora]
rank = 2
[train.alarms]
dropped = "off"
"""


@pytest.fixture
def shop(built, tmp_path):
    shutil.copytree(built, tmp_path / "shop")
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path / "shop"


def test_a_run_from_a_file_is_stopped_and_goes_on(cli, shop):
    stopped = cli.run(
        "train",
        "grpo",
        "--config",
        "run.toml",
        "--preset",
        "query-only",
        "--steps",
        "1",
        "--learn-from",
        "searches",
        "--shop",
        shop,
        code=143,
    )
    assert "go on with: qagent train grpo --resume --run mine" in stopped.stderr
    config = cli.json("runs", "show", "mine", "--shop", shop)["config"]
    # The flag wins over the file, the file over the preset, the preset over the defaults.
    assert config["train"]["steps"] == 1 and config["train"]["cases_per_step"] == 2
    assert config["train"]["weights"]["item"] == 0 and config["train"]["weights"]["varied"] == 1
    assert config["preset"] == "query-only" and config["train"]["lora"]["rank"] == 2
    assert config["split"]["learn_from"] == "searches"
    # Its own reward file comes along by itself.
    run = cli.run("train", "grpo", "--resume", "--alarm", "kl=warn", "--shop", shop, "--json")
    # What takes a chat model minutes more is announced.
    assert "GRPO mine: measuring on validation cases" in run.stderr
    report = json.loads(run.stdout)
    assert (report["run"], report["policy"], report["steps"]) == ("mine", "mine", 1)
    chains = cli.json("runs", "rollouts", "mine", "-n", "99", "--shop", shop)["rollouts"]
    assert len(chains) == 4 and "varied" in chains[0]["rewards"]


@pytest.mark.parametrize("scenario", ["no_query_log", "new"])
def test_a_run_in_a_scenario_is_stopped_and_goes_on_in_it(cli, shop, scenario):
    start = ("train", "grpo", "--config", "run.toml", "--scenario", scenario)
    cli.run(*start, "--steps", "1", "--shop", shop, code=143)
    config = cli.json("runs", "show", "mine", "--shop", shop)["config"]
    assert config["split"]["scenario"] == scenario
    changed = cli.run("train", "grpo", "--resume", "--scenario", "full", "--shop", shop, code=2)
    assert "--scenario cannot change in a run that goes on" in changed.output
    report = cli.json("train", "grpo", "--resume", "--shop", shop)
    assert (report["run"], report["steps"]) == ("mine", 1)
    (copy,) = (shop / "scenarios").glob(f"{scenario}-*")
    shutil.rmtree(copy)
    gone = cli.error("train", "grpo", "--resume", "--run", "mine", "--steps", "2", "--shop", shop)
    assert f"trained in the scenario {copy.name}, and" in gone and "start a new run" in gone
    cases = cli.json("evaluate", "--scenario", scenario, "--policy", "mine", "--shop", shop)
    assert cases["scenario"] == scenario and copy.exists()  # made again, the same


def test_wrong_settings_end_in_one_line(cli, shop):
    (shop.parent / "bad.toml").write_text("[train]\nlearning_rat = 1")
    for options, words in (
        (("--config", "bad.toml"), "did you mean learning_rate?"),
        (("--config", "none.toml"), "No such file"),
        (("--preset", "single-trun"), "did you mean single-turn?"),
        (("--alarm", "kl=loud"), "must be one of stop, warn, off"),
        (("--stop-after", "2"), "--stop-after needs --eval-every"),
        (("--weight", "fun=1"), "no reward 'fun'"),
    ):
        assert words in cli.error("train", "grpo", "--policy", "sample", *options, "--shop", shop)


def test_sft_resumes_only_what_is_there(cli, shop):
    assert "no SFT run is unfinished" in cli.error("train", "sft", "--resume", "--shop", shop)
