"""Runs workloads and says how fast they were, and where the time went."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..agent.sequences import DecodingSequence
from ..policy.policy import Policy
from ..utils.blas import load_fast_blas
from ..utils.doctor import gemm_gflops
from ..utils.runtime import device_name
from .workloads import Agentic, Standard, Workload, agentic_rollout, model_folder, open_policy


def cache_folder() -> Path:
    """Where the benchmark's models and the other trainers' environments are kept."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(place) if place else Path.home() / ".cache") / "qagent"


def machine() -> str:
    """The processor's name, its cores and its memory."""
    from ..utils.runtime import total_memory

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores, {total_memory() / 2**30:.0f} GiB"


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def standard(
    model: str,
    work: Workload,
    steps: int,
    warmup: int = 1,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Medians of the standard workload's steps."""
    runner = Standard(open_policy(model_folder(model, cache_folder() / "models"), work), work)
    for number in range(warmup):
        runner.step(number)
    made = []
    for number in range(warmup, warmup + steps):
        step = runner.step(number)
        made.append(step)
        if on_step is not None:
            on_step({"rollout": step.rollout, "update": step.update})
    seconds = median(s.seconds for s in made)
    limit = gemm_gflops()[0]
    flops = products(runner.policy, work)
    names = sorted({name for s in made for name in s.parts})
    profile = {name: median(s.parts.get(name, 0.0) for s in made) for name in names}
    return {
        "workload": "standard",
        "model": model,
        "steps": steps,
        "rollout_seconds": median(s.rollout for s in made),
        "update_seconds": median(s.update for s in made),
        "seconds": seconds,
        "cpu_seconds": median(s.cpu for s in made),
        "tokens_per_s": work.tokens / seconds,
        "decoded_per_s": made[0].decoded / median(s.rollout for s in made),
        "peak_memory_mb": peak_memory() / 2**20,
        "mlx_peak_mb": mx.get_peak_memory() / 2**20,
        "gemm_gflops": limit,
        "product_gflop": flops / 1e9,
        "product_share": flops / 1e9 / limit / seconds,
        "ratio_drift": max(s.metrics["ratio_drift"] for s in made),
        "profile": dict(sorted(profile.items(), key=lambda item: -item[1])),
    }


def products(policy: Policy, work: Workload) -> float:
    """Floating-point operations of a step's necessary matrix products.

    Counts what an implementation that shares prompts has to multiply: 2 a weight and token
    forward, and 2 more where a gradient passes; attention's scores and sums of values; the
    head at predicted positions.
    """
    linear = [
        sum(v.size for k, v in dict(tree_flatten(layer.parameters())).items() if "norm" not in k)
        for layer in policy.layers
    ]
    first = policy.first_trained
    head = policy.model.model.embed_tokens.weight.size
    rows = work.prompts * work.group
    prompt, new = work.prompts * work.prompt_tokens, rows * work.new_tokens
    width = policy.layers[0].self_attn.n_heads * (
        policy.layers[0].self_attn.scale ** -2
    )  # of all heads
    pairs = prompt * work.prompt_tokens / 2 + new * (work.prompt_tokens + work.new_tokens / 2)
    attention = 4 * width * pairs
    forward = 2 * (prompt + new)
    rollout = forward * sum(linear) + attention * len(linear) + 2 * new * head
    above = sum(linear[first:])
    count = len(linear) - first
    below = forward * sum(linear[:first]) + attention * first
    reference = forward * above + attention * count + 2 * new * head
    learn = 2 * forward * above + 3 * attention * count + 4 * new * head
    return float(rollout + below + reference + learn)


def agentic(model: str, steps: int, shape: Agentic | None = None) -> dict[str, Any]:
    """Rollouts of chains with two searches, beside the same chains re-prefilled each turn."""
    shape = shape or Agentic()
    policy = open_policy(model_folder(model, cache_folder() / "models"), Workload())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    same: list[bool] = []
    apart = 0.0
    tokens = 0
    for number in range(steps + 1):
        chains: dict[bool, list[DecodingSequence]] = {}
        for again in (False, True):
            start = time.perf_counter()
            rows = agentic_rollout(policy, shape, number, again)
            if number:  # the first is a warm-up
                seconds[again].append(time.perf_counter() - start)
            chains[again] = rows
        for one, other in zip(chains[False], chains[True], strict=True):
            same.append(one.tokens == other.tokens)
            apart = max(apart, difference(one, other))
        tokens = sum(len(row.tokens) for row in chains[False])
    ratios = [b / a for a, b in zip(seconds[False], seconds[True], strict=True)]
    return {
        "workload": "agentic",
        "model": model,
        "steps": steps,
        "chains": shape.cases * shape.group,
        "searches": 2,
        "rollout_seconds": median(seconds[False]),
        "reprefill_seconds": median(seconds[True]),
        "ratio": median(ratios),
        "ratios": ratios,
        # Rounding differs between the two, and now and then it decides a draw; the chains part
        # there. Up to there their log-probabilities are equal but for this much.
        "same_chains": sum(same) / len(same),
        "logprob_difference": apart,
        "tokens_per_s": tokens / median(seconds[False]),
        "peak_memory_mb": peak_memory() / 2**20,
    }


def difference(one: DecodingSequence, other: DecodingSequence) -> float:
    """The largest difference of two rows' log-probabilities while their tokens are the same."""
    start = len(one.tokens) - len(one.logprobs)
    pairs = zip(one.tokens[start:], other.tokens[start:], strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(one.logprobs))
    values = zip(one.logprobs[:same], other.logprobs[:same], strict=True)
    return max((abs(a - b) for a, b in values), default=0.0)


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "machine": machine(),
        "device": device_name(),
        "blas": load_fast_blas().name,
        "mlx": version("mlx"),
    }
