"""The shop as TRL and verifiers see it; neither is installed here, what they call is."""

import inspect
import json
import sys

import pytest

from qagent_mlx.environment import ShopEnvironment
from qagent_mlx.environment.trl_adapter import OVER, ShopTools, factory, rows
from qagent_mlx.environment.verifiers_adapter import load_environment
from qagent_mlx.errors import QAgentError


@pytest.fixture(scope="module")
def environment(tiny_shop):
    return ShopEnvironment.open(tiny_shop)


def test_trl_finds_tools_a_reset_and_a_reward(environment):
    """As GRPOTrainer looks for them: the public functions of the class."""
    tools = factory(environment)()
    names = {n for n, _ in inspect.getmembers(type(tools), predicate=inspect.isfunction)}
    public = {name for name in names if not name.startswith("_")}
    described = {tool["function"]["name"] for tool in environment.tools}
    assert public == described | {"reset", "get_reward"}
    for name in described:
        documented = inspect.getdoc(getattr(ShopTools, name))
        assert "Returns:" in documented
        arguments = set(inspect.signature(getattr(tools, name)).parameters)
        assert all(f"{argument}:" in documented for argument in arguments)


def test_episodes_in_trl_are_apart_and_rewarded_as_they_are_here(environment):
    made = rows(environment, "train")
    json.dumps(made)
    assert [row["case"] for row in made] == environment.cases("train")
    first, second = factory(environment)(), factory(environment)()
    first.reset(**made[0])
    second.reset(**made[1])
    assert "<profile>" in first.fetch_memory()
    second.fetch_memory()
    found = first.search("<r0>")
    assert "<results>" in found and first.recommend("<s1>") == OVER
    assert first.search("more") == OVER  # after the end
    environment.reset(made[0]["case"])
    for action in ("<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>"):
        step = environment.step(action)
    assert first.get_reward() == step.reward > second.get_reward() >= 0.0
    first.reset(**made[0])  # instances are used again
    assert first.get_reward() < step.reward


def test_an_environment_of_verifiers_says_what_to_install(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(QAgentError, match=r"pip install .qagent-mlx\[verifiers\]"):
        load_environment(str(tiny_folder))
