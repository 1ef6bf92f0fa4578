"""The serving workload says where the time of answers goes, and counts none of it twice."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from qagent_cli.main import cli

from qagent_mlx.bench import serving as bench
from qagent_mlx.policy.small_llama import save_base


@pytest.fixture
def folder(tiny_folder, new_nano, tmp_path):
    path = shutil.copytree(tiny_folder, tmp_path / "shop")
    policy, tokenizer, config = new_nano(0)
    policy.info = replace(policy.info, name="a")
    save_base(policy, tokenizer, config, path / "policies" / "a")
    return path


def test_stages_add_up_to_what_an_answer_takes(folder, monkeypatch):
    monkeypatch.setattr(bench, "LOADS", (1, 3))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    report = bench.serving(folder, 1.0, 1, "a")
    assert (report["policy"], [load["clients"] for load in report["loads"]]) == ("a", [1, 3])
    for load in report["loads"]:
        assert load["answers"] and not load["fallbacks"] and load["p50_ms"] <= load["p95_ms"]
        assert {"queue", "memory", "chains", "searches", "slates", "rest"} <= load["stages"].keys()
        # Each client always waits for an answer.
        waited = 1000 * load["clients"] / load["per_second"]
        assert sum(load["stages"].values()) == pytest.approx(waited, rel=0.2)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()


def test_the_command_shows_it(folder, monkeypatch):
    monkeypatch.setattr(bench, "LOADS", (2,))
    command = ["bench", "--workload", "serving", "--seconds", "0.3", "--shop", str(folder)]
    done = CliRunner().invoke(cli, [*command, "--json"])
    assert done.exit_code == 0, done.output
    (load,) = json.loads(done.stdout)["loads"]
    assert load["answers"] > 0
    drawn = CliRunner().invoke(cli, command)
    assert drawn.exit_code == 0 and "ms of an answer" in drawn.output
    refused = CliRunner().invoke(cli, [*command, "--against", "trl"])
    assert refused.exit_code == 2 and "--against" in refused.stderr
