"""What models compute is the same by numpy's kernels and by MLX's own expressions."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from qagent_mlx.models import backend


def close(a, b, tolerance=2e-5):
    return np.allclose(np.array(a), np.array(b), atol=tolerance, rtol=1e-4)


def by_both(monkeypatch, compute):
    """What ``compute`` returns on a CPU, and elsewhere."""
    results = []
    for on_cpu in (True, False):
        monkeypatch.setattr(backend, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        results.append(compute())
    return results


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size():
    assert float(backend.entropy(mx.zeros((1, 8)))[0]) == pytest.approx(np.log(8), abs=1e-5)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_backend_computes_alike_by_numpy_and_by_mlx(on_cpu, monkeypatch):
    monkeypatch.setattr(backend, "on_cpu", lambda: on_cpu)
    gate, up = mx.random.normal((3, 5)), mx.random.normal((3, 5))
    assert close(backend.swiglu(gate, up), nn.silu(gate) * up)
    logits, target = mx.random.normal((4, 9)), mx.array([0, 3, 8, 2])
    logprob, entropy = backend.token_logprobs(logits, target)
    expected = nn.log_softmax(logits, axis=-1)
    assert close(logprob, expected[mx.arange(4), target])
    assert close(entropy, -(mx.exp(expected) * expected).sum(axis=-1))
    assert backend.default_dtype() == ("float32" if on_cpu else "stored")
    assert not backend.uses_numpy(mx.bfloat16)


def test_softmax_adds_the_bias_behind_the_scale(monkeypatch):
    scores = mx.random.normal((2, 4, 5))
    bias = np.where(np.tri(4, 5, 1, dtype=bool), np.float32(0), np.float32(-np.inf))
    numpy, mlx = by_both(monkeypatch, lambda: backend.softmax(scores, bias, 0.3))
    assert close(numpy, mlx)
    assert close(mlx, mx.softmax(scores * 0.3 + mx.array(bias), axis=-1))


@pytest.mark.parametrize("padded", [False, True])
def test_a_joint_softmax_and_its_gradient(padded, monkeypatch):
    """Of 2 groups with 3 members each, 2 heads, 4 queries, 5 prefix keys and 4 own ones."""
    prefix, own = mx.random.normal((2, 2, 3, 4, 5)), mx.random.normal((2, 3, 2, 4, 4))
    weights = mx.random.normal(prefix.shape), mx.random.normal(own.shape)
    causal = np.where(np.tri(4, dtype=bool), np.float32(0), np.float32(-np.inf))
    own_bias = np.broadcast_to(causal, (2, 3, 4, 4))
    prefix_bias = np.zeros((2, 5), np.float32)
    prefix_bias[1, 3:] = -np.inf

    def probabilities(prefix, own):
        return backend.joint_softmax(prefix, own, prefix_bias if padded else None, own_bias, 0.5)

    def weighted(prefix, own):
        parts = zip(weights, probabilities(prefix, own), strict=True)
        return sum((weight * part).sum() for weight, part in parts)

    numpy, mlx = by_both(monkeypatch, lambda: probabilities(prefix, own))
    assert all(close(a, b) for a, b in zip(numpy, mlx, strict=True))
    total = numpy[0].sum(axis=-1) + numpy[1].sum(axis=-1).swapaxes(1, 2)
    assert close(total, mx.ones_like(total))
    numpy, mlx = by_both(monkeypatch, lambda: mx.grad(weighted, (0, 1))(prefix, own))
    assert all(close(a, b) for a, b in zip(numpy, mlx, strict=True))
