"""numpy's kernels compute what MLX's own expressions compute, gradients included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qagent_mlx.models import backend, cpu_kernels

floats = st.floats(-200, 200, width=32)


def close(a, b, tolerance=2e-5):
    return np.allclose(np.array(a), np.array(b), atol=tolerance, rtol=1e-4)


@given(arrays(np.float32, (2, 3, 4, 5), elements=floats), st.floats(0.1, 2))
def test_softmax_and_its_gradient(values, scale):
    bias = np.where(np.tri(4, 5, 1, dtype=bool), np.float32(0), np.float32(-np.inf))
    weight = mx.array(np.linspace(-1, 1, values.size, dtype=np.float32).reshape(values.shape))

    def plain(x):
        return mx.softmax(x * scale + mx.array(bias), axis=-1)

    def ours(x):
        return cpu_kernels.softmax(x, bias, scale)

    x = mx.array(values)
    assert close(ours(x), plain(x))
    gradient, expected = (mx.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (ours, plain))
    assert close(gradient, expected)


@given(arrays(np.float32, (6, 7), elements=floats), arrays(np.float32, (6, 7), elements=floats))
def test_swiglu_and_its_gradient(gate, up):
    gate, up = mx.array(gate), mx.array(up)
    plain = lambda g, u: (nn.silu(g) * u * 0.01).sum()  # noqa: E731
    ours = lambda g, u: (cpu_kernels.swiglu(g, u) * 0.01).sum()  # noqa: E731
    assert close(cpu_kernels.swiglu(gate, up), nn.silu(gate) * up, 1e-3)
    for gradient, expected in zip(
        mx.grad(ours, (0, 1))(gate, up), mx.grad(plain, (0, 1))(gate, up), strict=True
    ):
        assert close(gradient, expected, 1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_log_probabilities_entropy_and_gradient(fused, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "HEAD_BLOCK", 100)  # several blocks
    hidden, weight = mx.random.normal((9, 8)), mx.random.normal((40, 8))
    target = mx.array(np.arange(9) * 4)

    def plain(h):
        logits = h @ weight.T
        chosen = mx.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return chosen - mx.logsumexp(logits, axis=-1)

    def ours(h):
        if fused:
            return cpu_kernels.head_logprobs(h, weight, target)
        return cpu_kernels.token_logprobs(h @ weight.T, target)

    logprob, entropy = ours(hidden)
    assert close(logprob, plain(hidden))
    assert close(entropy, backend.entropy(hidden @ weight.T))
    weights = mx.random.normal((9,))
    gradient = mx.grad(lambda h: (weights * ours(h)[0]).sum())(hidden)
    assert close(gradient, mx.grad(lambda h: (weights * plain(h)).sum())(hidden))
    if fused:
        assert close(cpu_kernels.head_logprobs(hidden, weight, target, gradient=False)[0], logprob)


def test_large_arrays_on_several_threads_are_the_same(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "blas_threads", lambda: 2)
    x = mx.random.normal((40, 20000))
    assert close(cpu_kernels.softmax(x[None], None, 1.0), mx.softmax(x[None], axis=-1))
