"""Maximum likelihood on the trained tokens of chains: what pretraining and SFT share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..distributed.world import current_world
from ..errors import QAgentError
from ..policy.policy import Policy
from ..policy.scoring import TrainingBatch, TrainingSequence, make_batch, token_logprobs


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to learn."""

    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    weight_decay: float = 0.01
    seed: int = 0


def learning_rate(peak: float, warmup: int, steps: int, step: int) -> float:
    """Linear warm-up to ``peak``, then cosine decay to a tenth of it; ``step`` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done)))))


def batch_order(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples make up a step: a fresh shuffle each epoch, a function of the step alone."""
    per_epoch = max(1, count // batch_size)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(i) for i in order[place * batch_size : (place + 1) * batch_size]]


def fit(
    policy: Policy,
    make_chain: Callable[[int, int], TrainingSequence],
    count: int,
    config: FitConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
    optimizer: optim.Optimizer | None = None,
    first_step: int = 0,
    stop: Callable[[], None] | None = None,
    tokens: int = 0,
) -> dict[str, float]:
    """Train the policy's trainable parameters.

    Args:
        policy: Its model is changed.
        make_chain: ``(example, step) -> Chain``; may vary with the step (augmentation).
        count: How many examples there are.
        config: Steps, batch size, learning rate.
        on_step: Called after each step with ``step``, ``loss``, ``tokens``, ``seconds``.
        optimizer: To go on with; a new AdamW by default.
        first_step: Where to go on.
        stop: Called where weights and optimizer are those of a whole step; may raise.
        tokens: How many were computed before ``first_step``.

    Returns:
        ``loss_first`` and ``loss_last``, of the first and last tenth of the steps made here,
        ``seconds``, ``tokens``.
    """
    optimizer = optimizer or optim.AdamW(
        learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )

    def loss_of(model: nn.Module, batch: TrainingBatch) -> mx.array:
        logprobs, _ = token_logprobs(policy, batch)
        return -logprobs.mean()

    value_and_grad = nn.value_and_grad(policy.model, loss_of)
    policy.model.train()
    workers = current_world()
    losses, start = [], time.perf_counter()
    for step in range(first_step, config.steps):
        began = time.perf_counter()
        mx.random.seed(config.seed * 1_000_003 + step)  # of dropout: a function of the step
        chosen = batch_order(count, config.batch_size, config.seed, step)
        if stop is not None and workers.size > 1:
            stop()  # all together, between steps
        chains = [make_chain(chosen[i], step) for i in workers.local_indices(len(chosen))]
        loss, gradient, computed = 0.0, None, 0
        pieces = _by_length(chains, 2)
        (total,) = workers.all_reduce_scalars(sum(sum(c.trained[1:]) for c in chains))
        for piece in pieces:
            if stop is not None and workers.size == 1:
                stop()
            batch = make_batch([chains[i] for i in piece])
            value, grad = value_and_grad(policy.model, batch)
            share = len(batch.row) / total
            grad = _scaled(grad, share)
            gradient = grad if gradient is None else _added(gradient, grad)
            mx.eval(gradient, value)
            loss += float(value) * share
            computed += batch.tokens
        if gradient is None:
            gradient = tree_map(mx.zeros_like, policy.model.trainable_parameters())
        gradient = workers.all_reduce(gradient)
        loss, all_computed = workers.all_reduce_scalars(loss, computed)
        tokens += int(all_computed)
        gradient, norm = optim.clip_grad_norm(gradient, 1.0)
        if not np.isfinite(float(norm)):
            raise QAgentError(
                f"the gradient of step {step + 1} is not finite; lower --learning-rate and start "
                "again"
            )
        optimizer.learning_rate = learning_rate(
            config.learning_rate, config.warmup, config.steps, step
        )
        optimizer.update(policy.model, gradient)
        mx.eval(policy.model.parameters(), optimizer.state)
        losses.append(loss)
        if on_step is not None:
            on_step(
                {
                    "step": step + 1,
                    "loss": loss,
                    "grad_norm": float(norm),
                    "tokens": tokens,
                    "seconds": time.perf_counter() - began,
                }
            )
    policy.model.eval()
    tenth = max(1, len(losses) // 10)
    return {
        "loss_first": float(np.mean(losses[:tenth])) if losses else 0.0,
        "loss_last": float(np.mean(losses[-tenth:])) if losses else 0.0,
        "seconds": time.perf_counter() - start,
        "tokens": tokens,
    }


def predicted_cost(
    policy: Policy, chains: Sequence[TrainingSequence], steps: int
) -> dict[str, float]:
    """What training will cost, from one step's gradient measured on real chains.

    Args:
        policy: Its weights are not changed.
        chains: One step's batch.
        steps: How many steps there will be.

    Returns:
        parameters (trained ones), tokens, seconds, memory_bytes (the peak while measuring).
    """

    def loss_of(model: nn.Module, batch: TrainingBatch) -> mx.array:
        logprobs, _ = token_logprobs(policy, batch)
        return -logprobs.mean()

    value_and_grad = nn.value_and_grad(policy.model, loss_of)
    batches = [make_batch([chains[i] for i in piece]) for piece in _by_length(chains, 2)]
    mx.eval(value_and_grad(policy.model, batches[0]))  # kernels are compiled on first use
    mx.reset_peak_memory()
    start = time.perf_counter()
    for batch in batches:
        mx.eval(value_and_grad(policy.model, batch))
    seconds = time.perf_counter() - start
    trained = dict(tree_flatten(policy.model.trainable_parameters()))
    count = sum(value.size for value in trained.values())
    return {
        "parameters": count,
        "tokens": steps * sum(batch.tokens for batch in batches),
        "seconds": steps * seconds,
        # The optimizer keeps two moments of each trained weight.
        "memory_bytes": mx.get_peak_memory() + 8 * count,
    }


def _by_length(chains: Sequence[TrainingSequence], parts: int) -> list[list[int]]:
    order = sorted(range(len(chains)), key=lambda i: len(chains[i].tokens))
    size = max(1, -(-len(order) // parts))  # a worker may have no chain at all
    return [order[i : i + size] for i in range(0, len(order), size)]


def _scaled(tree: Any, factor: float) -> Any:
    return tree_map(lambda x: x * factor, tree)


def _added(a: Any, b: Any) -> Any:
    return tree_map(lambda x, y: x + y, a, b)
