"""The ways in which a block's queries attend: causally, to a decoding cache, to a shared prefix.

One object serves all blocks of one forward pass. In the shapes below B is the number of
sequences, N of tokens in each, H of query heads, K of key and value heads, D the width of a
head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from . import backend
from .cpu_kernels import Kept

KeysValues = tuple[mx.array, mx.array]  # a block's keys and values, (B, K, N, D) each


class Attention:
    """How queries (B, H, N, D) attend to keys and values.

    A block first stores its keys and values, then combines its queries with them and with its
    context: keys and values of earlier tokens.

    Attributes:
        positions: (N,) or (B, N) positions of the tokens, for rotary embedding.
    """

    positions: np.ndarray

    def store(self, block: int, keys: mx.array, values: mx.array) -> None:
        """Keep a block's keys and values for tokens that continue these."""

    def context(self, block: int) -> tuple[mx.array, ...]:
        """Keys and values of earlier tokens that the block's queries attend to as well."""
        return ()

    def combine(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        *context: mx.array,
        kept: Kept | None = None,
    ) -> mx.array:
        """The attention's output, (B, H, N, D); a function of arrays alone.

        With ``kept``, a second pass over the same arrays takes the first one's probabilities.
        """
        raise NotImplementedError

    def select(self, tokens: np.ndarray) -> Attention:
        """The same for the queries at places ``tokens`` (B, M) of each sequence."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Keys and values of the tokens that all sequences begin with, by block: (1, K, length, D)."""

    length: int
    blocks: Mapping[int, KeysValues]


class CausalAttention(Attention):
    """Each token attends to itself and to those before it, a common prefix's among them.

    Args:
        length: N, tokens of a sequence, without the prefix.
        prefix: What all sequences begin with, computed before.

    Attributes:
        blocks: Each block's keys and values, the prefix's included, for `SharedPrefixAttention`.
        width: Tokens of these.
    """

    def __init__(self, length: int, prefix: PrefixCache | None = None) -> None:
        before = prefix.length if prefix else 0
        self.width = before + length
        self.positions = before + np.arange(length)
        self._bias = np.hstack([np.zeros((length, before), dtype=np.float32), _causal_bias(length)])
        self._prefix = prefix
        self.blocks: dict[int, KeysValues] = {}

    def select(self, tokens: np.ndarray) -> CausalAttention:
        """The same for some queries; what it stores is stored here as well."""
        selected = copy.copy(self)
        selected.positions = self.positions[tokens]
        selected._bias = self._bias[tokens][:, None]
        return selected

    def store(self, block: int, keys: mx.array, values: mx.array) -> None:
        """Keep a block's keys and values, the prefix's before them."""
        self.blocks[block] = _append(self.context(block), keys, values)

    def context(self, block: int) -> tuple[mx.array, ...]:
        """The common prefix's keys and values."""
        return self._prefix.blocks[block] if self._prefix else ()

    def combine(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        *context: mx.array,
        kept: Kept | None = None,
    ) -> mx.array:
        """Attend causally to the context and to the tokens themselves."""
        keys, values = _append(context, keys, values)
        return _attend(queries, keys, values, scale, self._bias, kept)


class CachedAttention(Attention):
    """Decoding with mlx-lm's batched caches: new tokens attend to the cache and to each other.

    Serves CPUs and models too large for `numpy_decoder`; a GPU runs mlx-lm's own model.

    Args:
        caches: mlx-lm's ``BatchKVCache`` of each block (see `serves`).
        length: N, new tokens of each sequence.
    """

    def __init__(self, caches: Sequence[Any], length: int) -> None:
        self._caches = caches
        offset = np.array(caches[0].offset).reshape(-1, 1)
        self.positions = offset + np.arange(length)
        self._context: KeysValues | tuple[()] = ()
        keys = caches[0]._idx + length
        padding = np.array(caches[0].left_padding)
        self._bias: np.ndarray | None = None
        if length > 1 or padding.max(initial=0) > 0:
            key = np.arange(keys)
            visible = (key <= np.arange(keys - length, keys)[:, None])[None]
            visible = visible & (key >= padding[:, None, None])
            # A query that is padding itself sees nothing; let it see one key.
            visible[..., 0] |= ~visible.any(axis=-1)
            self._bias = _bias_of(visible)[:, None]

    @staticmethod
    def serves(caches: Sequence[Any]) -> bool:
        """Whether the caches are of the one kind that is known here."""
        from mlx_lm.models.cache import BatchKVCache

        return all(type(c) is BatchKVCache for c in caches)

    def store(self, block: int, keys: mx.array, values: mx.array) -> None:
        """Append to the block's cache."""
        self._context = self._caches[block].update_and_fetch(keys, values)

    def context(self, block: int) -> tuple[mx.array, ...]:
        """All keys and values of the block's cache, the new ones included."""
        return self._context

    def combine(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        *context: mx.array,
        kept: Kept | None = None,
    ) -> mx.array:
        """Attend to the cache."""
        keys, values = context
        return _attend(queries, keys, values, scale, self._bias, kept)


class SharedPrefixAttention(Attention):
    """Sequences of a group continue one prefix, whose keys and values are not copied to them.

    Args:
        prefix: The pass over the G groups' prefixes.
        owner: (B,) the group of each sequence; sequences of a group stand together.
        prefix_length: (G,) real tokens of each prefix, with what all groups begin with.
        length: N, tokens of a sequence, padding included.
    """

    def __init__(
        self, prefix: CausalAttention, owner: np.ndarray, prefix_length: np.ndarray, length: int
    ) -> None:
        self._prefix = prefix
        self._groups = groups = len(prefix_length)
        counts = np.bincount(owner, minlength=groups)
        self._members = members = int(counts.max())
        self._uniform = bool((counts == members).all() and (np.diff(owner) >= 0).all())
        # Groups of unequal size are filled up; the filler's results are dropped.
        slots = np.zeros((groups, members), dtype=np.int32)
        slot_of = np.zeros(len(owner), dtype=np.int32)
        filled = np.zeros(groups, dtype=np.int32)
        for sequence, group in enumerate(owner):
            slots[group, filled[group]] = sequence
            slot_of[sequence] = group * members + filled[group]
            filled[group] += 1
        self._slots, self._slot_of = mx.array(slots.reshape(-1)), mx.array(slot_of)
        self.positions = prefix_length[owner][:, None] + np.arange(length)
        self._own_bias = np.broadcast_to(_causal_bias(length), (groups, members, length, length))
        self._prefix_bias: np.ndarray | None = None
        if (prefix_length < prefix.width).any():
            self._prefix_bias = _bias_of(np.arange(prefix.width) < prefix_length[:, None])

    def select(self, tokens: np.ndarray) -> SharedPrefixAttention:
        """The same for some queries."""
        selected = copy.copy(self)
        selected.positions = np.take_along_axis(self.positions, tokens, axis=1)
        length = self._own_bias.shape[-1]
        bias = _causal_bias(length)[tokens[np.array(self._slots)]]
        selected._own_bias = bias.reshape(self._groups, self._members, -1, length)
        return selected

    def context(self, block: int) -> tuple[mx.array, ...]:
        """The prefixes' keys and values, (G, K, prefix width, D) each."""
        return self._prefix.blocks[block]

    def combine(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        *context: mx.array,
        kept: Kept | None = None,
    ) -> mx.array:
        """One softmax over the prefix's keys and the sequence's own up to each query."""
        prefix_keys, prefix_values = context
        if not self._uniform:
            queries, keys, values = (
                mx.take(x, self._slots, axis=0) for x in (queries, keys, values)
            )
        _, heads, n, width = queries.shape
        groups, members, key_heads = self._groups, self._members, keys.shape[1]
        repeat = heads // key_heads  # query heads of a key head
        by_member = queries.reshape(groups * members, key_heads, repeat * n, width)
        by_group = queries.reshape(groups, members, key_heads, repeat * n, width).swapaxes(1, 2)
        by_group = by_group.reshape(groups, key_heads, members * repeat * n, width)
        prefix_scores = by_group @ prefix_keys.swapaxes(-1, -2)
        own_scores = by_member @ keys.swapaxes(-1, -2)
        of_prefix, of_own = backend.joint_softmax(
            prefix_scores.reshape(groups, key_heads, members, repeat * n, -1),
            own_scores.reshape(groups, members, key_heads, repeat * n, -1),
            self._prefix_bias,
            np.tile(self._own_bias, (1, 1, repeat, 1)) if repeat > 1 else self._own_bias,
            scale,
            kept,
        )
        output = of_prefix.reshape(groups, key_heads, members * repeat * n, -1) @ prefix_values
        output = output.reshape(groups, key_heads, members, repeat * n, width).swapaxes(1, 2)
        output = output.reshape(groups * members, key_heads, repeat * n, width)
        output = output + of_own.reshape(groups * members, key_heads, repeat * n, -1) @ values
        output = output.reshape(groups * members, heads, n, width)
        return output if self._uniform else mx.take(output, self._slot_of, axis=0)


def _attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    bias: np.ndarray | None,
    kept: Kept | None,
) -> mx.array:
    """Attention; ``bias`` broadcasts to (B, K, queries of a key head, keys)."""
    rows, heads, n, width = queries.shape
    key_heads = keys.shape[1]
    repeat = heads // key_heads
    if bias is not None and repeat > 1 and bias.shape[-2] > 1:
        bias = np.tile(bias, (1,) * (bias.ndim - 2) + (repeat, 1))
    grouped = queries.reshape(rows, key_heads, repeat * n, width)
    probabilities = backend.softmax(grouped @ keys.swapaxes(-1, -2), bias, scale, kept)
    return (probabilities @ values).reshape(rows, heads, n, width)


def _append(context: tuple[mx.array, ...], keys: mx.array, values: mx.array) -> KeysValues:
    """Each sequence's keys and values behind those of the prefix that all of them begin with."""
    if not context:
        return keys, values
    first = [mx.broadcast_to(x, (keys.shape[0], *x.shape[1:])) for x in context]
    return mx.concatenate([first[0], keys], axis=2), mx.concatenate([first[1], values], axis=2)


def _causal_bias(n: int) -> np.ndarray:
    """(n, n): 0 where a query may look, minus infinity where it may not."""
    return _bias_of(np.tri(n, dtype=bool))


def _bias_of(visible: np.ndarray) -> np.ndarray:
    return np.where(visible, np.float32(0), np.float32(-np.inf))
