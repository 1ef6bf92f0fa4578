"""What pretraining, SFT and GRPO share: the order of examples, the rate, the update."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.train.fit import batch_order, learning_rate, update_weights


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_takes_no_example_twice_and_the_next_is_shuffled_anew(count, size, seed):
    steps = max(1, count // size)
    taken = [i for step in range(steps) for i in batch_order(count, size, seed, step)]
    assert len(taken) == len(set(taken)) == min(count, steps * size)
    assert set(taken) <= set(range(count))
    assert batch_order(count, size, seed, 0) == taken[:size]  # a function of the step alone


def test_epochs_differ_and_so_do_seeds():
    first = batch_order(50, 10, 0, 0)
    assert first != batch_order(50, 10, 0, 1)
    assert first != batch_order(50, 10, 0, 5)  # the first of the next epoch
    assert first != batch_order(50, 10, 1, 0)


def test_the_rate_warms_up_to_its_peak_and_falls_to_a_tenth():
    rates = [learning_rate(1.0, 4, 24, step) for step in range(26)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[14] == pytest.approx(0.55)  # half way down
    assert rates[24] == rates[25] == pytest.approx(0.1)
    assert learning_rate(2.0, 0, 1, 0) == pytest.approx(2.0)


def trainer_of(weights):
    model = nn.Module()
    model.weight = mx.array(weights)
    model.frozen = mx.array([5.0])
    model.freeze(keys=["frozen"])
    return SimpleNamespace(policy=SimpleNamespace(model=model), optimizer=optim.SGD(1.0))


@pytest.mark.parametrize("length, moved", [(10.0, 2.0), (0.5, 0.5)])
def test_only_a_long_gradient_is_clipped_and_its_norm_is_told(length, moved):
    trainer = trainer_of([1.0, 1.0])
    gradient = {"weight": mx.array([0.6, -0.8]) * length}
    assert update_weights(trainer, gradient, 2.0, 0) == pytest.approx(length)
    expected = np.array([1.0, 1.0]) - moved * np.array([0.6, -0.8])
    assert np.array(trainer.policy.model.weight) == pytest.approx(expected, abs=1e-4)
    assert trainer.policy.model.frozen.item() == 5.0


def test_who_computed_nothing_adds_nothing():
    trainer = trainer_of([1.0, 1.0])
    assert update_weights(trainer, None, 1.0, 0) == 0
    assert trainer.policy.model.weight.tolist() == [1.0, 1.0]


def test_a_gradient_that_is_not_finite_is_refused_by_the_number_of_its_step():
    trainer = trainer_of([1.0, 1.0])
    with pytest.raises(QAgentError, match="step 7 is not finite"):
        update_weights(trainer, {"weight": mx.array([1.0, float("inf")])}, 1.0, 6)
    assert trainer.policy.model.weight.tolist() == [1.0, 1.0]
