"""What is learned in a second: GRPO with several settings from one policy, for the same time each.

    python tests/benchmarks/learning.py SHOP --policy sft --seconds 20 --seeds 0 1 2 \\
        --arm today: --arm thinned:thinning=0.25

An arm is a name and the settings in which it differs from the defaults (`key=value,…`). All runs
are of one process, which opens the cases once; nothing is saved. Seconds are processor time of one
thread, so that a busy machine does not matter, and leave evaluations out. An evaluation is the mean
reward of greedy chains on validation cases, about every `--every` seconds.

The tables: by arm and seed the validation reward at each evaluation, and by arm, over seeds, its
mean over the time (the area under the curve), the seconds until a share of the first arm's rise is
reached, and how many times faster that is.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np
from long_runs import parse_arm

from qagent_mlx.environment.environment import Environment
from qagent_mlx.policy.registry import derive
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.utils.settings import merge

Curve = list[tuple[float, float]]  # seconds and validation reward
SHARES = (0.5, 0.8)  # of the rise, in which arms are compared


def learn(trainer: GrpoTrainer, seconds: float, every: float) -> tuple[Curve, list[dict[str, Any]]]:
    """Train for so many seconds; the curve, and each step's metrics with its seconds."""
    spent, due, number = 0.0, every, 0
    curve, steps = [(0.0, trainer.evaluate()["reward"])], []
    while spent < seconds:
        start = time.process_time()
        metrics = trainer.step(number).metrics
        spent, number = spent + time.process_time() - start, number + 1
        steps.append({**metrics, "spent": spent})
        if spent >= due:
            curve.append((spent, trainer.evaluate()["reward"]))
            due = spent + every
    return curve, steps


def reached(curve: Curve, goal: float) -> float:
    """Seconds until a curve first reaches a value, on straight lines between evaluations."""
    for (before, low), (after, high) in pairwise(curve):
        if high >= goal:
            return (
                before if low >= goal else before + (goal - low) / (high - low) * (after - before)
            )
    return float("nan")


def mean_curve(curves: list[Curve], seconds: float) -> Curve:
    """The mean of some curves, at twenty times."""
    times = np.linspace(0, seconds, 21)
    values = [np.interp(times, *zip(*curve, strict=True)) for curve in curves]
    return list(zip(times.tolist(), np.mean(values, axis=0).tolist(), strict=True))


def report(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    seconds = min(row["curve"][-1][0] for row in rows)
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    print("| arm | seed | steps | groups trained on a step | validation reward at second |")
    print("|---|--:|--:|--:|---|")
    for row in rows:
        shown = ", ".join(f"{at:.0f}: {value:.3f}" for at, value in row["curve"])
        trained = np.mean([step.get("trained_groups", 0) for step in row["steps"]])
        print(f"| {row['arm']} | {row['seed']} | {len(row['steps'])} | {trained:.1f} | {shown} |")
    means = {arm: mean_curve([r["curve"] for r in own], seconds) for arm, own in arms.items()}
    first = next(iter(means))
    low, high = means[first][0][1], max(value for _, value in means[first])
    print(f"\nThe rise of {first}: {low:.3f} to {high:.3f} within {seconds:.0f} s.\n")
    heads = "".join(f" s to {share:.0%} | times as fast |" for share in SHARES)
    print(f"| arm | steps a second | mean over the time |{heads}\n|---|--:|--:|{'--:|--:|' * 2}")
    for arm, curve in means.items():
        own = arms[arm]
        speed = sum(len(r["steps"]) for r in own) / sum(r["steps"][-1]["spent"] for r in own)
        cells = [f"{speed:.2f}", f"{np.mean([value for _, value in curve]):.4f}"]
        for share in SHARES:
            goal = low + share * (high - low)
            needed = reached(curve, goal)
            cells += [f"{needed:.1f}", f"{reached(means[first], goal) / needed:.2f}"]
        print(f"| {arm} | {' | '.join(cells)} |")


def main() -> None:
    """Run all arms with all seeds, seeds first, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shop", type=Path)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arm", action="append", default=[], help="NAME:key=value,…")
    parser.add_argument("--measured", type=int, default=310, help="validation cases")
    parser.add_argument("--into", type=Path, help="keeps the runs as JSON lines; done is done")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.into and options.into.exists():
        rows = [json.loads(line) for line in options.into.read_text("utf-8").splitlines()]
    done = {(row["arm"], row["seed"]) for row in rows}
    with Shop.open(options.shop) as shop:
        parent = derive(shop, options.policy, "learning", GrpoConfig().lora)
        environment = Environment.of_shop(shop, parent.codec, parent.info.agent)
        for seed in options.seeds:
            for arm, settings in map(parse_arm, options.arm or ["today:"]):
                if (arm, seed) in done:
                    continue
                values = {"seed": seed, "measured": options.measured, **settings}
                config = merge(GrpoConfig(), values, arm)
                policy = derive(shop, options.policy, "learning", config.lora, seed)
                trainer = GrpoTrainer(policy, environment, config)
                curve, steps = learn(trainer, options.seconds, options.every)
                rows.append({"arm": arm, "seed": seed, "curve": curve, "steps": steps})
                if options.into:
                    with options.into.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
