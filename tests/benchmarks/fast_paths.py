"""What each fast path of a CPU saves in a GRPO step: python tests/benchmarks/fast_paths.py SHOP POLICY.

For each path, steps from the same weights are timed in pairs, in turn with and without it (then the
plain MLX form runs). Prints the median ratio of processor time, without to with, and those of all
pairs, for the part of the step that the path serves: rollout or update. A path that brings less than
1.2 should go. Run it on a quiet machine. No test runs this.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.activations import swiglu as mlx_swiglu

from qagent_mlx.environment.environment import Environment
from qagent_mlx.models import backend, cpu_kernels, sampling
from qagent_mlx.models.numpy_decoder import NumpyDecoder
from qagent_mlx.policy.policy import Policy
from qagent_mlx.policy.registry import derive
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo import GrpoTrainer
from qagent_mlx.train.grpo_config import GrpoConfig


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `backend` in its MLX form."""

    def plain(*arguments: Any) -> Any:
        with patch.object(backend, "uses_numpy", lambda dtype: False):
            return function(*arguments)

    return plain


@contextmanager
def _patched(*patches: Any) -> Iterator[None]:
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def _sample_by_mlx(logits: Any, *rest: Any) -> Any:
    return sampling._sample_mlx(mx.array(logits), *rest)


def _without() -> dict[str, tuple[str, Callable[[], Any]]]:
    """For each path what it serves, and a context in which the plain form runs in its place."""

    def on(target: Any, name: str, new: Any) -> Any:
        return patch.object(target, name, new)

    return {
        "decoding by numpy": (
            "rollout",
            lambda: _patched(
                on(NumpyDecoder, "of", classmethod(lambda cls, model, parameters: None))
            ),
        ),
        "softmax": ("update", lambda: _patched(on(backend, "softmax", _plain(backend.softmax)))),
        "joint softmax": (
            "update",
            lambda: _patched(on(backend, "joint_softmax", _plain(backend.joint_softmax))),
        ),
        "SwiGLU": ("update", lambda: _patched(on(backend, "swiglu", mlx_swiglu))),
        "log-probabilities with the head": (
            "update",
            lambda: _patched(on(Policy, "frozen_head", lambda self: None)),
        ),
        "log-probabilities, both forms": (
            "update",
            lambda: _patched(
                on(Policy, "frozen_head", lambda self: None),
                on(backend, "token_logprobs", _plain(backend.token_logprobs)),
            ),
        ),
        "sampling by numpy": (
            "rollout",
            lambda: _patched(on(sampling, "_sample_numpy", _sample_by_mlx)),
        ),
        "all softmax, SwiGLU, log-probabilities": (
            "update",
            lambda: _patched(
                on(backend, "uses_numpy", lambda dtype: False),
                on(Policy, "frozen_head", lambda self: None),
            ),
        ),
        "kernels in cache-sized blocks": (
            "update",
            lambda: _patched(
                on(cpu_kernels, "_in_blocks", lambda shape, compute: compute(slice(0, shape[0])))
            ),
        ),
    }


def main(path: str, parent: str, pairs: int = 3) -> None:
    """Time the pairs; nothing is saved."""
    config = GrpoConfig(steps=pairs)
    with Shop.open(path) as shop:
        policy = derive(shop, parent, "benchmark", config.lora)
        environment = Environment.of_shop(shop, policy.codec, policy.info.agent)
    trainer = GrpoTrainer(policy, environment, config)

    weights = tree_map(mx.array, policy.model.trainable_parameters())
    group_sample = trainer.sample

    def parts(number: int) -> dict[str, float]:
        """Processor seconds of a step's rollout and update."""
        policy.model.update(tree_map(mx.array, weights))
        mx.eval(policy.model.parameters())
        trainer.runner = environment.rollout_runner(policy, policy.info.agent)
        times = [time.process_time()]

        def sample(*arguments: Any) -> Any:
            groups = group_sample(*arguments)
            times.append(time.process_time())
            return groups

        with patch.object(trainer, "sample", sample):
            trainer.step(number)
        mx.synchronize()
        times.append(time.process_time())
        return {"rollout": times[1] - times[0], "update": times[2] - times[1]}

    parts(0)
    for name, (part, without) in _without().items():
        ratios = []
        for number in range(1, pairs + 1):
            with_path = parts(number)[part]
            with without():
                ratios.append(parts(number)[part] / with_path)
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{name:32} {part:8} {statistics.median(ratios):.2f}  ({shown})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
