"""Cost and memory as work grows: python tests/benchmarks/growth.py [--steps 200].

Doubles G and the number of prompts (a step must cost at most 2.2 times), then takes many
steps of one size and compares the first and last fifth: time and resident memory stay flat.
Reports processor time as well, which a busy machine disturbs least. No test runs this.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import replace
from statistics import median

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.bench.measure import environment
from qagent_mlx.bench.workloads import Standard, Workload, model_folder, open_policy
from qagent_mlx.utils.runtime import resident_memory


def resident() -> float:
    """MB of memory that this process holds now."""
    return resident_memory() / 2**20


def doubling(model: str, steps: int) -> dict[str, dict[str, float]]:
    """Seconds and processor seconds of a step, for one size and its doubles, in turn."""
    base = Workload()
    sizes = {
        "standard": base,
        "twice the group": replace(base, group=2 * base.group),
        "twice the prompts": replace(base, prompts=2 * base.prompts),
    }
    folder = model_folder(model)
    runners = {name: Standard(open_policy(folder, work), work) for name, work in sizes.items()}
    made: dict[str, list] = {name: [] for name in sizes}
    for number in range(steps + 1):
        for name, runner in runners.items():
            step = runner.step(number)
            if number:
                made[name].append(step)
    cpu = {name: median(s.cpu for s in found) for name, found in made.items()}
    seconds = {name: median(s.seconds for s in found) for name, found in made.items()}
    return {
        name: {
            "seconds": seconds[name],
            "cpu_seconds": cpu[name],
            "ratio": seconds[name] / seconds["standard"],
            "cpu_ratio": cpu[name] / cpu["standard"],
        }
        for name in sizes
    }


def flat(model: str, steps: int) -> dict[str, float]:
    """The first and the last fifth of many steps, the first one left out."""
    work = Workload(prompts=2, prompt_tokens=96, group=4, new_tokens=16)
    runner = Standard(open_policy(model_folder(model), work), work)
    cpu, memory = [], []
    for number in range(steps):
        cpu.append(runner.step(number).cpu)
        gc.collect()
        memory.append(resident())
    fifth = max(1, steps // 5)
    return {
        "steps": steps,
        "cpu_first": median(cpu[1 : fifth + 1]),
        "cpu_last": median(cpu[-fifth:]),
        "memory_mb_first": median(memory[1 : fifth + 1]),
        "memory_mb_last": median(memory[-fifth:]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    report = {
        **environment(),
        "model": given.model,
        "doubling": doubling(given.model, given.pairs),
        "flat": flat(given.model, given.steps),
    }
    print(json.dumps(report, indent=1))
