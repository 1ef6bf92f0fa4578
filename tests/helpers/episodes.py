"""Episodes in text environments."""

from __future__ import annotations


def play(environment, case, actions):
    """The steps of an episode, until it ends or nothing is left to do."""
    environment.reset(case)
    steps = []
    for action in actions:
        steps.append(environment.step(action))
        if steps[-1].done:
            break
    return steps
