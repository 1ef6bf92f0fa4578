"""Runs workloads and says how fast they were, and where the time went."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import time
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
from ..utils.runtime import device_name, total_memory
from .workloads import Agentic, Standard, Workload, agentic_rollout, model_folder, open_policy


def machine() -> str:
    """The processor's name, its cores and its memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (model := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        name = model[1].strip()
    return f"{name}, {os.cpu_count()} cores, {total_memory() / 2**30:.0f} GiB"


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def standard(model: str, work: Workload, steps: int, warmup: int = 1) -> dict[str, Any]:
    """Medians of the standard workload's steps."""
    runner = Standard(open_policy(model_folder(model), work), work)
    measured = [runner.step(number) for number in range(warmup + steps)][warmup:]
    seconds = median(s.seconds for s in measured)
    limit, cpu_limit = gemm_gflops()[0], gemm_gflops(clock=time.process_time)[0]
    rollout, update = products(runner.policy, work)
    flops, update_cpu = rollout + update, median(s.update_cpu for s in measured)
    names = sorted({name for s in measured for name in s.parts})
    profile = {name: median(s.parts.get(name, 0.0) for s in measured) for name in names}
    return {
        "workload": "standard",
        "model": model,
        "steps": steps,
        "rollout_seconds": median(s.rollout for s in measured),
        "update_seconds": median(s.update for s in measured),
        "seconds": seconds,
        "cpu_seconds": median(s.cpu for s in measured),
        "tokens_per_s": work.tokens / seconds,
        "decoded_per_s": measured[0].decoded / median(s.rollout for s in measured),
        "peak_memory_mb": peak_memory() / 2**20,
        "mlx_peak_mb": mx.get_peak_memory() / 2**20,
        "gemm_gflops": limit,
        "product_gflop": flops / 1e9,
        "product_share": flops / 1e9 / limit / seconds,
        # The update alone, both sides by processor time, which a busy machine changes least.
        "update_cpu_seconds": update_cpu,
        "update_product_share": update / 1e9 / cpu_limit / update_cpu,
        "ratio_drift": max(s.metrics["ratio_drift"] for s in measured),
        "profile": dict(sorted(profile.items(), key=lambda item: -item[1])),
    }


def products(policy: Policy, work: Workload) -> tuple[float, float]:
    """Floating-point operations of the necessary matrix products of a step's rollout and update.

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
    attention = policy.layers[0].self_attn
    width = attention.n_heads * attention.scale**-2  # of all heads
    pairs = prompt * work.prompt_tokens / 2 + new * (work.prompt_tokens + work.new_tokens / 2)
    scores = 4 * width * pairs
    forward = 2 * (prompt + new)
    rollout = forward * sum(linear) + scores * len(linear) + 2 * new * head
    above = sum(linear[first:])
    count = len(linear) - first
    below = forward * sum(linear[:first]) + scores * first
    reference = forward * above + scores * count + 2 * new * head
    learn = 2 * forward * above + 3 * scores * count + 4 * new * head
    return float(rollout), float(below + reference + learn)


def agentic(model: str, steps: int, shape: Agentic | None = None) -> dict[str, Any]:
    """Rollouts of chains with two searches, beside the same chains re-prefilled each turn."""
    shape = shape or Agentic()
    policy = open_policy(model_folder(model), Workload())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    same: list[bool] = []
    apart = 0.0
    for number in range(steps + 1):
        chains: dict[bool, list[DecodingSequence]] = {}
        for reprefill in (False, True):
            start = time.perf_counter()
            chains[reprefill] = agentic_rollout(policy, shape, number, reprefill)
            if number:  # the first is a warm-up
                seconds[reprefill].append(time.perf_counter() - start)
        for chain, other in zip(chains[False], chains[True], strict=True):
            same.append(chain.tokens == other.tokens)
            apart = max(apart, difference(chain, other))
    tokens = sum(len(chain.tokens) for chain in chains[False])
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


def difference(chain: DecodingSequence, other: DecodingSequence) -> float:
    """The largest difference of two chains' log-probabilities while their tokens are the same."""
    start = len(chain.tokens) - len(chain.logprobs)
    pairs = zip(chain.tokens[start:], other.tokens[start:], strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(chain.logprobs))
    values = zip(chain.logprobs[:same], other.logprobs[:same], strict=True)
    return max((abs(a - b) for a, b in values), default=0.0)


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "machine": machine(),
        "device": device_name(),
        "blas": load_fast_blas().name,
        "mlx": version("mlx"),
    }
