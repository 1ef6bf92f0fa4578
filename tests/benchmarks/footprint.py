"""The memory estimate of a GRPO run beside MLX's measured peak: footprint.py SHOP POLICY.

Prints one line a setting. No test runs this.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.environment.environment import Environment
from qagent_mlx.policy.registry import derive
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.memory_estimate import chain_tokens, grpo_bytes

SETTINGS = ((4, 8, 2048), (16, 8, 2048), (16, 8, 8192), (32, 8, 16384), (4, 32, 8192))


def main(path: str, parent: str, most: int = len(SETTINGS)) -> None:
    """One step of each setting; nothing is saved."""
    import mlx.core as mx

    with Shop.open(path) as shop:
        for cases, group, budget in SETTINGS[:most]:
            config = replace(
                GrpoConfig(steps=1), cases_per_step=cases, group=group, token_budget=budget
            )
            policy = derive(shop, parent, "benchmark", config.lora)
            if "environment" not in locals():
                environment = Environment.of_shop(shop, policy.codec, policy.info.agent)
            trainer = GrpoTrainer(policy, environment, config)
            mx.clear_cache()
            mx.reset_peak_memory()
            metrics = trainer.step(0).metrics
            estimate, peak = grpo_bytes(policy, config), mx.get_peak_memory()
            print(
                f"{cases} cases x {group}, budget {budget}: estimate {estimate / 2**20:.0f} MiB, "
                f"peak {peak / 2**20:.0f} MiB, {estimate / peak:.2f}x, "
                f"chain {metrics['tokens'] / (cases * group):.0f} tokens "
                f"(assumed {chain_tokens(policy, policy.info.agent)[0]})"
            )


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
