"""``qagent policies``, and how other commands name versions."""

import shutil

import pytest
from stand_ins import save_stand_in

from qagent_mlx.environment.served_slates import FEWEST_CASES
from qagent_mlx.policy.registry import resolve
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def shelf(tmp_path):
    """A shop with two versions of sft, and grpo on the first."""
    path = tmp_path / "shop"
    with Shop.create(path) as shop:
        save_stand_in(shop, "base")
        save_stand_in(shop, "sft", "base")
        save_stand_in(shop, "grpo", "sft", "grpo")
        save_stand_in(shop, "sft", "base")
    return path


def test_versions_are_listed_with_what_they_stand_on(cli, shelf):
    document = cli.json("policies", "list", "--shop", shelf)
    assert [(p["policy"], p["base"], p["trained"]) for p in document["policies"]] == [
        ("base@1", "", ["pretrain"]),
        ("sft@1", "base@1", ["sft"]),
        ("grpo@1", "sft@1", ["grpo"]),
        ("sft@2", "base@1", ["sft"]),
    ]
    assert (document["promoted"], document["serving"]) == (None, "grpo@1")
    text = cli.run("policies", "list", "--shop", shelf).stdout
    assert "none is promoted; where none is named, grpo@1 answers" in text


def test_a_policy_that_cannot_be_opened_is_marked(cli, shelf):
    with Shop.open(shelf) as shop:
        (resolve(shop, "sft@1") / "adapters.safetensors").write_bytes(b"else")
    text = cli.run("policies", "list", "--shop", shelf).stdout
    assert "sft@1 cannot be opened: the weights in" in text and "grpo@1 cannot be opened" in text
    assert "sft@2 cannot" not in text
    line = cli.error("policies", "promote", "grpo", "--shop", shelf)
    assert "grpo@1 was trained on another version of sft@1, which was overwritten since" in line


def test_a_version_that_is_not_there_is_told(cli, shelf):
    line = cli.error("policies", "show", "sft@9", "--shop", shelf)
    assert "there is no policy sft@9; its versions are sft@1, sft@2" in line


def test_a_promotion_and_its_rollback(cli, shelf):
    assert "no policy is promoted" in cli.error("policies", "rollback", "--shop", shelf)
    assert cli.json("policies", "promote", "sft", "--shop", shelf)["policy"] == "sft@2"
    said = cli.run("policies", "promote", "grpo@1", "--shop", shelf).stdout
    assert "promoted: grpo@1; before: sft@2" in said
    assert "promoted" in cli.run("policies", "list", "--shop", shelf).stdout
    shown = cli.json("policies", "show", "--shop", shelf)
    assert shown["policy"] == "grpo@1" and shown["promoted"] is True
    assert [change["action"] for change in shown["promotions"]] == ["promote"]
    assert "promote by" in cli.run("policies", "show", "grpo", "--shop", shelf).stdout
    assert cli.json("policies", "rollback", "--shop", shelf)["policy"] == "sft@2"
    assert cli.json("policies", "list", "--shop", shelf)["serving"] == "sft@2"


def test_what_others_stand_on_is_removed_only_when_that_is_said(cli, shelf):
    line = cli.error("policies", "rm", "sft@1", "--shop", shelf)
    assert "--cascade must be set to remove sft@1: grpo@1 stands on it" in line
    cli.run("policies", "promote", "grpo", "--shop", shelf)
    line = cli.error("policies", "rm", "sft@1", "--cascade", "--shop", shelf)
    assert "--force must be set to remove grpo@1, which is promoted" in line
    flags = ("--cascade", "--force", "--shop", shelf)
    document = cli.json("policies", "rm", "sft@1", *flags)
    assert document == {"removed": ["sft@1", "grpo@1"], "promoted": ""}
    listed = cli.json("policies", "list", "--shop", shelf)["policies"]
    assert [policy["policy"] for policy in listed] == ["base@1", "sft@2"]


def test_a_training_says_what_it_starts_from_and_how_to_promote(cli, built, tmp_path):
    shop = shutil.copytree(built, tmp_path / "shop")
    few = ("--steps", "1", "--batch-size", "2", "--measured", "2", "--shop", shop)
    for number in (1, 2):
        ended = cli.run("train", "sft", *few)
        assert "starting from sample\n" in ended.stderr, "never from the newest by accident"
        assert f"qagent policies promote sft@{number}" in ended.stdout
    first, second = cli.json("policies", "list", "--shop", shop)["policies"]
    assert (first["policy"], second["policy"]) == ("sft@1", "sft@2")
    assert first["base"] == second["base"] == "sample" and first["validation"] is not None
    runs = cli.json("runs", "list", "--shop", shop)["runs"]
    assert [(run["run"], run["policy"], run["version"]) for run in runs] == [
        *(("sft", "sft", 1), ("sft-2", "sft", 2))
    ]
    cli.run("policies", "promote", "sft@1", "--shop", shop)
    group = ("--cases-per-step", "2", "--group", "2", "--alarm", "dropped=off")
    ended = cli.run("train", "grpo", "--steps", "1", *group, "--measured", "2", "--shop", shop)
    assert "starting from sft@1\n" in ended.stderr and "policy grpo@1 on sft@1" in ended.stdout


@pytest.fixture
def learner(new_nano, simulated_folder, tmp_path):
    """A simulated shop with an untrained policy that was never calibrated."""
    path = shutil.copytree(simulated_folder, tmp_path / "learner")
    save_base(*new_nano(), path / "policies" / "nano")
    return path


def test_chances_are_learned_for_a_policy_that_is_there(cli, learner):
    before = cli.json("policies", "show", "nano", "--shop", learner)["calibration"]
    assert before is None
    assert "not learned; run: qagent policies calibrate" in (
        cli.run("policies", "show", "nano", "--shop", learner).stdout
    )
    wide = ("--validation-share", "0.5", "--shop", learner)
    document = cli.json("policies", "calibrate", "nano", *wide)
    assert document["policy"] == "nano@1"
    assert document["cases"] >= FEWEST_CASES
    assert document["error"] is None  # random weights recommend nothing that they searched
    shown = cli.json("policies", "show", "nano", "--shop", learner)["calibration"]
    assert shown == {key: value for key, value in document.items() if key != "policy"}
    text = cli.run("policies", "calibrate", "nano", *wide).stdout
    assert f"nano@1: learned on {document['cases']:,} validation cases; its chains" in text
    rows = cli.json("recommend", "u0001", "--policy", "nano", "--shop", learner)
    chances = [row["chance"] for row in rows["recommendations"]]
    assert chances and all(0 < chance < 1 for chance in chances)


def test_chances_that_cannot_be_learned_are_refused_in_a_line(cli, learner):
    few = cli.error(
        "policies", "calibrate", "nano", "--validation-share", "0.01", "--shop", learner
    )
    assert f"too few to learn chances from, {FEWEST_CASES} are needed" in few
    assert "raise validation_share" in few
    gone = cli.error("policies", "calibrate", "nano@7", "--shop", learner)
    assert "there is no policy nano@7" in gone
    assert cli.json("policies", "show", "nano", "--shop", learner)["calibration"] is None
