"""Optional places for metrics; the run's own files never depend on them."""

import sys
import types

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.runs.loggers import logging_to

ROW = {"step": 3, "steps": 9, "reward": 0.5, "alarms": ["text"], "dropped_groups": 2}


def test_without_names_nothing_is_written(tmp_path):
    with logging_to([], tmp_path, "run") as log:
        log(ROW)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(QAgentError, match="pip install wandb"),
        logging_to(["wandb"], tmp_path, "r"),
    ):
        pass


def test_numbers_reach_the_other_place_by_step(tmp_path, monkeypatch):
    seen = []
    session = types.SimpleNamespace(
        log=lambda row, step: seen.append((step, row)), finish=lambda: seen.append("finished")
    )
    fake = types.SimpleNamespace(init=lambda **named: seen.append(named["name"]) or session)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with logging_to(["wandb"], tmp_path, "mine") as log:
        log(ROW)
    assert seen == ["mine", (3, {"reward": 0.5, "dropped_groups": 2.0}), "finished"]


def test_tensorboard_files_are_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    with logging_to(["tensorboard"], tmp_path, "mine") as log:
        log(ROW)
    (file,) = (tmp_path / "mine").iterdir()
    assert b"dropped_groups" in file.read_bytes()
