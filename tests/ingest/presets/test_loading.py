"""Recognising formats, and what is said of files that are none."""

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.descriptions import DESCRIPTIONS
from qagent_mlx.ingest.presets.loading import load_preset, suggest_command
from qagent_mlx.ingest.presets.registry import PRESETS


def test_every_preset_is_described():
    assert set(DESCRIPTIONS) == set(PRESETS)


def test_unknown_files_are_named_with_what_was_looked_for(shop, raw, write_csv):
    write_csv("x.csv", ("a", "b"), (1, 2))
    with pytest.raises(QAgentError, match="no known format; looked for ubi, ga4, segment"):
        load_preset(shop, "auto", raw)
    with pytest.raises(QAgentError, match="holds nothing of OpenSearch"):
        load_preset(shop, "ubi", raw)
    with pytest.raises(QAgentError, match="no such file or folder"):
        load_preset(shop, "ubi", raw / "gone")
    assert suggest_command(raw / "x.csv") is None


def test_another_presets_file_is_named(shop, write_csv):
    path = write_csv("q.csv", ("query_id", "user_token", "query"), ("1", "u", "shoes"))
    with pytest.raises(QAgentError, match="it looks like the preset algolia"):
        load_preset(shop, "ubi", path)
    assert suggest_command(path) == f"qagent ingest --preset algolia --from {path}"


def test_files_that_are_not_read_are_named(shop, raw, write_csv):
    write_csv("q.csv", ("query_id", "user_token", "query", "timestamp"), ("1", "u", "shoes", 1.7e9))
    (raw / "README.md").write_text("# Read me\n")
    report = load_preset(shop, "auto", raw)
    assert "not read, no files of algolia: README.md" in report.total.notes
    assert not list(shop.path.glob(".preset-*"))
