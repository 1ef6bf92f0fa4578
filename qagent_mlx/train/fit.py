"""Maximum likelihood of trained tokens: what pretraining, SFT and distillation share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..distributed.world import current_world
from ..errors import QAgentError
from ..policy import scoring
from ..policy.batches import TrainingSequence, make_batch
from ..policy.policy import Policy
from ..policy.scoring import MicroBatch, PreparedBatches, Scores
from ..runs.loop import Algorithm, Interrupt, LoopConfig, OnStep, StepResult, TrainingLoop, never
from ..runs.records import LoopResult, Metrics, TrainingReport
from ..utils.runtime import release_mlx_with_thread
from .setting_types import BatchSize, LearningRate, Seed, Steps


@dataclass(frozen=True)
class FitReport(TrainingReport):
    """What came of raising the likelihood of demonstrations."""

    tokens: int  # computed, padding included
    loss_first: float  # mean over the first tenth of the steps
    loss_last: float  # over the last tenth
    demonstrated: int  # training cases that could be demonstrated; the others are left out


MakeSequence = Callable[[int, int], TrainingSequence]
"""(example, step) -> what is learned from it; may vary with the step."""


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to learn."""

    steps: Steps = 300
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 1e-3
    warmup: int = 20
    weight_decay: float = 0.01
    seed: Seed = 0


def learning_rate(peak: float, warmup: int, steps: int, step: int) -> float:
    """Linear warm-up to ``peak``, then cosine decay to a tenth of it; ``step`` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress)))))


def batch_order(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The examples of a step, a function of the step alone; each epoch is shuffled anew."""
    epoch, place = divmod(step, max(1, count // batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(i) for i in order[place * batch_size : (place + 1) * batch_size]]


def update_weights(trainer: Algorithm, gradient: Any, max_norm: float, number: int) -> float:
    """Take an optimizer step along the sum of all workers' gradients; returns its norm.

    Args:
        trainer: Whose policy and optimizer.
        gradient: This worker's; None where it computed nothing.
        max_norm: Norm to which a longer gradient is clipped.
        number: Of the training step, from 0.

    Raises:
        QAgentError: the gradient is not finite; the weights are as they were.
    """
    model, optimizer = trainer.policy.model, trainer.optimizer
    if gradient is None:
        gradient = tree_map(mx.zeros_like, model.trainable_parameters())
    gradient = current_world().all_reduce(gradient)
    gradient, norm = optim.clip_grad_norm(gradient, max_norm)
    if not np.isfinite(float(norm)):
        raise QAgentError(
            f"the gradient of step {number + 1} is not finite; the weights are those of the step "
            "before; lower learning_rate and start again"
        )
    optimizer.update(model, gradient)
    mx.eval(model.trainable_parameters(), optimizer.state)
    return float(norm)


class LikelihoodTrainer(Algorithm):
    """Raises the likelihood of sequences under a policy.

    Args:
        policy: Its trainable parameters learn.
        make_sequence: What is learned from an example.
        count: Number of examples.
        config: Steps, batch size, learning rate.
    """

    def __init__(
        self, policy: Policy, make_sequence: MakeSequence, count: int, config: FitConfig
    ) -> None:
        self.policy, self.make_sequence = policy, make_sequence
        self.count, self.fit_config = count, config
        self.world = current_world()
        self.optimizer = optim.AdamW(
            learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.optimizer.init(policy.model.trainable_parameters())
        self._tokens = 0  # computed in all steps so far

    def restore(self, state: dict[str, object], history: Sequence[Metrics]) -> None:
        """Go on with the count of tokens."""
        self._tokens = int(history[-1]["tokens"]) if history else 0

    def step(self, number: int, interrupt: Interrupt = never) -> StepResult:
        """Take one step; a function of the weights, the seed and the step's number."""
        config, model, start = self.fit_config, self.policy.model, time.perf_counter()
        model.train()
        release_mlx_with_thread()
        mx.random.seed(config.seed * 1_000_003 + number)  # of dropout
        examples = batch_order(self.count, config.batch_size, config.seed, number)
        own = self.world.local_indices(len(examples))
        batches = _batches(self.policy, [self.make_sequence(examples[i], number) for i in own])
        trained = [len(item.batch.sequence) for item in batches.batches]
        (total,) = self.world.all_reduce_scalars(sum(trained))
        shares = [count / total for count in trained]
        result = scoring.gradient(self.policy, batches, _loss, shares, interrupt)
        loss, tokens = self.world.all_reduce_scalars(
            sum(value * share for value, share in zip(result.losses, shares, strict=True)),
            sum(item.batch.padded_tokens for item in batches.batches),
        )
        self._tokens += int(tokens)
        self.optimizer.learning_rate = learning_rate(
            config.learning_rate, config.warmup, config.steps, number
        )
        norm = update_weights(self, result.total, 1.0, number)
        return StepResult(
            {
                "step": number + 1,
                "loss": loss,
                "grad_norm": norm,
                "tokens": self._tokens,
                "seconds": time.perf_counter() - start,
            }
        )

    def summary(self, result: LoopResult) -> dict[str, Any]:
        """The fields of a `FitReport`."""
        loss_first, loss_last = result.first_and_last("loss")
        return {
            "run": result.run,
            "policy": self.policy.info.name,
            "steps": len(result.history),
            "seconds": result.seconds,
            "tokens_per_s": round(self._tokens / max(result.total("seconds"), 1e-9)),
            "tokens": self._tokens,
            "loss_first": loss_first,
            "loss_last": loss_last,
            "demonstrated": self.count,
        }


def fit(trainer: LikelihoodTrainer, on_step: OnStep | None = None) -> FitReport:
    """Take all steps of a training that no run records."""
    loop = TrainingLoop(trainer, LoopConfig(trainer.fit_config.steps), on_step=on_step)
    return FitReport(**trainer.summary(loop.run()))


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What a training will cost."""

    parameters: int  # that are trained
    tokens: int
    seconds: float
    memory_bytes: int  # peak, optimizer included


def predicted_cost(
    policy: Policy, sequences: Sequence[TrainingSequence], steps: int
) -> TrainingCost:
    """Predict the cost of ``steps`` steps from the gradient of one step's sequences."""
    batches = _batches(policy, sequences)
    first = PreparedBatches(batches.batches[:1])
    mx.eval(scoring.gradient(policy, first, _loss).total)  # kernels are compiled on first use
    mx.reset_peak_memory()
    start = time.perf_counter()
    mx.eval(scoring.gradient(policy, batches, _loss).total)
    seconds = time.perf_counter() - start
    parameters = dict(tree_flatten(policy.model.trainable_parameters()))
    count = sum(value.size for value in parameters.values())
    return TrainingCost(
        parameters=count,
        tokens=steps * sum(item.batch.padded_tokens for item in batches.batches),
        seconds=steps * seconds,
        # The optimizer keeps two moments of each trained weight.
        memory_bytes=mx.get_peak_memory() + 8 * count,
    )


def _loss(_index: int, scores: Scores) -> tuple[mx.array, dict[str, mx.array]]:
    return -scores.logprobs.mean(), {}


def _batches(policy: Policy, sequences: Sequence[TrainingSequence]) -> PreparedBatches:
    """Two micro-batches, the short sequences in one and the long ones in the other."""
    sequences = scoring.as_shared(policy, sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].tokens))
    size = max(1, -(-len(order) // 2))  # a worker may have no sequence at all
    members = [order[i : i + size] for i in range(0, len(order), size)]
    return PreparedBatches(
        tuple(MicroBatch(np.array(m), make_batch([sequences[i] for i in m])) for m in members)
    )
