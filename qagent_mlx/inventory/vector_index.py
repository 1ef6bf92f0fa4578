"""Product vectors: searched exactly while they are few, through HNSW graphs when they are many.

A vector has a *slot*, which never changes, and its product a *row*, which does when products
come and go. Shards hold ranges of slots: graphs (usearch, memory-mapped) and one matrix at the
end for what was added since the graphs were built. All are searched as one. When the
matrix has grown to `EXACT_BELOW` it becomes a graph of its own, and when a quarter of the slots
has no row any more, all shards are built anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from usearch.index import BatchMatches, Index

EXACT_BELOW = 50_000  # vectors; below, exact search is as fast as HNSW and never misses
SHARD = 250_000  # vectors in a graph
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 48
_SCORES = 1 << 23  # scores that an exact search holds at once
DEAD_SHARE = 0.25  # of slots without a row, from which on everything is built anew


Found = list[tuple[np.ndarray, np.ndarray]]  # (slots or rows, distances) for each query


@dataclass(frozen=True, slots=True)
class Shard:
    """The vectors of slots ``start`` to ``start + size``: a graph, or a matrix."""

    start: int
    size: int
    graph: Index | None = None
    matrix: np.ndarray | None = None  # float32 of length 1, (size, dimensions)
    file: str | None = None  # its name in the index folder, once it is there

    def get(self, slots: np.ndarray) -> np.ndarray:
        """Vectors of slots, float32 (len(slots), dimensions)."""
        if self.matrix is not None:
            return np.asarray(self.matrix[slots - self.start])
        assert self.graph is not None
        return np.asarray(self.graph.get(slots.astype(np.uint64)), dtype=np.float32)

    def search(self, queries: np.ndarray, fetch: int) -> Found:
        """Slots and distances of at least ``fetch`` vectors a query, where there are so many."""
        fetch = min(fetch, self.size)
        if self.matrix is not None:
            return [(s + self.start, d) for s, d in _nearest(self.matrix, queries, fetch)]
        assert self.graph is not None
        # usearch looks at as many as it returns, and at `EXPANSION_SEARCH` at least.
        found = self.graph.search(queries, fetch)
        slots = np.atleast_2d(found.keys).astype(np.int64)
        distances = np.atleast_2d(found.distances)
        if isinstance(found, BatchMatches):  # places beyond a query's count hold nothing
            counts = np.asarray(found.counts).tolist()
        else:
            counts = [slots.shape[1]]
        return [(s[:n], d[:n]) for s, d, n in zip(slots, distances, counts, strict=True)]


class VectorIndex:
    """The vectors of a catalog, one a row."""

    def __init__(self, dimensions: int, shards: Sequence[Shard], slots: np.ndarray) -> None:
        """``slots``: the slot of each row, int64 (rows,)."""
        self.dimensions = dimensions
        self.shards = tuple(shards)
        self.slots = slots
        self._row = np.full(sum(s.size for s in shards), -1, dtype=np.int64)
        self._row[slots] = np.arange(len(slots))

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def exact(self) -> bool:
        """Whether no search misses anything."""
        return all(shard.graph is None for shard in self.shards)

    @classmethod
    def build(cls, vectors: np.ndarray) -> VectorIndex:
        """Of one vector a row, (rows, dimensions)."""
        size, dimensions = vectors.shape
        vectors = rounded(vectors)
        if size <= EXACT_BELOW:
            shards = [Shard(0, size, matrix=vectors)]
        else:
            parts = -(-size // SHARD)
            edges = np.linspace(0, size, parts + 1).astype(int).tolist()
            shards = [Shard(a, b - a, graph=_graph(vectors[a:b], a)) for a, b in pairwise(edges)]
        return cls(dimensions, shards, np.arange(size, dtype=np.int64))

    def rearranged(self, source: np.ndarray, fresh: np.ndarray) -> VectorIndex:
        """The vectors of a changed catalog; graphs stay as they are.

        Args:
            source: For each new row the old row that it is, or -1 for a new vector, (rows,).
            fresh: The new vectors, in order of row.
        """
        total = len(self._row)
        slots = np.where(source >= 0, self.slots[source] if len(self.slots) else 0, 0)
        slots[source < 0] = total + np.arange(len(fresh))
        dead = 1 - len(slots) / max(total + len(fresh), 1)
        if self.exact or dead > DEAD_SHARE:
            merged = np.empty((len(source), self.dimensions), dtype=np.float32)
            merged[source < 0] = fresh
            merged[source >= 0] = self.get(source[source >= 0])
            return VectorIndex.build(merged)
        shards = list(self.shards)
        tail = shards.pop() if shards[-1].matrix is not None else None
        added = rounded(fresh)
        if tail is not None:
            assert tail.matrix is not None
            added = np.concatenate([tail.matrix, added])
        start = tail.start if tail is not None else total
        if len(added) > EXACT_BELOW:
            shards.append(Shard(start, len(added), graph=_graph(added, start)))
        elif tail is not None and not len(fresh):
            shards.append(tail)
        elif len(added):
            shards.append(Shard(start, len(added), matrix=added))
        return VectorIndex(self.dimensions, shards, slots)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of rows, float32 (len(rows), dimensions)."""
        made = np.empty((len(rows), self.dimensions), dtype=np.float32)
        slots = self.slots[rows]
        for shard in self.shards:
            own = (slots >= shard.start) & (slots < shard.start + shard.size)
            if own.any():
                made[own] = shard.get(slots[own])
        return made

    def _approximate(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, share: float
    ) -> Found:
        # Slots without a row and rows that are not allowed are dropped after the search, so
        # it fetches more; and again more where they crowd around a query.
        wanted = int(k / share * 1.2) + min(len(self._row) - len(self), k)
        while True:
            parts = [shard.search(queries, wanted) for shard in self.shards]
            found = []
            for pieces in zip(*parts, strict=True):
                rows = self._row[np.concatenate([slots for slots, _ in pieces])]
                distances = np.concatenate([near for _, near in pieces])
                kept = rows >= 0
                if allowed is not None:
                    kept &= allowed[rows]
                found.append((rows[kept], distances[kept]))
            if wanted >= len(self._row) or min(len(rows) for rows, _ in found) >= k:
                return found
            wanted *= 4

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The nearest rows of each query.

        Args:
            queries: Unit vectors, float32 (queries, dimensions); one of zeros finds nothing.
            k: How many rows.
            allowed: Rows that may be found, bool (rows,).

        Returns:
            For each query rows and cosine distances, the nearest first, ties (to five
            decimals) by row.
        """
        size = len(self)
        k = min(k, size)
        share = 1.0 if allowed is None else float(np.count_nonzero(allowed)) / max(size, 1)
        nothing = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        if not len(queries) or k == 0 or share == 0:
            return [nothing] * len(queries)
        if allowed is not None and (self.exact or share * size <= EXACT_BELOW):
            # Few rows may be found: comparing with each is exact, and no slower.
            rows = np.flatnonzero(allowed)
            found = [(rows[at], near) for at, near in _nearest(self.get(rows), queries, k)]
        else:
            found = self._approximate(queries, k, allowed, share)
        made: Found = []
        for query, (rows, distances) in zip(queries, found, strict=True):
            if not query.any():
                made.append(nothing)
                continue
            near: np.ndarray = np.round(distances, 5)
            order = np.lexsort((rows, near))[:k]
            made.append((rows[order], near[order]))
        return made


def rounded(vectors: np.ndarray) -> np.ndarray:
    """As graphs keep them: rounded to float16, and then of length 1 in float32."""
    vectors = vectors.astype(np.float16).astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(length, 1e-9)
    return scaled


def _nearest(matrix: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """Rows and cosine distances of at least the ``k`` nearest vectors, in any order.

    The matrix product finds the candidates. Their distances are then computed one by one,
    since the last bits of a product depend on how many queries are asked at once.
    """
    made: list[tuple[np.ndarray, np.ndarray]] = []
    k = min(k, len(matrix))
    step = max(1, _SCORES // max(len(matrix), 1))
    for first in range(0, len(queries), step):
        part = queries[first : first + step]
        for query, scores in zip(part, part @ matrix.T, strict=True):
            rows: np.ndarray = np.arange(len(matrix))
            if k < len(matrix):
                least = np.partition(scores, len(scores) - k)[len(scores) - k]
                rows = np.flatnonzero(scores >= least - 2e-5)
            near = (matrix[rows].astype(np.float64) * query).sum(axis=1)
            distances: np.ndarray = 1 - near
            made.append((rows, distances))
    return made


def _graph(vectors: np.ndarray, start: int) -> Index:
    graph = Index(
        ndim=vectors.shape[1],
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
    graph.add(np.arange(start, start + len(vectors), dtype=np.uint64), vectors)
    return graph


def open_shard(folder: Path, name: str, start: int, size: int) -> Shard:
    """A shard's file, mapped into memory: processes that open it share its pages.

    Raises:
        ValueError: the file does not hold that many vectors.
    """
    path = folder / name
    if name.endswith(".npy"):
        shard = Shard(start, size, matrix=np.load(path, mmap_mode="r"), file=name)
        fits = shard.matrix is not None and len(shard.matrix) == size
    else:
        graph = Index.restore(str(path), view=True, expansion_search=EXPANSION_SEARCH)
        fits = graph is not None and len(graph) == size
        shard = Shard(start, size, graph=graph, file=name)
    if not fits:
        raise ValueError(f"{name} does not hold {size} vectors")
    return shard


def save_shard(shard: Shard, path: Path) -> None:
    """Write a shard's vectors."""
    if shard.graph is not None:
        shard.graph.save(str(path))
    else:
        np.save(path, np.asarray(shard.matrix))
