"""The key-value cache of `numpy_decoder`: rows that share a long prefix store it once."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

STEP = 32  # tokens by which a cache grows
SHARED_TOKENS, SHARED_ROWS = 48, 4  # a prefix of so many tokens is shared by so many rows

_next_id = itertools.count().__next__


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Prefixes of rows of a cache, each stored once however many rows share it.

    Attributes:
        data: (layers, 2, prefixes, heads, room, width) keys and values; never written to.
        lengths: (prefixes,) tokens of each.
        ids: (prefixes,) distinguish prefixes when caches are joined.
    """

    data: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray

    def select(self, prefixes: np.ndarray) -> SharedPrefixes:
        """Some of the prefixes, in arrays of their own."""
        data = self.data.take(prefixes, axis=2)
        return SharedPrefixes(data, self.lengths[prefixes], self.ids[prefixes])

    def union(self, other: SharedPrefixes) -> tuple[SharedPrefixes, np.ndarray]:
        """Both sides' prefixes, and the place of each of the other's among them."""
        union = self
        new = np.flatnonzero(~np.isin(other.ids, self.ids))
        if len(new):
            room = max(self.data.shape[4], other.data.shape[4])
            data = [_with_room(self.data, room), _with_room(other.data[:, :, new], room)]
            union = SharedPrefixes(
                np.concatenate(data, axis=2),
                np.concatenate([self.lengths, other.lengths[new]]),
                np.concatenate([self.ids, other.ids[new]]),
            )
        order = np.argsort(union.ids)
        return union, order[np.searchsorted(union.ids, other.ids, sorter=order)]


class NumpyCache:
    """Keys and values of some rows: a shared prefix, where there is one, and own tokens.

    A long context becomes a shared prefix when rows are first selected from a cache (when a
    row's continuations part, or some rows leave), so that nothing copies it, and rows that
    share one read it together.

    Attributes:
        data: (layers, 2, rows, heads, room, width) keys and values of own tokens, from the left.
        lengths: (rows,) own tokens.
        prefixes: The shared prefixes.
        prefix_of: (rows,) each row's prefix, where there are any.
    """

    def __init__(self, layers: int, rows: int, heads: int, width: int) -> None:
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.data = np.empty((layers, 2, rows, heads, 0, width), dtype=np.float32)
        self.prefixes: SharedPrefixes | None = None
        self.prefix_of = np.zeros(rows, dtype=np.int64)

    @property
    def state(self) -> list[mx.array]:
        """MLX arrays to evaluate, as mlx-lm's caches have them: none."""
        return []

    @property
    def positions(self) -> np.ndarray:
        """(rows,) the position of each row's next token: its prefix and its own tokens."""
        if self.prefixes is None:
            return self.lengths
        positions: np.ndarray = self.lengths + self.prefixes.lengths[self.prefix_of]
        return positions

    def make_room(self, length: int) -> None:
        """Let rows have this many tokens of their own."""
        if length > self.data.shape[4]:
            self.data = _with_room(self.data, _round_up(length))

    def filter(self, rows: mx.array | np.ndarray) -> None:
        """Keep some rows, in this order; the arrays of a copy of this cache stay as they are."""
        rows = np.asarray(rows)
        longest = self.lengths[rows].max(initial=0)
        if self.prefixes is None and len(rows) >= SHARED_ROWS and longest >= SHARED_TOKENS:
            self._share()
        self.lengths, self.prefix_of = self.lengths[rows], self.prefix_of[rows]
        room = _round_up(int(self.lengths.max(initial=0)))
        self.data = self.data[:, :, :, :, :room].take(rows, axis=2)
        if self.prefixes is not None:
            used, prefix_of = np.unique(self.prefix_of, return_inverse=True)
            if 2 * len(used) <= len(self.prefixes.ids):
                self.prefixes, self.prefix_of = self.prefixes.select(used), prefix_of

    def extend(self, other: NumpyCache) -> None:
        """Add another cache's rows."""
        other = copy.copy(other)
        if (self.prefixes is None) != (other.prefixes is None):
            (self if self.prefixes is None else other)._share()
        prefixes = other.prefixes
        if self.prefixes is not None and prefixes is not None and self.prefixes is not prefixes:
            self.prefixes, place = self.prefixes.union(prefixes)
            other.prefix_of = place[other.prefix_of]
        room = max(self.data.shape[4], other.data.shape[4])
        self.make_room(room)
        other.make_room(room)
        self.data = np.concatenate([self.data, other.data], axis=2)
        self.lengths = np.concatenate([self.lengths, other.lengths])
        self.prefix_of = np.concatenate([self.prefix_of, other.prefix_of])

    def _share(self) -> None:
        """Turn all tokens of each row into a prefix."""
        rows, shape = len(self.lengths), self.data.shape
        ids = np.array([_next_id() for _ in range(rows)], dtype=np.int64)
        data = self.data[:, :, :, :, : int(self.lengths.max())]
        self.prefixes = SharedPrefixes(data, self.lengths, ids)
        self.prefix_of = np.arange(rows)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.data = np.empty((*shape[:4], 0, shape[5]), dtype=np.float32)


def _round_up(length: int) -> int:
    return -(-length // STEP) * STEP


def _with_room(data: np.ndarray, room: int) -> np.ndarray:
    """The same keys and values with room for so many tokens."""
    length = data.shape[4]
    roomy = np.empty((*data.shape[:4], room, data.shape[5]), dtype=np.float32)
    roomy[:, :, :, :, :length] = data
    roomy[:, :, :, :, length:] = 0  # masked, but 0 times NaN would be NaN
    return roomy
