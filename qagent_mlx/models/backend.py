"""Chooses what computes a model's inner loops: MLX alone, or numpy's kernels on a CPU.

On Apple silicon and CUDA every function here is a plain MLX expression. MLX's CPU backend
computes exponentials one at a time, so on a CPU the float32 ones run in `cpu_kernels`. No
other module asks which device this is.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np
from mlx_lm.models.activations import swiglu as mlx_swiglu

from . import cpu_kernels


@cache
def on_cpu() -> bool:
    """Whether MLX computes on a CPU rather than on Metal or CUDA; asked once a process."""
    return bool(mx.default_device() != mx.Device(mx.gpu))


def uses_numpy(dtype: mx.Dtype) -> bool:
    """Whether arrays of this type are computed by numpy's kernels: float32 on a CPU."""
    return on_cpu() and dtype == mx.float32


def default_dtype() -> str:
    """The precision that a model is loaded in: float32 on a CPU, else as it is stored.

    A CPU's matrix products are slow in all other types.
    """
    return "float32" if on_cpu() else "stored"


def softmax(
    scores: mx.array, bias: np.ndarray | None, scale: float, kept: cpu_kernels.Kept | None = None
) -> mx.array:
    """``softmax(scores * scale + bias)`` over the last axis.

    Args:
        scores: (..., queries, keys).
        bias: 0 or minus infinity; broadcasts to the scores. Every row keeps a finite score.
        scale: A factor of the scores.
        kept: For a softmax that is computed once for two passes, on a CPU.
    """
    if uses_numpy(scores.dtype):
        return cpu_kernels.softmax(scores, bias, scale, kept)
    scores = scores * scale
    if bias is not None:
        scores = scores + mx.array(bias).astype(scores.dtype)
    return mx.softmax(scores, axis=-1, precise=True)


def joint_softmax(
    prefix: mx.array,
    own: mx.array,
    prefix_bias: np.ndarray | None,
    own_bias: np.ndarray,
    scale: float,
    kept: cpu_kernels.Kept | None = None,
) -> tuple[mx.array, mx.array]:
    """One softmax over two sets of keys: a shared prefix's, and a sequence's own.

    Args:
        prefix: (groups, heads, members, queries, prefix keys) scores.
        own: (groups, members, heads, queries, own keys) scores.
        prefix_bias: (groups, prefix keys), or None where all of them count.
        own_bias: (groups, members, queries, own keys).
        scale: A factor of both scores.
        kept: As in `softmax`.

    Returns:
        Probabilities, shaped as ``prefix`` and as ``own``; together they add up to 1.
    """
    if uses_numpy(prefix.dtype):
        return cpu_kernels.joint_softmax(prefix, own, prefix_bias, own_bias, scale, kept)
    width = prefix.shape[-1]
    if prefix_bias is not None:
        prefix = prefix + mx.array(prefix_bias)[:, None, None, None].astype(prefix.dtype)
    own = own + mx.array(own_bias)[:, :, None].astype(own.dtype)
    joined = mx.concatenate([prefix, own.swapaxes(1, 2)], axis=-1)
    probabilities = mx.softmax(joined * scale, axis=-1, precise=True)
    return probabilities[..., :width], probabilities[..., width:].swapaxes(1, 2)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up``, the activation of a llama's feed-forward part."""
    activation = cpu_kernels.swiglu if uses_numpy(gate.dtype) else mlx_swiglu
    product: mx.array = activation(gate, up)
    return product


def token_logprobs(logits: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
    """The log-probability of each position's target, and the entropy of each position.

    Args:
        logits: (T, vocabulary), float32.
        target: (T,) token ids.

    Returns:
        (T,) log-probabilities, and (T,) entropies in nats that carry no gradient.
    """
    if uses_numpy(logits.dtype):
        return cpu_kernels.token_logprobs(logits, target)
    chosen = mx.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    return chosen - mx.logsumexp(logits, axis=-1), mx.stop_gradient(entropy(logits))


def entropy(logits: mx.array) -> mx.array:
    """(T,) entropy in nats of each row of (T, vocabulary) logits."""
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    return norm[:, 0] - (mx.exp(logits - norm) * logits).sum(axis=-1)
