"""Rewards from users' files; tests/train/test_config_files.py resumes a run with one."""

from types import SimpleNamespace

import pytest

from qagent_mlx.environment.custom_rewards import components_of, load_component
from qagent_mlx.environment.rewards import COMPONENTS
from qagent_mlx.utils.settings import SettingError


def test_a_reward_from_a_file_is_loaded_and_its_errors_are_shown(tmp_path):
    good = tmp_path / "mine.py"
    good.write_text("def short(outcome):\n    return float(len(outcome.rollout.turns) < 4)\n")
    name, component = load_component(f"{good}:short")
    assert name == "short"
    assert components_of([f"{good}:short"]).keys() == {*COMPONENTS, "short"}
    chain = SimpleNamespace(rollout=SimpleNamespace(turns=(1, 2, 3)))
    assert component(chain) == 1
    bad = tmp_path / "bad.py"
    bad.write_text("import nothing_of_that_name\n")
    with pytest.raises(SettingError, match="nothing_of_that_name"):
        load_component(f"{bad}:short")
    with pytest.raises(SettingError, match="no function other"):
        load_component(f"{good}:other")
    with pytest.raises(SettingError, match="FILE:NAME"):
        load_component("short")


def test_a_name_is_taken_once(tmp_path):
    (tmp_path / "mine.py").write_text("def query(outcome):\n    return 0.0\n")
    with pytest.raises(SettingError, match="query is taken by another reward"):
        components_of([f"{tmp_path / 'mine.py'}:query"])
    assert components_of([]) is None
