from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def shop(tiny_folder, tmp_path):
    return ("--shop", shutil.copytree(tiny_folder, tmp_path / "shop"))


def test_rules_are_made_listed_and_removed(cli, shop, tmp_path):
    assert "no rules yet" in cli.run("rules", "list", *shop).stdout
    (blocked,) = cli.json("rules", "block", "usb cable", "--until", "2030-01-01", *shop)["rules"]
    (tmp_path / "words.txt").write_text("knife\n# comment\ncheap copy\n")
    assert len(cli.json("rules", "import", tmp_path / "words.txt", *shop)["rules"]) == 2
    cli.run("rules", "block", "^x", "--pattern", *shop)
    cli.run("rules", "exclude", "Sports > Shoes", *shop)
    cli.run("rules", "hide", "p000", "--query", "desk lamp", *shop)
    cli.run("rules", "pin", "gift card", "--position", "2", "--category", "Office", *shop)
    listed = cli.run("rules", "list", *shop).stdout
    for text in ("usb cable", "until 2030-01-01", "cheap copy", "Sports > Shoes", "position 2"):
        assert text in listed
    cli.run("rules", "remove", blocked["rule_id"], *shop)
    assert "usb cable" not in cli.run("rules", "list", *shop).stdout
    assert "removed by" in cli.run("rules", "list", "--all", *shop).stdout


def test_errors_of_rules_say_what_helps(cli, shop, tmp_path):
    assert "qagent rules list" in cli.error("rules", "remove", "nothing", *shop)
    assert "no pattern of RE2" in cli.error("rules", "block", "(x", "--pattern", *shop)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert "one a line" in cli.error("rules", "import", tmp_path / "empty.txt", *shop)
    cli.run("rules", "block", "x", "--word", "--pattern", *shop, code=2)


def test_a_user_wants_a_query_no_more_and_has_it_forgotten(cli, shop):
    wished = cli.json("memory", "unwanted", "u01", "usb cable", *shop)["wishes"]
    assert [w["query"] for w in wished] == ["usb cable"]
    assert "wants no more: usb cable" in cli.run("memory", "u01", *shop).stdout
    cli.run("memory", "unwanted", "u01", "--withdraw", wished[0]["wish_id"], *shop)
    assert "nothing is unwanted" in cli.run("memory", "unwanted", "u01", *shop).stdout
    assert "qagent memory unwanted" in cli.error(
        "memory", "unwanted", "u01", "--withdraw", "nothing", *shop
    )
    before = cli.json("memory", "u01", *shop)["events"]
    forgotten = cli.json("memory", "forget", "u01", "--category", "Phones", *shop)
    assert cli.json("memory", "u01", *shop)["events"] == before - forgotten["events"]
    cli.run("memory", "forget", "u01", "--category", "a", "--query", "b", *shop, code=2)


def test_a_kept_list_of_insults_blocks_all_but_what_the_shop_sells(
    cli, shop, tmp_path, monkeypatch
):
    assert "qagent-mlx[offensive]" in cli.error("rules", "import", "--offensive", *shop)
    (tmp_path / "better_profanity").mkdir()
    (tmp_path / "better_profanity" / "__init__.py").write_text("")
    words = tmp_path / "better_profanity" / "profanity_wordlist.txt"
    words.write_text("grobian\nlamp\ndesk grobian\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = cli.json("rules", "import", "--offensive", *shop)["rules"]
    assert [rule["text"] for rule in made] == ["grobian", "desk grobian"]
    cli.run("rules", "import", *shop, code=2)
    cli.run("rules", "import", words, "--offensive", *shop, code=2)
