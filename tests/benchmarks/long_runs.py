"""GRPO for long, with several seeds and settings: is it stable, and what is learned per second?

    python tests/benchmarks/long_runs.py SHOP --policy sft --steps 500 --seeds 0 1 2 \\
        --arm today: --arm fast:learning_rate=1e-3
    python tests/benchmarks/long_runs.py SHOP --report       # the tables again

An arm is a name and the settings in which it differs from the defaults (`key=value,…`). Each arm
and seed is a run of its own, in a process of its own, in the shop's `runs/`; what is done is not
done again, and a run that was ended goes on from its last checkpoint. Times are processor time, so
that arms can be compared on a machine that has other work, and leave evaluations out.

The tables: by arm and seed rewards, KL, surprise (-log p of what is sampled), searches and alarms
of the first, middle and last fifth; and by arm the validation reward after each evaluation, the
processor time until the first arm's last one is reached, and how many times faster that is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np

from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.grpo_run import resume_grpo, train_grpo
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.utils.settings import merge

SHOWN = ("reward", "kl", "surprise", "searches", "dropped_groups", "trained_groups")
PREFIX = "long-"


def parse_arm(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME:key=value,key=value`` as a name and settings."""
    name, _, pairs = text.partition(":")
    settings: dict[str, Any] = {}
    for pair in filter(None, pairs.split(",")):
        key, _, value = pair.partition("=")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return name, settings


def run_one(shop_path: Path, policy: str, arm: str, config: GrpoConfig) -> None:
    """Take an arm's steps with one seed, or those that are missing."""
    name = f"{PREFIX}{arm}-{config.seed}"
    place = shop_path / "runs" / name
    times = place / "processor.jsonl"
    spent = {"evaluating": 0.0}
    evaluate = GrpoTrainer.evaluate

    def timed(trainer: GrpoTrainer) -> dict[str, float]:
        start = time.process_time()
        result = evaluate(trainer)
        spent["evaluating"] += time.process_time() - start
        return result

    GrpoTrainer.evaluate = timed  # type: ignore[method-assign]
    start = time.process_time()

    def note(metrics: Any) -> None:
        row = {"step": metrics["step"], "seconds": time.process_time() - start}
        row["seconds"] -= spent["evaluating"]
        with times.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    with Shop.open(shop_path) as shop:
        if (place / "checkpoints").is_dir():
            resume_grpo(shop, name, on_step=note)
        else:
            train_grpo(shop, policy, name, config, options=RunOptions(run=name), on_step=note)


def alarms(shop: Path, arm: str, seed: int) -> str:
    """The alarms of a run: how often each, and at which step first."""
    path = shop / "runs" / f"{PREFIX}{arm}-{seed}" / "alarms.jsonl"
    steps: dict[str, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        alarm = json.loads(line)
        steps.setdefault(alarm["name"], []).append(alarm["step"])
    return ", ".join(f"{name} {len(at)} (from {at[0]})" for name, at in steps.items()) or "none"


def histories(shop: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The steps of every run, by arm and seed; each with the processor time until then."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for folder in sorted((shop / "runs").glob(f"{PREFIX}*-*")):
        arm, _, seed = folder.name.removeprefix(PREFIX).rpartition("-")
        rows = list(map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines()))
        total, before, at = 0.0, 0.0, {}
        for line in (folder / "processor.jsonl").read_text(encoding="utf-8").splitlines():
            noted = json.loads(line)
            total += noted["seconds"] - (before if noted["seconds"] > before else 0.0)
            before = noted["seconds"]
            at[noted["step"]] = total
        found.setdefault(arm, {})[int(seed)] = [{**r, "seconds": at[r["step"]]} for r in rows]
    return found


def fifths(rows: Sequence[dict[str, Any]], key: str) -> str:
    """The mean of a measure over the first, middle and last fifth of the steps."""
    size = max(1, len(rows) // 5)
    middle = (len(rows) - size) // 2
    parts = (rows[:size], rows[middle : middle + size], rows[-size:])
    means = [np.mean([row[key] for row in part if key in row] or [np.nan]) for part in parts]
    return ", ".join(f"{value:.3g}" for value in means)


def report(shop: Path) -> None:
    """Print both tables."""
    arms = histories(shop)
    print(f"| arm | seed | steps | {' | '.join(SHOWN)} | largest KL | alarms |")
    print(f"|---|--:|--:|{'---|' * len(SHOWN)}--:|---|")
    for arm, seeds in arms.items():
        for seed, rows in seeds.items():
            cells = [fifths(rows, key) for key in SHOWN]
            highest = max((row.get("kl", 0.0) for row in rows), default=0.0)
            cells += [f"{highest:.3g}", alarms(shop, arm, seed)]
            print(f"| {arm} | {seed} | {len(rows)} | {' | '.join(cells)} |")
    curves = {arm: curve(seeds) for arm, seeds in arms.items()}
    first = next(iter(curves), None)
    if first is None or not len(curves[first]):
        return
    goal = curves[first][-1][2]
    print(f"\nValidation reward {goal:.3f}, the last one of {first}, is reached after:\n")
    print("| arm | seconds | times as fast | validation reward (step: mean over seeds) |")
    print("|---|--:|--:|---|")
    needed = {arm: reached(points, goal) for arm, points in curves.items()}
    for arm, points in curves.items():
        shown = ", ".join(f"{step:.0f}: {value:.3f}" for step, _, value in points)
        faster = needed[first] / needed[arm]
        print(f"| {arm} | {needed[arm]:.0f} | {faster:.2f} | {shown} |")


def curve(seeds: dict[int, list[dict[str, Any]]]) -> list[tuple[float, float, float]]:
    """(step, seconds, validation reward) of each evaluation that all seeds have, their means."""
    evaluated = [
        [(r["step"], r["seconds"], r["eval_reward"]) for r in rows if "eval_reward" in r]
        for rows in seeds.values()
    ]
    return [tuple(np.mean(points, axis=0)) for points in zip(*evaluated, strict=False)]


def reached(points: Sequence[tuple[float, float, float]], goal: float) -> float:
    """Seconds until a curve first reaches a value, between evaluations on a straight line."""
    before = points[0]
    for point in points:
        if point[2] >= goal:
            rise = point[2] - before[2]
            share = (goal - before[2]) / rise if rise > 0 else 1.0
            return before[1] + share * (point[1] - before[1])
        before = point
    return float("nan")


def main() -> None:
    """Run what is missing, one process a run, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shop", type=Path)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arm", action="append", default=[], help="NAME:key=value,…")
    parser.add_argument("--eval-every", type=int, default=25)
    parser.add_argument("--measured", type=int, default=300, help="validation cases")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # ARM SEED in a process of its own
    options = parser.parse_args()
    arms = dict(parse_arm(text) for text in options.arm or ["today:"])
    for arm, settings in arms.items():
        for seed in options.seeds if not options.report else ():
            run = f"{arm}-{seed}"
            if options.only == run:
                values = {
                    "eval_every": options.eval_every, "measured": options.measured,
                    "steps": options.steps, "seed": seed, "logged_groups": 1,
                }  # fmt: skip
                run_one(
                    options.shop, options.policy, arm, merge(GrpoConfig(), values | settings, arm)
                )
            elif (
                not options.only
                and not (options.shop / "runs" / f"{PREFIX}{run}" / "summary.json").exists()
            ):
                subprocess.run([sys.executable, *sys.argv, "--only", run], check=False)
    if not options.only:
        report(options.shop)


if __name__ == "__main__":
    main()
