"""mlx-lm's caches for several contexts at once, and whether a model computes right with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache

from .composition import FAILURES, PROBE, difference

GROWTH = 64  # tokens by which a full cache grows; mlx-lm's 256 are mostly unused in short chains

Run = Callable[[mx.array, Any], mx.array]
"""(B, N) ids and a cache -> (B, N, vocabulary) logits."""


def batch_cache(model: nn.Module, contexts: int) -> list[Any]:
    """A cache without tokens for so many contexts, one entry for each layer."""
    layers = make_prompt_cache(model)
    cache = [type(layer).merge([layer] * contexts) for layer in layers]
    for layer in cache:
        layer.step = GROWTH
    return cache


def select_rows(layer: Any, rows: Sequence[int]) -> Any:
    """A copy of a layer's cache with the given contexts; the cache itself stays as it is."""
    selected = copy.copy(layer)
    if isinstance(layer, CacheList):  # its parts change in place
        selected.caches = tuple(copy.copy(part) for part in layer.caches)
    selected.filter(mx.array(list(rows)))
    return selected


def prefill(run: Run, pending: Sequence[Sequence[int]], cache: list[Any]) -> mx.array:
    """Put ids behind each context of a cache; returns the output after them (contexts, width)."""
    lengths = [len(ids) for ids in pending]
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    tokens = mx.array([[*ids, *[0] * pad] for ids, pad in zip(pending, padding, strict=True)])
    if max(padding):
        for layer in cache:
            layer.prepare(lengths=lengths, right_padding=padding)
    output = run(tokens, cache)
    last = output[mx.arange(len(pending)), mx.array(lengths) - 1]
    if max(padding):
        for layer in cache:
            layer.finalize()
    return last


def serves_batches(model: nn.Module, run: Run, tolerance: float) -> bool:
    """Whether contexts of different lengths that share a cache are scored as each alone.

    Tried on a few tokens, with all that happens in a rollout: contexts begin, part, go on by
    different numbers of tokens, leave, and are joined by others.
    """
    try:
        return _tried(model, run) <= tolerance
    except FAILURES:
        return False


def _tried(model: nn.Module, run: Run) -> float:
    """By how much the scores of contexts in a batch differ from those of each alone, in nats."""
    rows = [*PROBE, PROBE[0][::-1]]
    alone = [run(mx.array([row]), None)[0] for row in rows]
    held = [(0, 0), (1, 0)]  # the row of each context, and how many of its tokens are in the cache
    cache = batch_cache(model, 2)

    def off(*counts: int) -> float:
        nonlocal held
        pending = [rows[r][at : at + n] for (r, at), n in zip(held, counts, strict=True)]
        held = [(r, at + n) for (r, at), n in zip(held, counts, strict=True)]
        output = prefill(run, pending, cache)
        return difference(output, mx.stack([alone[r][at - 1] for r, at in held]))

    def keep(*contexts: int) -> None:
        nonlocal held, cache
        held = [held[i] for i in contexts]
        cache = [select_rows(layer, contexts) for layer in cache]

    worst = [off(5, 3)]
    keep(0, 1, 1)
    worst += [off(1, 3, 1), off(1, 1, 1)]
    keep(2, 0)
    other = batch_cache(model, 1)
    prefill(run, [rows[2][:4]], other)
    for layer, added in zip(cache, other, strict=True):
        layer.extend(added)
    held.append((2, 4))
    worst += [off(1, 1, 1)]
    keep(2)
    return max(*worst, off(2))
