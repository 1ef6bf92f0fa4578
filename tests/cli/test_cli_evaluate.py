import csv
from pathlib import Path

import pytest


def write(path: Path, header: tuple, rows: list) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    write(
        folder / "products.csv",
        ("item_id", "title", "brand"),
        [(i, f"Gel Pen {i}", "Acme") for i in range(4)],
    )
    write(
        folder / "purchases.csv",
        ("user_id", "position", "item_id"),
        [(f"u{u}", p, (u + p) % 4) for u in range(12) for p in range(6)],
    )
    return folder


def test_evaluate_gives_the_documented_keys_and_writes_a_page(cli, built, tmp_path):
    page = tmp_path / "report.html"
    report = cli.json(
        "evaluate",
        "--shop",
        built,
        "--baselines",
        "--by",
        "history",
        "--compare",
        "repeat-last:*",
        "--html",
        page,
    )
    assert {"split", "cases", "systems"} <= set(report)
    assert report["derived"] is None and report["simulated"] is False
    names = [s["name"] for s in report["systems"]]
    assert {"popular", "markov", "swing", "bm25", "dense", "top-line"} <= set(names)
    for system in report["systems"]:
        assert {"q_em", "cons@1", "row_hit@10", "own_words", "popularity"} <= set(system["metrics"])
        assert set(system["metrics"]["q_em"]) == {"mean", "lo", "hi"}
    assert len(report["comparisons"]) == 6 * (len(names) - 1)
    assert {row["by"] for row in report["slices"]} == {"history"}
    assert page.read_text().startswith("<!doctype html>")


def test_evaluate_writes_trec_files_where_it_is_told(cli, built, tmp_path):
    cli.json("evaluate", "--shop", built, "--baseline", "popular", "--trec", tmp_path / "trec")
    names = {path.name for path in (tmp_path / "trec").iterdir()}
    assert names >= {"queries.qrels", "items.qrels", "popular.queries.run", "popular.items.run"}
    topic, _, _document, rank, _, tag = (
        (tmp_path / "trec" / "popular.items.run").read_text().splitlines()[0].split()
    )
    assert topic.isdecimal() and (rank, tag) == ("1", "popular")


def test_a_report_always_has_memorys_first_line_and_begins_with_who_is_ahead(cli, built, tmp_path):
    page = tmp_path / "report.html"
    result = cli.run("evaluate", "--shop", built, "--baseline", "popular", "--html", page)
    assert "top-line" in result.stdout
    text = page.read_text()
    said = text.index('<p class="verdict">')
    assert text.index("<h1>") < said < text.index("<h2>")
    assert "Memory&#39;s first line (top-line) and popular" in text[said : text.index("<h2>")]
    assert result.stdout.startswith("Memory's first line")


def test_evaluate_draws_tables(cli, built):
    text = cli.run("evaluate", "--shop", built, "--baseline", "popular", "--by", "tail").stdout
    assert "popular" in text and "cons@1 by tail" in text
    assert "row_hit@10" in text and "among its candidates" in text
    assert "no baseline 'magic'" in cli.error("evaluate", "--shop", built, "--baseline", "magic")


def test_a_preset_fills_a_new_shop_and_its_reports_say_derived(cli, raw, tmp_path):
    shop = tmp_path / "shop"
    cli.run("init", "--shop", shop)
    report = cli.json("ingest", "--preset", "amazon-office", "--from", raw, "--shop", shop)
    assert {"accepted", "rejected", "duplicates", "reasons"} <= set(report)
    assert report["derived"] == "from titles" and report["products"]["accepted"] == 4
    cli.run("index", "--shop", shop)
    table = cli.run("evaluate", "--shop", shop, "--baseline", "popular").stdout
    assert "derived" in table
    found = cli.json("evaluate", "--shop", shop, "--baseline", "popular")
    assert found["derived"] == "from titles"
    text = cli.error("ingest", "--preset", "amazon-office", "--from", raw, "--shop", shop)
    assert "holds data already" in text


def test_ingest_without_a_command_or_with_half_a_preset_is_usage(cli, raw, built):
    assert "Usage" in cli.run("ingest", code=2).output
    assert "--from" in cli.run("ingest", "--preset", "bestbuy", code=2).output
    text = cli.run("ingest", "--shop", built, "products", raw / "products.csv", code=2).output
    assert "behind the command" in text


def test_abtest_refuses_a_shop_that_is_not_simulated(cli, built):
    arms = ("--control", "popular", "--treatment", "trending")
    assert "not a simulated shop" in cli.error("abtest", "--shop", built, *arms)
    assert "--control" in cli.run("abtest", "--shop", built, code=2).output


def test_abtest_gives_the_documented_keys(cli, simulated_folder):
    report = cli.json(
        "abtest",
        "--shop",
        simulated_folder,
        "--control",
        "popular",
        "--treatment",
        "repeat-last",
        "--users",
        4,
        "--draws",
        2,
    )
    assert report["users"] == 4
    for name in ("ctr", "cvr"):
        assert {"control", "treatment", "lift", "lo", "hi", "p"} <= set(report[name])
    text = cli.run(
        "abtest",
        "--shop",
        simulated_folder,
        "--control",
        "popular",
        "--treatment",
        "repeat-last",
        "--users",
        4,
        "--draws",
        2,
    ).stdout
    assert "guided CVR" in text and "4 simulated shoppers" in text
