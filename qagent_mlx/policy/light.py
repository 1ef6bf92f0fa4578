"""A small llama-like model on a CPU, laid out for decoding and computed by numpy.

A step of decoding multiplies a few rows with small matrices. For a model of some million
weights MLX then spends most of its time on starting operations, adapters triple their number,
and each token of a batch is computed at the width of the longest row. Here adapters and norms
are folded into the matrices, rows are packed without padding, the last block and the head are
computed at the last token of a row only, and softmax and SiLU are numpy's.

The weights are a copy: use it for a policy that is not being trained.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ..runtime import device_name

if TYPE_CHECKING:
    from .model import Policy

MOST = 20_000_000  # weights: above, MLX's share of the time is small and a copy is not
STEP = 64  # tokens by which a cache grows


class LightCache:
    """Keys and values of some rows, each from the left: (layers, 2, rows, heads, room, width)."""

    def __init__(self, layers: int, rows: int, heads: int, width: int) -> None:
        self._shape = (layers, 2, heads, width)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.data = np.empty((layers, 2, rows, heads, 0, width), dtype=np.float32)

    @property
    def state(self) -> list[mx.array]:
        """Nothing that MLX would have to evaluate."""
        return []

    def make_room(self, length: int) -> None:
        """Let rows have this many tokens."""
        room = self.data.shape[4]
        if length > room:
            layers, two, rows, heads, _, width = self.data.shape
            wanted = -(-length // STEP) * STEP
            data = np.empty((layers, two, rows, heads, wanted, width), dtype=np.float32)
            data[:, :, :, :, :room] = self.data
            data[:, :, :, :, room:] = 0  # masked, but 0 times NaN would be NaN
            self.data = data

    def filter(self, rows: mx.array | np.ndarray) -> None:
        """Keep some rows, in this order, in arrays of their own."""
        kept = np.asarray(rows)
        self.lengths = self.lengths[kept]
        room = -(-int(self.lengths.max(initial=0)) // STEP) * STEP
        self.data = self.data[:, :, :, :, :room].take(kept, axis=2)

    def extend(self, other: LightCache) -> None:
        """Add another cache's rows."""
        length = max(self.data.shape[4], other.data.shape[4])
        self.make_room(length)
        theirs = copy.copy(other)
        theirs.make_room(length)
        self.data = np.concatenate([self.data, theirs.data], axis=2)
        self.lengths = np.concatenate([self.lengths, theirs.lengths])


class _Block:
    """One block's matrices, (in, out), with its norms folded in."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        before, after = _array(layer.input_layernorm.weight), _array(
            layer.post_attention_layernorm.weight
        )
        projections = [
            _folded(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        self.qkv = np.ascontiguousarray(
            np.concatenate([w for w, _ in projections], axis=1) * before[:, None]
        )
        self.qkv_bias = np.concatenate([b for _, b in projections])
        self.out, self.out_bias = _folded(attention.o_proj)
        up = [_folded(mlp.gate_proj), _folded(mlp.up_proj)]
        self.up = np.ascontiguousarray(np.concatenate([w for w, _ in up], axis=1) * after[:, None])
        self.up_bias = np.concatenate([b for _, b in up])
        self.down, self.down_bias = _folded(mlp.down_proj)
        self.epsilons = (layer.input_layernorm.eps, layer.post_attention_layernorm.eps)
        self.q_norm = self.k_norm = None
        if hasattr(attention, "q_norm"):
            self.q_norm = _array(attention.q_norm.weight), attention.q_norm.eps
            self.k_norm = _array(attention.k_norm.weight), attention.k_norm.eps


class Light:
    """The model: ids to the logits after each row's last one."""

    def __init__(self, policy: Policy) -> None:
        model: Any = policy.model
        attention = model.layers[0].self_attn
        self._heads, self._shared = attention.n_heads, attention.n_kv_heads
        self._scale = attention.scale
        self._rope = attention.rope
        self._embed = _array(model.model.embed_tokens.weight)
        self._blocks = [_Block(layer) for layer in model.layers]
        self._width = self._blocks[0].out.shape[0] // self._heads
        head = model.lm_head.weight if hasattr(model, "lm_head") else None
        weight = self._embed if head is None else _array(head)
        self._norm = model.model.norm.eps
        self._head = np.ascontiguousarray((weight * _array(model.model.norm.weight)).T)
        self._turn(256)

    @classmethod
    def of(cls, policy: Policy) -> Light | None:
        """A policy's light form; None on a GPU and for models that are large or of another kind."""
        if device_name() != "cpu" or not policy.by_blocks or policy.parameters > MOST:
            return None
        for name, module in policy.model.named_modules():
            # Whatever has weights must be of a kind that is known here.
            kind = type(module)
            known = kind in (nn.Linear, nn.Embedding, nn.RMSNorm, LoRALinear)
            own = [v for v in module.values() if isinstance(v, mx.array)]
            if own and not known:
                return None
            if any(v.dtype != mx.float32 for v in own):
                return None
            if name.endswith("lm_head") and (kind is not nn.Linear or "bias" in module):
                return None
        return cls(policy)

    def cache(self, rows: int) -> LightCache:
        """An empty cache of so many rows."""
        return LightCache(len(self._blocks), rows, self._shared, self._width)

    def logits(self, pending: list[list[int]], cache: LightCache) -> np.ndarray:
        """Put ids after the rows' contexts.

        Args:
            pending: At least one id a row.
            cache: Of the same rows; gets their keys and values.

        Returns:
            (rows, vocabulary) logits after each row's last id.
        """
        count = np.array([len(p) for p in pending])
        rows = np.repeat(np.arange(len(pending)), count)
        ends = np.cumsum(count)
        within = np.arange(len(rows)) - np.repeat(ends - count, count)
        places = cache.lengths[rows] + within
        totals = cache.lengths + count
        longest, most = int(totals.max()), int(count.max())
        cache.make_room(longest)
        self._turn(longest)
        bias = None
        if most > 1 or (totals != longest).any():
            query = cache.lengths[:, None] + np.arange(most)
            bias = np.where(
                np.arange(longest) <= query[:, :, None], np.float32(0), np.float32(-np.inf)
            )
        hidden = self._embed[np.concatenate([np.asarray(p, dtype=np.int64) for p in pending])]
        turn = self._cos[places], self._sin[places]
        last = len(self._blocks) - 1
        for number, block in enumerate(self._blocks):
            final = number == last
            hidden = self._block(
                block, cache.data[number], hidden, rows, within, places, turn, longest, most,
                bias, ends - 1 if final else None,
            )
        cache.lengths = totals
        made: np.ndarray = _scaled(hidden, self._norm) @ self._head
        return made

    def _block(
        self, block: _Block, kept: np.ndarray, hidden: np.ndarray, rows: np.ndarray,
        within: np.ndarray, places: np.ndarray, turn: tuple[np.ndarray, np.ndarray],
        longest: int, most: int, bias: np.ndarray | None, only: np.ndarray | None,
    ) -> np.ndarray:  # fmt: skip
        """(tokens, width) hidden states of one block; of the tokens ``only`` where given."""
        heads, shared, width = self._heads, self._shared, self._width
        x = _scaled(hidden, block.epsilons[0]) @ block.qkv
        x += block.qkv_bias
        x = x.reshape(len(rows), heads + 2 * shared, width)
        queries, keys = x[:, :heads], x[:, heads : heads + shared]
        if block.q_norm is not None and block.k_norm is not None:
            queries = _scaled(queries, block.q_norm[1]) * block.q_norm[0]
            keys = _scaled(keys, block.k_norm[1]) * block.k_norm[0]
        kept[0][rows, :, places] = _rotated(keys, *turn)
        kept[1][rows, :, places] = x[:, heads + shared :]
        if only is not None:
            # Nobody asks what the earlier tokens lead to.
            if bias is not None:
                bias = bias[np.arange(len(bias)), within[only]][:, None]
            rows, queries, hidden = rows[only], queries[only], hidden[only]
            turn = turn[0][only], turn[1][only]
            within, most = np.zeros_like(within[only]), 1
        queries = _rotated(queries, *turn)
        count, repeat = len(kept[0]), heads // shared
        if most == 1:
            asked = queries
        else:
            padded = np.zeros((count, most, heads, width), dtype=np.float32)
            padded[rows, within] = queries
            asked = padded.transpose(0, 2, 1, 3)
        asked = asked.reshape(count, shared, repeat * most, width)
        scores = asked @ kept[0][:, :, :longest].swapaxes(-1, -2)
        scores *= self._scale
        if bias is not None:
            scores.reshape(count, heads, most, longest)[...] += bias[:, None]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        found = (scores @ kept[1][:, :, :longest]).reshape(count, heads, most, width)
        packed = found[:, :, 0] if most == 1 else found.transpose(0, 2, 1, 3)[rows, within]
        hidden = hidden + packed.reshape(len(rows), -1) @ block.out
        hidden += block.out_bias
        x = _scaled(hidden, block.epsilons[1]) @ block.up
        x += block.up_bias
        half = x.shape[-1] // 2
        gate = np.exp(-x[:, :half])
        gate += 1
        np.divide(x[:, :half], gate, out=gate)
        gate *= x[:, half:]
        hidden += gate @ block.down
        hidden += block.down_bias
        return hidden

    def _turn(self, length: int) -> None:
        """Have the sines of so many positions."""
        if length <= len(getattr(self, "_cos", ())):
            return
        rope = self._rope
        half = rope.dims // 2
        frequency = rope.base ** (-np.arange(half) / half)
        positions = np.arange(-(-length // 256) * 256, dtype=np.float64) * rope.scale
        angle = positions[:, None, None] * frequency
        self._cos, self._sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """(tokens, heads, width) with rotary positions."""
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    made = np.empty(x.shape, dtype=np.float32)
    np.subtract(a * cos, b * sin, out=made[..., :half])
    np.add(a * sin, b * cos, out=made[..., half : 2 * half])
    made[..., 2 * half :] = x[..., 2 * half :]
    return made


def _scaled(x: np.ndarray, epsilon: float) -> np.ndarray:
    """RMS norm over the last axis, without weights."""
    square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    made: np.ndarray = x / np.sqrt(square + np.float32(epsilon))
    return made


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
