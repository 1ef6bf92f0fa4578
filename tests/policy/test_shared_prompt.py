"""What all chains begin with is computed once; values and gradients are those of computing it
with every group."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from chat_model import QWEN, chat_folder, other_folder

from qagent_mlx.agent.types import Rollout
from qagent_mlx.policy import scoring, shared_prompt
from qagent_mlx.policy.batches import TrainingSequence
from qagent_mlx.policy.files import load_policy
from qagent_mlx.policy.lora import LoraConfig
from qagent_mlx.policy.shared_prompt import find_shared_prompt
from qagent_mlx.train.groups import CreditedChain
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig


class NoShop:
    def rollout_runner(self, policy, agent):
        return SimpleNamespace(automaton=None)

    def of_split(self, split):
        return ["chains that the test makes"]


def chains(groups=3, members=3, prompt=40, seed=0):
    """Chat-like chains: one prompt, an action, a group's profile, actions and results."""
    random = np.random.default_rng(seed)
    draw = lambda n: random.integers(20, 250, n).tolist()  # noqa: E731
    first, made = draw(prompt), []
    for group in range(groups):
        action, profile = draw(3), draw(int(random.integers(6, 12)))
        for member in range(1 if group == 1 else members):
            said = action if member else draw(3)
            results, last = draw(int(random.integers(3, 9))), draw(4)
            sampled = [True] * 3 + [False] * len(profile) + [False] * len(results) + [True] * 4
            made.append(
                Rollout(
                    group,
                    member,
                    (*first, *said, *profile, *results, *last),
                    prompt,
                    tuple(sampled),
                    tuple(random.normal(-1.5, 0.3, len(sampled)).tolist()),
                )
            )
    return made


@pytest.fixture(params=["nano", "llama", "qwen3"])
def base(request, tmp_path, new_nano):
    """Makes the same policy anew: equal heads, fewer key heads, norms of queries and keys."""
    if request.param == "nano":
        return lambda: new_nano()[0]
    folder = (
        chat_folder(tmp_path / "it")
        if request.param == "llama"
        else other_folder(tmp_path / "it", QWEN)
    )
    return lambda: load_policy(folder)


def adapted(policy, blocks):
    mx.random.seed(1)
    policy.add_lora(LoraConfig(rank=4, blocks=blocks))
    noise = {
        name: mx.random.normal(value.shape, key=mx.random.key(i)) * 0.1
        for i, (name, value) in enumerate(policy.adapter().items())
        if name.endswith("lora_b")
    }
    policy.model.load_weights(list(noise.items()), strict=False)
    return policy


def updated(policy, config, rollouts, steps=1):
    """Metrics of the steps, and the adapter after them."""
    trainer = GrpoTrainer(policy, NoShop(), config)
    trainer.optimizer = optim.SGD(1.0)  # Adam would make steps of what is rounding alone
    policy.model.eval()
    advantages = np.random.default_rng(5).normal(size=len(rollouts)).tolist()
    scored = list(map(CreditedChain.as_one, rollouts, advantages))
    metrics = [trainer.update(scored, number) for number in range(steps)]
    return metrics, {k: np.array(v) for k, v in policy.adapter().items()}


@pytest.mark.parametrize("budget", [100, 8192])  # a group a batch, and all in one
@pytest.mark.parametrize("blocks", [1, -1])
def test_an_update_is_the_same_with_and_without_a_shared_prompt(base, blocks, budget, monkeypatch):
    config = GrpoConfig(
        group=3,
        cases_per_step=3,
        solvable=False,
        epochs=2,
        token_budget=budget,
        beta=0.05,
        learning_rate=0.5,
        warmup=1,
    )
    rollouts = chains()
    prompts, real = [], scoring.find_shared_prompt

    def found(*arguments):
        prompts.append(real(*arguments))
        return prompts[-1]

    monkeypatch.setattr(scoring, "find_shared_prompt", found)
    shared, after = updated(adapted(base(), blocks), config, rollouts)
    assert prompts[-1] is not None and len(prompts[-1].tokens) == 39
    monkeypatch.setattr(shared_prompt, "SHORTEST", 10_000)
    plain, expected = updated(adapted(base(), blocks), config, rollouts)
    assert prompts[-1] is None
    for one, other in zip(shared, plain, strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    start = {k: np.array(v) for k, v in adapted(base(), blocks).adapter().items()}
    moved = max(np.abs(expected[k] - start[k]).max() for k in start)
    assert moved > 1e-3
    for name, value in expected.items():
        assert np.abs(after[name] - value).max() < 1e-3 * moved, name


def test_only_long_prompts_of_several_groups_are_shared(nano_policy):
    def told(rollouts):
        return [TrainingSequence(list(r.tokens), r.trained_mask, r.case) for r in rollouts]

    policy = nano_policy
    assert find_shared_prompt(policy, told(chains(groups=1))) is None
    assert find_shared_prompt(policy, told(chains(prompt=20))) is None
    found = find_shared_prompt(policy, told(chains()))
    assert found is not None and len(found.tokens) == 39
    # The token that predicts a chain's first own word stays with the chain.
    cut = found.strip(told(chains())[0])
    assert not cut.trained[0] and cut.trained[1]
