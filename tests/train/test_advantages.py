from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qagent_mlx.train.advantages import (
    ESTIMATORS,
    MIN_CHANCE,
    chances,
    differs,
    dr_grpo,
    gdpo,
    grpo,
    has_signal,
    row_gains,
)

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
    assert differs(rewards, WEIGHTS).tolist() == [False, True]
    for estimator in ESTIMATORS.values():
        advantages = estimator(rewards, WEIGHTS)
        assert has_signal(advantages).tolist() == [False, True]
        assert np.all(advantages[0] == 0)
        assert np.any(advantages[1] != 0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_chain_that_is_just_average_takes_no_signal_from_its_group(name):
    advantages = ESTIMATORS[name](group((0, 0), (1, 1), (2, 2)), WEIGHTS)
    assert advantages[0, 1] == 0 and has_signal(advantages)[0]


def test_spread_in_a_component_of_weight_zero_is_no_signal():
    rewards, weights = group((0, 1), (1, 1)), np.array([0.0, 1.0])
    assert not differs(rewards, weights)[0] and differs(rewards, np.array([1.0, 1.0]))[0]
    assert not any(has_signal(f(rewards, weights)) for f in ESTIMATORS.values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_cancels_out_is_no_signal_and_takes_nothing_from_its_neighbours(name):
    cancelling = [(1, 0), (0, 1), (1, 0), (0, 1)]
    alive = [(1, 1), (0, 0), (1, 1), (1, 1)]
    equal = np.array([1.0, 1.0])
    alone = ESTIMATORS[name](np.array([alive], dtype=float), equal)
    both = ESTIMATORS[name](np.array([cancelling, alive], dtype=float), equal)
    assert not has_signal(ESTIMATORS[name](group(*cancelling), equal))[0]
    assert has_signal(both).tolist() == [False, True]
    assert np.array_equal(both[1:], alone)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_tiny_spread_is_not_blown_up(name):
    rewards = np.random.default_rng(0).uniform(0, 1e-5, (1, 8, 2))
    assert not has_signal(ESTIMATORS[name](rewards, WEIGHTS))[0]
    # Beside a component that differs, the tiny one changes next to nothing.
    rewards[0, :4, 0] += 1
    without = rewards.copy()
    without[..., 1] = 0
    a, b = (ESTIMATORS[name](r, WEIGHTS) for r in (rewards, without))
    assert has_signal(a)[0] and np.allclose(a, b, atol=1e-4)


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


@given(st.lists(st.floats(1e-3, 5), min_size=1, max_size=16), st.floats(0, 2))
def test_small_groups_are_left_out_as_far_as_the_noise_allows(values, noise):
    sizes = np.array(values)
    kept = chances(sizes, noise)
    assert kept[sizes.argmax()] == 1 and ((kept >= MIN_CHANCE) & (kept <= 1)).all()
    assert (np.diff(kept[np.argsort(sizes)]) >= 0).all()
    assert ((1 / kept - 1) * sizes**2).sum() <= noise * (sizes**2).sum() + 1e-9
    assert chances(3 * sizes, noise) == pytest.approx(kept, abs=1e-6)
    assert (chances(sizes, 2 * noise) <= kept + 1e-6).all()


def test_the_noise_that_is_allowed_is_used():
    sizes = np.array([2.0, 1.0, 1.0, 0.5, 0.4, 0.3])
    for noise in (0.05, 0.1, 0.2):
        kept = chances(sizes, noise)
        assert ((1 / kept - 1) * sizes**2).sum() == pytest.approx(
            noise * (sizes**2).sum(), rel=0.01
        )
    assert kept[1:] / kept[1] == pytest.approx(sizes[1:] / sizes[1])  # in proportion
    assert chances(sizes, 9.0) == pytest.approx(sizes / 2)  # no more than the largest allows
    assert chances(np.array([5.0, 0.001]), 9.0).tolist() == [1.0, MIN_CHANCE]
    assert chances(sizes, 0.0).tolist() == [1.0] * 6


@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 6)), elements=st.floats(0, 1)),
    st.data(),
)
def test_a_chains_gain_is_what_it_adds_to_the_best_of_all_rows_it_may_stand_in(totals, data):
    size = data.draw(st.integers(1, totals.shape[1]))
    expected = np.zeros_like(totals)
    for group, chains in enumerate(totals):
        for i in range(len(chains)):
            others = [value for j, value in enumerate(chains) if j != i]
            rows = list(combinations(others, size - 1))
            gains = [max(chains[i], *row) - max(row) if row else chains[i] for row in rows]
            expected[group, i] = np.mean(gains)
    assert row_gains(totals, size) == pytest.approx(expected, abs=1e-12)


def test_in_a_row_a_second_hit_is_worth_less_than_the_only_one():
    lonely = row_gains(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]]), 5)[0]
    shared = row_gains(np.array([[1.0, 1, 0, 0, 0, 0, 0, 0]]), 5)[0]
    assert lonely[0] == 1
    assert shared[:2] == pytest.approx(3 / 7)  # the share of rows in which the other is absent
    assert not lonely[1:].any() and not shared[2:].any()
