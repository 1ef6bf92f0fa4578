from __future__ import annotations

import json
import shutil

import pytest
from showing import after, did

from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def folder(tiny_folder, new_nano, tmp_path):
    path = shutil.copytree(tiny_folder, tmp_path / "shop")
    save_base(*new_nano(), path / "policies" / "nano")
    return path


def test_what_a_command_recorded_is_listed_counted_and_exported(cli, folder, tmp_path):
    shop = ("--shop", folder)
    assert "nothing was shown yet" in cli.run("impressions", "list", *shop).stdout
    assert "recommendation_id" not in cli.json("recommend", "u01", *shop)
    shown = cli.json("recommend", "u01", "--record", "-k", 2, *shop)
    query = shown["recommendations"][1]["query"]
    with Shop.open(folder, read_only=False) as opened:
        named = {"recommendation_id": shown["recommendation_id"], "position": 2}
        did(opened, {"time": after(), "type": "search", "query": query, **named})
    (answer,) = cli.json("impressions", "list", "u01", *shop)["answers"]
    assert answer["recommendation_id"] == shown["recommendation_id"]
    assert [(q["query"], q["taken"]) for q in answer["queries"]] == [
        (shown["recommendations"][0]["query"], False),
        (query, True),
    ]
    listed = cli.run("impressions", "list", *shop).stdout
    assert query in listed and "taken" in listed
    (group,) = cli.json("impressions", "report", *shop)["groups"]
    assert (group["group"], group["answers"], group["taken"]) == ("nano@1", 1, 1)
    assert "100.00%" in cli.run("impressions", "report", *shop).stdout
    written = cli.json("impressions", "export", tmp_path / "ubi", *shop)
    lines = (tmp_path / "ubi" / "ubi_events.jsonl").read_text().splitlines()
    assert written["events"] == len(lines)
    assert any(json.loads(line)["query_id"] == shown["recommendation_id"] for line in lines)
    assert cli.json("impressions", "report", "--until", "2020-01-01", *shop)["groups"] == []
    assert cli.json("impressions", "prune", "--before", "2020-01-01", *shop)["answers"] == 0
    assert "recommendations" in cli.json("memory", "export", "u01", *shop)
    assert cli.json("impressions", "prune", "--before", "2099-01-01", *shop)["answers"] == 1
    assert cli.json("impressions", "list", *shop)["answers"] == []


def test_what_many_users_are_shown_is_recorded_with_the_ids_of_the_file(cli, folder, tmp_path):
    shop = ("--shop", folder)
    out = tmp_path / "all.jsonl"
    cli.run("recommend", "--all", "--out", out, "--record", "-k", 2, *shop)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    answers = cli.json("impressions", "list", "-n", 1000, *shop)["answers"]
    shown = {a["recommendation_id"]: [q["query"] for q in a["queries"]] for a in answers}
    told: dict[str, list[str]] = {}
    for row in rows:
        told.setdefault(row["recommendation_id"], []).append(row["query"])
    assert shown == told and len(told) > 5
    cli.run("recommend", "--all", "--out", out, *shop)
    assert "recommendation_id" not in out.read_text()
    assert len(cli.json("impressions", "list", "-n", 1000, *shop)["answers"]) == len(told)
