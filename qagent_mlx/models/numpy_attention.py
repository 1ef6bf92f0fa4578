"""Attention of `numpy_decoder`: one new token in each row, or several.

In the shapes below H is the number of query heads, K of key and value heads, D the width of a
head. New tokens arrive as x, (tokens, H + 2 K, D): queries, keys and values, rotated. A
block's own cache is (2, rows, K, room, D) and its shared prefixes are (2, prefixes, K, room, D).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .numpy_cache import NumpyCache


class StepAttention:
    """One new token in each row: all rows attend at once, those that share a prefix together."""

    def __init__(self, cache: NumpyCache, heads: int, key_heads: int) -> None:
        self._heads, self._key_heads = heads, key_heads
        self._lengths = cache.lengths
        self.rows = len(cache.lengths)
        self.positions = cache.positions
        self.last_tokens = np.arange(self.rows)
        self.totals = cache.lengths + 1
        self.longest = int(self.totals.max())
        self._bias = _padding_bias(self.totals, self.longest)
        if cache.prefixes is None:
            return
        # A row's slot: its rank among the rows of its prefix.
        self._prefix_of, lengths = cache.prefix_of, cache.prefixes.lengths
        self._prefixes, self._slots = len(lengths), 1
        self._packed = not np.array_equal(cache.prefix_of, np.arange(self._prefixes))
        if self._packed:
            order = np.argsort(cache.prefix_of, kind="stable")
            first = np.searchsorted(cache.prefix_of[order], np.arange(self._prefixes))
            self._slot = np.empty(self.rows, dtype=np.int64)
            self._slot[order] = np.arange(self.rows) - first[cache.prefix_of[order]]
            self._slots = int(self._slot.max()) + 1
        self._prefix_length = int(lengths.max())
        self._prefix_bias = _padding_bias(lengths, self._prefix_length)

    def attend(
        self, x: np.ndarray, own: np.ndarray, prefix: np.ndarray | None, _last: bool
    ) -> np.ndarray:
        """(rows, H * D) outputs; ``own`` receives the new keys and values."""
        heads, key_heads, rows = self._heads, self._key_heads, self.rows
        every = np.arange(rows)
        own[0][every, :, self._lengths] = x[:, heads : heads + key_heads]
        own[1][every, :, self._lengths] = x[:, heads + key_heads :]
        keys, values = own[:, :, :, : self.longest]
        queries = np.ascontiguousarray(x[:, :heads])
        queries = queries.reshape(rows, key_heads, heads // key_heads, -1)
        scores = queries @ keys.swapaxes(-1, -2)
        if self._bias is not None:
            scores += self._bias
        highest = scores.max(axis=-1, keepdims=True)
        if prefix is None:
            scores -= highest
            np.exp(scores, out=scores)
            output = scores @ values
            output /= scores.sum(axis=-1, keepdims=True)
            return output.reshape(rows, -1)
        prefix_keys, prefix_values = prefix[:, :, :, : self._prefix_length]
        prefix_scores = self._pack(queries) @ prefix_keys.swapaxes(-1, -2)
        if self._prefix_bias is not None:
            prefix_scores += self._prefix_bias
        np.maximum(highest, self._unpack(prefix_scores.max(axis=-1)), out=highest)
        prefix_scores -= self._pack(highest)
        scores -= highest
        np.exp(prefix_scores, out=prefix_scores)
        np.exp(scores, out=scores)
        output = scores @ values
        output += self._unpack(prefix_scores @ prefix_values)
        output /= scores.sum(axis=-1, keepdims=True) + self._unpack(prefix_scores.sum(axis=-1))
        return output.reshape(rows, -1)

    def _pack(self, values: np.ndarray) -> np.ndarray:
        """(rows, K, H / K, n) as (prefixes, K, slots * H / K, n); unused slots are 0."""
        if self._packed:
            shape = (self._prefixes, values.shape[1], self._slots, *values.shape[2:])
            packed = np.zeros(shape, dtype=np.float32)
            packed[self._prefix_of, :, self._slot] = values
            values = packed
        return values.reshape(len(values), values.shape[1], -1, values.shape[-1])

    def _unpack(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `_pack`."""
        repeat = self._heads // self._key_heads
        if self._packed:
            values = values.reshape(len(values), self._key_heads, self._slots, repeat, -1)
            values = values[self._prefix_of, :, self._slot]
        return values.reshape(self.rows, self._key_heads, repeat, -1)


class PrefillAttention:
    """Several new tokens in some rows: one row after the other.

    Neighbouring rows that share a prefix attend to it in one product.

    Args:
        counts: (rows,) new tokens of each row.
        cache: What the rows hold before.
        heads: H.
        key_heads: K.
        tokens: The most tokens of rows that share a product.
    """

    def __init__(
        self, counts: np.ndarray, cache: NumpyCache, heads: int, key_heads: int, tokens: int
    ) -> None:
        self._heads, self._key_heads = heads, key_heads
        self._counts, self._ends = counts, np.cumsum(counts)
        self._lengths, self._prefix_of = cache.lengths, cache.prefix_of
        self._prefix_lengths = None if cache.prefixes is None else cache.prefixes.lengths
        self.rows = len(counts)
        row_of = np.repeat(np.arange(self.rows), counts)
        starts = self._ends - counts
        self.positions = cache.positions[row_of] + np.arange(len(row_of)) - starts[row_of]
        self.last_tokens = self._ends - 1
        self.totals = cache.lengths + counts
        self.longest = int(self.totals.max())
        self._runs: list[tuple[int, int]] = []  # rows [first, stop) that share a prefix
        for row in range(self.rows):
            if self._runs and cache.prefixes is not None:
                first = self._runs[-1][0]
                shared = cache.prefix_of[first] == cache.prefix_of[row]
                if shared and self._ends[row] - starts[first] <= tokens:
                    self._runs[-1] = first, row + 1
                    continue
            self._runs.append((row, row + 1))

    def attend(
        self, x: np.ndarray, own: np.ndarray, prefix: np.ndarray | None, last: bool
    ) -> np.ndarray:
        """(tokens, H * D) outputs; ``own`` receives the new keys and values.

        With ``last`` only each row's last token attends: (rows, H * D).
        """
        self._store(x, own)
        heads, key_heads, width = self._heads, self._key_heads, x.shape[-1]
        output = np.empty((self.rows if last else len(x), heads, width), dtype=np.float32)
        for first, stop in self._runs:
            tokens = slice(self._ends[first] - self._counts[first], self._ends[stop - 1])
            asking = self.last_tokens[first:stop] if last else tokens
            queries = x[asking, :heads].reshape(-1, key_heads, heads // key_heads, width)
            attended = self._attend_run(first, stop, queries.transpose(1, 2, 0, 3), own, prefix)
            place = slice(first, stop) if last else tokens
            output[place] = attended.transpose(2, 0, 1, 3).reshape(-1, heads, width)
        return output.reshape(len(output), -1)

    def _store(self, x: np.ndarray, own: np.ndarray) -> None:
        """Put the new keys and values behind those that the rows have."""
        heads, key_heads = self._heads, self._key_heads
        for row, end in enumerate(self._ends):
            tokens = slice(end - self._counts[row], end)
            new = slice(self._lengths[row], self.totals[row])
            own[0][row, :, new] = x[tokens, heads : heads + key_heads].swapaxes(0, 1)
            own[1][row, :, new] = x[tokens, heads + key_heads :].swapaxes(0, 1)

    def _attend_run(
        self, first: int, stop: int, queries: np.ndarray, own: np.ndarray, prefix: np.ndarray | None
    ) -> np.ndarray:
        """Attend from queries (K, H / K, tokens, D) of rows ``first`` to ``stop`` (exclusive)."""
        key_heads, repeat, tokens, width = queries.shape
        reach = 0
        if prefix is not None and self._prefix_lengths is not None:
            shared = self._prefix_of[first]
            reach = int(self._prefix_lengths[shared])
        longest = reach + int(self.totals[first:stop].max())
        scores = np.empty((key_heads, repeat, tokens, longest), dtype=np.float32)
        if prefix is not None and reach:
            prefix_keys, prefix_values = prefix[:, shared, :, None, :reach]
            np.matmul(queries, prefix_keys.swapaxes(-1, -2), out=scores[..., :reach])
        every = tokens != stop - first  # whether each token has a query, not the last ones alone
        ends = np.cumsum(self._counts[first:stop] if every else np.ones(stop - first, np.int64))
        starts = [0, *ends[:-1]]
        rows = list(zip(range(first, stop), starts, ends, strict=True))
        for row, start, end in rows:
            total = self.totals[row]
            keys = own[0][row, :, None, :total]
            part = scores[:, :, start:end, reach:]
            np.matmul(queries[:, :, start:end], keys.swapaxes(-1, -2), out=part[..., :total])
            part[..., total:] = -np.inf
            if every:
                part[..., self._lengths[row] : total] += _causal_bias(self._counts[row])
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        normaliser = scores.sum(axis=-1, keepdims=True)
        if prefix is not None and reach:
            output = scores[..., :reach] @ prefix_values
        else:
            output = np.zeros((key_heads, repeat, tokens, width), dtype=np.float32)
        for row, start, end in rows:
            total = self.totals[row]
            probabilities = scores[:, :, start:end, reach : reach + total]
            output[:, :, start:end] += probabilities @ own[1][row, :, None, :total]
        output /= normaliser
        return output


def _padding_bias(lengths: np.ndarray, longest: int) -> np.ndarray | None:
    """(rows, 1, 1, longest): minus infinity beyond a row's length; None where rows are equal."""
    if (lengths == longest).all():
        return None
    visible = np.arange(longest) < lengths[:, None]
    return np.where(visible, np.float32(0), np.float32(-np.inf))[:, None, None]


def _causal_bias(tokens: int) -> np.ndarray:
    """(tokens, tokens): minus infinity where a key comes after its query, else 0."""
    return _causal_square(-(-int(tokens) // 128) * 128)[:tokens, :tokens]


@lru_cache(maxsize=4)
def _causal_square(tokens: int) -> np.ndarray:
    return np.triu(np.full((tokens, tokens), -np.inf, dtype=np.float32), 1)
