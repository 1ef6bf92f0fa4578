"""What sharing a chat model's instructions over the groups of a step saves in GRPO's update.

    python tests/benchmarks/opening.py [--model smol] [--pairs 2]

A random model of SmolLM2-135M's shape; chains as chat models write them: 300 tokens of
instructions, an action, 190 of memory, then some 70 tokens of a chain's own. Both ways in turn on
the same chains, processor time of the whole update (blocks below the adapter, reference, forward
and backward), and how far their losses and gradients' norms are apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np

from qagent_mlx.agent.types import Rollout
from qagent_mlx.bench.workloads import Workload, _NoShop, model_folder, open_policy, vocabulary
from qagent_mlx.models.download import cache_folder
from qagent_mlx.policy import shared_prompt
from qagent_mlx.train import grpo
from qagent_mlx.train.groups import CreditedChain
from qagent_mlx.train.grpo_config import GrpoConfig


def chains(groups: int, members: int, vocabulary: int, seed: int) -> list[Rollout]:
    random = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        ids: list[int] = random.integers(16, vocabulary, count).tolist()
        return ids

    prompt, made = draw(300), []
    for group in range(groups):
        memory = [*draw(10), *draw(190)]
        for member in range(members):
            sampled = [True] * 10 + [False] * 190 + [True] * 12 + [False] * 48 + [True] * 10
            tokens = (*prompt, *memory, *draw(70))
            made.append(
                Rollout(group, member, tokens, 300, tuple(sampled), (-10.0,) * len(sampled))
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smol", help="tiny, small or smol")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=16, help="with an adapter; -1 for all")
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    folder = model_folder(options.model, Path(cache_folder()) / "bench" / "models")
    policy = open_policy(folder, Workload(blocks=options.blocks))
    environment: Any = _NoShop()
    config = GrpoConfig(cases_per_step=options.groups, group=options.members, solvable=False)
    trainer = grpo.GrpoTrainer(policy, environment, config)
    policy.model.eval()
    shortest, ratios = shared_prompt.SHORTEST, []
    for pair in range(options.pairs):
        rollouts = chains(options.groups, options.members, vocabulary(policy), pair)
        advantages = np.random.default_rng(pair).normal(size=len(rollouts)).tolist()
        weights = policy.model.trainable_parameters()
        spent, found = {}, {}
        for shared in (True, False) if pair % 2 else (False, True):
            shared_prompt.SHORTEST = shortest if shared else 1 << 30
            policy.model.update(weights)
            began, wall = time.process_time(), time.perf_counter()
            found[shared] = trainer.update(
                list(map(CreditedChain.as_one, rollouts, advantages)), pair
            )
            spent[shared] = time.process_time() - began
            print(
                f"{'shared' if shared else 'apart '} {spent[shared]:7.1f} s of processor, "
                f"{time.perf_counter() - wall:7.1f} s",
                flush=True,
            )
        ratios.append(spent[False] / spent[True])
        print(
            f"apart / shared {ratios[-1]:.2f}; "
            + ", ".join(
                f"{name} {found[True][name]:.6g} {found[False][name]:.6g}"
                for name in ("loss", "kl", "grad_norm")
            ),
            flush=True,
        )
    print(f"median of {len(ratios)}: {median(ratios):.2f}")


if __name__ == "__main__":
    main()
