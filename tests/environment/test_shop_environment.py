"""A shop as an environment for anybody: the rules and the rewards of this package's own chains."""

import json
import subprocess
import sys

import pytest
from episodes import play
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.environment import ShopEnvironment
from qagent_mlx.environment.rewards import COMPONENTS, WEIGHTS, component_rewards, weighted_reward
from qagent_mlx.errors import QAgentError
from qagent_mlx.protocol.config import AgentConfig

FETCH = {"name": "fetch_memory", "arguments": {}}
ACTIONS = (
    "<fetch_memory/>",
    "<search><r0></search>",
    "<search><r1></search>",
    "<search>usb cable</search>",
    "<search></search>",
    "<recommend><s1></recommend>",
    "<recommend>desk lamp</recommend>",
    "<recommend><r0></recommend>",
    "nonsense",
)


def call(name, query):
    return {"name": name, "arguments": {"query": query}}


@pytest.fixture(scope="module")
def environment(tiny_shop):
    return ShopEnvironment.open(tiny_shop)


def test_an_episode_from_memory_to_reward(environment):
    case = environment.cases("train")[0]
    system, user = environment.reset(case)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "fetch_memory" in environment.reset(case, tools=True)[0]["content"]
    fetched, found, ended = play(
        environment, case, [FETCH, call("search", "<r0>"), call("recommend", "s1")]
    )
    assert "<profile>" in fetched.observation and "<r0>" in fetched.observation
    assert "<results><s1>" in found.observation and not found.rewards
    assert ended.done and ended.rewards.keys() == COMPONENTS.keys()
    assert ended.rewards["format"] == ended.rewards["tool"] == 1.0
    assert ended.reward == pytest.approx(weighted_reward(ended.rewards, WEIGHTS))
    with pytest.raises(QAgentError, match=r"no episode runs; begin one with reset"):
        environment.step(FETCH)


def test_rewards_reach_from_nothing_to_what_the_user_wanted(environment):
    """What the user did is no part of an episode, and decides its reward."""
    best = {}
    for case in environment.cases("test"):
        wanted = environment._data.examples[case].case.query
        texts = [FETCH, call("search", wanted), call("recommend", wanted)]
        best[case] = play(environment, case, texts)[-1]
        assert best[case].rewards["query"] == pytest.approx(1.0)
        assert play(environment, case, ["nonsense"])[-1].reward < 0.05
    assert max(step.reward for step in best.values()) > 0.9


@settings(max_examples=40)
@given(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=10), st.integers(0, 5))
def test_equal_actions_lead_to_equal_steps_and_every_episode_ends(environment, actions, number):
    case = environment.cases("train")[number]
    first = play(environment, case, actions)
    other = environment.fork()
    other.reset(environment.cases("test")[0])  # an episode at the same time
    assert play(environment, case, actions) == first
    assert not other.step("<fetch_memory/>").done
    limit = AgentConfig().max_searches + 3
    forever = play(environment, case, ["<fetch_memory/>"] * 20)
    assert forever[-1].done and len(forever) == limit


@pytest.mark.parametrize(
    ("written", "called"),
    [
        ("<search><r0></search>", call("search", "<r0>")),
        ("<search><r0></search>", call("search", " r0 ")),
        ("<search>usb cable</search>", call("search", "usb cable ")),
        ("<recommend><r1></recommend>", call("recommend", "<r1>")),
        ("nonsense", call("buy", "all")),
        ("nonsense", {"name": "search", "arguments": {}}),
        ("nonsense", {"name": "search", "arguments": None}),
        ("nonsense", {"name": "search", "arguments": {"query": 3}}),
        ("nonsense", {"name": "search", "arguments": "usb cable"}),
        ("nonsense", {"name": "search", "arguments": ["usb cable"]}),
        ("nonsense", {}),
    ],
)
def test_a_call_does_what_the_written_action_does(environment, written, called):
    case = environment.cases("train")[1]
    a, b = (play(environment, case, [FETCH, action]) for action in (written, called))
    assert a == b


def test_steps_are_those_of_this_packages_own_chains(tiny_shop, nano_policy, environment):
    """Sampled chains of a policy, played again as text."""
    from qagent_mlx.environment.environment import Environment

    policy = nano_policy
    agent = AgentConfig()
    own = Environment.of_shop(tiny_shop, policy.codec, agent)
    outside = ShopEnvironment(own, agent)
    examples = own.of_split("validation")[:4]
    scripts = [
        ["<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>"],
        ["<fetch_memory/>", "<search>usb cable</search>", "<search>usb cable</search>", "stop"],
        ["<search><r0></search>"],
    ]
    runner = own.rollout_runner(policy, agent)
    ids = [[policy.codec.encode(turn) for turn in script] for script in scripts]

    def scripted(logits, sequences, context_of):
        flat = [[i for turn in ids[s.tag.member] for i in turn] for s in sequences]
        pad = policy.codec.encode("<search></search>")
        chosen = [(f + pad * 30)[sum(s.sampled)] for f, s in zip(flat, sequences, strict=True)]
        return chosen, [0.0] * len(chosen)

    runner.decoder.sample = scripted
    rollouts = runner.run([e.task for e in examples], len(scripts), (0,))
    assert len({r.finish for r in rollouts}) > 1
    for rollout in rollouts:
        case = examples[rollout.case].case
        text = policy.codec.decode(rollout.tokens[rollout.prompt_length :])
        steps = play(outside, case.case_id, scripts[rollout.member])
        for step in steps:
            written = policy.codec.decode(policy.codec.observation(step.observation))
            assert written in text
        assert steps[-1].rewards == component_rewards(own.outcome(rollout, case))


def test_time_splits_the_cases(environment):
    moments = {
        split: [environment._data.examples[c].case.as_of for c in environment.cases(split)]
        for split in ("train", "validation", "test")
    }
    assert max(moments["train"]) <= min(moments["validation"])
    assert max(moments["validation"]) <= min(moments["test"])
    with pytest.raises(QAgentError, match="there is no case 123456"):
        environment.reset(123456)


def test_tools_are_functions_with_schemas(environment):
    tools = json.loads(json.dumps(environment.tools))
    assert [t["function"]["name"] for t in tools] == ["fetch_memory", "search", "recommend"]
    for tool in tools:
        parameters = tool["function"]["parameters"]
        assert tool["type"] == "function" and parameters["type"] == "object"
        assert parameters["required"] == list(parameters["properties"])


WITHOUT_MLX = """
import importlib.machinery as machinery, sys

real = machinery.PathFinder.find_spec

def find(name, path=None, target=None):
    return None if name.split(".")[0] in ("mlx", "mlx_lm") else real(name, path, target)

machinery.PathFinder.find_spec = staticmethod(find)
from qagent_mlx.environment import ShopEnvironment

environment = ShopEnvironment.open(sys.argv[1])
case = environment.cases("train")[0]
environment.reset(case)
for action in ("<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>"):
    step = environment.step(action)
assert step.done and "mlx.core" not in sys.modules
print(step.reward)
"""


def test_it_works_where_mlx_is_not_installed(tiny_folder, environment):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLX, str(tiny_folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    actions = ["<fetch_memory/>", "<search><r0></search>", "<recommend><s1></recommend>"]
    here = play(environment, environment.cases("train")[0], actions)
    assert float(done.stdout) == here[-1].reward


def test_a_split_that_is_not_there_is_named(environment):
    with pytest.raises(QAgentError, match="no split 'dev'; the splits are train, validation, test"):
        environment.cases("dev")


@pytest.mark.parametrize("writes", [False, True])
def test_an_episode_with_an_example_begins_as_a_chain_of_a_chat_policy_does(
    tiny_shop, tmp_path, writes
):
    from chat_model import chat_folder

    from qagent_mlx.policy.files import load_policy

    codec = load_policy(chat_folder(tmp_path)).codec
    shown = ShopEnvironment.open(tiny_shop, AgentConfig(writes=writes), example=True)
    case = shown.cases("train")[0]
    assert codec.conversation(shown.reset(case)) == codec.prompt(writes)
    plain = ShopEnvironment.open(tiny_shop, AgentConfig(writes=writes))
    assert [m["role"] for m in plain.reset(case)] == ["system", "user"]
    assert plain.reset(case)[0] == shown.reset(case)[0]
    assert shown.reset(case, tools=True) == plain.reset(case, tools=True)
