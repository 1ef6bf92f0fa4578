"""Gradient checkpointing on a CPU: keep a function's inputs and compute it again.

MLX's tape keeps every array that it saw computed, needed or not. A block that is written with
these functions keeps about a sixth of that, so that an update of SmolLM2 fits in the memory of
a small machine. The results are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

custom_function: Any = mx.custom_function  # MLX's stubs do not say what it returns


def detach(array: mx.array) -> mx.array:
    """A copy that stands outside of the gradient's tape.

    What is computed from copies inside of a custom function is freed when the function returns.
    """
    mx.eval(array)
    return mx.array(np.asarray(array)) if array.dtype == mx.float32 else mx.array(array)


def checkpoint(function: Callable[..., Any], *inputs: mx.array) -> Any:
    """``function(*inputs)``, which keeps only its inputs for the gradient.

    Args:
        function: Maps arrays to a tuple of arrays; cheap beside the matrix products around it.
        inputs: All arrays that a gradient has to reach.
    """

    @custom_function
    def run(*arrays: mx.array) -> Any:
        return tuple(map(detach, function(*map(detach, arrays))))

    @run.vjp
    def vjp(primals: Any, cotangents: Any, _outputs: Any) -> Any:
        # MLX passes a single input as itself, several as a tuple.
        arrays = [primals] if len(inputs) == 1 else primals
        _, gradients = mx.vjp(function, list(map(detach, arrays)), list(map(detach, cotangents)))
        mx.eval(gradients)
        # Without the copies each gradient would hold on to all that it was computed from.
        detached = tuple(map(detach, gradients))
        return detached[0] if len(inputs) == 1 else detached

    return run(*inputs)


def lora_linear(
    x: mx.array, weight: mx.array, bias: mx.array | None, a: mx.array, b: mx.array, scale: float
) -> mx.array:
    """A frozen linear layer with its adapter: ``x @ weight.T + bias + scale * x @ a @ b``.

    Keeps only ``x`` for the gradient.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
        a: (in, rank).
        b: (rank, out).
        scale: The adapter's factor.
    """

    @custom_function
    def run(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        x = detach(x)
        output = x @ weight.T + (x @ detach(a)) @ (scale * detach(b))
        if bias is not None:
            output = output + bias
        return detach(output)

    @run.vjp
    def vjp(primals: Any, cotangent: mx.array, _output: mx.array) -> Any:
        x, a, b = map(detach, primals)
        gradient = detach(cotangent)
        by_rank = gradient @ (scale * b).T
        x_gradient = gradient @ weight + by_rank @ a.T
        tokens = x.reshape(-1, x.shape[-1])
        a_gradient = tokens.T @ by_rank.reshape(-1, by_rank.shape[-1])
        b_gradient = scale * ((tokens @ a).T @ gradient.reshape(-1, gradient.shape[-1]))
        mx.eval(x_gradient, a_gradient, b_gradient)
        return detach(x_gradient), detach(a_gradient), detach(b_gradient)

    output: mx.array = run(x, a, b)
    return output
