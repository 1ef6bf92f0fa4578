"""numpy's kernels for Linux CPUs: softmax, SwiGLU and log-probabilities, with their gradients.

MLX's CPU backend computes exponentials one at a time (20 to 80 ns each), numpy's are
vectorised (1 to 3 ns), and both work on the same memory. So these functions leave MLX's graph
for a moment: numpy computes them in blocks that stay in the cache, large ones on all the
threads that BLAS may use. `backend` decides where they are used.

Everything is float32. Results agree with MLX's within a few units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..utils.blas import blas_threads
from .checkpointing import custom_function, detach

BLOCK = 1 << 16  # elements that are worked on at once: 256 KiB, about one L2 cache
THREADED = 1 << 19  # elements from which a second thread is worth its start
Constrain = Callable[[mx.array, int], mx.array]  # (rows, V) logits and their first row -> same
Kept = list[tuple[mx.array, ...]]
"""Empty, it receives what a softmax computes; then, it is what the same softmax returns."""

HEAD_BLOCK = 1 << 24  # logits that `head_logprobs` holds at once: 64 MiB


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(blas_threads(), thread_name_prefix="kernels")


def _in_blocks(shape: tuple[int, ...], compute: Callable[[slice], None]) -> None:
    """Call ``compute`` for slices of the first axis of arrays of this shape."""
    rows, width = shape[0], math.prod(shape[1:])
    step = max(1, BLOCK // max(1, width))

    def compute_part(first: int, last: int) -> None:
        # Large negative scores overflow in exp(-x) on their way to a sigmoid of 0.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for start in range(first, last, step):
                compute(slice(start, min(start + step, last)))

    threads = blas_threads()
    if rows * width < THREADED or threads < 2 or rows < 2:
        compute_part(0, rows)
        return
    cuts = [rows * i // threads for i in range(threads + 1)]
    for future in [_pool().submit(compute_part, a, b) for a, b in pairwise(cuts)]:
        future.result()


def _flat(array: mx.array) -> np.ndarray:
    """The array's memory as (rows, last axis); evaluates it. Copies only what is strided."""
    view = np.asarray(array)
    return view.reshape(-1, view.shape[-1])


def softmax(
    scores: mx.array, bias: np.ndarray | None, scale: float, kept: Kept | None = None
) -> mx.array:
    """`backend.softmax` of (..., queries, keys) scores."""

    @custom_function
    def run(scores: mx.array) -> mx.array:
        if kept:
            return kept[0][0]
        mx.eval(scores)
        view = np.asarray(scores)
        *lead, queries, keys = view.shape
        matrices = list(np.ndindex(*lead))
        out = np.empty(view.shape, dtype=np.float32)
        biases = None if bias is None else np.broadcast_to(bias, view.shape)

        def compute(part: slice) -> None:
            for matrix in matrices[part]:
                block = np.multiply(view[matrix], scale, out=out[matrix])
                if biases is not None:
                    block += biases[matrix]
                _normalise(block)

        _in_blocks((len(matrices), queries, keys), compute)
        result = mx.array(out)
        if kept is not None:
            kept.append((result,))
        return result

    @run.vjp
    def vjp(_primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        mx.eval(cotangent, output)
        probability, gradient = _flat(output), _flat(cotangent)
        out = np.empty(probability.shape, dtype=np.float32)

        def compute(part: slice) -> None:
            _softmax_gradient(probability[part], gradient[part], out[part], scale)

        _in_blocks(probability.shape, compute)
        return mx.array(out.reshape(output.shape))

    probabilities: mx.array = run(scores)
    return probabilities


def _normalise(block: np.ndarray) -> None:
    """Softmax over the last axis, in place."""
    block -= block.max(axis=-1, keepdims=True)
    np.exp(block, out=block)
    block *= 1 / block.sum(axis=-1, keepdims=True)


def _softmax_gradient(
    probability: np.ndarray, gradient: np.ndarray, out: np.ndarray, scale: float
) -> None:
    np.multiply(probability, gradient, out=out)
    out -= probability * out.sum(axis=-1, keepdims=True)
    out *= scale


@dataclass(frozen=True, slots=True)
class _TwoParts:
    """Where a group's head has its scores in two arrays: of a shared prefix, and of own keys."""

    prefix: tuple[int, ...]  # (groups, heads, members, queries, prefix keys)
    own: tuple[int, ...]  # (groups, members, heads, queries, own keys)

    @property
    def joined(self) -> tuple[int, ...]:
        """(groups * heads, members, queries, all keys)."""
        groups, heads, members, queries, width = self.prefix
        return groups * heads, members, queries, width + self.own[-1]

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for results."""
        return np.empty(self.prefix, np.float32), np.empty(self.own, np.float32)

    def join(self, both: Sequence[np.ndarray], i: int) -> np.ndarray:
        """What group and head ``i`` have of both, (members, queries, all keys)."""
        return np.concatenate(self._views(both, i), axis=-1)

    def put(self, block: np.ndarray, both: Sequence[np.ndarray], i: int) -> None:
        """Take such a block apart again."""
        left, right = self._views(both, i)
        left[...], right[...] = block[..., : self.prefix[-1]], block[..., self.prefix[-1] :]

    def _views(self, both: Sequence[np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray]:
        group, head = divmod(i, self.prefix[1])
        return both[0][group, head], both[1][group, :, head]


def joint_softmax(
    prefix: mx.array,
    own: mx.array,
    prefix_bias: np.ndarray | None,
    own_bias: np.ndarray,
    scale: float,
    kept: Kept | None = None,
) -> tuple[mx.array, mx.array]:
    """`backend.joint_softmax`."""
    parts, heads, width = _TwoParts(prefix.shape, own.shape), prefix.shape[1], prefix.shape[-1]

    @custom_function
    def run(prefix: mx.array, own: mx.array) -> tuple[mx.array, ...]:
        if kept:
            return kept[0]
        mx.eval(prefix, own)
        scores, out = (np.asarray(prefix), np.asarray(own)), parts.empty()

        def compute(part: slice) -> None:
            for i in range(part.start, part.stop):
                block = parts.join(scores, i)
                block *= scale
                if prefix_bias is not None:
                    block[..., :width] += prefix_bias[i // heads]
                block[..., width:] += own_bias[i // heads]
                _normalise(block)
                parts.put(block, out, i)

        _in_blocks(parts.joined, compute)
        result = mx.array(out[0]), mx.array(out[1])
        if kept is not None:
            kept.append(result)
        return result

    @run.vjp
    def vjp(_primals: Any, cotangents: Any, outputs: Any) -> Any:
        mx.eval(outputs, cotangents)
        of_outputs, given = ([np.asarray(x) for x in pair] for pair in (outputs, cotangents))
        out = parts.empty()

        def compute(part: slice) -> None:
            for i in range(part.start, part.stop):
                gradient = parts.join(given, i)
                # Overwrites the gradient while it is read, element by element.
                _softmax_gradient(parts.join(of_outputs, i), gradient, gradient, scale)
                parts.put(gradient, out, i)

        _in_blocks(parts.joined, compute)
        return mx.array(out[0]), mx.array(out[1])

    probabilities: tuple[mx.array, mx.array] = run(prefix, own)
    return probabilities


@custom_function
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up``."""
    mx.eval(gate, up)
    gates, ups = _flat(gate), _flat(up)
    out = np.empty(gates.shape, dtype=np.float32)

    def compute(part: slice) -> None:
        block = out[part]
        _sigmoid(gates[part], block)
        block *= gates[part]
        block *= ups[part]

    _in_blocks(gates.shape, compute)
    return mx.array(out.reshape(gate.shape))


@swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: mx.array, _output: mx.array) -> Any:
    gate, up = primals
    return swiglu_gradient(gate, up, cotangent)


def swiglu_gradient(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    """The gradient of `swiglu` by both of its inputs."""
    mx.eval(gate, up, cotangent)
    gates, ups, gradients = _flat(gate), _flat(up), _flat(cotangent)
    gate_gradients = np.empty(gates.shape, dtype=np.float32)
    up_gradients = np.empty(gates.shape, dtype=np.float32)

    def compute(part: slice) -> None:
        by_gate, by_up = gate_gradients[part], up_gradients[part]
        _sigmoid(gates[part], by_gate)
        np.multiply(gates[part], by_gate, out=by_up)  # silu
        # d silu = s + silu * (1 - s)
        by_gate += by_up * (1 - by_gate)
        by_gate *= gradients[part]
        by_gate *= ups[part]
        by_up *= gradients[part]

    _in_blocks(gates.shape, compute)
    return mx.array(gate_gradients.reshape(gate.shape)), mx.array(up_gradients.reshape(gate.shape))


def _sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _log_normaliser(logits: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-sum-exp and entropy of each row; ``probabilities`` receives the softmax."""
    highest = logits.max(axis=-1, keepdims=True)
    np.subtract(logits, highest, out=probabilities)
    np.exp(probabilities, out=probabilities)
    total = probabilities.sum(axis=-1, keepdims=True)
    probabilities *= 1 / total
    norm = (highest + np.log(total))[:, 0]
    return norm, norm - np.einsum("ij,ij->i", probabilities, logits)


def _score(
    logits: np.ndarray, ids: np.ndarray, probabilities: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each row's id, and entropy; ``probabilities`` receives the softmax."""
    logprobs, entropies = np.empty(len(ids), np.float32), np.empty(len(ids), np.float32)

    def compute(part: slice) -> None:
        rows = logits[part]
        softmax = np.empty_like(rows) if probabilities is None else probabilities[part]
        norm, entropies[part] = _log_normaliser(rows, softmax)
        logprobs[part] = rows[np.arange(len(rows)), ids[part]] - norm

    _in_blocks(logits.shape, compute)
    return logprobs, entropies


def token_logprobs(logits: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
    """`backend.token_logprobs`."""
    mx.eval(target)
    ids = np.asarray(target)

    @custom_function
    def run(logits: mx.array) -> tuple[mx.array, mx.array]:
        mx.eval(logits)
        logprobs, entropies = _score(_flat(logits), ids)
        return mx.array(logprobs), mx.array(entropies)

    @run.vjp
    def vjp(primals: Any, cotangents: Any, _outputs: Any) -> mx.array:
        (logits,) = primals if isinstance(primals, (tuple, list)) else (primals,)
        mx.eval(logits, cotangents[0])
        rows, gradient = _flat(logits), np.asarray(cotangents[0])
        out = np.empty(rows.shape, dtype=np.float32)

        def compute(part: slice) -> None:
            block = out[part]
            _log_normaliser(rows[part], block)
            np.negative(block, out=block)
            block[np.arange(len(block)), ids[part]] += 1
            block *= gradient[part, None]

        _in_blocks(rows.shape, compute)
        return mx.array(out)

    scores: tuple[mx.array, mx.array] = run(logits)
    return scores


def head_logprobs(
    hidden: mx.array,
    weight: mx.array,
    target: mx.array,
    gradient: bool = True,
    constrain: Constrain | None = None,
) -> tuple[mx.array, mx.array]:
    """`token_logprobs` of ``hidden @ weight.T`` for a head that is not trained.

    The logits exist for a block of rows at a time. The gradient of a log-probability with
    respect to its own hidden state, ``weight[target] - p @ weight``, is computed beside it,
    so that nothing of the vocabulary's size is kept or computed again.

    Args:
        hidden: (T, width) float32.
        weight: (vocabulary, width) float32.
        target: (T,) token ids.
        gradient: Whether a gradient will be taken; the reference policy needs none.
        constrain: Applied to each block of logits; may only add constants to them.
    """
    mx.eval(target)
    ids = np.asarray(target)
    step = max(1, HEAD_BLOCK // weight.shape[0])

    def in_blocks(hidden: mx.array) -> tuple[mx.array, mx.array, list[mx.array]]:
        logprobs, entropies = np.empty(len(ids), np.float32), np.empty(len(ids), np.float32)
        gradients = []
        for start in range(0, len(ids), step):
            rows = slice(start, start + step)
            logits = hidden[rows] @ weight.T
            if constrain is not None:
                logits = constrain(logits, start)
            mx.eval(logits)
            view = np.asarray(logits)
            if not gradient:
                logprobs[rows], entropies[rows] = _score(view, ids[rows])
                continue
            probabilities = np.empty_like(view)
            logprobs[rows], entropies[rows] = _score(view, ids[rows], probabilities)
            chosen = weight[mx.array(ids[rows])]
            gradients.append(detach(chosen - mx.array(probabilities) @ weight))
        return mx.array(logprobs), mx.array(entropies), gradients

    if not gradient:
        return in_blocks(hidden)[:2]
    hidden_gradient: list[mx.array] = []

    @custom_function
    def run(hidden: mx.array) -> tuple[mx.array, mx.array]:
        logprobs, entropies, gradients = in_blocks(detach(hidden))
        hidden_gradient.append(mx.concatenate(gradients))
        return logprobs, entropies

    @run.vjp
    def vjp(_primals: Any, cotangents: Any, _outputs: Any) -> mx.array:
        return cotangents[0][:, None] * hidden_gradient[0]

    scores: tuple[mx.array, mx.array] = run(hidden)
    return scores
