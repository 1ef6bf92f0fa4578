"""Runs the blocks of a llama-like model one by one.

mlx-lm's models run as a whole: embedding, all blocks, norm. Training gains from three things
that a whole model cannot do: start above the blocks that carry no adapter (policy and
reference agree below), attend to a group's shared prefix without copying it to every sequence,
and compute the last block at the few positions whose tokens are scored. On a CPU the blocks
use `cpu_kernels`, through `backend`, for what MLX computes slowly there.

The modules are mlx-lm's own, adapters included; only their composition is written here.
Models that are composed otherwise (see `supported`) run as mlx-lm wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from . import backend, cpu_kernels, trained_block
from .attention import Attention
from .checkpointing import checkpoint, lora_linear

_MODULES = ("mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3")


def supported(model: nn.Module) -> bool:
    """Whether a model's blocks are composed as here: llama, qwen2, qwen3, one kind of mask."""
    if type(model).__module__ not in _MODULES:
        return False
    for layer in model.layers:
        rope = layer.self_attn.rope
        if getattr(layer, "use_sliding", False) or type(rope) is not nn.RoPE or rope.traditional:
            return False
    return True


def run(
    model: nn.Module,
    hidden: mx.array,
    attention: Attention,
    first: int = 0,
    last: int | None = None,
    norm: bool = True,
    gradient: bool = False,
) -> mx.array:
    """Blocks ``first`` to ``last`` (exclusive) on hidden states (B, N, width).

    Args:
        model: A `supported` mlx-lm model.
        hidden: The embedding's output, or what an earlier call returned.
        attention: How tokens attend; it stores keys and values.
        first: The first block.
        last: One beyond the last block; all by default.
        norm: Whether the model's final norm follows.
        gradient: Whether a gradient will be taken. On a CPU the blocks are then
            checkpointed: they keep about a sixth of what MLX would keep.
    """
    layers: Sequence[Any] = model.layers[first:last]
    rotary = RotaryEmbedding(model.layers[0].self_attn.rope, attention.positions)
    rotaries = rotary, rotary
    operations = _Operations(hidden.dtype, gradient)
    for index, layer in enumerate(layers, first):
        whole = operations.whole(layer, index, hidden, rotaries, attention)
        if whole is not None:
            hidden = whole
            continue
        inner = layer.self_attn
        x = operations.norm(layer.input_layernorm, hidden)
        projected = [operations.linear(m, x) for m in (inner.q_proj, inner.k_proj, inner.v_proj)]
        attended = operations.attend(inner, index, projected, rotaries, attention)
        hidden = operations.feed_forward(layer, hidden, attended)
    return model.model.norm(hidden) if norm else hidden


def run_last(
    model: nn.Module,
    hidden: mx.array,
    attention: Attention,
    tokens: np.ndarray,
    gradient: bool = False,
) -> mx.array:
    """The last block and the norm, at a few tokens of each sequence; all are attended to.

    Args:
        model: As in `run`.
        hidden: (B, N, width) states below the last block.
        attention: As in `run`; it stores the keys and values of all tokens.
        tokens: (B, M) places in each sequence; M may be 0.
        gradient: As in `run`.

    Returns:
        (B, M, width).
    """
    index, layer = len(model.layers) - 1, model.layers[-1]
    inner = layer.self_attn
    operations = _Operations(hidden.dtype, gradient)
    rotary = RotaryEmbedding(inner.rope, attention.positions)
    rows, n, width = hidden.shape
    if not tokens.size:
        x = operations.norm(layer.input_layernorm, hidden)
        keys, values = operations.linear(inner.k_proj, x), operations.linear(inner.v_proj, x)
        attention.store(index, *_keys_and_values(inner, keys, values, rotary))
        return mx.zeros((rows, 0, width), hidden.dtype)
    places = trained_block.Places(mx.array((np.arange(rows)[:, None] * n + tokens).reshape(-1)))
    selected = attention.select(tokens)
    rotaries = RotaryEmbedding(inner.rope, selected.positions), rotary
    states = operations.whole(layer, index, hidden, rotaries, selected, places)
    if states is None:
        x = operations.norm(layer.input_layernorm, hidden)
        keys, values = operations.linear(inner.k_proj, x), operations.linear(inner.v_proj, x)
        projected = [operations.linear(inner.q_proj, places.take(x)), keys, values]
        attended = operations.attend(inner, index, projected, rotaries, selected)
        states = operations.feed_forward(layer, places.take(hidden), attended)
    output: mx.array = model.model.norm(states)
    return output


class _Operations:
    """The parts of a block, checkpointed where a gradient follows on a CPU."""

    def __init__(self, dtype: mx.Dtype, gradient: bool) -> None:
        self._checkpointed = gradient and backend.uses_numpy(dtype)

    def norm(self, module: Any, x: mx.array) -> mx.array:
        """The norm's output; of its five arrays only the input is kept for the gradient."""
        if not self._checkpointed or module.trainable_parameters():
            return _call(module, x)
        output: mx.array = checkpoint(lambda x: (module(x),), x)[0]
        return output

    def linear(self, module: Any, x: mx.array) -> mx.array:
        """A projection; a plain layer with an adapter keeps only ``x`` for the gradient.

        An adapter that is switched off is not computed.
        """
        if type(module) is LoRALinear and not module.scale:
            return _call(module.linear, x)
        if not self._checkpointed or type(module) is not LoRALinear:
            return _call(module, x)
        layer = module.linear
        dropped = module.dropout._p_1 < 1 and module.training
        if type(layer) is not nn.Linear or layer.trainable_parameters() or dropped:
            return _call(module, x)
        return lora_linear(
            x, layer.weight, layer.get("bias"), module.lora_a, module.lora_b, module.scale
        )

    def attend(
        self,
        inner: Any,
        block: int,
        projected: list[mx.array],
        rotaries: Rotaries,
        attention: Attention,
    ) -> mx.array:
        """Split into heads, rotate, attend and join the heads: (B, N, H * D)."""

        if not self._checkpointed:
            queries, keys, values = _split(inner, projected, rotaries)
            attention.store(block, keys, values)
            context = attention.context(block)
            return _join(attention.combine(queries, keys, values, inner.scale, *context))
        attend = _attention_of(inner, rotaries, attention)
        attended, keys, values = checkpoint(attend, *projected, *attention.context(block))
        attention.store(block, keys, values)
        output: mx.array = attended
        return output

    def whole(
        self,
        layer: Any,
        block: int,
        hidden: mx.array,
        rotaries: Rotaries,
        attention: Attention,
        places: trained_block.Places | None = None,
    ) -> mx.array | None:
        """A block as one function of the tape, where its gradient is written out; else None."""
        if not self._checkpointed or not trained_block.supported(layer):
            return None
        attend = _attention_of(layer.self_attn, rotaries, attention)
        context = attention.context(block)
        hidden, keys, values = trained_block.run(layer, hidden, attend, context, places)
        attention.store(block, keys, values)
        return hidden

    def feed_forward(self, layer: Any, hidden: mx.array, attended: mx.array) -> mx.array:
        """What follows attention: its projection, the feed-forward part, and both sums."""
        hidden = hidden + self.linear(layer.self_attn.o_proj, attended)
        x = self.norm(layer.post_attention_layernorm, hidden)
        mlp = layer.mlp
        product = backend.swiglu(self.linear(mlp.gate_proj, x), self.linear(mlp.up_proj, x))
        return hidden + self.linear(mlp.down_proj, product)


def _call(module: Any, x: mx.array) -> mx.array:
    output: mx.array = module(x)
    return output


def _attention_of(inner: Any, rotaries: Rotaries, attention: Attention) -> trained_block.Attend:
    """Attention as a function of arrays alone, from projections to what is projected again."""

    def attend(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *context: mx.array,
        kept: cpu_kernels.Kept | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        projected = [queries, keys, values]
        queries, keys, values = _split(inner, projected, rotaries)
        attended = attention.combine(queries, keys, values, inner.scale, *context, kept=kept)
        return _join(attended), keys, values

    return attend


def _split(
    inner: Any, projected: Sequence[mx.array], rotaries: Rotaries
) -> tuple[mx.array, mx.array, mx.array]:
    """Split into heads and rotate: queries (B, H, N, D), keys and values (B, K, N, D)."""
    queries, keys, values = projected
    rows, n, _ = queries.shape
    queries = queries.reshape(rows, n, inner.n_heads, -1)
    if hasattr(inner, "q_norm"):
        queries = inner.q_norm(queries)
    of_queries, of_keys = rotaries
    queries = of_queries(queries.transpose(0, 2, 1, 3))
    return queries, *_keys_and_values(inner, keys, values, of_keys)


def _join(attended: mx.array) -> mx.array:
    """(B, H, N, D) -> (B, N, H * D)."""
    rows, _, n, _ = attended.shape
    return attended.transpose(0, 2, 1, 3).reshape(rows, n, -1)


def _keys_and_values(
    inner: Any, keys: mx.array, values: mx.array, rotary: RotaryEmbedding
) -> tuple[mx.array, mx.array]:
    """Split keys and values into heads and rotate the keys: (B, K, N, D) each."""
    rows, n, _ = keys.shape
    keys = keys.reshape(rows, n, inner.n_kv_heads, -1)
    values = values.reshape(rows, n, inner.n_kv_heads, -1)
    if hasattr(inner, "k_norm"):
        keys = inner.k_norm(keys)
    return rotary(keys.transpose(0, 2, 1, 3)), values.transpose(0, 2, 1, 3)


class RotaryEmbedding:
    """Rotary positions (arXiv:2104.09864), whose sines are computed once for all blocks.

    Args:
        rope: The model's ``nn.RoPE``.
        positions: (N,) or (B, N).
    """

    def __init__(self, rope: nn.RoPE, positions: np.ndarray) -> None:
        self._half = half = rope.dims // 2
        frequency = rope.base ** (-np.arange(half) / half)
        angle = positions[..., None].astype(np.float64) * (frequency * rope.scale)
        if angle.ndim == 2:
            angle = angle[None]
        self._cos = mx.array(np.cos(angle).astype(np.float32))[:, None]
        self._sin = mx.array(np.sin(angle).astype(np.float32))[:, None]

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate (B, heads, N, D)."""
        half = self._half
        cos, sin = self._cos.astype(x.dtype), self._sin.astype(x.dtype)
        a, b = x[..., :half], x[..., half : 2 * half]
        parts = [a * cos - b * sin, a * sin + b * cos]
        if x.shape[-1] > 2 * half:
            parts.append(x[..., 2 * half :])
        return mx.concatenate(parts, axis=-1)


Rotaries = tuple[RotaryEmbedding, RotaryEmbedding]
"""Of queries and of keys, which differ where only some tokens ask."""
