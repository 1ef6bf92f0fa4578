"""GRPO in an environment that is no shop."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from episodes import play
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.environment.cases import SPLITS
from qagent_mlx.environment.lookup_environment import TURNS, LookupEnvironment
from qagent_mlx.environment.text_environment import Step
from qagent_mlx.environment.text_rollouts import TextRunner
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.text_grpo import TextGrpoTrainer, train_in_text, trainable

ACTIONS = ("<fetch_memory/>", *(f"<search><r{i}></search>" for i in range(5)), "nonsense")


def test_whoever_looks_into_all_boxes_finds_the_thing():
    environment = LookupEnvironment()
    exact = []
    for case in environment.cases("test"):
        environment.reset(case)
        environment.step("<fetch_memory/>")
        found = [environment.step(f"<search><r{i}></search>").observation for i in range(4)]
        (right,) = [i for i, text in enumerate(found, 1) if "fits" in text]
        exact.append(environment.step(f"<recommend><s{right}></recommend>"))
    assert all(step.done and step.reward == pytest.approx(1.0) for step in exact)
    blind = [
        play(environment, case, [*ACTIONS[:2], "<recommend><s1></recommend>"])[-1]
        for case in environment.cases("test")
    ]
    assert 0.1 < sum(step.rewards["exact"] for step in blind) / len(blind) < 0.4


@given(st.lists(st.sampled_from(ACTIONS), max_size=12), st.integers(0, 199))
def test_episodes_repeat_exactly_and_end(actions, case):
    environment = LookupEnvironment()
    first = play(environment, case, actions)
    assert play(environment.fork(), case, actions) == first
    assert len(first) <= TURNS
    if not first or not first[-1].done:
        assert environment.give_up().rewards["exact"] == 0.0
    with pytest.raises(QAgentError, match="no episode runs"):
        environment.step("<fetch_memory/>")


def test_a_step_that_says_nothing_else_goes_on_without_a_reward():
    assert Step("higher") == Step("higher", 0.0, False, {})


def test_no_question_is_asked_in_two_splits():
    environment = LookupEnvironment()
    cases = [case for split in SPLITS for case in environment.cases(split)]
    assert len(set(cases)) == len(cases) > 200


def test_calls_are_written_actions():
    environment = LookupEnvironment()
    names = [tool["function"]["name"] for tool in json.loads(json.dumps(environment.tools))]
    written = ["<fetch_memory/>", "<search><r1></search>", "<recommend><s1></recommend>"]
    arguments = [{}, {"query": "<r1>"}, {"query": "<s1>"}]
    called = [{"name": n, "arguments": a} for n, a in zip(names, arguments, strict=True)]
    assert play(environment, 3, called) == play(environment, 3, written)
    for call in ({"name": "search", "arguments": "<r1>"}, {"name": "search"}, {"name": "pay"}, {}):
        environment.reset(3)
        environment.step("<fetch_memory/>")
        step = environment.step(call)  # not a box: the answer that was none ends the episode
        assert step.done and step.rewards == {"format": 0.0, "found": 0.0, "exact": 0.0}


@pytest.fixture
def policy(tmp_path, new_nano):
    made, tokenizer, config = new_nano()
    save_base(made, tokenizer, config, tmp_path / "base")
    return trainable(tmp_path / "base", LoraConfig(rank=4))


class Tokens(LookupEnvironment):
    """Rewards what a policy of random weights can learn at once: short turns."""

    @property
    def weights(self):
        return {"short": 1.0}

    def step(self, action):
        step = super().step("nonsense")
        value = 1 / (1 + len(action))
        return type(step)("", value, True, {"short": value})


def test_chains_are_scored_as_they_were_sampled_and_the_reward_rises(policy):
    assert policy.lora == LoraConfig(rank=4)
    config = GrpoConfig(steps=12, cases_per_step=4, group=8, learning_rate=5e-3, measured=4)
    rows = []
    result = train_in_text(policy, Tokens(), config, rows.append)
    assert rows[0]["ratio_drift"] < 1e-3 and rows[0]["grad_norm"] > 0
    assert rows[0]["reward"] == rows[0]["reward_short"]
    first, last = (sum(m["reward"] for m in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > 1.2 * first
    assert result.validation.keys() == {"reward", "short"}


def test_it_ends_with_the_weights_of_the_best_evaluation_and_no_sooner_than_it_was_told(policy):
    """A rate at which an untrained model is thrown about: the last evaluation is rarely the best."""
    evaluated = {}

    def on_step(metrics):
        evaluated[metrics["step"]] = metrics.get("eval_reward")

    config = GrpoConfig(
        steps=9, cases_per_step=2, group=4, learning_rate=0.01, warmup=0, measured=4, eval_every=2,
        stop_after=2,
    )  # fmt: skip
    result = train_in_text(policy, Tokens(), config, on_step)
    measured = {step: value for step, value in evaluated.items() if value is not None}
    assert result.best_step == max(measured, key=lambda step: (measured[step], -step))
    assert result.validation["reward"] == measured[result.best_step] == result.best_value
    since = [step for step in measured if step > result.best_step]
    assert result.stopped_early == (len(since) == 2 and len(evaluated) < 9) and len(since) <= 2
    again = TextGrpoTrainer(policy, Tokens(), config).evaluate()
    assert again == result.validation, "the policy is the one of the best step"


def test_what_only_a_shop_measures_chooses_no_policy(policy):
    with pytest.raises(QAgentError, match="best_by must be reward"):
        train_in_text(policy, Tokens(), GrpoConfig(best_by="q_em"))


class Endless(Tokens):
    """Never ends by itself, and has what a test leaves it."""

    rewards, numbers = {"short": 0.5}, range(4)

    def fork(self):
        return type(self)()

    def cases(self, split):
        return self.numbers

    def step(self, action):
        return Step("go on")

    def give_up(self):
        return Step("", 0.5, True, self.rewards)


def test_an_environment_that_goes_on_for_ever_is_asked_to_give_up(policy):
    for turns in (1, 3):
        (chain,) = TextRunner(policy, Endless(), turns).run([0], 1, (0,))
        assert chain.step.done and chain.step.rewards == {"short": 0.5}
        observed = policy.codec.decode(chain.tokens[chain.prompt_length :]).count("go on")
        assert observed == turns - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {}}, "without the reward 'short'"),
        ({"rewards": {"short": 1.5}}, "short is 1.5; rewards lie between 0 and 1"),
        ({"rewards": {"short": float("nan")}}, "short is nan"),
        ({"numbers": ()}, "no cases in train"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said(policy, changes, message, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setattr(Endless, name, value)
    monkeypatch.setattr(Endless, "step", lambda self, action: self.give_up())
    config = GrpoConfig(steps=1, cases_per_step=1, group=2)
    with pytest.raises(QAgentError, match=message):
        train_in_text(policy, Endless(), config)


def test_the_same_seed_samples_the_same_chains(policy):
    config = GrpoConfig(cases_per_step=2, group=2)
    trainer = TextGrpoTrainer(policy, LookupEnvironment(), config)
    runs = [trainer.runner.run([0, 1], 2, (3,)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [(r.case, r.member) for r in runs[0]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(r.step.done for r in runs[0])


def test_what_was_trained_is_saved_and_opens_again(policy, tmp_path):
    train_in_text(policy, Tokens(), GrpoConfig(steps=2, cases_per_step=2, group=4, measured=2))
    policy.save(tmp_path / "trained")
    opened = load_policy(tmp_path / "trained")
    tokens = mx.array([policy.prompt])
    assert mx.array_equal(opened.logits(tokens), policy.logits(tokens))
    assert opened.info == policy.info and Path(opened.info.base).samefile(tmp_path / "base")
