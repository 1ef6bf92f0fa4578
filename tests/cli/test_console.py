from __future__ import annotations

import math
from datetime import datetime

from qagent_cli.console import emit, print_table, safe, say, short


def test_cells_of_a_table_are_safe_and_plain(capsys):
    print_table(("#", "[b]name[/b]"), [(1, "\x1b[31mred :smile:"), (22, None)], numbers=("#",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["#", "[b]name[/b]"]
    assert lines[1].startswith(" 1") and "[31mred :smile:" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_table_without_headings_has_no_line_for_them(capsys):
    print_table(("", ""), [("a", 1)])
    assert capsys.readouterr().out.split() == ["a", "1"]


def test_a_line_is_not_broken_at_the_width_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    say("word " * 20)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_two_spaces_stay_a_gap_between_columns():
    assert safe("a  b\tc\n").plain == "a  b c"
    assert short("abcdef", 4) == "abc…"


def test_a_document_has_plain_values_only(capsys):
    emit({"nan": math.nan, "at": datetime(2026, 3, 1), "text": "\x1b[1m", 3: (1, 2)})
    text = capsys.readouterr().out
    assert '"nan": null' in text and '"at": "2026-03-01T00:00:00"' in text
    assert "\\u001b[1m" in text and '"3": [' in text


def test_a_wide_column_that_is_cut_leaves_the_others_on_one_line(capsys):
    rows = [("two words", "a title of many words " * 9), ("another query of words", "short")]
    print_table(("query", "title"), rows, wide="title", cut=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("two words ") and lines[1].rstrip().endswith("…")
    assert lines[2].split("  ")[0] == "another query of words"
