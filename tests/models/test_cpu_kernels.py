"""numpy's kernels compute what MLX's own expressions compute, gradients included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qagent_mlx.models import cpu_kernels, transformer_blocks
from qagent_mlx.policy.scoring import entropy

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
    found, expected = (mx.grad(lambda x, f=f: (weight * f(x)).sum())(x) for f in (ours, plain))
    assert close(found, expected)


@given(arrays(np.float32, (6, 7), elements=floats), arrays(np.float32, (6, 7), elements=floats))
def test_swiglu_and_its_gradient(gate, up):
    gate, up = mx.array(gate), mx.array(up)
    plain = lambda g, u: (nn.silu(g) * u * 0.01).sum()  # noqa: E731
    ours = lambda g, u: (cpu_kernels.swiglu(g, u) * 0.01).sum()  # noqa: E731
    assert close(cpu_kernels.swiglu(gate, up), nn.silu(gate) * up, 1e-3)
    for found, expected in zip(
        mx.grad(ours, (0, 1))(gate, up), mx.grad(plain, (0, 1))(gate, up), strict=True
    ):
        assert close(found, expected, 1e-4)


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

    logprob, spread = ours(hidden)
    assert close(logprob, plain(hidden))
    assert close(spread, entropy(hidden @ weight.T))
    slope = mx.random.normal((9,))
    found = mx.grad(lambda h: (slope * ours(h)[0]).sum())(hidden)
    assert close(found, mx.grad(lambda h: (slope * plain(h)).sum())(hidden))
    if fused:
        assert close(cpu_kernels.head_logprobs(hidden, weight, target, gradient=False)[0], logprob)


def test_large_arrays_on_several_threads_are_the_same(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "blas_threads", lambda: 2)
    x = mx.random.normal((40, 20000))
    assert close(cpu_kernels.softmax(x[None], None, 1.0), mx.softmax(x[None], axis=-1))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("heads", [2, 4])
def test_blocks_compute_what_the_model_computes(device, heads, monkeypatch):
    """By numpy as on a CPU, and by the plain expressions that a GPU gets."""
    from mlx_lm.models import llama

    monkeypatch.setattr(transformer_blocks, "device_name", lambda: device)
    model = llama.Model(
        llama.ModelArgs.from_dict(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "num_hidden_layers": 3,
                "intermediate_size": 96,
                "num_attention_heads": heads,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-5,
                "vocab_size": 99,
            }
        )
    )
    assert transformer_blocks.supported(model)
    tokens = mx.array(np.random.default_rng(0).integers(0, 99, (3, 11)))
    expected = model.model(tokens)
    hidden = model.model.embed_tokens(tokens)
    assert close(
        transformer_blocks.run(model, hidden, transformer_blocks.CausalAttention(11)), expected
    )
    # In two parts, and as suffixes of shared prefixes in groups of unequal size.
    lower = transformer_blocks.run(
        model, hidden, transformer_blocks.CausalAttention(11), 0, 2, norm=False
    )
    assert close(
        transformer_blocks.run(model, lower, transformer_blocks.CausalAttention(11), 2), expected
    )
    rows = mx.concatenate([tokens[:1], tokens[:1], tokens[1:2]])
    rows[1, 8:] = rows[1, 8:] + 1
    prefix = transformer_blocks.CausalAttention(6)
    transformer_blocks.run(
        model, model.model.embed_tokens(mx.stack([rows[0, :6], rows[2, :6]])), prefix
    )
    shared = transformer_blocks.SharedPrefixAttention(
        prefix, np.array([0, 0, 1]), np.array([6, 6]), 5
    )
    own = transformer_blocks.run(model, model.model.embed_tokens(rows[:, 6:]), shared)
    assert close(own, model.model(rows)[:, 6:])


def test_models_that_are_composed_otherwise_run_as_they_are():
    from mlx_lm.models import gemma

    model = gemma.Model(
        gemma.ModelArgs.from_dict(
            {
                "model_type": "gemma",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "intermediate_size": 64,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "rms_norm_eps": 1e-5,
                "vocab_size": 50,
            }
        )
    )
    assert not transformer_blocks.supported(model)
