"""The shop as TRL and verifiers see it; neither is installed here, what they call is."""

import asyncio
import inspect
import json
import sys
from types import ModuleType, SimpleNamespace

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


@pytest.fixture
def verifiers(monkeypatch):
    """What the adapter takes of verifiers 0.1 and datasets, keeping what it is given."""
    made = ModuleType("verifiers")
    made.MultiTurnEnv = type("MultiTurnEnv", (SimpleNamespace,), {})
    made.Rubric = SimpleNamespace
    types = ModuleType("verifiers.types")
    types.UserMessage = lambda content: {"role": "user", "content": content}
    datasets = ModuleType("datasets")
    datasets.Dataset = SimpleNamespace(from_list=list)
    for module in (made, types, datasets):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def played(loaded, row, actions):
    """The state of an episode in `verifiers`, as its loop of turns keeps it."""

    async def play():
        state = await loaded.setup_state({"info": row["info"]})
        state["answers"] = []
        for action in actions:
            messages = [*row["prompt"], {"role": "assistant", "content": action}]
            state["answers"] += await loaded.env_response(messages, state)
        state["rewards"] = [await function(state) for function in loaded.rubric.funcs]
        return state

    return asyncio.run(play())


def test_episodes_in_verifiers_are_rewarded_as_they_are_here(tiny_folder, environment, verifiers):
    loaded = load_environment(str(tiny_folder), split="train")
    assert [row["info"]["case"] for row in loaded.dataset] == environment.cases("train")
    assert loaded.eval_dataset == loaded.dataset
    row = loaded.dataset[0]
    assert row["prompt"] == environment.reset(row["info"]["case"])
    actions = ("<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>")
    steps = [environment.step(action) for action in actions]
    state = played(loaded, row, actions)
    assert [a["content"] for a in state["answers"]] == [*(s.observation for s in steps[:2]), OVER]
    assert state["final_env_response"] == state["answers"][-1:]
    assert [function.__name__ for function in loaded.rubric.funcs] == list(steps[-1].rewards)
    assert state["rewards"] == list(steps[-1].rewards.values())
    weighted = sum(map(float.__mul__, state["rewards"], loaded.rubric.weights))
    assert weighted == pytest.approx(steps[-1].reward)


def test_a_model_of_verifiers_that_stops_early_is_given_up(tiny_folder, environment, verifiers):
    loaded = load_environment(str(tiny_folder), split="train", limit=3)
    assert len(loaded.dataset) == 3
    assert loaded.dataset[-1]["info"]["case"] > environment.cases("train")[3]  # spread, not first
    row = loaded.dataset[0]
    environment.reset(row["info"]["case"])
    environment.step("<fetch_memory/>")
    state = played(loaded, row, ["<fetch_memory/>"])
    assert "final_env_response" not in state
    assert state["rewards"] == list(environment.give_up().rewards.values())
    assert loaded.max_turns > environment.agent.max_searches + 2


def test_a_policy_behind_a_server_is_played_as_it_was_trained(tiny_folder, verifiers, tmp_path):
    agent = {"writes": True, "max_searches": 1, "memory": False}
    (tmp_path / "policy.json").write_text(json.dumps({"name": "p", "agent": agent}))
    loaded = load_environment(str(tiny_folder), limit=1, policy=str(tmp_path))
    (row,) = loaded.dataset
    roles = [message["role"] for message in row["prompt"]]
    assert roles[:3] == ["system", "user", "assistant"] and roles[-1] == "user"
    assert "query of your own" in row["prompt"][0]["content"]
    assert loaded.max_turns == 1 + 4
    state = played(loaded, row, ["<search>usb cable</search>", "<recommend><s1></recommend>"])
    assert state["step"].done
    with pytest.raises(QAgentError):
        load_environment(str(tiny_folder), policy=str(tmp_path / "nosuch"))
