"""Seconds of a GRPO step's parts on a shop: python tests/benchmarks/step.py SHOP POLICY.

Prints one line a step: rollout seconds, update seconds, tokens a second. Run it on a quiet
machine and compare ratios within one run only. No test runs this.
"""

from __future__ import annotations

import sys

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.environment.environment import Environment
from qagent_mlx.policy.registry import derive
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig


def main(path: str, parent: str, steps: int = 5) -> None:
    """Time some steps; nothing is saved."""
    config = GrpoConfig(steps=steps)
    with Shop.open(path) as shop:
        policy = derive(shop, parent, "benchmark", config.lora)
        environment = Environment.of_shop(shop, policy.codec, policy.info.agent)
    trainer = GrpoTrainer(policy, environment, config)
    for number in range(steps):
        metrics = trainer.step(number).metrics
        rollout, whole = metrics["rollout_seconds"], metrics["seconds"]
        print(
            f"step {number + 1}: rollout {rollout:.2f} s, update {whole - rollout:.2f} s, "
            f"{metrics['tokens_per_s']:.0f} tokens/s"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
