"""Advantages for single actions of a chain: GiGPO (arXiv:2505.10978).

The advantage of a chain says how it did against its group, and every action of it gets the same.
But chains of a group part: once one of them has read a sold-out shelf and another a full one, their
next actions are answers to different questions. So actions are compared again, with those that
other chains of the group took in the same state, by what the chains came to:

    advantage of an action = advantage of its chain + step_credit * advantage in its state

A state is what the chain has been shown: the answers of its tools, in any order. Rewards come at
the end of a chain and are not discounted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ..agent.types import Rollout
from .advantages import Estimator

State = frozenset[tuple[int, ...]]
"""The answers of tools that a chain has read, as tokens."""


def action_states(rollout: Rollout) -> list[State]:
    """The state in which each action of a chain was taken.

    An action is a run of tokens that the policy chose; a tool's answer is a run of others.
    """
    states, shown, tokens = [], set[tuple[int, ...]](), rollout.tokens[rollout.prompt_length :]
    for is_action, run in groupby(zip(rollout.sampled, tokens, strict=True), lambda pair: pair[0]):
        if is_action:
            states.append(frozenset(shown))
        else:
            shown.add(tuple(token for _, token in run))
    return states


def action_lengths(rollout: Rollout) -> list[int]:
    """The number of tokens of each action of a chain."""
    return [sum(1 for _ in run) for is_action, run in groupby(rollout.sampled) if is_action]


def action_advantages(
    rollouts: Sequence[Rollout],
    advantages: np.ndarray,
    rewards: tuple[np.ndarray, np.ndarray],
    estimator: Estimator,
    credit: float,
) -> list[np.ndarray]:
    """The advantage of each action of the chains of C groups of G.

    Args:
        rollouts: C * G chains, group by group.
        advantages: (C, G) of the chains.
        rewards: (C, G, R) of the chains, and the weights (R,).
        estimator: Makes advantages of the rewards of what is compared.
        credit: Weight of an action's advantage in its state; 0: actions get their chain's alone.

    Returns:
        C * G arrays with a value for each action of the chain. In its state an action without
        company has an advantage of 0, and two actions of one chain (the second after a search
        whose answer it had read) are compared like others.
    """
    pairs = zip(rollouts, advantages.flat, strict=True)
    found = [np.full(len(action_lengths(rollout)), value) for rollout, value in pairs]
    if not credit:
        return found
    group, values = advantages.shape[1], rewards[0].reshape(len(rollouts), -1)
    members: dict[tuple[int, State], list[tuple[int, int]]] = defaultdict(list)
    for chain, rollout in enumerate(rollouts):
        for action, state in enumerate(action_states(rollout)):
            members[chain // group, state].append((chain, action))
    for places in members.values():
        compared = values[None, [chain for chain, _ in places]]
        in_state = estimator(compared, rewards[1])[0]
        for (chain, action), value in zip(places, in_state, strict=True):
            found[chain][action] += credit * value
    return found
