"""Runs the blocks of a llama-like model one by one, each way of attending in its own class.

mlx-lm's models run as a whole: embedding, all blocks, norm. Training gains from three things
that a whole model cannot do: start above the blocks that carry no adapter (policy and
reference agree below), attend to a group's shared prefix without copying it to every row,
and compute the last block at the few positions that are asked for. On a CPU the blocks use
`kernels` for what MLX computes slowly there.

The modules are mlx-lm's own, adapters included; only their composition is written here.
Models that are composed otherwise (see `supported`) run as mlx-lm wrote them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ..utils.runtime import device_name
from . import cpu_kernels

_MODULES = ("mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3")


def supported(model: nn.Module) -> bool:
    """Whether a model's blocks are composed as here: llama, qwen2, qwen3, one kind of mask."""
    if type(model).__module__ not in _MODULES:
        return False
    for layer in model.layers:
        attention = layer.self_attn
        rope = attention.rope
        if getattr(layer, "use_sliding", False) or type(rope) is not nn.RoPE or rope.traditional:
            return False
    return True


class Attention(Protocol):
    """How queries meet keys; one object serves all blocks of one pass.

    Queries are (rows, heads, n, head_dim); keys and values have their own number of heads.
    """

    positions: np.ndarray

    def attend(
        self, block: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """What the queries find, of their shape."""
        ...

    def before(self, block: int) -> tuple[mx.array, ...]:
        """The arrays that the queries also meet, from an earlier pass."""
        ...

    def combine(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, *before: mx.array
    ) -> mx.array:
        """`attend` as a function of arrays alone."""
        ...

    def keep(self, block: int, keys: mx.array, values: mx.array) -> None:
        """Remember a block's keys and values."""
        ...


class Choosing(Attention, Protocol):
    """An attention that can also answer for some of its tokens."""

    def only(self, wanted: np.ndarray) -> Attention:
        """The same for queries at places ``wanted`` (rows, m) alone; its positions are theirs."""
        ...


def run(
    model: nn.Module,
    hidden: mx.array,
    attention: Attention,
    first: int = 0,
    last: int | None = None,
    norm: bool = True,
    gradient: bool = False,
) -> mx.array:
    """Blocks ``first`` to ``last`` (exclusive) on hidden states (rows, n, width).

    Args:
        model: A `supported` mlx-lm model.
        hidden: The embedding's output, or what an earlier call returned.
        attention: Positions and keys.
        first: The first block.
        last: One beyond the last block; all by default.
        norm: Whether the model's final norm follows.
        gradient: Whether there will be one. On a CPU it then keeps about a sixth of what
            MLX would keep by itself; the results are the same.
    """
    layers: Sequence[Any] = model.layers[first:last]
    if not layers:
        return model.model.norm(hidden) if norm else hidden
    rotation = Rotation(layers[0].self_attn.rope, attention.positions)
    step = _Step(hidden.dtype, gradient)
    for index, layer in enumerate(layers, first):
        inner = layer.self_attn
        x = step.norm(layer.input_layernorm, hidden)
        projected = [step.linear(m, x) for m in (inner.q_proj, inner.k_proj, inner.v_proj)]
        found = _meet(inner, index, projected, rotation, rotation, attention, step.sparing)
        hidden = step.rest(layer, hidden, found)
    return model.model.norm(hidden) if norm else hidden


def run_last(
    model: nn.Module,
    hidden: mx.array,
    attention: Choosing,
    wanted: np.ndarray,
    gradient: bool = False,
) -> mx.array:
    """The last block and the norm, at a few tokens of each row; all are attended to.

    Args:
        model: As in `run`.
        hidden: (rows, n, width) states below the last block.
        attention: As in `run`; it keeps the keys and values of all tokens.
        wanted: (rows, m) places in a row; m may be 0.
        gradient: As in `run`.

    Returns:
        (rows, m, width).
    """
    index, layer = len(model.layers) - 1, model.layers[-1]
    inner = layer.self_attn
    step = _Step(hidden.dtype, gradient)
    x = step.norm(layer.input_layernorm, hidden)
    keys, values = step.linear(inner.k_proj, x), step.linear(inner.v_proj, x)
    rotation = Rotation(inner.rope, attention.positions)
    rows, n, width = hidden.shape
    if not wanted.size:
        attention.keep(index, *_keys_and_values(inner, keys, values, rotation))
        return mx.zeros((rows, 0, width), hidden.dtype)
    flat = mx.array((np.arange(rows)[:, None] * n + wanted).reshape(-1))

    def chosen(states: mx.array) -> mx.array:
        return mx.take(states.reshape(-1, width), flat, axis=0).reshape(rows, -1, width)

    some = attention.only(wanted)
    projected = [step.linear(inner.q_proj, chosen(x)), keys, values]
    asked = Rotation(inner.rope, some.positions)
    found = _meet(inner, index, projected, asked, rotation, some, step.sparing)
    made: mx.array = model.model.norm(step.rest(layer, chosen(hidden), found))
    return made


class _Step:
    """The parts of a block besides attention; `sparing` ones keep little for the gradient."""

    def __init__(self, dtype: mx.Dtype, gradient: bool) -> None:
        numpy = device_name() == "cpu" and dtype == mx.float32
        self.sparing = sparing = gradient and numpy
        self.linear = _sparing_linear if sparing else _linear
        self.norm = _sparing_norm if sparing else _linear
        self._multiply = swiglu(numpy)

    def rest(self, layer: Any, hidden: mx.array, found: mx.array) -> mx.array:
        """What follows attention: its projection, the feed-forward part, and both sums."""
        hidden = hidden + self.linear(layer.self_attn.o_proj, found)
        x = self.norm(layer.post_attention_layernorm, hidden)
        mlp = layer.mlp
        up = self._multiply(self.linear(mlp.gate_proj, x), self.linear(mlp.up_proj, x))
        return hidden + self.linear(mlp.down_proj, up)


def _linear(module: Any, x: mx.array) -> mx.array:
    made: mx.array = module(x)
    return made


def _sparing_norm(module: Any, x: mx.array) -> mx.array:
    """The norm's output; of its five arrays only the input is kept for the gradient."""
    if module.trainable_parameters():
        return _linear(module, x)
    made: mx.array = cpu_kernels.recomputed(lambda given: (module(given),), x)[0]
    return made


def _sparing_linear(module: Any, x: mx.array) -> mx.array:
    """The module's output; a plain layer with an adapter keeps only ``x`` for the gradient."""
    if type(module) is not LoRALinear or type(module.linear) is not nn.Linear:
        return _linear(module, x)
    frozen = not module.linear.trainable_parameters()
    if not frozen or (module.dropout._p_1 < 1 and module.training):
        return _linear(module, x)
    return cpu_kernels.lora_linear(
        x,
        module.linear.weight,
        module.linear.get("bias"),
        module.lora_a,
        module.lora_b,
        module.scale,
    )


def _keys_and_values(
    inner: Any, keys: mx.array, values: mx.array, rotation: Rotation
) -> tuple[mx.array, mx.array]:
    """Heads and rotary positions: (rows, key heads, n, head_dim) each."""
    rows, n, _ = keys.shape
    keys = keys.reshape(rows, n, inner.n_kv_heads, -1)
    values = values.reshape(rows, n, inner.n_kv_heads, -1)
    if hasattr(inner, "k_norm"):
        keys = inner.k_norm(keys)
    return rotation(keys.transpose(0, 2, 1, 3)), values.transpose(0, 2, 1, 3)


def _meet(
    inner: Any,
    index: int,
    projected: list[mx.array],
    asked: Rotation,
    rotation: Rotation,
    attention: Attention,
    sparing: bool,
) -> mx.array:
    """Heads, rotary positions and attention; (rows, queries, heads * width).

    ``asked`` rotates the queries and ``rotation`` the keys.
    """

    def heads(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        rows, n, _ = queries.shape
        queries = queries.reshape(rows, n, inner.n_heads, -1)
        if hasattr(inner, "q_norm"):
            queries = inner.q_norm(queries)
        queries = asked(queries.transpose(0, 2, 1, 3))
        return queries, *_keys_and_values(inner, keys, values, rotation)

    def joined(found: mx.array) -> mx.array:
        rows, _, n, _ = found.shape
        return found.transpose(0, 2, 1, 3).reshape(rows, n, -1)

    if not sparing:
        queries, keys, values = heads(*projected)
        return joined(attention.attend(index, queries, keys, values, inner.scale))

    def whole(*given: mx.array) -> tuple[mx.array, ...]:
        queries, keys, values = heads(*given[:3])
        found = attention.combine(queries, keys, values, inner.scale, *given[3:])
        return joined(found), keys, values

    found, keys, values = cpu_kernels.recomputed(whole, *projected, *attention.before(index))
    attention.keep(index, keys, values)
    return found


def swiglu(numpy: bool) -> Any:
    """``silu(gate) * up``: numpy's, for float32 on a CPU, or MLX's."""
    from mlx_lm.models.activations import swiglu as plain

    return cpu_kernels.swiglu if numpy else plain


class Rotation:
    """Rotary positions, whose sines are computed once a pass instead of twice a block."""

    def __init__(self, rope: Any, positions: np.ndarray) -> None:
        half = rope.dims // 2
        frequency = rope.base ** (-np.arange(half) / half)
        angle = positions[..., None].astype(np.float64) * (frequency * rope.scale)
        if angle.ndim == 2:
            angle = angle[None]
        self._half = half
        self._cos = mx.array(np.cos(angle).astype(np.float32))[:, None]
        self._sin = mx.array(np.sin(angle).astype(np.float32))[:, None]

    def __call__(self, x: mx.array) -> mx.array:
        """Rotate (rows, heads, n, head_dim)."""
        half = self._half
        cos, sin = self._cos.astype(x.dtype), self._sin.astype(x.dtype)
        a, b = x[..., :half], x[..., half : 2 * half]
        parts = [a * cos - b * sin, a * sin + b * cos]
        if x.shape[-1] > 2 * half:
            parts.append(x[..., 2 * half :])
        return mx.concatenate(parts, axis=-1)


def _causal(n: int) -> np.ndarray:
    """0 where a query may look, minus infinity where it may not: (n, n)."""
    return np.where(np.tri(n, dtype=bool), np.float32(0), np.float32(-np.inf))


def _softmax(scores: mx.array, bias: np.ndarray | None, scale: float) -> mx.array:
    if device_name() == "cpu" and scores.dtype == mx.float32:
        return cpu_kernels.softmax(scores, bias, scale)
    scores = scores * scale
    if bias is not None:
        scores = scores + mx.array(bias).astype(scores.dtype)
    return mx.softmax(scores, axis=-1, precise=True)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, bias: np.ndarray | None
) -> mx.array:
    """Plain attention; ``bias`` broadcasts to (rows, key heads, queries a key head, keys)."""
    rows, heads, n, width = queries.shape
    shared = keys.shape[1]
    repeat = heads // shared
    if bias is not None and repeat > 1 and bias.shape[-2] > 1:
        bias = np.tile(bias, (1,) * (bias.ndim - 2) + (repeat, 1))
    grouped = queries.reshape(rows, shared, repeat * n, width)
    chance = _softmax(grouped @ keys.swapaxes(-1, -2), bias, scale)
    return (chance @ values).reshape(rows, heads, n, width)


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Tokens that all rows begin with, computed before: (1, key heads, length, head_dim) keys and
    values of each block."""

    length: int
    kept: Mapping[int, tuple[mx.array, mx.array]]


class CausalAttention:
    """Rows by themselves, or after what all of them begin with. Keeps each block's keys and
    values, those of the beginning among them, for `SharedPrefixAttention`."""

    def __init__(self, length: int, begin: PrefixCache | None = None) -> None:
        before = begin.length if begin else 0
        self.width = before + length  # of what is kept
        self.positions = before + np.arange(length)
        self._bias = np.hstack([np.zeros((length, before), dtype=np.float32), _causal(length)])
        self._begin = begin
        self.kept: dict[int, tuple[mx.array, mx.array]] = {}

    def only(self, wanted: np.ndarray) -> CausalAttention:
        """For queries at ``wanted`` (rows, m); what it keeps is kept here as well."""
        made = copy.copy(self)
        made.positions, made._bias = self.positions[wanted], self._bias[wanted][:, None]
        return made

    def attend(
        self, block: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """Each token looks at itself and what stands before it."""
        self.keep(block, keys, values)
        return self.combine(queries, keys, values, scale, *self.before(block))

    def before(self, block: int) -> tuple[mx.array, ...]:
        """The beginning's keys and values, where there is one."""
        return self._begin.kept[block] if self._begin else ()

    def combine(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, *before: mx.array
    ) -> mx.array:
        """Plain causal attention."""
        keys, values = _after(before, keys, values)
        return _attend(queries, keys, values, scale, self._bias)

    def keep(self, block: int, keys: mx.array, values: mx.array) -> None:
        """For the rows that go on from here."""
        self.kept[block] = _after(self.before(block), keys, values)


def _after(
    before: tuple[mx.array, ...], keys: mx.array, values: mx.array
) -> tuple[mx.array, mx.array]:
    """Rows' keys and values after the one beginning of all of them."""
    if not before:
        return keys, values
    first = [mx.broadcast_to(x, (keys.shape[0], *x.shape[1:])) for x in before]
    return (mx.concatenate([first[0], keys], axis=2), mx.concatenate([first[1], values], axis=2))


class CachedAttention:
    """Rows with mlx-lm's batched caches, while decoding."""

    def __init__(self, caches: Sequence[Any], length: int) -> None:
        self._caches = caches
        offset = np.array(caches[0].offset).reshape(-1, 1)
        self.positions = offset + np.arange(length)
        keys = caches[0]._idx + length
        padding = np.array(caches[0].left_padding)
        self._bias: np.ndarray | None = None
        if length > 1 or padding.max(initial=0) > 0:
            place = np.arange(keys)
            seen = (place <= np.arange(keys - length, keys)[:, None])[None]
            seen = seen & (place >= padding[:, None, None])
            # A query that is padding itself sees nothing; let it see one key.
            seen[..., 0] |= ~seen.any(axis=-1)
            self._bias = np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]

    def before(self, block: int) -> tuple[mx.array, ...]:
        """Decoding has no gradient, so nobody asks."""
        return ()

    def keep(self, block: int, keys: mx.array, values: mx.array) -> None:
        """The cache keeps them."""

    def combine(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, *before: mx.array
    ) -> mx.array:
        """Attention to all keys given."""
        return _attend(queries, keys, values, scale, self._bias)

    @staticmethod
    def serves(caches: Sequence[Any]) -> bool:
        """Whether the caches are of the one kind that is known here."""
        from mlx_lm.models.cache import BatchKVCache

        return all(type(c) is BatchKVCache for c in caches)

    def attend(
        self, block: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """New tokens look at the cache and at each other."""
        keys, values = self._caches[block].update_and_fetch(keys, values)
        rows, heads, n, width = queries.shape
        if n == 1 and device_name() == "cpu" and queries.dtype == mx.float32:
            grouped = queries.reshape(rows, keys.shape[1], -1, width)
            found = cpu_kernels.attend_once(grouped, keys, values, self._bias, scale)
            return found.reshape(rows, heads, n, width)
        return _attend(queries, keys, values, scale, self._bias)


class SharedPrefixAttention:
    """Rows that go on from their group's prefix, which is not copied to them.

    Args:
        prefix: The pass over the prefixes.
        owner: (rows,) the group of each row; rows of a group stand together.
        prefix_length: (groups,) real tokens of each prefix, with what all begin with.
        length: Tokens of a row, padding included.
    """

    def __init__(
        self, prefix: CausalAttention, owner: np.ndarray, prefix_length: np.ndarray, length: int
    ) -> None:
        self._prefix = prefix
        groups = len(prefix_length)
        counts = np.bincount(owner, minlength=groups)
        self._members = int(counts.max())
        self._groups = groups
        self._uniform = bool((counts == self._members).all() and (np.diff(owner) >= 0).all())
        # Groups of unequal size are filled up; the filler's results are dropped.
        slots = np.zeros((groups, self._members), dtype=np.int32)
        place = np.zeros(len(owner), dtype=np.int32)
        filled = np.zeros(groups, dtype=np.int32)
        for row, group in enumerate(owner):
            slots[group, filled[group]] = row
            place[row] = group * self._members + filled[group]
            filled[group] += 1
        self._slots, self._place = mx.array(slots.reshape(-1)), mx.array(place)
        self.positions = prefix_length[owner][:, None] + np.arange(length)
        width = prefix.width
        self._own = np.broadcast_to(_causal(length), (groups, self._members, length, length))
        self._left: np.ndarray | None = None
        if (prefix_length < width).any():
            real = np.arange(width) < prefix_length[:, None]
            self._left = np.where(real, np.float32(0), np.float32(-np.inf))

    def only(self, wanted: np.ndarray) -> SharedPrefixAttention:
        """For queries at ``wanted`` (rows, m)."""
        made = copy.copy(self)
        made.positions = np.take_along_axis(self.positions, wanted, axis=1)
        length = self._own.shape[-1]
        bias = _causal(length)[wanted[np.array(self._slots)]]
        made._own = bias.reshape(self._groups, self._members, -1, length)
        return made

    def attend(
        self, block: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        """Each token looks at its group's prefix and at its own row up to itself."""
        return self.combine(queries, keys, values, scale, *self.before(block))

    def before(self, block: int) -> tuple[mx.array, ...]:
        """The prefixes' keys and values."""
        return self._prefix.kept[block]

    def keep(self, block: int, keys: mx.array, values: mx.array) -> None:
        """Nobody goes on from a suffix."""

    def combine(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, *before: mx.array
    ) -> mx.array:
        """One softmax over the prefix's keys and the row's own."""
        before_keys, before_values = before
        if not self._uniform:
            queries, keys, values = (
                mx.take(x, self._slots, axis=0) for x in (queries, keys, values)
            )
        _, heads, n, width = queries.shape
        groups, members, shared = self._groups, self._members, keys.shape[1]
        repeat = heads // shared
        own = queries.reshape(groups * members, shared, repeat * n, width)
        apart = queries.reshape(groups, members, shared, repeat * n, width).swapaxes(1, 2)
        left = apart.reshape(groups, shared, members * repeat * n, width)
        left = left @ before_keys.swapaxes(-1, -2)
        right = own @ keys.swapaxes(-1, -2)
        a, b = _joint_softmax(
            left.reshape(groups, shared, members, repeat * n, -1),
            right.reshape(groups, members, shared, repeat * n, -1),
            self._left,
            np.tile(self._own, (1, 1, repeat, 1)) if repeat > 1 else self._own,
            scale,
        )
        found = a.reshape(groups, shared, members * repeat * n, -1) @ before_values
        found = found.reshape(groups, shared, members, repeat * n, width).swapaxes(1, 2)
        found = found.reshape(groups * members, shared, repeat * n, width)
        found = found + b.reshape(groups * members, shared, repeat * n, -1) @ values
        found = found.reshape(groups * members, heads, n, width)
        return found if self._uniform else mx.take(found, self._place, axis=0)


def _joint_softmax(
    left: mx.array,
    right: mx.array,
    left_bias: np.ndarray | None,
    right_bias: np.ndarray,
    scale: float,
) -> tuple[mx.array, mx.array]:
    if device_name() == "cpu" and left.dtype == mx.float32:
        return cpu_kernels.joint_softmax(left, right, left_bias, right_bias, scale)
    width = left.shape[-1]
    if left_bias is not None:
        left = left + mx.array(left_bias)[:, None, None, None].astype(left.dtype)
    right = right + mx.array(right_bias)[:, :, None].astype(right.dtype)
    joined = mx.concatenate([left, right.swapaxes(1, 2)], axis=-1)
    chance = mx.softmax(joined * scale, axis=-1, precise=True)
    return chance[..., :width], chance[..., width:].swapaxes(1, 2)
