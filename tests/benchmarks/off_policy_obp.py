"""Off-policy estimates beside those of Open Bandit Pipeline, on the same logged answers.

    python tests/benchmarks/off_policy_obp.py [--answers N]

Needs ``pip install obp``, which asks for an older numpy than this project: in an environment of its
own. Each place of an answer is a round of `obp`: its action is the query, its position the place.
Ends with exit code 1 where an estimate differs by more than a millionth.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

import numpy as np
from obp.ope import (
    DoublyRobust,
    InverseProbabilityWeighting,
    SelfNormalizedInverseProbabilityWeighting,
)

from qagent_mlx.live.off_policy import LoggedAnswer, _reward_model, estimate, propensities, shuffled

QUERIES = [f"q{number}" for number in range(8)]
SHOWN, SHARE = 5, 0.2
WORTH = np.array([0.05, 0.3, 0.1, 0.2, 0.02, 0.1, 0.25, 0.15])
SEEN = np.array([1.0, 0.7, 0.5, 0.3, 0.2])


def logged_answers(
    rng: np.random.Generator, count: int
) -> tuple[list[LoggedAnswer], list[list[str]]]:
    """Answers of a system that shows a random five of eight, and what another would have shown."""
    logged, slates = [], []
    for number in range(count):
        row = rng.permutation(len(QUERIES))[:SHOWN]
        order = shuffled(SHOWN, rng) if rng.random() < SHARE else list(range(SHOWN))
        shown = row[order]
        rewards = (rng.random(SHOWN) < WORTH[shown] * SEEN).astype(float)
        keys = tuple(QUERIES[query] for query in shown)
        weights = propensities(order, SHARE)
        logged.append(
            LoggedAnswer(f"u{number % 97}", datetime(2026, 5, 1), keys, weights, tuple(rewards))
        )
        best = sorted(row, key=lambda query: -WORTH[query])
        slates.append([QUERIES[query] for query in best])
    return logged, slates


def with_obp(logged: list[LoggedAnswer], slates: list[list[str]]) -> dict[str, float]:
    """The estimates of obp, for an answer."""
    number = {query: i for i, query in enumerate(QUERIES)}
    rounds = len(logged) * SHOWN
    action = np.array([number[key] for answer in logged for key in answer.keys])
    position = np.tile(np.arange(SHOWN), len(logged))
    given = {
        "reward": np.array([reward for answer in logged for reward in answer.rewards]),
        "action": action,
        "position": position,
        "pscore": np.array([p for answer in logged for p in answer.propensities]),
        "action_dist": np.zeros((rounds, len(QUERIES), SHOWN)),
    }
    for place in range(SHOWN):  # obp asks for all places of each round, and uses its own
        wanted = np.repeat([number[slate[place]] for slate in slates], SHOWN)
        given["action_dist"][np.arange(rounds), wanted, place] = 1.0
    model = _reward_model(logged)
    table = np.array([[model(query, place) for place in range(SHOWN)] for query in QUERIES])
    expected = np.broadcast_to(table, (rounds, *table.shape))
    found = {
        "ips": InverseProbabilityWeighting().estimate_policy_value(**given),
        "snips": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given),
        "dr": DoublyRobust().estimate_policy_value(
            **given, estimated_rewards_by_reg_model=expected
        ),
    }
    return {name: float(value) * SHOWN for name, value in found.items()}


def main(count: int) -> int:
    """Print both, and say whether they agree."""
    logged, slates = logged_answers(np.random.default_rng(0), count)
    ours, theirs = estimate(logged, slates), with_obp(logged, slates)
    apart = 0.0
    for name, value in theirs.items():
        mine = getattr(ours, name).value
        apart = max(apart, abs(mine - value))
        print(f"{name:6} ours {mine:.6f}  obp {value:.6f}")
    return int(apart > 1e-6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=20_000)
    sys.exit(main(parser.parse_args().answers))
