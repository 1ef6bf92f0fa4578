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
import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from ..utils.runtime import device_name
from . import transformer_blocks

MOST = 20_000_000  # weights: above, MLX's share of the time is small and a copy is not
STEP = 32  # tokens by which a cache grows
LONG, FEW = 48, 4  # a context of so many tokens is shared when so many rows go on with it
CHUNK = 256  # tokens whose states are computed at once, so that they stay near the core


_numbers = itertools.count()


class SharedContexts:
    """Contexts that rows of a cache begin with, each stored once however many rows share it.

    ``data`` is (layers, 2, contexts, heads, room, width), ``lengths`` the tokens of each, and
    ``ids`` tells contexts apart when trunks meet. Nothing in it is written to any more.
    """

    def __init__(self, data: np.ndarray, lengths: np.ndarray, ids: np.ndarray) -> None:
        self.data, self.lengths, self.ids = data, lengths, ids

    def of(self, contexts: np.ndarray) -> SharedContexts:
        """Some of the contexts, in arrays of their own."""
        return SharedContexts(
            self.data.take(contexts, axis=2), self.lengths[contexts], self.ids[contexts]
        )

    def with_those_of(self, other: SharedContexts) -> tuple[SharedContexts, np.ndarray]:
        """Both trunks' contexts, and where those of the other are."""
        place = {number: at for at, number in enumerate(self.ids.tolist())}
        fresh = [at for at, number in enumerate(other.ids.tolist()) if number not in place]
        if not fresh:
            return self, np.array([place[number] for number in other.ids.tolist()])
        room = max(self.data.shape[4], other.data.shape[4])
        data = np.concatenate(
            [_roomy(self.data, room), _roomy(other.data[:, :, fresh], room)], axis=2
        )
        lengths = np.concatenate([self.lengths, other.lengths[fresh]])
        made = SharedContexts(data, lengths, np.concatenate([self.ids, other.ids[fresh]]))
        place = {number: at for at, number in enumerate(made.ids.tolist())}
        return made, np.array([place[number] for number in other.ids.tolist()])


class NumpyCache:
    """Keys and values of some rows: a context of the trunk, where there is one, and own tokens.

    Own tokens are (layers, 2, rows, heads, room, width), each row's from the left. A long
    context becomes a trunk when rows are first chosen from a cache (when its rows part, or some
    leave), so that neither copies it, and rows that share one read it together.
    """

    def __init__(self, layers: int, rows: int, heads: int, width: int) -> None:
        self.own = np.zeros(rows, dtype=np.int64)  # tokens of each row
        self.data = np.empty((layers, 2, rows, heads, 0, width), dtype=np.float32)
        self.trunk: SharedContexts | None = None
        self.context = np.zeros(rows, dtype=np.int64)  # of the trunk, for each row

    @property
    def state(self) -> list[mx.array]:
        """Nothing that MLX would have to evaluate."""
        return []

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, its context's included."""
        if self.trunk is None:
            return self.own
        made: np.ndarray = self.own + self.trunk.lengths[self.context]
        return made

    def make_room(self, length: int) -> None:
        """Let rows have this many tokens of their own."""
        if length > self.data.shape[4]:
            self.data = _roomy(self.data, -(-length // STEP) * STEP)

    def filter(self, rows: mx.array | np.ndarray) -> None:
        """Keep some rows, in this order; the arrays of a copy of this cache stay as they are."""
        kept = np.asarray(rows)
        if self.trunk is None and len(kept) >= FEW and self.own[kept].max() >= LONG:
            self._root()
        self.own = self.own[kept]
        self.context = self.context[kept]
        room = -(-int(self.own.max(initial=0)) // STEP) * STEP
        self.data = self.data[:, :, :, :, :room].take(kept, axis=2)
        if self.trunk is not None:
            used, context = np.unique(self.context, return_inverse=True)
            if 2 * len(used) <= len(self.trunk.ids):
                self.trunk, self.context = self.trunk.of(used), context

    def _root(self) -> None:
        """Make all that rows have the trunk."""
        rows, shape = len(self.own), self.data.shape
        ids = np.array([next(_numbers) for _ in range(rows)], dtype=np.int64)
        self.trunk = SharedContexts(self.data[:, :, :, :, : int(self.own.max())], self.own, ids)
        self.context = np.arange(rows)
        self.own = np.zeros(rows, dtype=np.int64)
        self.data = np.empty((*shape[:4], 0, shape[5]), dtype=np.float32)

    def extend(self, other: NumpyCache) -> None:
        """Add another cache's rows."""
        theirs = copy.copy(other)
        if (self.trunk is None) != (theirs.trunk is None):
            (self if self.trunk is None else theirs)._root()
        context = theirs.context
        if self.trunk is not None and theirs.trunk is not None and self.trunk is not theirs.trunk:
            self.trunk, place = self.trunk.with_those_of(theirs.trunk)
            context = place[context]
        length = max(self.data.shape[4], theirs.data.shape[4])
        self.make_room(length)
        theirs.make_room(length)
        self.data = np.concatenate([self.data, theirs.data], axis=2)
        self.own = np.concatenate([self.own, theirs.own])
        self.context = np.concatenate([self.context, context])


def _roomy(data: np.ndarray, room: int) -> np.ndarray:
    """The same keys and values with room for so many tokens."""
    had = data.shape[4]
    made = np.empty((*data.shape[:4], room, data.shape[5]), dtype=np.float32)
    made[:, :, :, :, :had] = data
    made[:, :, :, :, had:] = 0  # masked, but 0 times NaN would be NaN
    return made


class _Block:
    """One block's matrices, (in, out), with its norms and the scale of its scores folded in.

    The two halves of a rotary pair lie side by side, as a complex number's parts do; that
    reorders queries and keys alike and changes no score.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        before, after = (
            _array(layer.input_layernorm.weight),
            _array(layer.post_attention_layernorm.weight),
        )
        query, key, value = (
            _folded(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        width = query[0].shape[1] // attention.n_heads
        order = _pairs(attention.rope.dims, width)
        query, key = _reordered(query, order), _reordered(key, order)
        scale = np.float32(attention.scale)
        self.q_norm = self.k_norm = None
        if hasattr(attention, "q_norm"):
            self.q_norm = _array(attention.q_norm.weight)[order] * scale, attention.q_norm.eps
            self.k_norm = _array(attention.k_norm.weight)[order], attention.k_norm.eps
        else:
            query = query[0] * scale, query[1] * scale
        projections = query, key, value
        self.qkv = np.ascontiguousarray(
            np.concatenate([w for w, _ in projections], axis=1) * before[:, None]
        )
        self.qkv_bias = _some(np.concatenate([b for _, b in projections]))
        self.out, bias = _folded(attention.o_proj)
        self.out_bias = _some(bias)
        up = [_folded(mlp.gate_proj), _folded(mlp.up_proj)]
        self.up = np.ascontiguousarray(np.concatenate([w for w, _ in up], axis=1) * after[:, None])
        self.up_bias = _some(np.concatenate([b for _, b in up]))
        self.down, bias = _folded(mlp.down_proj)
        self.down_bias = _some(bias)
        self.epsilons = (layer.input_layernorm.eps, layer.post_attention_layernorm.eps)


class _Places:
    """Where the new tokens of some rows go, and which rows read a context together."""

    def __init__(self, pending: list[list[int]], cache: NumpyCache) -> None:
        self.count = np.array([len(p) for p in pending])
        self.ends = np.cumsum(self.count)
        self.own, self.trunk, self.context = cache.own, cache.trunk, cache.context
        rows = np.repeat(np.arange(len(pending)), self.count)
        within = np.arange(len(rows)) - np.repeat(self.ends - self.count, self.count)
        self.positions = cache.lengths[rows] + within
        self.totals = cache.own + self.count
        self.longest = int(self.totals.max())
        self.single = len(rows) == len(pending)
        if self.single:
            self._pack()
        else:
            self._line_up()

    def _pack(self) -> None:
        """For one new token a row: each row's rank among those of its context."""
        size = len(self.own)
        self.bias = _beyond(self.totals, self.longest)[:, None, None]
        self.has_bias = bool((self.totals != self.longest).any())
        if self.trunk is None:
            return
        contexts, lengths = len(self.trunk.ids), self.trunk.lengths
        self.most = 1
        self.packed = not np.array_equal(self.context, np.arange(contexts))
        if self.packed:
            order = np.argsort(self.context, kind="stable")
            first = np.searchsorted(self.context[order], np.arange(contexts))
            self.rank = np.empty(size, dtype=np.int64)
            self.rank[order] = np.arange(size) - first[self.context[order]]
            self.most = int(self.rank.max()) + 1
        self.reach = int(lengths.max())
        self.trunk_bias = (
            _beyond(lengths, self.reach)[:, None, None] if (lengths != self.reach).any() else None
        )

    def _line_up(self) -> None:
        """For more: runs of rows, one after the other, that share a context."""
        self.runs: list[tuple[int, int]] = []
        starts = self.ends - self.count
        for row in range(len(self.count)):
            if self.runs and self.trunk is not None:
                first = self.runs[-1][0]
                alike = self.context[first] == self.context[row]
                if alike and self.ends[row] - starts[first] <= CHUNK:
                    self.runs[-1] = first, row + 1
                    continue
            self.runs.append((row, row + 1))


class NumpyDecoder:
    """The model: ids to the logits after each row's last one."""

    def __init__(self, model: Any) -> None:
        attention = model.layers[0].self_attn
        self._heads, self._shared = attention.n_heads, attention.n_kv_heads
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
    def of(cls, model: Any, parameters: int) -> NumpyDecoder | None:
        """A model's light form; None on a GPU and for models that are large or of another kind."""
        if device_name() != "cpu" or not transformer_blocks.supported(model) or parameters > MOST:
            return None
        for name, module in model.named_modules():
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
        return cls(model)

    def cache(self, rows: int) -> NumpyCache:
        """An empty cache of so many rows."""
        return NumpyCache(len(self._blocks), rows, self._shared, self._width)

    def logits(self, pending: list[list[int]], cache: NumpyCache) -> np.ndarray:
        """Put ids after the rows' contexts.

        Args:
            pending: At least one id a row.
            cache: Of the same rows; gets their keys and values.

        Returns:
            (rows, vocabulary) logits after each row's last id.
        """
        places = _Places(pending, cache)
        cache.make_room(places.longest)
        self._turn(int(places.positions.max()) + 1)
        phase = self._phases[places.positions][:, None]
        hidden = self._embed[np.fromiter(itertools.chain.from_iterable(pending), np.int64)]
        last = len(self._blocks) - 1
        for number, block in enumerate(self._blocks):
            x = self._asked(block, hidden, phase)
            trunk = None if cache.trunk is None else cache.trunk.data[number]
            if places.single:
                found = self._attend_once(places, x, cache.data[number], trunk)
            else:
                # Nobody asks what the earlier tokens of the last block lead to.
                final = number == last
                found = self._attend(places, x, cache.data[number], trunk, final)
                if final:
                    hidden = hidden[places.ends - 1]
            self._go_on(block, hidden, found)
        cache.own = places.totals
        made: np.ndarray = _scaled(hidden, self._norm) @ self._head
        return made

    def _asked(self, block: _Block, hidden: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Queries, keys and values, (tokens, heads + 2 * key heads, width), turned."""
        tokens, heads, shared = len(hidden), self._heads, self._shared
        x = np.empty((tokens, heads + 2 * shared, self._width), dtype=np.float32)
        flat, turned = x.reshape(tokens, -1), x.view(np.complex64)[:, : heads + shared]
        for at in _chunks(tokens):
            np.matmul(_scaled(hidden[at], block.epsilons[0]), block.qkv, out=flat[at])
            if block.qkv_bias is not None:
                flat[at] += block.qkv_bias
            if block.q_norm is not None and block.k_norm is not None:
                queries, keys = x[at, :heads], x[at, heads : heads + shared]
                queries[...] = _scaled(queries, block.q_norm[1]) * block.q_norm[0]
                keys[...] = _scaled(keys, block.k_norm[1]) * block.k_norm[0]
            turned[at] *= phase[at]
        return x

    def _attend_once(
        self, places: _Places, x: np.ndarray, kept: np.ndarray, trunk: np.ndarray | None
    ) -> np.ndarray:
        """What one new token a row finds, (rows, heads * width); ``kept`` gets its key."""
        heads, shared, width = self._heads, self._shared, self._width
        size, repeat, longest = len(x), heads // shared, places.longest
        rows = np.arange(size)
        kept[0][rows, :, places.own] = x[:, heads : heads + shared]
        kept[1][rows, :, places.own] = x[:, heads + shared :]
        queries = np.ascontiguousarray(x[:, :heads]).reshape(size, shared, repeat, width)
        scores = queries @ kept[0][:, :, :longest].swapaxes(-1, -2)
        if places.has_bias:
            scores += places.bias
        highest = scores.max(axis=-1, keepdims=True)
        if trunk is None:
            scores -= highest
            np.exp(scores, out=scores)
            found = scores @ kept[1][:, :, :longest]
            found /= scores.sum(axis=-1, keepdims=True)
            return found.reshape(size, -1)
        # Rows that share a context ask it together.
        contexts, most, reach = trunk.shape[1], places.most, places.reach

        def packed(values: np.ndarray) -> np.ndarray:
            if places.packed:
                made = np.zeros((contexts, shared, most, *values.shape[2:]), dtype=np.float32)
                made[places.context, :, places.rank] = values
                values = made
            return values.reshape(contexts, shared, most * repeat, -1)

        def unpacked(values: np.ndarray) -> np.ndarray:
            if places.packed:
                values = values.reshape(contexts, shared, most, repeat, -1)
                values = values[places.context, :, places.rank]
            return values.reshape(size, shared, repeat, -1)

        before = packed(queries) @ trunk[0][:, :, :reach].swapaxes(-1, -2)
        if places.trunk_bias is not None:
            before += places.trunk_bias
        np.maximum(highest, unpacked(before.max(axis=-1)), out=highest)
        before -= packed(highest)
        scores -= highest
        np.exp(before, out=before)
        np.exp(scores, out=scores)
        found = scores @ kept[1][:, :, :longest]
        found += unpacked(before @ trunk[1][:, :, :reach])
        found /= scores.sum(axis=-1, keepdims=True) + unpacked(before.sum(axis=-1))
        return found.reshape(size, -1)

    def _attend(
        self, places: _Places, x: np.ndarray, kept: np.ndarray, trunk: np.ndarray | None, only: bool
    ) -> np.ndarray:
        """What new tokens find, (tokens, heads * width); ``only`` the last of each row."""
        heads, shared, width = self._heads, self._shared, self._width
        repeat = heads // shared
        ends, count = places.ends.tolist(), places.count.tolist()
        had, totals = places.own.tolist(), places.totals.tolist()
        made = np.empty((len(count) if only else len(x), heads, width), dtype=np.float32)
        for first, stop in places.runs:
            start, end = ends[first] - count[first], ends[stop - 1]
            asked = x[places.ends[first:stop] - 1] if only else x[start:end]
            # (key heads, heads of each, tokens, width)
            queries = asked[:, :heads].reshape(-1, shared, repeat, width).transpose(1, 2, 0, 3)
            reach = 0
            if trunk is not None and places.trunk is not None:
                context = places.context[first]
                reach = int(places.trunk.lengths[context])
            most = reach + max(totals[first:stop])
            scores = np.empty((shared, repeat, len(asked), most), dtype=np.float32)
            if trunk is not None and reach:
                keys = trunk[0][context, :, None, :reach].swapaxes(-1, -2)
                np.matmul(queries, keys, out=scores[..., :reach])
            at = 0
            for row in range(first, stop):
                a, b = ends[row] - count[row], ends[row]
                new = slice(had[row], totals[row])
                kept[0][row, :, new] = x[a:b, heads : heads + shared].swapaxes(0, 1)
                kept[1][row, :, new] = x[a:b, heads + shared :].swapaxes(0, 1)
                own, to = kept[0][row, :, None, : totals[row]], at + (1 if only else b - a)
                part = scores[:, :, at:to, reach:]
                np.matmul(queries[:, :, at:to], own.swapaxes(-1, -2), out=part[..., : totals[row]])
                part[..., totals[row] :] = -np.inf
                if not only:
                    part[..., new] += _later(-(-(b - a) // 128) * 128)[: b - a, : b - a]
                at = to
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            if trunk is not None and reach:
                found = scores[..., :reach] @ trunk[1][context, :, None, :reach]
            else:
                found = np.zeros((shared, repeat, len(asked), width), dtype=np.float32)
            at = 0
            for row in range(first, stop):
                to = at + (1 if only else count[row])
                own = kept[1][row, :, None, : totals[row]]
                found[:, :, at:to] += scores[:, :, at:to, reach : reach + totals[row]] @ own
                at = to
            found /= total
            place = slice(first, stop) if only else slice(start, end)
            made[place] = found.transpose(2, 0, 1, 3).reshape(-1, heads, width)
        return made.reshape(len(made), -1)

    def _go_on(self, block: _Block, hidden: np.ndarray, found: np.ndarray) -> None:
        """Add to hidden states, (tokens, width), what attention found, and the MLP's part."""
        for at in _chunks(len(hidden)):
            state = hidden[at]
            state += found[at] @ block.out
            if block.out_bias is not None:
                state += block.out_bias
            x = _scaled(state, block.epsilons[1]) @ block.up
            if block.up_bias is not None:
                x += block.up_bias
            half = x.shape[-1] // 2
            gate = np.negative(x[:, :half])
            np.exp(gate, out=gate)
            gate += 1
            np.divide(x[:, :half], gate, out=gate)
            gate *= x[:, half:]
            state += gate @ block.down
            if block.down_bias is not None:
                state += block.down_bias

    def _turn(self, length: int) -> None:
        """Have the turns of so many positions, as complex numbers: (positions, width / 2)."""
        if length <= len(getattr(self, "_phases", ())):
            return
        rope = self._rope
        half = rope.dims // 2
        frequency = np.zeros(self._width // 2)  # what is not turned stays
        frequency[:half] = rope.base ** (-np.arange(half) / half)
        positions = np.arange(-(-length // 256) * 256, dtype=np.float64) * rope.scale
        self._phases = np.exp(1j * positions[:, None] * frequency).astype(np.complex64)


def _chunks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, CHUNK):
        yield slice(start, start + CHUNK)


def _beyond(lengths: np.ndarray, longest: int) -> np.ndarray:
    """(rows, longest): minus infinity where a row has no token, else 0."""
    made: np.ndarray = np.where(
        np.arange(longest) < lengths[:, None], np.float32(0), np.float32(-np.inf)
    )
    return made


@lru_cache(maxsize=4)
def _later(tokens: int) -> np.ndarray:
    """(tokens, tokens): minus infinity where a key comes after its query, else 0."""
    return np.triu(np.full((tokens, tokens), -np.inf, dtype=np.float32), 1)


def _pairs(turned: int, width: int) -> np.ndarray:
    """The order of a head's places that puts the halves of rotary pairs side by side."""
    order = np.arange(width)
    order[:turned] = order[:turned].reshape(2, -1).T.ravel()
    return order


def _reordered(
    folded: tuple[np.ndarray, np.ndarray], order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A projection whose heads' places are in another order."""
    weight, bias = folded
    heads = weight.shape[1] // len(order)
    place = (np.arange(heads)[:, None] * len(order) + order).ravel()
    return weight[:, place], bias[place]


def _some(bias: np.ndarray) -> np.ndarray | None:
    """A bias, or None where it adds nothing."""
    return bias if bias.any() else None


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
