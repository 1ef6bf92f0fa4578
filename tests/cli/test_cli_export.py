import csv
import io
import json

import pytest


def test_an_export_goes_to_a_file_or_to_stdout(cli, built, tmp_path):
    document = cli.json("export", "events", tmp_path / "e.csv", "--shop", built)
    assert document == {"table": "events", "rows": 80, "out": str(tmp_path / "e.csv")}
    printed = cli.run("export", "events", "-", "--shop", built).stdout
    assert printed == (tmp_path / "e.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert len(rows) == 80 and rows[0]["query"] == "tent"
    text = cli.run("export", "events", "-", "--format", "jsonl", "--shop", built).stdout
    assert [json.loads(line)["query"] for line in text.splitlines()] == [r["query"] for r in rows]


def test_recommendations_of_everybody_go_to_stdout(cli, built):
    text = cli.run("export", "recommendations", "-", "-k", 1, "--shop", built).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["user_id"] for row in rows} == {"ann", "bob"}
    assert {row["rank"] for row in rows} == {"1"}


@pytest.mark.parametrize(
    "words", [("-", "--json"), ("e.csv", "--format", "csv"), ("-", "--format", "xlsx"), ()]
)
def test_what_does_not_go_together_is_wrong_usage(cli, built, words):
    assert cli.run("export", "events", *words, "--shop", built, code=2).stdout == ""


def test_a_span_that_ends_before_it_begins_is_told(cli, built):
    words = ("--from", "2026-02-01", "--until", "2026-01-01", "--shop", built)
    assert "--from is not before --until" in cli.error("export", "events", "e.csv", *words)
