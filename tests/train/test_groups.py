"""What a step of GRPO reports of its groups, and which of their chains it learns from."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from qagent_mlx.agent.types import Rollout, Turn
from qagent_mlx.environment.environment import Example
from qagent_mlx.train.groups import Groups, ScoredGroups
from qagent_mlx.types import Case

NOW = datetime(2026, 2, 1)


class Codec:
    def decode(self, tokens):
        return f"{len(tokens)} tokens"


def groups(count, rewards):
    """Groups of two chains; chain ``n`` writes ``n + 1`` tokens after a prompt of two."""
    examples = [
        Example(Case(10 + i, f"u{i}", NOW, f"q{i}", f"q{i}", (), 1), None) for i in range(count)
    ]
    rollouts = [
        Rollout(
            i // 2,
            i % 2,
            (5,) * (3 + i),
            2,
            (True,) * (i + 1),
            (-1.0,) * (i + 1),
            query=f"r{i}",
            finish="recommended" if i % 2 else "length",
        )
        for i in range(2 * count)
    ]
    return Groups(examples, rollouts, np.array(rewards, dtype=float).reshape(count, 2, -1))


@pytest.fixture
def scored():
    first = groups(2, [[1, 0], [0, 0], [1, 1], [1, 1]])
    advantages = np.array([[0.5, -0.5], [0.0, 0.0]])
    actions = [np.array([value]) for value in advantages.flat]
    return ScoredGroups(first, {"a": 1.0, "b": 3.0}, advantages, actions, np.array([True, False]))


def test_only_chains_of_informative_groups_are_learned_from(scored):
    chains = scored.training_chains()
    found = [(c.rollout.case, c.rollout.member, c.advantage, c.actions) for c in chains]
    assert found == [(0, 0, 0.5, (0.5,)), (0, 1, -0.5, (-0.5,))]


def test_metrics_are_means_over_all_chains(scored):
    metrics = scored.metrics({"b"})
    assert metrics["reward"] == pytest.approx((0.25 + 0 + 1 + 1) / 4)
    assert (metrics["reward_a"], metrics["reward_b"]) == (0.75, 0.5)
    assert metrics["weight_b"] == 3.0 and "weight_a" not in metrics
    assert (metrics["groups"], metrics["dropped_groups"]) == (2, 1)
    assert (metrics["sampled_tokens"], metrics["tokens"]) == (1 + 2 + 3 + 4, 3 + 4 + 5 + 6)
    assert metrics["recommended"] == 0.5 and metrics["advantage_variance"] == 0.25
    assert metrics["flat_groups"] == 0 and metrics["surprise"] == 1.0


def test_groups_that_differ_and_teach_nothing_are_counted_as_flat(scored):
    flat = replace(scored, advantages=np.zeros((2, 2)))
    assert flat.training_chains() == []
    assert (flat.metrics({})["dropped_groups"], flat.metrics({})["flat_groups"]) == (2, 1)


def test_what_a_policy_does_whatever_it_is_asked_is_measured(scored):
    def chain(query, *searched):
        turns = tuple(Turn("search", text, reference) for text, reference in searched)
        return Rollout(0, 0, (1,) * 4, 2, (True, False), (-0.5, 0.0), turns, query=query)

    line, other, words = ("a", "r0"), ("b", "r1"), ("c", "")
    rollouts = [chain("A", line), chain("a", line), chain("b", line, other), chain("", words)]
    metrics = replace(scored, groups=replace(scored.groups, rollouts=rollouts)).metrics({})
    assert metrics["first_line"] == 0.5  # not the chain that looked further
    assert metrics["words"] == pytest.approx(1 / 5) and metrics["searches"] == 5 / 4
    assert metrics["distinct"] == 1.0  # a and b, for two groups
    assert metrics["surprise"] == 0.5


def test_records_tell_each_chain_beside_what_its_user_wanted(scored):
    records = scored.records(7, Codec())
    assert [r.case_id for r in records] == [10, 10, 11, 11]
    last = records[-1]
    assert (last.step, last.user, last.wanted, last.recommended) == (7, "u1", "q1", "r3")
    assert last.rewards == {"a": 1.0, "b": 1.0} and last.reward == 1.0
    assert (last.tokens, last.sampled_tokens, last.chain) == (6, 4, "6 tokens")
    assert len(scored.records(7, Codec(), max_groups=1)) == 2


def test_more_groups_are_numbered_on(scored):
    both = scored.groups.extended(groups(1, [[0, 1], [1, 0]]))
    assert [r.case for r in both.rollouts] == [0, 0, 1, 1, 2, 2]
    assert both.rewards.shape == (3, 2, 2) and both.sampled_tokens.shape == (3, 2)
