"""Draw the next token of each sequence, each from a random stream of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..utils.runtime import device_name
from .sequences import DecodingSequence


def sample(
    logits: mx.array, sequences: Sequence[DecodingSequence], context_of: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Draw one token for each sequence at temperature 1, or the likeliest without a stream.

    A token is found by inverting the cumulative distribution at a uniform number of the
    sequence's own stream, so it does not depend on the batch around it: with one worker or
    two, in a resumed run or an unbroken one, the draw is the same. Inversion also needs one
    exponential for each logit, where Gumbel noise needs two logarithms more.

    Args:
        logits: (contexts, V).
        sequences: What to draw for.
        context_of: For each sequence, the row of ``logits`` to draw from.

    Returns:
        Token ids, and their log-probabilities under the full distribution.
    """
    if device_name() == "cpu":
        return _sample_by_numpy(logits, sequences, context_of)
    if list(context_of) != list(range(logits.shape[0])):
        logits = logits[mx.array(list(context_of))]
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.argmax(logits, axis=-1)
    streams = [sequence.stream for sequence in sequences]
    if any(stream is not None for stream in streams):
        uniforms = np.array([2.0 if s is None else s.random() for s in streams], dtype=np.float32)
        cumulative = mx.cumsum(mx.exp(logits - norm), axis=-1)
        # The last entry is 1 up to rounding; scaling by it keeps every draw inside.
        target = mx.array(uniforms)[:, None] * cumulative[:, -1:]
        drawn = mx.minimum((cumulative <= target).sum(axis=-1), logits.shape[-1] - 1)
        chosen = mx.where(mx.array(uniforms) > 1.5, chosen, drawn)
    logprobs = mx.take_along_axis(logits, chosen[:, None], axis=-1) - norm
    mx.eval(chosen, logprobs)
    return np.array(chosen).tolist(), np.array(logprobs[:, 0]).tolist()


def _sample_by_numpy(
    logits: mx.array, sequences: Sequence[DecodingSequence], context_of: Sequence[int]
) -> tuple[list[int], list[float]]:
    """`sample` on a CPU, where numpy's exponential is many times faster than MLX's."""
    mx.eval(logits)
    scores = np.asarray(logits)
    highest = scores.max(axis=-1, keepdims=True)
    cumulative = np.exp(scores - highest).cumsum(axis=-1, dtype=np.float64)
    ids, logprobs = [], []
    for sequence, row in zip(sequences, context_of, strict=True):
        total = float(cumulative[row, -1])
        if sequence.stream is None:
            token = int(scores[row].argmax())
        else:
            # A token of probability 0 repeats the sum before it; side="right" skips it.
            draw = sequence.stream.random() * total
            token = int(cumulative[row].searchsorted(draw, side="right"))
            token = min(token, scores.shape[-1] - 1)
        ids.append(token)
        logprobs.append(float(scores[row, token] - highest[row, 0]) - math.log(total))
    return ids, logprobs
