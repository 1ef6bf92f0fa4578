"""Log-probabilities of training sequences under a policy, and gradients of losses on them.

    prepared = prepare(policy, sequences, budget)      # micro-batches, and what stays the same
    reference = reference_logprobs(policy, prepared)   # one array for each micro-batch
    result = gradient(policy, prepared, loss)          # losses, their parts, and the gradient

What sequences share is computed once, forward and backward: the first tokens of a group (task,
memory action, profile), the prompt of all groups (`shared_prompt`), and for the policy, its
reference and all epochs the blocks below the first adapter. The head runs on trained positions
only. All of that is exact, and nothing is remembered between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..models import backend, cpu_kernels, transformer_blocks
from ..models.attention import Attention, CausalAttention, PrefixCache, SharedPrefixAttention
from .batches import AllowedTokens, TrainingBatch, TrainingSequence, make_batch, micro_batches
from .policy import Policy
from .prefix_sharing import whole_model_states
from .shared_prompt import (
    KeysAndValues,
    SharedPrompt,
    backpropagate,
    find_shared_prompt,
    trained_blocks,
)


class Scores(NamedTuple):
    """Of the T trained tokens of a batch, float32."""

    logprobs: mx.array  # (T,)
    entropies: mx.array  # (T,) nats at each token's position; without gradient


Loss = Callable[[int, Scores], tuple[mx.array, dict[str, mx.array]]]
"""(index of a micro-batch, its scores) -> (loss, other numbers of interest)."""


@dataclass(frozen=True, slots=True)
class FrozenStates:
    """Hidden states of a batch below the first block with an adapter.

    Policy and reference agree up to there, and no gradient goes further down.
    """

    prefix: mx.array
    suffix: mx.array
    block: int  # the first one that is still to run


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A padded batch, and which of the prepared sequences it holds."""

    sequences: np.ndarray  # (S,) indices
    batch: TrainingBatch
    frozen: FrozenStates | None = None


@dataclass(frozen=True, slots=True)
class PreparedBatches:
    """The micro-batches of an update, with what its epochs do not change."""

    batches: tuple[MicroBatch, ...]
    prompt: SharedPrompt | None = None  # is no part of the batches


@dataclass(frozen=True, slots=True)
class LossGradient:
    """What `gradient` returns."""

    losses: list[float]  # of each micro-batch
    parts: list[dict[str, mx.array]]  # of each micro-batch
    total: Any  # a tree like the trainable parameters; None without a micro-batch


def prepare(
    policy: Policy, sequences: Sequence[TrainingSequence], token_budget: int
) -> PreparedBatches:
    """Micro-batches of at most ``token_budget`` padded tokens, ready to be scored."""
    sequences = as_shared(policy, sequences)
    prompt = find_shared_prompt(policy, sequences)
    own = [prompt.strip(s) for s in sequences] if prompt else sequences
    batches = []
    for members in micro_batches(own, token_budget):
        batch = make_batch([own[i] for i in members])
        frozen = frozen_states(policy, batch, prompt.frozen if prompt else None)
        batches.append(MicroBatch(np.array(members), batch, frozen))
    return PreparedBatches(tuple(batches), prompt)


def as_shared(policy: Policy, sequences: Sequence[TrainingSequence]) -> Sequence[TrainingSequence]:
    """The sequences; each is its own group where the model can share no prefix."""
    if policy.shares_prefixes:
        return sequences
    return [replace(sequence, group=i) for i, sequence in enumerate(sequences)]


def reference_logprobs(policy: Policy, prepared: PreparedBatches) -> list[mx.array]:
    """(T,) log-probabilities of each micro-batch with the adapters switched off."""
    prompt, logprobs = prepared.prompt, []
    with policy.reference():
        cache = prompt.prefix_cache(trained_blocks(policy, prompt)) if prompt else None
        if cache:
            mx.eval(list(cache.blocks.values()))
        for item in prepared.batches:
            logprobs.append(token_scores(policy, item.batch, item.frozen, cache).logprobs)
            mx.eval(logprobs[-1])
    return logprobs


def gradient(
    policy: Policy,
    prepared: PreparedBatches,
    loss: Loss,
    factors: Sequence[float] | None = None,
    interrupt: Callable[[], None] | None = None,
) -> LossGradient:
    """Sum over the micro-batches of the gradients of their losses.

    Args:
        policy: Its trainable parameters are differentiated; nothing of it changes.
        prepared: Of this policy.
        loss: Called once for each micro-batch.
        factors: What each micro-batch's gradient is multiplied by; 1 by default.
        interrupt: Called before each micro-batch; may raise.
    """
    model, prompt = policy.model, prepared.prompt
    prompt_states = trained_blocks(policy, prompt) if prompt else []
    mx.eval(prompt_states)

    def objective(
        parameters: Any, prompt_states: KeysAndValues, index: int
    ) -> tuple[mx.array, dict[str, mx.array]]:
        model.update(parameters)
        item = prepared.batches[index]
        cache = prompt.prefix_cache(prompt_states) if prompt else None
        return loss(
            index, token_scores(policy, item.batch, item.frozen, cache, differentiable=True)
        )

    total = None  # by the weights, and by the prompt's keys and values
    losses, parts = [], []
    for index in range(len(prepared.batches)):
        if interrupt is not None:
            interrupt()
        (value, numbers), gradients = mx.value_and_grad(objective, (0, 1))(
            model.trainable_parameters(), prompt_states, index
        )
        if factors is not None:
            gradients = tree_map(partial(mx.multiply, factors[index]), gradients)
        total = gradients if total is None else tree_map(mx.add, total, gradients)
        mx.eval(total, value, numbers)
        losses.append(float(value))
        parts.append(numbers)
    if total is None:
        return LossGradient([], [], None)
    by_weights, by_prompt = total
    if prompt:
        by_weights = tree_map(mx.add, by_weights, backpropagate(policy, prompt, by_prompt))
    return LossGradient(losses, parts, by_weights)


def token_scores(
    policy: Policy,
    batch: TrainingBatch,
    frozen: FrozenStates | None = None,
    prompt_cache: PrefixCache | None = None,
    differentiable: bool = False,
) -> Scores:
    """Log-probability of each trained token of a batch, and the entropy at its position.

    Args:
        policy: The model.
        batch: T trained tokens.
        frozen: What `frozen_states` returned for the batch, to start from.
        prompt_cache: What all sequences begin with, where that is no part of the batch.
        differentiable: Whether the result will be differentiated.
    """
    hidden = hidden_states(policy, batch, frozen, prompt_cache, differentiable)
    weight, allowed = policy.frozen_head(), batch.allowed
    if weight is not None:
        return Scores(
            *cpu_kernels.head_logprobs(
                hidden, weight, batch.target, differentiable, _constrained_by(allowed)
            )
        )
    logits = policy.head(hidden)
    if allowed is not None:
        logits = allowed.constrain(logits)
    return Scores(*backend.token_logprobs(logits, batch.target))


def _constrained_by(allowed: AllowedTokens | None) -> cpu_kernels.Constrain | None:
    """What lowers the logits of forbidden ids in a block of rows."""
    if allowed is None:
        return None
    return lambda logits, start: allowed.of_rows(start, start + len(logits)).constrain(logits)


def frozen_states(
    policy: Policy, batch: TrainingBatch, prompt_cache: PrefixCache | None = None
) -> FrozenStates | None:
    """The part of a batch's forward pass that training does not change; None if there is none.

    ``prompt_cache`` holds what all sequences begin with, for the blocks below the first adapter.
    """
    first = policy.first_trained
    if not 0 < first < len(policy.layers):
        return None
    of_prefix, of_suffix = _attentions(batch, prompt_cache)
    prefix, suffix = policy.embed(batch.prefix), policy.embed(batch.suffix)
    if of_prefix is not None:
        prefix = transformer_blocks.run(policy.model, prefix, of_prefix, 0, first, norm=False)
    suffix = transformer_blocks.run(policy.model, suffix, of_suffix, 0, first, norm=False)
    mx.eval(prefix, suffix)
    return FrozenStates(prefix, suffix, first)


def hidden_states(
    policy: Policy,
    batch: TrainingBatch,
    frozen: FrozenStates | None = None,
    prompt_cache: PrefixCache | None = None,
    differentiable: bool = False,
) -> mx.array:
    """(T, width) hidden states that predict the batch's trained tokens.

    The last block runs at these tokens only: of all others just their keys and values count.
    """
    if not policy.by_blocks:
        whole = whole_model_states(policy.backbone, len(policy.layers), batch)
        return mx.take(whole, batch.position, axis=0)
    model, last = policy.model, len(policy.layers) - 1
    of_prefix, of_suffix = _attentions(batch, prompt_cache)
    prefix_places, suffix_places, order = _predicting_places(batch)
    start = frozen or FrozenStates(policy.embed(batch.prefix), policy.embed(batch.suffix), 0)

    def states(hidden: mx.array, attention: Attention, places: np.ndarray) -> mx.array:
        hidden = transformer_blocks.run(
            model, hidden, attention, start.block, last, False, differentiable
        )
        hidden = transformer_blocks.run_last(model, hidden, attention, places, differentiable)
        return hidden.reshape(-1, hidden.shape[-1])

    parts = [] if of_prefix is None else [states(start.prefix, of_prefix, prefix_places)]
    parts.append(states(start.suffix, of_suffix, suffix_places))
    return mx.take(mx.concatenate(parts), mx.array(order), axis=0)


def _attentions(
    batch: TrainingBatch, prompt_cache: PrefixCache | None
) -> tuple[CausalAttention | None, CausalAttention | SharedPrefixAttention]:
    """How prefixes attend (None without any), and how suffixes do; prefixes must run first."""
    if batch.prefix.shape[1] == 0:
        return None, CausalAttention(batch.suffix.shape[1], prompt_cache)
    of_prefix = CausalAttention(batch.prefix.shape[1], prompt_cache)
    length = np.array(batch.prefix_length) + (prompt_cache.length if prompt_cache else 0)
    return of_prefix, SharedPrefixAttention(
        of_prefix, np.array(batch.group), length, batch.suffix.shape[1]
    )


def _predicting_places(batch: TrainingBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the trained tokens are predicted.

    Returns:
        (K, m) places in the prefixes and (S, n) in the suffixes, filled up with 0; and (T,)
        where each trained token's place stands in the two, flattened one after the other.
    """
    position = np.array(batch.position)
    in_prefix = position < batch.prefix.size
    prefix_places, prefix_order = _places_by_row(position[in_prefix], batch.prefix.shape)
    suffix_places, suffix_order = _places_by_row(
        position[~in_prefix] - batch.prefix.size, batch.suffix.shape
    )
    order = np.empty(len(position), dtype=np.int32)
    order[in_prefix], order[~in_prefix] = prefix_order, suffix_order + prefix_places.size
    return prefix_places, suffix_places, order


def _places_by_row(position: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions as columns of each row, and where each position stands among those."""
    rows, length = shape
    row, place = np.divmod(position, max(length, 1))
    count = np.bincount(row, minlength=rows)
    order = np.argsort(row, kind="stable")
    within = np.empty(len(row), dtype=np.int64)
    within[order] = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    places = np.zeros((rows, int(count.max(initial=0))), dtype=np.int64)
    places[row, within] = place
    return places, row * places.shape[1] + within
