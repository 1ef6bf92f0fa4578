"""Softmax, SwiGLU and log-softmax for a CPU, with their gradients.

MLX's CPU backend computes exponentials one at a time (20 to 80 ns each), numpy's are
vectorised (1 to 3 ns), and both work on the same memory. So on a CPU these three leave the
graph for a moment: numpy computes them in blocks that stay in the cache, large ones on all
the threads that BLAS may use. On a GPU the plain MLX expressions are used.

Everything is float32. Results agree with MLX's within a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..utils.blas import blas_threads

BLOCK = 1 << 16  # elements that are worked on at once: 256 KiB, about one L2 cache
THREADED = 1 << 19  # elements from which a second thread is worth its start

Work = Callable[[slice], None]
custom: Any = mx.custom_function  # its stubs know nothing of what it returns


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(blas_threads(), thread_name_prefix="kernels")


def _in_blocks(rows: int, width: int, work: Work) -> None:
    """Call ``work`` for slices of ``rows`` rows of ``width`` elements."""
    step = max(1, BLOCK // max(1, width))

    def part(first: int, last: int) -> None:
        # Large negative scores overflow in exp(-x) on their way to a sigmoid of 0.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for start in range(first, last, step):
                work(slice(start, min(start + step, last)))

    count = blas_threads()
    if rows * width < THREADED or count < 2 or rows < 2:
        part(0, rows)
        return
    cuts = [rows * i // count for i in range(count + 1)]
    for future in [_pool().submit(part, a, b) for a, b in pairwise(cuts)]:
        future.result()


def _flat(array: mx.array) -> np.ndarray:
    """The array's memory as (rows, last axis); evaluates it. Copies only what is strided."""
    view = np.asarray(array)
    return view.reshape(-1, view.shape[-1])


# ---------------------------------------------------------------- what a gradient keeps


def detach(array: mx.array) -> mx.array:
    """A copy that stands outside of the gradient's tape.

    The tape keeps every array that it saw computed, needed or not. What is computed from
    copies inside of a custom function is let go of when the function returns.
    """
    mx.eval(array)
    return mx.array(np.asarray(array)) if array.dtype == mx.float32 else mx.array(array)


def recomputed(call: Callable[..., Any], *inputs: mx.array) -> Any:
    """``call(*inputs)`` which keeps only its inputs for the gradient, and computes again.

    Args:
        call: Of arrays to a tuple of arrays; cheap beside the matrix products around it.
        inputs: All arrays that a gradient shall reach.
    """

    @custom
    def run(*given: mx.array) -> Any:
        return tuple(map(detach, call(*map(detach, given))))

    @run.vjp
    def slopes(primals: Any, cotangents: Any, _outputs: Any) -> Any:
        # A single input comes as itself, several as a tuple.
        given = [primals] if len(inputs) == 1 else primals
        _, made = mx.vjp(call, list(map(detach, given)), list(map(detach, cotangents)))
        mx.eval(made)
        # Without the copies each slope would hold on to all that it was computed from.
        cut = tuple(map(detach, made))
        return cut[0] if len(inputs) == 1 else cut

    return run(*inputs)


def lora_linear(
    x: mx.array, weight: mx.array, bias: mx.array | None, a: mx.array, b: mx.array, scale: float
) -> mx.array:
    """A frozen linear layer with its adapter: ``x @ weight.T + bias + scale * x @ a @ b``.

    Keeps ``x`` for the gradient and nothing in between.
    """

    @custom
    def run(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        x = detach(x)
        made = x @ weight.T + (x @ detach(a)) @ (scale * detach(b))
        if bias is not None:
            made = made + bias
        return detach(made)

    @run.vjp
    def slopes(primals: Any, cotangent: mx.array, _output: mx.array) -> Any:
        x, a, b = map(detach, primals)
        slope = detach(cotangent)
        inner = slope @ (scale * b).T
        to_x = slope @ weight + inner @ a.T
        rows = x.reshape(-1, x.shape[-1])
        flat = slope.reshape(-1, slope.shape[-1])
        to_a = rows.T @ inner.reshape(-1, inner.shape[-1])
        to_b = scale * ((rows @ a).T @ flat)
        mx.eval(to_x, to_a, to_b)
        return detach(to_x), detach(to_a), detach(to_b)

    made: mx.array = run(x, a, b)
    return made


# ---------------------------------------------------------------- softmax


def softmax(scores: mx.array, bias: np.ndarray | None, scale: float) -> mx.array:
    """``softmax(scores * scale + bias)`` over the last axis.

    ``bias`` (0 or minus infinity) broadcasts to the scores; every row keeps a finite score.
    """

    @custom
    def run(scores: mx.array) -> mx.array:
        mx.eval(scores)
        view = np.asarray(scores)
        width = view.shape[-1]
        flat = view.reshape(-1, width)
        out = np.empty(flat.shape, dtype=np.float32)
        added = None
        if bias is not None:
            # Rows of one (row, head) matrix share their place in the bias.
            inner = view.shape[-2]
            added = np.broadcast_to(bias, view.shape)
        if added is None:

            def work(at: slice) -> None:
                block = np.multiply(flat[at], scale, out=out[at])
                _normalise(block)

            _in_blocks(len(flat), width, work)
        else:
            lead = view.shape[:-2]
            count = int(np.prod(lead))
            shaped = flat.reshape(count, inner, width)
            target = out.reshape(count, inner, width)
            places = list(np.ndindex(*lead))

            def masked(at: slice) -> None:
                for i in range(at.start, at.stop):
                    block = np.multiply(shaped[i], scale, out=target[i])
                    block += added[places[i]]
                    _normalise(block)

            _in_blocks(count, inner * width, masked)
        return mx.array(out.reshape(view.shape))

    @run.vjp
    def gradient(_primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        mx.eval(cotangent, output)
        chance, slope = _flat(output), _flat(cotangent)
        out = np.empty(chance.shape, dtype=np.float32)

        def work(at: slice) -> None:
            _softmax_slope(chance[at], slope[at], out[at], scale)

        _in_blocks(chance.shape[0], chance.shape[1], work)
        return mx.array(out.reshape(output.shape))

    made: mx.array = run(scores)
    return made


def _normalise(block: np.ndarray) -> None:
    block -= block.max(axis=-1, keepdims=True)
    np.exp(block, out=block)
    block *= 1 / block.sum(axis=-1, keepdims=True)


def _softmax_slope(chance: np.ndarray, slope: np.ndarray, out: np.ndarray, scale: float) -> None:
    np.multiply(chance, slope, out=out)
    out -= chance * out.sum(axis=-1, keepdims=True)
    out *= scale


def joint_softmax(
    left: mx.array,
    right: mx.array,
    left_bias: np.ndarray | None,
    right_bias: np.ndarray,
    scale: float,
) -> tuple[mx.array, mx.array]:
    """One softmax over two sets of keys: a shared prefix's, and a row's own.

    Args:
        left: (groups, heads, members, queries, prefix) scores.
        right: (groups, members, heads, queries, own) scores.
        left_bias: (groups, prefix), or None where all of it counts.
        right_bias: (groups, members, queries, own).
        scale: Of both scores.

    Returns:
        Probabilities, shaped as ``left`` and as ``right``; together they add up to 1.
    """
    width = left.shape[-1]

    def join(a: mx.array, b: mx.array) -> np.ndarray:
        mx.eval(a, b)
        groups, heads, members, queries, _ = a.shape
        joined = np.empty((groups * heads, members, queries, width + b.shape[-1]), np.float32)
        first = np.asarray(a).reshape(groups * heads, members, queries, width)
        second = np.asarray(b)
        for i in range(groups * heads):
            joined[i, ..., :width] = first[i]
            joined[i, ..., width:] = second[i // heads, :, i % heads]
        return joined

    def cut(joined: np.ndarray, shapes: tuple[Any, Any]) -> tuple[mx.array, mx.array]:
        first, second = np.empty(shapes[0], np.float32), np.empty(shapes[1], np.float32)
        heads = shapes[0][1]
        into = first.reshape(-1, *shapes[0][2:])
        for i in range(len(joined)):
            into[i] = joined[i, ..., :width]
            second[i // heads, :, i % heads] = joined[i, ..., width:]
        return mx.array(first), mx.array(second)

    @custom
    def run(left: mx.array, right: mx.array) -> tuple[mx.array, mx.array]:
        joined = join(left, right)
        heads = left.shape[1]

        def work(at: slice) -> None:
            for i in range(at.start, at.stop):
                block = joined[i]
                block *= scale
                if left_bias is not None:
                    block[..., :width] += left_bias[i // heads]
                block[..., width:] += right_bias[i // heads]
                _normalise(block)

        _in_blocks(len(joined), joined[0].size, work)
        return cut(joined, (left.shape, right.shape))

    @run.vjp
    def gradient(_primals: Any, cotangents: Any, outputs: Any) -> Any:
        chance, slope = join(*outputs), join(*cotangents)

        def work(at: slice) -> None:
            for i in range(at.start, at.stop):
                _softmax_slope(chance[i], slope[i], slope[i], scale)

        # The slope is overwritten while it is read, element by element: that is safe.
        _in_blocks(len(chance), chance[0].size, work)
        return cut(slope, (outputs[0].shape, outputs[1].shape))

    made: tuple[mx.array, mx.array] = run(left, right)
    return made


def attend_once(
    queries: mx.array, keys: mx.array, values: mx.array, bias: np.ndarray | None, scale: float
) -> mx.array:
    """Attention of a few queries a row, without a gradient: decoding.

    numpy multiplies such thin matrices several times faster than MLX's CPU backend.

    Args:
        queries: (rows, key heads, queries, width).
        keys: (rows, key heads, keys, width); ``values`` alike.
        bias: Broadcasts to (rows, key heads, queries, keys).
        scale: Of the scores.
    """
    mx.eval(queries, keys, values)
    scores = np.matmul(np.asarray(queries), np.asarray(keys).swapaxes(-1, -2))
    scores *= scale
    if bias is not None:
        scores += bias
    _normalise(scores)
    return mx.array(np.matmul(scores, np.asarray(values)))


# ---------------------------------------------------------------- SwiGLU


@custom
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up``."""
    mx.eval(gate, up)
    gates, ups = _flat(gate), _flat(up)
    out = np.empty(gates.shape, dtype=np.float32)

    def work(at: slice) -> None:
        block = out[at]
        _sigmoid(gates[at], block)
        block *= gates[at]
        block *= ups[at]

    _in_blocks(gates.shape[0], gates.shape[1], work)
    return mx.array(out.reshape(gate.shape))


@swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: mx.array, _output: mx.array) -> Any:
    gate, up = primals
    mx.eval(gate, up, cotangent)
    gates, ups, slopes = _flat(gate), _flat(up), _flat(cotangent)
    to_gate = np.empty(gates.shape, dtype=np.float32)
    to_up = np.empty(gates.shape, dtype=np.float32)

    def work(at: slice) -> None:
        g, slope, first, second = gates[at], slopes[at], to_gate[at], to_up[at]
        _sigmoid(g, first)
        np.multiply(g, first, out=second)  # silu
        # d silu = s + silu * (1 - s)
        first += second * (1 - first)
        first *= slope
        first *= ups[at]
        second *= slope

    _in_blocks(gates.shape[0], gates.shape[1], work)
    return mx.array(to_gate.reshape(gate.shape)), mx.array(to_up.reshape(gate.shape))


def _sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


# ---------------------------------------------------------------- log-probabilities


def _log_normaliser(block: np.ndarray, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-sum-exp and entropy of each row; ``spare`` is left holding the probabilities."""
    highest = block.max(axis=-1, keepdims=True)
    np.subtract(block, highest, out=spare)
    np.exp(spare, out=spare)
    total = spare.sum(axis=-1, keepdims=True)
    spare *= 1 / total
    norm = (highest + np.log(total))[:, 0]
    return norm, norm - np.einsum("ij,ij->i", spare, block)


def token_logprobs(logits: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
    """Log-probability of each row's target, and the rows' entropy (which has no gradient).

    Args:
        logits: (T, vocabulary), float32.
        target: (T,) ids.
    """
    mx.eval(target)
    wanted = np.asarray(target)

    @custom
    def run(logits: mx.array) -> tuple[mx.array, mx.array]:
        mx.eval(logits)
        view = _flat(logits)
        logprob, entropy = np.empty(len(view), np.float32), np.empty(len(view), np.float32)

        def work(at: slice) -> None:
            block = view[at]
            norm, entropy[at] = _log_normaliser(block, np.empty_like(block))
            logprob[at] = block[np.arange(len(block)), wanted[at]] - norm

        _in_blocks(view.shape[0], view.shape[1], work)
        return mx.array(logprob), mx.array(entropy)

    @run.vjp
    def gradient(primals: Any, cotangents: Any, _outputs: Any) -> mx.array:
        (given,) = primals if isinstance(primals, (tuple, list)) else (primals,)
        mx.eval(given, cotangents[0])
        view, slope = _flat(given), np.asarray(cotangents[0])
        out = np.empty(view.shape, dtype=np.float32)

        def work(at: slice) -> None:
            block = out[at]
            _log_normaliser(view[at], block)
            np.negative(block, out=block)
            block[np.arange(len(block)), wanted[at]] += 1
            block *= slope[at, None]

        _in_blocks(view.shape[0], view.shape[1], work)
        return mx.array(out)

    made: tuple[mx.array, mx.array] = run(logits)
    return made


HEAD_BLOCK = 1 << 24  # logits that are held at once by `head_logprobs`: 64 MiB


def head_logprobs(
    hidden: mx.array, weight: mx.array, target: mx.array, gradient: bool = True
) -> tuple[mx.array, mx.array]:
    """`token_logprobs` of ``hidden @ weight.T`` for a head that is not trained.

    The logits exist for a block of rows at a time. The gradient of a log-probability with
    respect to its own hidden state, ``weight[target] - p @ weight``, is computed beside it,
    so that nothing of the vocabulary's size is kept or computed again.

    Args:
        hidden: (T, width) float32.
        weight: (vocabulary, width) float32.
        target: (T,) ids.
        gradient: Whether there will be one; a reference needs none.
    """
    mx.eval(target)
    wanted = np.asarray(target)
    rows = max(1, HEAD_BLOCK // weight.shape[0])

    def blocks(hidden: mx.array, sloped: bool) -> tuple[mx.array, mx.array, mx.array | None]:
        logprob, entropy = np.empty(len(wanted), np.float32), np.empty(len(wanted), np.float32)
        slopes = []
        for start in range(0, len(wanted), rows):
            ids = wanted[start : start + rows]
            logits = hidden[start : start + rows] @ weight.T
            mx.eval(logits)
            view = np.asarray(logits)
            chances = np.empty_like(view)

            def work(
                at: slice,
                start: int = start,
                view: np.ndarray = view,
                chances: np.ndarray = chances,
                ids: np.ndarray = ids,
            ) -> None:
                block = view[at]
                norm, bits = _log_normaliser(block, chances[at])
                into = slice(start + at.start, start + at.stop)
                entropy[into] = bits
                logprob[into] = block[np.arange(len(block)), ids[at]] - norm

            _in_blocks(view.shape[0], view.shape[1], work)
            if sloped:
                slope = weight[mx.array(ids)] - mx.array(chances) @ weight
                slopes.append(detach(slope))
        made = mx.concatenate(slopes) if sloped else None
        return mx.array(logprob), mx.array(entropy), made

    if not gradient:
        return blocks(hidden, False)[:2]
    kept: list[mx.array] = []

    @custom
    def run(hidden: mx.array) -> tuple[mx.array, mx.array]:
        logprob, entropy, slope = blocks(detach(hidden), True)
        assert slope is not None
        kept.append(slope)
        return logprob, entropy

    @run.vjp
    def slope_of(_primals: Any, cotangents: Any, _outputs: Any) -> mx.array:
        return cotangents[0][:, None] * kept[0]

    made: tuple[mx.array, mx.array] = run(hidden)
    return made
