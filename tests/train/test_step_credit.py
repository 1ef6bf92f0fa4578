"""Advantages of actions: who is compared with whom, and what comes of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.agent.types import Rollout
from qagent_mlx.train.advantages import ESTIMATORS, dr_grpo
from qagent_mlx.train.step_credit import action_advantages, action_lengths, action_states

WEIGHT = np.array([1.0])


def chain(*runs, case=0):
    """A chain of runs of tokens after a prompt of two: actions and answers take turns."""
    sampled = [i % 2 == 0 for i, run in enumerate(runs) for _ in run]
    tokens = (7, 7, *(token for run in runs for token in run))
    return Rollout(case, 0, tokens, 2, tuple(sampled), (0.0,) * len(sampled))


def advantages(rollouts, totals, credit, estimator=dr_grpo):
    rewards = np.array(totals, dtype=float)[..., None]
    own = estimator(rewards, WEIGHT)
    return action_advantages(rollouts, own, (rewards, WEIGHT), estimator, credit)


# Both read memory; two search 1 and read 11, the others search 2 and read 22, then they end.
READ = (5,), (50,)
FIRST, SECOND = (1, 1), (2,)
SOLD_OUT, FULL = (11, 11), (22,)


def test_actions_are_runs_of_sampled_tokens_and_states_the_answers_before_them():
    rollout = chain(*READ, FIRST, SOLD_OUT, (3, 3, 3))
    assert action_lengths(rollout) == [1, 2, 3]
    assert action_states(rollout) == [frozenset(), frozenset([(50,)]), frozenset([(50,), SOLD_OUT])]


def test_a_state_is_what_was_read_in_any_order():
    one = chain(*READ, FIRST, SOLD_OUT, SECOND, FULL, (3,))
    other = chain(*READ, SECOND, FULL, FIRST, SOLD_OUT, (3,))
    assert action_states(one)[-1] == action_states(other)[-1]
    assert action_states(one)[-2] != action_states(other)[-2]


def test_an_action_is_compared_with_those_that_read_the_same():
    """A good end after a bad search is worth more than its chain, a bad one after a good less."""
    rollouts = [
        chain(*READ, FIRST, SOLD_OUT, (3,)),  # recommends what is sold out: 0
        chain(*READ, FIRST, SOLD_OUT, (4,)),  # looks no further, but away from it: 0.5
        chain(*READ, SECOND, FULL, (3,)),  # 1
        chain(*READ, SECOND, FULL, (4,)),  # 0.5
    ]
    found = advantages(rollouts, [[0, 0.5, 1, 0.5]], 1.0)
    # Before chains part, all four are compared again: twice the advantage of the chain.
    assert [values[:2].tolist() for values in found] == [[-1, -1], [0, 0], [1, 1], [0, 0]]
    # After it, two and two: means 0.25 and 0.75.
    assert [values[2] for values in found] == [-0.75, 0.25, 0.75, -0.25]


def test_an_action_alone_in_its_state_gets_its_chains_advantage():
    rollouts = [chain(*READ, FIRST, SOLD_OUT, (3,)), chain(*READ, SECOND, FULL, (3,))]
    found = advantages(rollouts, [[0, 1]], 0.5)
    assert [values.tolist() for values in found] == [[-0.75, -0.75, -0.5], [0.75, 0.75, 0.5]]


def test_groups_are_not_compared_with_each_other():
    rollouts = [chain(*READ, FIRST, SOLD_OUT, (token,)) for token in (3, 4, 3, 4)]
    found = advantages(rollouts, [[0, 1], [5, 5]], 1.0)
    assert [values.tolist() for values in found] == [[-1] * 3, [1] * 3, [0] * 3, [0] * 3]


def test_a_chain_that_answers_nothing_new_stays_in_its_state():
    """A search whose answer was read before: both actions are in the same state."""
    rollouts = [
        chain(*READ, FIRST, SOLD_OUT, FIRST, SOLD_OUT, (3,)),
        chain(*READ, FIRST, SOLD_OUT, (4,)),
    ]
    found = advantages(rollouts, [[0, 1]], 1.0)
    states = action_states(rollouts[0])
    assert states[2] == states[3] == action_states(rollouts[1])[2]
    # Compared are 0, 0 and 1, whose mean is a third.
    assert found[0][2:] == pytest.approx([-0.5 - 1 / 3] * 2)
    assert found[1][2:] == pytest.approx([0.5 + 2 / 3])


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@given(
    paths=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=4, max_size=4),
    totals=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=4, max_size=4),
    credit=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_what_actions_earn_in_a_state_sums_to_nothing(estimator, paths, totals, credit):
    rollouts = [
        chain(*READ, *(run for step in path for run in ((step,), (10 + step,))), (9,))
        for path in paths
    ]
    found = advantages(rollouts, [totals], credit, estimator)
    plain = advantages(rollouts, [totals], 0.0, estimator)
    sums = {}
    for rollout, values, own in zip(rollouts, found, plain, strict=True):
        assert len(values) == len(action_lengths(rollout))
        for state, value in zip(action_states(rollout), values - own, strict=True):
            sums[state] = sums.get(state, 0.0) + value
    assert all(abs(value) < 1e-6 for value in sums.values())
    if len(set(totals)) == 1:
        assert not any(values.any() for values in found)
