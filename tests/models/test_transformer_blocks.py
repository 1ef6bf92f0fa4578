"""Blocks that are run one by one compute what the whole model computes."""

import mlx.core as mx
import numpy as np
import pytest

from qagent_mlx.models import backend, transformer_blocks
from qagent_mlx.models.attention import CausalAttention, SharedPrefixAttention


def close(a, b, tolerance=2e-5):
    return np.allclose(np.array(a), np.array(b), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("heads", [2, 4])
def test_blocks_compute_what_the_model_computes(on_cpu, heads, monkeypatch):
    """By numpy as on a CPU, and by the plain expressions that a GPU gets."""
    from mlx_lm.models import llama

    monkeypatch.setattr(backend, "on_cpu", lambda: on_cpu)
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
    assert close(transformer_blocks.run(model, hidden, CausalAttention(11)), expected)
    # In two parts, and as suffixes of shared prefixes in groups of unequal size.
    lower = transformer_blocks.run(model, hidden, CausalAttention(11), 0, 2, norm=False)
    assert close(transformer_blocks.run(model, lower, CausalAttention(11), 2), expected)
    rows = mx.concatenate([tokens[:1], tokens[:1], tokens[1:2]])
    rows[1, 8:] = rows[1, 8:] + 1
    prefix = CausalAttention(6)
    transformer_blocks.run(
        model, model.model.embed_tokens(mx.stack([rows[0, :6], rows[2, :6]])), prefix
    )
    shared = SharedPrefixAttention(prefix, np.array([0, 0, 1]), np.array([6, 6]), 5)
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
