import json
import shutil

import pytest
from click.testing import CliRunner

from cli.main import cli
from qagent_mlx.errors import QAgentError
from qagent_mlx.reproduce import manifest as manifests
from qagent_mlx.reproduce import reproduction as stages_module
from qagent_mlx.reproduce.config import ReproduceConfig
from qagent_mlx.reproduce.reproduction import Reproduction

QUICK = ReproduceConfig(quick=True, seeds=(0,), group=2)


@pytest.fixture(scope="module")
def done(tiny_files, tmp_path_factory):
    """A whole reproduction that was cut off in the middle of GRPO once."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    stages = []

    def stop(row):
        if stages[-1].startswith("GRPO, seed"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reproduction(str(tiny_files), out, QUICK, stages.append, stop).run()
    cut = json.loads((out / "manifest.json").read_text())
    again = []
    manifest = Reproduction(str(tiny_files), out, QUICK, again.append).run()
    return out, cut, again, manifest


def test_what_was_done_before_a_crash_is_not_done_again(done):
    _, cut, again, manifest = done
    assert list(cut["stages"]) == ["shop", "base", "sft-0"]
    assert [s for s in again if s.endswith("done before")] == [
        "reading the raw data: done before",
        "making the base policy: done before",
        "SFT, seed 0: done before",
    ]
    assert "going on with the run grpo-0" in again
    assert {n: manifest["stages"][n] for n in cut["stages"]} == cut["stages"]


def test_the_table_has_seeds_baselines_and_ablations(done):
    out, _, _, manifest = done
    report = json.loads((out / "report.json").read_text())
    names = [s["name"] for s in report["systems"]]
    wanted = {
        "sft-0",
        "grpo-0",
        "query-only-0",
        "typed-0",
        "single-turn-0",
        "no-memory-0",
        "grpo-0 (no search)",
        "grpo-0 (no memory)",
        "popular",
        "swing",
        "dense",
        "top-line",
    }
    assert wanted <= set(names) and len(names) == len(set(names))
    table = (out / "table.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert "abtest" not in manifest["stages"]  # not a simulated shop


def test_the_manifest_tells_inputs_versions_seeds_and_weights(done):
    _, _, _, manifest = done
    assert set(manifest["inputs"]) == {"products.csv", "events.jsonl"}
    assert all(len(digest) == 64 for digest in manifest["inputs"].values())
    assert manifest["settings"]["seeds"] == [0]
    assert manifest["versions"]["mlx-lm"] != "unknown"
    names = ("base", "sft-0", "grpo-0", "query-only-0", "typed-0", "single-turn-0", "no-memory-0")
    assert len({manifest["stages"][name]["weights"] for name in names}) == len(names)


def test_a_second_run_does_nothing(done, tiny_files):
    out, _, _, manifest = done
    said = []
    again = Reproduction(str(tiny_files), out, QUICK, said.append).run()
    assert again == manifest
    assert all(line.endswith("done before") for line in said)


def test_other_settings_inputs_or_versions_are_refused(done, tiny_files, tmp_path, monkeypatch):
    out = done[0]
    with pytest.raises(QAgentError, match="other settings"):
        Reproduction(str(tiny_files), out, ReproduceConfig(quick=True, seeds=(1,), group=2))
    with pytest.raises(QAgentError, match="other source"):
        Reproduction("sample", out, QUICK)
    monkeypatch.setattr(manifests, "_versions", lambda: {"python": "2.7"})
    with pytest.raises(QAgentError, match="other versions"):
        Reproduction(str(tiny_files), out, QUICK)
    with pytest.raises(QAgentError, match="no folder"):
        Reproduction(str(tmp_path / "nothing"), tmp_path / "o", QUICK)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(QAgentError, match="something else"):
        Reproduction(str(tiny_files), tmp_path / "full", QUICK)


def test_a_simulated_shop_is_also_asked(simulated_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stages_module, "create_sample_shop", lambda path: shutil.copytree(simulated_folder, path)
    )
    out = tmp_path / "out"
    config = ReproduceConfig(quick=True, seeds=(0,), group=2, cases=4)
    manifest = Reproduction("sample", out, config).run()
    reports = json.loads((out / "abtest.json").read_text())
    assert list(reports) == ["query-only", "typed"]
    for control, report in reports.items():
        assert report["arms"] == {"control": f"{control}-0", "treatment": "grpo-0"}
        assert report["rows"] >= report["users"] == 6
        assert manifest["stages"]["abtest"][control]["cvr"] == report["cvr"]
    command = ["reproduce", "sample", "--out", str(out), "--quick", "--group", "2", "--cases", "4"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "Simulated A/B test against typed" in done.stdout and "guided CVR" in done.stdout
