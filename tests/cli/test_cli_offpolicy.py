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
