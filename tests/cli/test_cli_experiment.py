from __future__ import annotations

import shutil

from showing import show

from qagent_mlx.live.experiments import running
from qagent_mlx.shop.shop import Shop


def test_an_experiment_is_started_watched_stopped_and_reported(cli, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "shop")
    shop = ("--shop", folder)
    assert "no experiment yet" in cli.run("experiment", "status", *shop).stdout
    assert "qagent experiment start" in cli.error("experiment", "report", *shop)
    assert "two different" in cli.error("experiment", "start", "x", "--control", "agent", *shop)
    assert "no policy" in cli.error("experiment", "start", "x", "--treatment", "none", *shop)
    started = cli.json("experiment", "start", "first", "--share", "0.3", *shop)
    assert (started["control"], started["treatment"]) == ("memory", "agent")
    assert started["users_needed"] is None and "salt" not in started
    assert "first runs" in cli.error("experiment", "start", "second", *shop)
    assert "runs" in cli.run("experiment", "status", *shop).stdout
    with Shop.open(folder, read_only=False) as opened:
        experiment = running(opened)
        for n in range(9):
            named = {"experiment": "first", "arm": experiment.arm(f"n{n}")}
            show(opened, "usb cable", user=f"n{n}", at=experiment.started, **named)
    assert cli.json("experiment", "stop", *shop)["stopped"] >= started["started"]
    report = cli.json("experiment", "report", *shop)
    assert sum(report["users"].values()) == 9 and report["ctr"]["difference"] == 0
    drawn = cli.run("experiment", "report", "first", *shop).stdout
    for text in ("memory against agent", "CTR", "guided CVR", "latency", "split"):
        assert text in drawn
