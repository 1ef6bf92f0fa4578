"""A group's prefix computed once by models that only run as a whole, such as Gemma's.

It serves the architectures that `transformer_blocks.supported` leaves to mlx-lm, on every
machine: the prefixes fill one cache a block, and each sequence of a group goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..models.composition import FAILURES, PROBE, difference
from .batches import TrainingBatch, TrainingSequence, make_batch

Backbone = Callable[[mx.array, Any], mx.array]
"""(B, N) ids and a cache -> (B, N, width) hidden states."""


def whole_model_states(backbone: Backbone, layers: int, batch: TrainingBatch) -> mx.array:
    """Hidden states of all tokens of a batch, (prefix tokens + suffix tokens, width)."""
    if batch.prefix.shape[1] == 0:
        return _flat(backbone(batch.suffix, None))
    prefixes = [_PrefixCache() for _ in range(layers)]
    shared = backbone(batch.prefix, prefixes)
    length = mx.take(batch.prefix_length, batch.group)
    suffixes = [_SuffixCache(prefix, batch.group, length) for prefix in prefixes]
    return mx.concatenate([_flat(shared), _flat(backbone(batch.suffix, suffixes))])


def serves_prefixes(
    backbone: Backbone, head: Callable[[mx.array], mx.array], layers: int, tolerance: float
) -> bool:
    """Whether a model scores the same where a group's prefix is shared; tried on a few tokens.

    Models that keep more of a context than keys and values, such as Mamba's, do not.
    """
    trained = [False] * 5 + [True] * 3
    rows = [*PROBE, tuple(reversed(PROBE[0])), (*reversed(PROBE[0][3:]), 1, 2, 3)]
    logits = []
    try:
        for groups in ((0, 0, 1, 1), (0, 1, 2, 3)):
            batch = make_batch(
                [TrainingSequence(list(r), trained, g) for r, g in zip(rows, groups, strict=True)]
            )
            states = whole_model_states(backbone, layers, batch)
            logits.append(head(mx.take(states, batch.position, axis=0)))
        return difference(*logits) <= tolerance
    except FAILURES:
        return False


def _flat(states: mx.array) -> mx.array:
    return states.reshape(-1, states.shape[-1])


class _PrefixCache:
    """Keeps a block's keys and values of the prefixes, for gradients to flow through."""

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
    """Lets a sequence's own tokens attend to its group's prefix."""

    def __init__(self, prefix: _PrefixCache, group: mx.array, length: mx.array) -> None:
        self._prefix, self._group, self._length = prefix, group, length
        self.offset = length  # positions go on where the prefix ends, sequence by sequence

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        prefix_keys = mx.take(self._prefix.keys, self._group, axis=0)
        prefix_values = mx.take(self._prefix.values, self._group, axis=0)
        return (
            mx.concatenate([prefix_keys, keys], axis=2),
            mx.concatenate([prefix_values, values], axis=2),
        )

    def make_mask(self, n: int, return_array: bool = False, window_size: Any = None) -> mx.array:
        rows, width = self._length.shape[0], self._prefix.keys.shape[2]
        real = mx.arange(width)[None] < self._length[:, None]  # (rows, width)
        query = mx.arange(n)
        causal = query[:, None] >= query[None]  # (n, n)
        mask = mx.concatenate(
            [
                mx.broadcast_to(real[:, None, None], (rows, 1, n, width)),
                mx.broadcast_to(causal[None, None], (rows, 1, n, n)),
            ],
            axis=-1,
        )
        if window_size:
            place = self._length[:, None] + query[None]  # (rows, n)
            keys = mx.concatenate(
                [mx.broadcast_to(mx.arange(width)[None], (rows, width)), place], axis=1
            )
            near = place[:, :, None] < keys[:, None, :] + window_size
            mask = mask & near[:, None]
        return mask
