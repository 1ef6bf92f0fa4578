"""GRPO of this package in an environment that is no shop: train_elsewhere.py [SEED…] [--model M].

A policy that was made for shops, or any model folder, learns to find the box that holds a thing: it
has to read the question, look into boxes and name the right one. Prints, for each seed, rewards on
validation questions before and after, and those of sampled chains in between.
"""

from __future__ import annotations

import argparse
import time

import qagent_mlx as qa

qa.configure()  # before MLX is imported

from qagent_mlx.environment.lookup_environment import LookupEnvironment
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.text_grpo import TextGrpoTrainer, train_in_text, trainable

STEPS, SHOWN = 25, 5


def show(name: str, rewards: dict[str, float]) -> None:
    """A line of rewards."""
    parts = "  ".join(f"{part} {rewards[part]:.2f}" for part in ("format", "found", "exact"))
    print(f"{name:>12}  reward {rewards['reward']:.3f}  {parts}", flush=True)


def main(model: str, seed: int) -> None:
    """Train for some steps."""
    policy, environment = trainable(model, seed=seed), LookupEnvironment()
    config = GrpoConfig(steps=STEPS, learning_rate=4e-4, seed=seed)
    recent: list[dict[str, float]] = []

    def on_step(metrics: dict[str, float]) -> None:
        recent.append(metrics)
        if len(recent) % SHOWN == 0:
            last = recent[-SHOWN:]
            names = {"reward": "reward"} | {n: f"reward_{n}" for n in environment.weights}
            means = {n: sum(m[key] for m in last) / SHOWN for n, key in names.items()}
            show(f"to step {len(recent)}", means)

    print(f"seed {seed}")
    show("before", TextGrpoTrainer(policy, environment, config).evaluate())
    began = time.process_time()
    result = train_in_text(policy, environment, config, on_step)
    show("after", result.validation)
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--model", default="sample", help="a policy's name or a model's folder")
    options = parser.parse_args()
    for number in options.seeds:
        main(options.model, number)
