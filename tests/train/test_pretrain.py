import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from qagent_mlx.environment.environment import Environment
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.batches import TrainingSequence
from qagent_mlx.policy.registry import resolve
from qagent_mlx.train.fit import predicted_cost
from qagent_mlx.train.pretrain import PretrainConfig, pretrain, pretraining, thinned
from qagent_mlx.train.sft import SftConfig, SftTrainer


def chains(count, length):
    return [
        TrainingSequence(list(range(20, 20 + length)), [True] * length, i) for i in range(count)
    ]


def test_a_predicted_cost_grows_with_steps_and_changes_no_weight(new_nano):
    policy, _, _ = new_nano()
    before = {k: np.array(v) for k, v in tree_flatten(policy.model.parameters())}
    one, ten = (predicted_cost(policy, chains(4, 30), steps) for steps in (1, 10))
    assert ten.tokens == 10 * one.tokens == 10 * 4 * 30
    assert ten.seconds > one.seconds > 0
    assert one.parameters == policy.parameters
    assert one.memory_bytes > 4 * policy.parameters
    for name, value in tree_flatten(policy.model.parameters()):
        assert np.array_equal(before[name], np.array(value))


def test_a_predicted_cost_counts_what_the_optimizer_will_keep(new_nano, monkeypatch):
    policy = new_nano()[0]
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 1000)
    found = predicted_cost(policy, chains(2, 8), 1).memory_bytes
    assert found == 1000 + 2 * 4 * policy.parameters  # two moments of each weight


def test_the_cost_is_told_before_the_first_step_and_changes_no_result(own_shop):
    config = PretrainConfig(size="nano", vocab_size=512, steps=1, batch_size=4)
    losses, norms = [], []
    for name, told in (("a", True), ("b", False)):
        said = []
        report = pretrain(
            own_shop,
            name,
            config,
            on_step=lambda row, said=said: said.append("step"),
            on_cost=(lambda cost, said=said: said.append("cost")) if told else None,
        )
        assert said == (["cost", "step"] if told else ["step"])
        losses.append(report.loss_first)
        assert 0 < report.seconds < 3600
        weights = mx.load(str(resolve(own_shop, name) / "model.safetensors"))
        norms.append(np.array(weights["model.norm.weight"]))
    assert losses[0] == losses[1]
    assert np.array_equal(*norms)


def test_a_batch_may_hold_every_case_and_no_more(tiny_shop, new_nano):
    policy = new_nano()[0]
    environment = Environment.of_shop(tiny_shop, policy.codec)
    count = pretraining(policy, environment, PretrainConfig(batch_size=1)).count
    assert pretraining(policy, environment, PretrainConfig(batch_size=count)).count == count > 1
    with pytest.raises(QAgentError, match=f"only {count} training cases have a relevant line"):
        pretraining(policy, environment, PretrainConfig(batch_size=count + 1))


def test_what_sft_learns_from_at_once_is_at_most_what_there_is(tiny_shop, new_nano):
    policy = new_nano()[0]
    environment = Environment.of_shop(tiny_shop, policy.codec)
    for batch_size in (2, 10_000):
        trainer = SftTrainer(policy, environment, SftConfig(batch_size=batch_size))
        assert trainer.fit_config.batch_size == min(batch_size, trainer.count)


def test_a_tokenizer_sees_the_same_texts_of_thinned_cases():
    for count in (0, 1, 1499, 1500, 3000, 12_845, 100_001):
        once = thinned(range(count))
        assert thinned(once) == once  # so profiles of the others need not be made
        assert len(once) == count if count < 3000 else 1500 <= len(once) < 3000
        assert list(once) == list(range(count))[:: once.step], "evenly spaced"
