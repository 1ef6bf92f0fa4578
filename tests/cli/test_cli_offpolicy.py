from __future__ import annotations

import shutil

from showing import show

from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.shop.shop import Shop


def test_a_policy_that_was_not_shown_is_estimated(cli, tiny_folder, new_nano, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "shop")
    save_base(*new_nano(), folder / "policies" / "nano")
    shop = ("--policy", "nano", "--shop", folder)
    assert "qagent impressions list" in cli.error("offpolicy", *shop)
    with Shop.open(folder) as opened:
        now = opened.end_of_log()
        for n in range(4):
            show(opened, "usb cable", "desk lamp", user=f"u{n:02}", at=now)
    found = cli.json("offpolicy", *shop)
    assert (found["answers"], found["users"], found["explored"]) == (4, 4, 0.0)
    assert 0 <= found["agreeing"] <= 1 and found["logged"]["value"] == 0
    result = cli.run("offpolicy", "-n", "3", *shop)
    assert "snips" in result.stdout and "3 answers" in result.stdout
    assert "left to chance" in result.stderr


def test_a_policy_is_estimated_by_the_rules_that_its_answers_would_follow(
    cli, tiny_folder, new_nano, tmp_path
):
    folder = shutil.copytree(tiny_folder, tmp_path / "shop")
    save_base(*new_nano(), folder / "policies" / "nano")
    policy, shop = ("--policy", "nano"), ("--shop", folder)
    users = [f"u{n:02}" for n in range(6)]
    free = cli.json("recommend", *users, *policy, *shop)["users"]
    first = {user["recommendations"][0]["query"] for user in free}
    cli.run("rules", "block", *first, *shop)
    cli.run("memory", "unwanted", users[0], free[0]["recommendations"][1]["query"], *shop)
    cli.run("recommend", *users, *policy, "--record", *shop)
    found = cli.json("offpolicy", *policy, *shop)
    assert (found["answers"], found["agreeing"]) == (6, 1.0)
