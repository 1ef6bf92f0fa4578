"""Log-probabilities of chains under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..models import cpu_kernels, transformer_blocks
from ..utils.runtime import device_name
from .policy import Policy


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """Token ids of one chain; ``trained[i]`` says that token i carries loss.

    Chains with the same ``group`` number may share their first tokens.
    """

    tokens: list[int]
    trained: list[bool]
    group: int


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A padded batch of groups.

    Shapes: ``prefix`` (groups, P); ``suffix`` (rows, S); ``owner`` (rows,) maps a row to its
    group. Trained tokens are listed once each, row by row: token ``target[t]`` of row
    ``row[t]`` is predicted at flat position ``position[t]`` of [prefix hidden; suffix hidden].
    """

    prefix: mx.array
    prefix_length: mx.array
    suffix: mx.array
    owner: mx.array
    position: mx.array
    target: mx.array
    row: np.ndarray
    rows: int
    tokens: int  # computed tokens, padding included


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many first tokens all sequences share."""
    shortest = min(len(s) for s in sequences)
    first = sequences[0]
    for i in range(shortest):
        if any(s[i] != first[i] for s in sequences):
            return i
    return shortest


def make_batch(sequences: Sequence[TrainingSequence]) -> TrainingBatch:
    """Pad sequences into a batch; rows keep their order."""
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(sequence.group, []).append(i)
    cut: dict[int, int] = {}
    for number, members in groups.items():
        shared = common_prefix([sequences[i].tokens for i in members])
        # Every row keeps a token of its own, and a lone row is all suffix.
        shortest = min(len(sequences[i].tokens) for i in members)
        cut[number] = min(shared, shortest - 1) if len(members) > 1 else 0
    order = {number: at for at, number in enumerate(groups)}
    width = max(cut.values())
    longest = max(len(s.tokens) - cut[s.group] for s in sequences)
    prefix = np.zeros((len(groups), width), dtype=np.int32)
    suffix = np.zeros((len(sequences), longest), dtype=np.int32)
    position, target, row = [], [], []
    base = len(groups) * width
    for number, members in groups.items():
        prefix[order[number], : cut[number]] = sequences[members[0]].tokens[: cut[number]]
    for i, sequence in enumerate(sequences):
        start = cut[sequence.group]
        tokens = sequence.tokens
        suffix[i, : len(tokens) - start] = tokens[start:]
        for t, trained in enumerate(sequence.trained):
            if not trained or t == 0:
                continue
            # Token t is predicted by the hidden state of token t - 1.
            if t - 1 < start:
                position.append(order[sequence.group] * width + t - 1)
            else:
                position.append(base + i * longest + t - 1 - start)
            target.append(tokens[t])
            row.append(i)
    return TrainingBatch(
        prefix=mx.array(prefix),
        prefix_length=mx.array([cut[n] for n in groups]),
        suffix=mx.array(suffix),
        owner=mx.array([order[s.group] for s in sequences]),
        position=mx.array(np.array(position, dtype=np.int32)),
        target=mx.array(np.array(target, dtype=np.int32)),
        row=np.array(row, dtype=np.int64),
        rows=len(sequences),
        tokens=prefix.size + suffix.size,
    )


class _PrefixCache:
    """Keeps a layer's keys and values of the prefixes, for gradients to flow through."""

    def __init__(self) -> None:
        self.keys: Any = None
        self.values: Any = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: Any = None) -> Any:
        # Padding is on the right, where causal attention never looks from a real token.
        from mlx_lm.models.base import create_causal_mask

        if return_array or (window_size and n > window_size):
            return create_causal_mask(n, window_size=window_size)
        return "causal"


class _SuffixCache:
    """Lets a row's own tokens attend to its group's prefix."""

    def __init__(self, prefix: _PrefixCache, owner: mx.array, length: mx.array) -> None:
        self._prefix, self._owner, self._length = prefix, owner, length
        self.offset = length  # positions go on where the prefix ends, row by row

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        before_k = mx.take(self._prefix.keys, self._owner, axis=0)
        before_v = mx.take(self._prefix.values, self._owner, axis=0)
        return mx.concatenate([before_k, keys], axis=2), mx.concatenate([before_v, values], axis=2)

    def make_mask(self, n: int, return_array: bool = False, window_size: Any = None) -> mx.array:
        width = self._prefix.keys.shape[2]
        real = mx.arange(width)[None] < self._length[:, None]  # (rows, width)
        query = mx.arange(n)
        own = query[:, None] >= query[None]  # (n, n)
        left = mx.broadcast_to(real[:, None, None], (real.shape[0], 1, n, width))
        right = mx.broadcast_to(own[None, None], (real.shape[0], 1, n, n))
        mask = mx.concatenate([left, right], axis=-1)
        if window_size:
            at = self._length[:, None] + query[None]  # (rows, n)
            keys = mx.concatenate(
                [mx.broadcast_to(mx.arange(width)[None], (real.shape[0], width)), at], axis=1
            )
            near = at[:, :, None] < keys[:, None, :] + window_size
            mask = mask & near[:, None]
        return mask


@dataclass(frozen=True, slots=True)
class FrozenStates:
    """Hidden states of a batch below the first block with an adapter.

    Policy and reference agree up to there, and no gradient goes further down: they are
    computed once for both and for all epochs.
    """

    prefix: mx.array
    suffix: mx.array
    block: int  # the first one that is still to run


def frozen_states(
    policy: Policy, batch: TrainingBatch, begin: transformer_blocks.PrefixCache | None = None
) -> FrozenStates | None:
    """The part of a batch's forward pass that training does not change; None if there is none.

    ``begin`` is what its rows begin with, of these blocks at least (`Opening.below`).
    """
    first = policy.first_trained
    if not policy.by_blocks or first == 0:
        return None
    prefix, suffix = _run(policy, batch, None, first, begin=begin)
    mx.eval(prefix, suffix)
    return FrozenStates(prefix, suffix, first)


def _run(
    policy: Policy,
    batch: TrainingBatch,
    lower: FrozenStates | None,
    last: int | None,
    gradient: bool = False,
    wanted: tuple[np.ndarray, np.ndarray] | None = None,
    begin: transformer_blocks.PrefixCache | None = None,
) -> tuple[mx.array, mx.array]:
    """Hidden states of prefixes and suffixes from ``lower`` (or the ids) up to a block.

    With ``wanted`` (places in each prefix, and in each suffix) through all blocks, of these only.
    """
    first = lower.block if lower else 0
    prefix = lower.prefix if lower else policy.embed(batch.prefix)
    suffix = lower.suffix if lower else policy.embed(batch.suffix)
    model, norm = policy.model, last is None
    final = len(policy.layers) - 1

    def states(hidden: mx.array, attention: transformer_blocks.Choosing, places: int) -> mx.array:
        if wanted is None:
            return transformer_blocks.run(model, hidden, attention, first, last, norm, gradient)
        hidden = transformer_blocks.run(model, hidden, attention, first, final, False, gradient)
        return transformer_blocks.run_last(model, hidden, attention, wanted[places], gradient)

    attention: transformer_blocks.Choosing
    if batch.prefix.shape[1] == 0:
        attention = transformer_blocks.CausalAttention(suffix.shape[1], begin)
        prefix = prefix[:, :0]
    else:
        causal = transformer_blocks.CausalAttention(prefix.shape[1], begin)
        prefix = states(prefix, causal, 0)
        length = np.array(batch.prefix_length) + (begin.length if begin else 0)
        attention = transformer_blocks.SharedPrefixAttention(
            causal, np.array(batch.owner), length, suffix.shape[1]
        )
    return prefix, states(suffix, attention, 1)


def hidden_states(
    policy: Policy,
    batch: TrainingBatch,
    lower: FrozenStates | None = None,
    gradient: bool = True,
    begin: transformer_blocks.PrefixCache | None = None,
) -> mx.array:
    """(T, width) hidden states that predict the batch's trained tokens."""
    if policy.by_blocks:
        return _predicting(policy, batch, lower, gradient, begin)
    shared: mx.array | None = None
    if batch.prefix.shape[1] == 0:
        own = policy.backbone(batch.suffix)
    else:
        prefixes = [_PrefixCache() for _ in policy.layers]
        shared = policy.backbone(batch.prefix, prefixes)
        length = mx.take(batch.prefix_length, batch.owner)
        own = policy.backbone(
            batch.suffix, [_SuffixCache(p, batch.owner, length) for p in prefixes]
        )
    flat = _flat(own) if shared is None else _flat(shared, own)
    return mx.take(flat, batch.position, axis=0)


def _predicting(
    policy: Policy,
    batch: TrainingBatch,
    lower: FrozenStates | None,
    gradient: bool,
    begin: transformer_blocks.PrefixCache | None,
) -> mx.array:
    """`hidden_states` whose last block computes nothing else.

    The other tokens' states after the last block predict nothing that is asked for: there
    only their keys and values count.
    """
    final = len(policy.layers) - 1
    if lower is not None and lower.block > final:
        states = _flat(*_run(policy, batch, lower, None, begin=begin))
        return mx.take(states, batch.position, axis=0)
    groups, width = batch.prefix.shape
    position = np.array(batch.position)
    inside = position < groups * width
    first, place = _by_row(position[inside], groups, width)
    rows, length = batch.suffix.shape
    second, own_place = _by_row(position[~inside] - groups * width, rows, length)
    at = np.empty(len(position), dtype=np.int32)
    at[inside], at[~inside] = place, own_place + first.size
    flat = _flat(*_run(policy, batch, lower, None, gradient, (first, second), begin))
    return mx.take(flat, mx.array(at), axis=0)


def _flat(*states: mx.array) -> mx.array:
    """(rows, n, width) states as (tokens, width), one after the other."""
    return mx.concatenate([x.reshape(x.shape[0] * x.shape[1], x.shape[2]) for x in states])


def _by_row(position: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of (rows, length) as places in each row.

    Returns:
        (rows, m) places, filled up with 0, and where in them each position stands, flat.
    """
    row, place = (position // length, position % length) if length else (position, position)
    count = np.bincount(row, minlength=rows)
    order = np.argsort(row, kind="stable")
    within = np.empty(len(row), dtype=np.int64)
    within[order] = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    wanted = np.zeros((rows, int(count.max(initial=0))), dtype=np.int64)
    wanted[row, within] = place
    return wanted, row * wanted.shape[1] + within


def token_logprobs(
    policy: Policy,
    batch: TrainingBatch,
    lower: FrozenStates | None = None,
    gradient: bool = True,
    begin: transformer_blocks.PrefixCache | None = None,
) -> tuple[mx.array, mx.array]:
    """Log-probability of each trained token, and the entropy at its position.

    Args:
        policy: The model.
        batch: What to score.
        lower: What `frozen_states` gave, to start from.
        gradient: Whether there will be one.
        begin: What all rows begin with, where that is no part of the batch (`Opening`).

    Returns:
        (T,) log-probabilities, and (T,) entropies in nats that carry no gradient; float32.
    """
    hidden = hidden_states(policy, batch, lower, gradient, begin)
    if device_name() == "cpu":
        weight = policy.head_weight()
        if weight is not None:
            return cpu_kernels.head_logprobs(hidden, weight, batch.target, gradient)
        return cpu_kernels.token_logprobs(policy.head(hidden), batch.target)
    logits = policy.head(hidden)
    chosen = mx.take_along_axis(logits, batch.target[:, None], axis=-1)[:, 0]
    return chosen - mx.logsumexp(logits, axis=-1), mx.stop_gradient(entropy(logits))


def entropy(logits: mx.array) -> mx.array:
    """Entropy in nats of each row of logits."""
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    return norm[:, 0] - (mx.exp(logits - norm) * logits).sum(axis=-1)
