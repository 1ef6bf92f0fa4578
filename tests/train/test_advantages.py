import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.train.advantages import ESTIMATORS, dr_grpo, gdpo, grpo, non_constant_groups

WEIGHTS = np.array([1.0, 2.0])


def group(*rows):
    return np.array([rows], dtype=float)


def test_grpo_is_the_weighted_sum_normalised_in_its_group():
    # Totals 0, 1, 2, 3: mean 1.5, standard deviation sqrt(1.25).
    rewards = group((0, 0), (1, 0), (0, 1), (1, 1))
    expected = (np.array([0, 1, 2, 3]) - 1.5) / np.sqrt(1.25)
    assert np.allclose(grpo(rewards, WEIGHTS)[0], expected, atol=1e-5)


def test_dr_grpo_only_centres():
    rewards = group((0, 0), (1, 0), (0, 1), (1, 1))
    assert np.allclose(dr_grpo(rewards, WEIGHTS)[0], [-1.5, -0.5, 0.5, 1.5])


def test_gdpo_normalises_each_component_before_it_sums_them():
    rewards = group((0, 0.0), (1, 0.0), (1, 0.1), (0, 0.1))
    # Both components are half and half, so both become -1 and 1 whatever their scale.
    summed = np.array([-1 - 2, 1 - 2, 1 + 2, -1 + 2], dtype=float)
    expected = summed / summed.std()
    assert np.allclose(gdpo(rewards, WEIGHTS)[0], expected, atol=1e-4)


def test_a_group_without_spread_has_no_signal_and_no_advantage():
    rewards = np.array([[[1, 0], [1, 0]], [[0, 0], [1, 1]]], dtype=float)
    assert non_constant_groups(rewards, WEIGHTS).tolist() == [False, True]
    for estimator in ESTIMATORS.values():
        advantages = estimator(rewards, WEIGHTS)
        assert np.all(advantages[0] == 0)
        assert np.any(advantages[1] != 0)


def test_spread_in_a_component_of_weight_zero_is_no_signal():
    rewards = group((0, 1), (1, 1))
    assert not non_constant_groups(rewards, np.array([0.0, 1.0]))[0]


@pytest.mark.parametrize("name", ESTIMATORS)
@given(
    rewards=st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_advantages_are_finite_and_their_order_follows_a_single_reward(name, rewards):
    array = np.array(rewards)
    assert np.isfinite(ESTIMATORS[name](array, WEIGHTS)).all()
    only_first = ESTIMATORS[name](array, np.array([1.0, 0.0]))
    for values, advantages in zip(array[..., 0], only_first, strict=True):
        if values.std() > 1e-3:
            assert advantages[values.argmax()] >= advantages[values.argmin()]
