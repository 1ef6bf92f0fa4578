"""A small llama-like model on a Linux CPU, laid out for decoding and computed by numpy.

A step of decoding multiplies a few rows with small matrices. For a model of some million
weights MLX then spends most of its time on starting operations, adapters triple their number,
and each token of a batch is computed at the width of the longest row. Here adapters and norms
are folded into the matrices, rows are packed without padding, the last block and the head are
computed at the last token of a row only, and softmax and SiLU are numpy's.

The weights are a copy: use it for a policy that is not being trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from . import backend, transformer_blocks
from .numpy_attention import PrefillAttention, StepAttention
from .numpy_cache import NumpyCache

MAX_PARAMETERS = 20_000_000  # above, MLX's overhead is small and a copy of the weights is not
CHUNK = 256  # tokens whose states are computed at once, so that they stay in the cache


class _Block:
    """One block's matrices, (in, out), with its norms and the scale of its scores folded in.

    The two halves of a rotary pair lie side by side, as a complex number's parts do; that
    reorders queries and keys alike and changes no score.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        input_norm = _array(layer.input_layernorm.weight)
        query, key, value = (
            _folded(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        head_width = query[0].shape[1] // attention.n_heads
        order = _rotary_order(attention.rope.dims, head_width)
        query, key = _reorder(query, order), _reorder(key, order)
        scale = np.float32(attention.scale)
        self.query_norm = self.key_norm = None
        if hasattr(attention, "q_norm"):
            self.query_norm = _array(attention.q_norm.weight)[order] * scale, attention.q_norm.eps
            self.key_norm = _array(attention.k_norm.weight)[order], attention.k_norm.eps
        else:
            query = query[0] * scale, query[1] * scale
        self.qkv, self.qkv_bias = _joined(query, key, value, norm=input_norm)
        self.out, self.out_bias = _joined(_folded(attention.o_proj))
        output_norm = _array(layer.post_attention_layernorm.weight)
        gate, up = _folded(mlp.gate_proj), _folded(mlp.up_proj)
        self.gate_up, self.gate_up_bias = _joined(gate, up, norm=output_norm)
        self.down, self.down_bias = _joined(_folded(mlp.down_proj))
        self.epsilons = (layer.input_layernorm.eps, layer.post_attention_layernorm.eps)


class NumpyDecoder:
    """A copy of a model that maps token ids to the logits after each row's last one."""

    def __init__(self, model: Any) -> None:
        attention = model.layers[0].self_attn
        self._heads, self._key_heads = attention.n_heads, attention.n_kv_heads
        self._rope = attention.rope
        self._embedding = _array(model.model.embed_tokens.weight)
        self._blocks = [_Block(layer) for layer in model.layers]
        self._width = self._blocks[0].out.shape[0] // self._heads
        head = model.lm_head.weight if hasattr(model, "lm_head") else None
        weight = self._embedding if head is None else _array(head)
        self._norm_epsilon = model.model.norm.eps
        self._head = np.ascontiguousarray((weight * _array(model.model.norm.weight)).T)
        self._rotations = self._compute_rotations(256)

    @classmethod
    def of(cls, model: Any, parameters: int) -> NumpyDecoder | None:
        """A model's copy; None on a GPU and for models that are large or of another kind."""
        if not backend.on_cpu() or parameters > MAX_PARAMETERS:
            return None
        if not transformer_blocks.supported(model):
            return None
        for name, module in model.named_modules():
            # Whatever has weights must be of a kind that is known here.
            kind = type(module)
            weights = [v for v in module.values() if isinstance(v, mx.array)]
            if weights and kind not in (nn.Linear, nn.Embedding, nn.RMSNorm, LoRALinear):
                return None
            if any(v.dtype != mx.float32 for v in weights):
                return None
            if name.endswith("lm_head") and (kind is not nn.Linear or "bias" in module):
                return None
        return cls(model)

    def cache(self, rows: int) -> NumpyCache:
        """An empty cache of so many rows."""
        return NumpyCache(len(self._blocks), rows, self._key_heads, self._width)

    def logits(self, pending: list[list[int]], cache: NumpyCache) -> np.ndarray:
        """Append ids to the rows' contexts.

        Args:
            pending: At least one id for each row.
            cache: Of the same rows; receives their keys and values.

        Returns:
            (rows, vocabulary) logits after each row's last id.
        """
        counts = np.array([len(ids) for ids in pending])
        attention: StepAttention | PrefillAttention
        if counts.max() == 1:
            attention = StepAttention(cache, self._heads, self._key_heads)
        else:
            attention = PrefillAttention(counts, cache, self._heads, self._key_heads, CHUNK)
        cache.make_room(attention.longest)
        length = int(attention.positions.max()) + 1
        if length > len(self._rotations):
            self._rotations = self._compute_rotations(length)
        rotations = self._rotations[attention.positions][:, None]
        hidden = self._embedding[np.fromiter(itertools.chain.from_iterable(pending), np.int64)]
        for number, block in enumerate(self._blocks):
            last = number == len(self._blocks) - 1
            x = self._project(block, hidden, rotations)
            prefix = None if cache.prefixes is None else cache.prefixes.data[number]
            attended = attention.attend(x, cache.data[number], prefix, last)
            if last:  # what earlier tokens lead to is not needed
                hidden = hidden[attention.last_tokens]
            _feed_forward(block, hidden, attended)
        cache.lengths = attention.totals
        logits: np.ndarray = _rms_normalised(hidden, self._norm_epsilon) @ self._head
        return logits

    def _project(self, block: _Block, hidden: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Queries, keys and values, (tokens, heads + 2 * key heads, width), rotated."""
        tokens, heads, key_heads = len(hidden), self._heads, self._key_heads
        x = np.empty((tokens, heads + 2 * key_heads, self._width), dtype=np.float32)
        flat, pairs = x.reshape(tokens, -1), x.view(np.complex64)[:, : heads + key_heads]
        for part in _chunks(tokens):
            np.matmul(_rms_normalised(hidden[part], block.epsilons[0]), block.qkv, out=flat[part])
            if block.qkv_bias is not None:
                flat[part] += block.qkv_bias
            if block.query_norm is not None and block.key_norm is not None:
                queries, keys = x[part, :heads], x[part, heads : heads + key_heads]
                queries[...] = _rms_normalised(queries, block.query_norm[1]) * block.query_norm[0]
                keys[...] = _rms_normalised(keys, block.key_norm[1]) * block.key_norm[0]
            pairs[part] *= rotations[part]
        return x

    def _compute_rotations(self, length: int) -> np.ndarray:
        """Rotary embeddings of at least so many positions: (positions, width / 2) complex."""
        half = self._rope.dims // 2
        frequency = np.zeros(self._width // 2)  # what is not rotated stays
        frequency[:half] = self._rope.base ** (-np.arange(half) / half)
        positions = np.arange(-(-length // 256) * 256, dtype=np.float64) * self._rope.scale
        return np.exp(1j * positions[:, None] * frequency).astype(np.complex64)


def _feed_forward(block: _Block, hidden: np.ndarray, attended: np.ndarray) -> None:
    """Add the attention's output and the feed-forward part to (tokens, width) hidden states."""
    for part in _chunks(len(hidden)):
        state = hidden[part]
        state += attended[part] @ block.out
        if block.out_bias is not None:
            state += block.out_bias
        x = _rms_normalised(state, block.epsilons[1]) @ block.gate_up
        if block.gate_up_bias is not None:
            x += block.gate_up_bias
        half = x.shape[-1] // 2
        gate = np.negative(x[:, :half])
        np.exp(gate, out=gate)
        gate += 1
        np.divide(x[:, :half], gate, out=gate)
        gate *= x[:, half:]
        state += gate @ block.down
        if block.down_bias is not None:
            state += block.down_bias


def _chunks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, CHUNK):
        yield slice(start, start + CHUNK)


def _rotary_order(rotated: int, width: int) -> np.ndarray:
    """The order of a head's features that puts the halves of rotary pairs side by side."""
    order = np.arange(width)
    order[:rotated] = order[:rotated].reshape(2, -1).T.ravel()
    return order


def _reorder(
    layer: tuple[np.ndarray, np.ndarray], order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A projection whose heads' features are in another order."""
    weight, bias = layer
    heads = weight.shape[1] // len(order)
    columns = (np.arange(heads)[:, None] * len(order) + order).ravel()
    return weight[:, columns], bias[columns]


def _joined(
    *layers: tuple[np.ndarray, np.ndarray], norm: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Several projections of one input as one, behind a norm; the bias is None if it is 0."""
    weight = np.concatenate([weight for weight, _ in layers], axis=1)
    bias = np.concatenate([bias for _, bias in layers])
    if norm is not None:
        weight = weight * norm[:, None]
    return np.ascontiguousarray(weight), bias if bias.any() else None


def _rms_normalised(x: np.ndarray, epsilon: float) -> np.ndarray:
    """RMS norm over the last axis, without weights."""
    square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    normalised: np.ndarray = x / np.sqrt(square + np.float32(epsilon))
    return normalised


def _array(x: mx.array) -> np.ndarray:
    return np.array(x, dtype=np.float32)


def _folded(module: Any) -> tuple[np.ndarray, np.ndarray]:
    """A layer's weights (in, out) with its adapter, and its bias."""
    linear = module.linear if type(module) is LoRALinear else module
    weight = _array(linear.weight).T
    if type(module) is LoRALinear:
        weight = weight + np.float32(module.scale) * (_array(module.lora_a) @ _array(module.lora_b))
    bias = _array(linear.bias) if "bias" in linear else np.zeros(weight.shape[1], np.float32)
    return np.ascontiguousarray(weight), bias
