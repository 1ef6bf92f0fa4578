"""A block whose gradient is written out computes what MLX computes, and keeps little."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.tuner.lora import LoRALinear

from qagent_mlx.models import backend, cpu_kernels, trained_block, transformer_blocks
from qagent_mlx.models.attention import CausalAttention, SharedPrefixAttention
from qagent_mlx.policy.adapters import add_adapters
from qagent_mlx.policy.lora import LoraConfig

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 50, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(backend, "on_cpu", lambda: True)


def adapted(module=llama, dropout=0.0):
    """A random model whose blocks have adapters that matter."""
    mx.random.seed(3)
    name = module.__name__.rpartition(".")[2]
    model = module.Model(module.ModelArgs.from_dict({"model_type": name, **SHAPE}))
    model.freeze()
    add_adapters(model, LoraConfig(rank=4, dropout=dropout, blocks=-1))
    for _, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
    model.eval()
    return model


def shared_prefixes(model, hidden):
    """States of the last block at some tokens of two groups' sequences, prefixes included."""
    of_prefix = CausalAttention(4)
    of_suffix = SharedPrefixAttention(of_prefix, np.array([0, 0, 1]), np.array([4, 3]), 5)
    prefix, suffix = hidden[:2, :4], hidden[:, 4:]
    parts = []
    for states, attention, rows in ((prefix, of_prefix, 2), (suffix, of_suffix, 3)):
        places = np.tile(np.array([[0, 2]]), (rows, 1))
        states = transformer_blocks.run(model, states, attention, 0, 2, False, True)
        parts.append(
            transformer_blocks.run_last(model, states, attention, places, True).reshape(-1)
        )
    return mx.concatenate(parts)


def alone(model, hidden, gradient=True):
    return transformer_blocks.run(
        model, hidden, CausalAttention(hidden.shape[1]), gradient=gradient
    )


def learned(model, states):
    """A loss, and its gradient by the hidden states and every adapter."""
    hidden = mx.random.normal((3, 9, 32), key=mx.random.key(0))

    def loss(parameters, hidden):
        model.update(parameters)
        output = states(model, hidden)
        return (output * mx.sin(mx.arange(output.size).reshape(output.shape))).sum()

    value, gradients = mx.value_and_grad(loss, (0, 1))(model.trainable_parameters(), hidden)
    return {"loss": value, "hidden": gradients[1], **dict(tree_flatten(gradients[0]))}


@pytest.mark.parametrize("states", [alone, shared_prefixes])
@pytest.mark.parametrize("module", [llama, qwen2, qwen3], ids=lambda m: m.__name__[-6:])
def test_a_block_and_its_gradient_are_what_mlx_computes(module, states, monkeypatch):
    model, blocks = adapted(module), []
    run = trained_block.run
    with monkeypatch.context() as patch:
        patch.setattr(trained_block, "run", lambda *a: blocks.append(1) or run(*a))
        found = learned(model, states)
    assert len(blocks) == (3 if states is alone else 6)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "on_cpu", lambda: False)  # MLX's own expressions and tape
        expected = learned(model, states)
    assert found.keys() == expected.keys()
    assert len(found) == 2 + 3 * 7 * 2
    for name, value in expected.items():
        assert np.abs(np.array(value)).max() > 0, name
        assert np.allclose(np.array(found[name]), np.array(value), atol=2e-5, rtol=1e-3), name


@pytest.mark.parametrize(("length", "passes"), [(9, 1), (40, 1), (60, 2)])
def test_probabilities_are_kept_while_they_are_few(length, passes, monkeypatch):
    """4 heads of so many keys, against half of what else a block of these widths keeps."""
    model, computed = adapted(), []
    normalise = cpu_kernels._normalise
    monkeypatch.setattr(cpu_kernels, "_normalise", lambda b: computed.append(1) or normalise(b))
    hidden = mx.random.normal((1, length, 32))

    def loss(parameters):
        model.update(parameters)
        return alone(model, hidden).sum()

    once = mx.grad(loss)(model.trainable_parameters())
    mx.eval(once)
    assert sum(computed) % (3 * passes) == 0
    forward = sum(computed) // passes
    computed.clear()
    mx.eval(alone(model, hidden, gradient=False))
    assert sum(computed) == forward


def test_only_blocks_that_learn_by_their_adapters_alone_are_written_out():
    def supported(change, dropout=0.0):
        model = adapted(dropout=dropout)
        change(model)
        return trained_block.supported(model.layers[1])

    assert supported(lambda model: None)
    assert not supported(lambda model: model.layers[1].input_layernorm.unfreeze())
    assert not supported(lambda model: model.layers[1].mlp.up_proj.linear.unfreeze())
    assert not supported(
        lambda model: setattr(model.layers[1].mlp, "up_proj", nn.Linear(32, 48, bias=False))
    )
    assert supported(lambda model: None, dropout=0.1)  # which is off while nothing trains
    assert not supported(lambda model: model.train(), dropout=0.1)


def test_a_second_pass_takes_the_probabilities_of_the_first():
    scores, bias = mx.random.normal((2, 3, 4)), np.zeros((3, 4), np.float32)
    kept = []
    first = cpu_kernels.softmax(scores, bias, 0.5, kept)
    again = cpu_kernels.softmax(mx.zeros_like(scores), bias, 0.5, kept)
    assert mx.array_equal(first, again)
    assert not mx.array_equal(first, cpu_kernels.softmax(mx.zeros_like(scores), bias, 0.5))


def test_an_adapter_that_is_switched_off_is_not_computed():
    model = adapted()
    for _, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            layer.scale = 0.0
            layer.lora_b = layer.lora_b * float("inf")
    assert bool(mx.isfinite(alone(model, mx.ones((1, 3, 32)), gradient=False)).all())
