"""Draw next tokens from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from . import backend


def sample(
    logits: mx.array | np.ndarray,
    streams: Sequence[np.random.Generator | None],
    context_of: Sequence[int],
) -> tuple[list[int], list[float]]:
    """Draw one token for each sequence at temperature 1, or the likeliest without a stream.

    A token is found by inverting the cumulative distribution at a uniform number of the
    sequence's own stream, so it does not depend on the batch around it: with one worker or
    two, in a resumed run or an unbroken one, the draw is the same. Inversion also needs one
    exponential for each logit, where Gumbel noise needs two logarithms more.

    Args:
        logits: (contexts, vocabulary), of numpy on a CPU perhaps.
        streams: Each sequence's source of random numbers; None takes the likeliest token.
        context_of: For each sequence, the row of ``logits`` to draw from.

    Returns:
        Token ids, and their log-probabilities under the full distribution.
    """
    if isinstance(logits, np.ndarray):
        return _sample_numpy(logits, streams, context_of)
    if not backend.on_cpu():
        return _sample_mlx(logits, streams, context_of)
    mx.eval(logits)
    return _sample_numpy(np.asarray(logits), streams, context_of)


def _sample_numpy(
    scores: np.ndarray, streams: Sequence[np.random.Generator | None], context_of: Sequence[int]
) -> tuple[list[int], list[float]]:
    """`sample` on a Linux CPU, where numpy's exponential is many times faster than MLX's."""
    highest = scores.max(axis=-1, keepdims=True)
    cumulative = np.exp(scores - highest).cumsum(axis=-1, dtype=np.float64)
    tokens, logprobs = [], []
    for stream, context in zip(streams, context_of, strict=True):
        total = float(cumulative[context, -1])
        if stream is None:
            token = int(scores[context].argmax())
        else:
            # A token of probability 0 repeats the sum before it; side="right" skips it.
            drawn = stream.random() * total
            token = int(cumulative[context].searchsorted(drawn, side="right"))
            token = min(token, scores.shape[-1] - 1)
        tokens.append(token)
        logprobs.append(float(scores[context, token] - highest[context, 0]) - math.log(total))
    return tokens, logprobs


def _sample_mlx(
    logits: mx.array, streams: Sequence[np.random.Generator | None], context_of: Sequence[int]
) -> tuple[list[int], list[float]]:
    """`sample` on Apple silicon and CUDA."""
    if list(context_of) != list(range(logits.shape[0])):
        logits = logits[mx.array(list(context_of))]
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    tokens = mx.argmax(logits, axis=-1)
    if any(stream is not None for stream in streams):
        uniform = np.array([2.0 if s is None else s.random() for s in streams], np.float32)
        cumulative = mx.cumsum(mx.exp(logits - norm), axis=-1)
        # The last entry is 1 up to rounding; scaling by it keeps every draw inside.
        target = mx.array(uniform)[:, None] * cumulative[:, -1:]
        drawn = (cumulative <= target).sum(axis=-1)
        drawn = mx.minimum(drawn, logits.shape[-1] - 1)
        tokens = mx.where(mx.array(uniform) > 1.5, tokens, drawn)
    logprobs = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - norm)[:, 0]
    mx.eval(tokens, logprobs)
    return np.array(tokens).tolist(), np.array(logprobs).tolist()


def constrain(
    logits: mx.array | np.ndarray, masks: Sequence[np.ndarray | None], min_p: Sequence[float]
) -> mx.array | np.ndarray:
    """Put minus infinity where a token is not allowed; a row without a mask stays.

    Args:
        logits: (rows, vocabulary).
        masks: (rows,) of bool arrays, see `protocol.grammar.Grammar` and
            `protocol.query_automaton`. They may be shorter than the vocabulary: its padding is
            never allowed.
        min_p: (rows,) Allowed tokens that are this much less likely than the likeliest go too
            (min-p, arXiv:2407.01082); 0 leaves all of them.
    """
    allowed = np.ones(logits.shape, dtype=bool)
    for row, mask in enumerate(masks):
        if mask is not None:
            allowed[row, : len(mask)] = mask
            allowed[row, len(mask) :] = False
    least = np.array(
        [
            -np.inf if mask is None or not share else np.log(share)
            for mask, share in zip(masks, min_p, strict=True)
        ],
        dtype=np.float32,
    )[:, None]
    if isinstance(logits, np.ndarray):
        scores = np.where(allowed, logits, np.float32(-np.inf))
        scores[scores < scores.max(axis=-1, keepdims=True) + least] = -np.inf
        return scores
    logits = mx.where(mx.array(allowed), logits, -mx.inf)
    floor = logits.max(axis=-1, keepdims=True) + mx.array(least)
    return mx.where(logits < floor, -mx.inf, logits)
