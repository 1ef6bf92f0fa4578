"""Product vectors: searched exactly while they are few, through HNSW graphs when they are many.

A vector has a *slot*, which never changes; the *row* of its product does when products are added
or removed. Shards hold ranges of slots: graphs (usearch, memory-mapped), and one matrix at the
end for vectors that were added since the graphs were built. All shards are searched as one. A
matrix that has grown to `EXACT_BELOW` becomes a graph of its own, and when a quarter of the
slots has no row any more, all shards are built again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from usearch.index import BatchMatches, Index

from .encoders.encoder import unit_length
from .types import EMPTY_RANKING, Ranking

EXACT_BELOW = 50_000  # vectors; below, exact search is as fast as HNSW and never misses
SHARD_SIZE = 250_000  # vectors in a graph
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 48
MAX_DEAD_SHARE = 0.25  # of slots without a row, beyond which all shards are built again
_SCORES_AT_ONCE = 1 << 23  # of an exact search


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Slots or rows near a query, in any order, and their cosine distances."""

    numbers: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True, slots=True)
class Shard:
    """The vectors of slots ``start`` to ``start + size``: a graph, or a matrix."""

    start: int
    size: int
    graph: Index | None = None
    matrix: np.ndarray | None = None  # float32 of length 1, (size, dimensions)
    file: str | None = None  # its name in the index folder, once it is stored there

    def get(self, slots: np.ndarray) -> np.ndarray:
        """Vectors of slots, float32 (len(slots), dimensions)."""
        if self.matrix is not None:
            return np.asarray(self.matrix[slots - self.start])
        assert self.graph is not None
        return np.asarray(self.graph.get(slots.astype(np.uint64)), dtype=np.float32)

    def search(self, queries: np.ndarray, count: int) -> list[Neighbours]:
        """The slots of at least ``count`` neighbours of each query, if there are so many."""
        count = min(count, self.size)
        if self.matrix is not None:
            exact = _exact_neighbours(self.matrix, queries, count)
            return [Neighbours(n.numbers + self.start, n.distances) for n in exact]
        assert self.graph is not None
        # usearch looks at as many as it returns, and at `EXPANSION_SEARCH` at least.
        matches = self.graph.search(queries, count)
        slots = np.atleast_2d(matches.keys).astype(np.int64)
        distances = np.atleast_2d(matches.distances)
        # Entries beyond a query's count hold nothing.
        counts = [slots.shape[1]]
        if isinstance(matches, BatchMatches):
            counts = np.asarray(matches.counts).tolist()
        return [Neighbours(s[:n], d[:n]) for s, d, n in zip(slots, distances, counts, strict=True)]


class VectorIndex:
    """The vectors of a catalog, one per row."""

    def __init__(self, dimensions: int, shards: Sequence[Shard], slots: np.ndarray) -> None:
        """``slots`` holds the slot of each row, int64 (rows,)."""
        self.dimensions = dimensions
        self.shards = tuple(shards)
        self.slots = slots
        self._row_of_slot = np.full(sum(s.size for s in shards), -1, dtype=np.int64)
        self._row_of_slot[slots] = np.arange(len(slots))

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def is_exact(self) -> bool:
        """Whether every search finds the true nearest neighbours."""
        return all(shard.graph is None for shard in self.shards)

    @classmethod
    def build(cls, vectors: np.ndarray) -> VectorIndex:
        """Index one vector per row, (rows, dimensions)."""
        size, dimensions = vectors.shape
        vectors = to_half_precision(vectors)
        if size <= EXACT_BELOW:
            shards = [Shard(0, size, matrix=vectors)]
        else:
            parts = -(-size // SHARD_SIZE)
            bounds = np.linspace(0, size, parts + 1).astype(int).tolist()
            shards = [
                Shard(a, b - a, graph=build_graph(vectors[a:b], a)) for a, b in pairwise(bounds)
            ]
        return cls(dimensions, shards, np.arange(size, dtype=np.int64))

    def updated(self, source: np.ndarray, fresh: np.ndarray) -> VectorIndex:
        """The vectors of a changed catalog; graphs stay as they are.

        ``source`` holds for each row its row in this index, or -1 if its vector is ``fresh``,
        (rows,); those are given in order of row.
        """
        total = len(self._row_of_slot)
        slots = np.where(source >= 0, self.slots[source] if len(self.slots) else 0, 0)
        slots[source < 0] = total + np.arange(len(fresh))
        dead_share = 1 - len(slots) / max(total + len(fresh), 1)
        if self.is_exact or dead_share > MAX_DEAD_SHARE:
            merged = np.empty((len(source), self.dimensions), dtype=np.float32)
            merged[source < 0] = fresh
            merged[source >= 0] = self.get(source[source >= 0])
            return VectorIndex.build(merged)
        shards = list(self.shards)
        tail = shards[-1] if shards[-1].matrix is not None else None
        if not len(fresh):
            return VectorIndex(self.dimensions, shards, slots)
        added, start = to_half_precision(fresh), total
        if tail is not None:
            assert tail.matrix is not None
            added, start = np.concatenate([tail.matrix, added]), tail.start
            shards.pop()
        if len(added) > EXACT_BELOW:
            shards.append(Shard(start, len(added), graph=build_graph(added, start)))
        else:
            shards.append(Shard(start, len(added), matrix=added))
        return VectorIndex(self.dimensions, shards, slots)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of rows, float32 (len(rows), dimensions)."""
        vectors = np.empty((len(rows), self.dimensions), dtype=np.float32)
        slots = self.slots[rows]
        for shard in self.shards:
            inside = (slots >= shard.start) & (slots < shard.start + shard.size)
            if inside.any():
                vectors[inside] = shard.get(slots[inside])
        return vectors

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> list[Ranking]:
        """Rank the ``k`` nearest rows of each query by cosine similarity, to five decimals.

        Args:
            queries: Unit vectors, float32 (queries, dimensions); one of zeros has no neighbours.
            k: Number of rows, at most; ties are broken by row.
            allowed: Mask of the rows that may be returned, bool (rows,).
        """
        size = len(self)
        k = min(k, size)
        share = 1.0 if allowed is None else float(np.count_nonzero(allowed)) / max(size, 1)
        if not len(queries) or k == 0 or share == 0:
            return [EMPTY_RANKING] * len(queries)
        neighbours: list[Neighbours]
        if allowed is not None and (self.is_exact or share * size <= EXACT_BELOW):
            # Few rows are allowed: comparing with each is exact, and no slower.
            rows = np.flatnonzero(allowed)
            exact = _exact_neighbours(self.get(rows), queries, k)
            neighbours = [Neighbours(rows[n.numbers], n.distances) for n in exact]
        else:
            neighbours = self._search_shards(queries, k, allowed, share)
        rankings = []
        for query, near in zip(queries, neighbours, strict=True):
            distances: np.ndarray = np.round(near.distances, 5)
            order = np.lexsort((near.numbers, distances))[: k if query.any() else 0]
            rankings.append(Ranking(near.numbers[order], 1 - distances[order]))
        return rankings

    def _search_shards(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, share: float
    ) -> list[Neighbours]:
        # Slots without a row and rows that are not allowed are dropped after the search, so
        # it asks for more; and for more again where they crowd around a query.
        count = int(k / share * 1.2) + min(len(self._row_of_slot) - len(self), k)
        while True:
            of_shards = [shard.search(queries, count) for shard in self.shards]
            neighbours = []
            for parts in zip(*of_shards, strict=True):
                rows = self._row_of_slot[np.concatenate([part.numbers for part in parts])]
                distances = np.concatenate([part.distances for part in parts])
                passes = rows >= 0
                if allowed is not None:
                    passes &= allowed[rows]
                neighbours.append(Neighbours(rows[passes], distances[passes]))
            fewest = min(len(near.numbers) for near in neighbours)
            if count >= len(self._row_of_slot) or fewest >= k:
                return neighbours
            count *= 4


def to_half_precision(vectors: np.ndarray) -> np.ndarray:
    """Vectors as graphs store them: rounded to float16, then of length 1 in float32."""
    return unit_length(vectors.astype(np.float16).astype(np.float32))


def _exact_neighbours(matrix: np.ndarray, queries: np.ndarray, k: int) -> Iterator[Neighbours]:
    """At least the ``k`` nearest vectors of a matrix, for each query.

    The matrix product finds the candidates. Their distances are then computed one by one, as
    the last bits of a product depend on how many queries are asked at once.
    """
    k = min(k, len(matrix))
    step = max(1, _SCORES_AT_ONCE // max(len(matrix), 1))
    for first in range(0, len(queries), step):
        batch = queries[first : first + step]
        for query, scores in zip(batch, batch @ matrix.T, strict=True):
            candidates: np.ndarray = np.arange(len(matrix))
            if k < len(matrix):
                threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
                candidates = np.flatnonzero(scores >= threshold - 2e-5)
            similarities = (matrix[candidates].astype(np.float64) * query).sum(axis=1)
            yield Neighbours(candidates, 1 - similarities)


def build_graph(vectors: np.ndarray, start: int) -> Index:
    """An HNSW graph of the vectors of consecutive slots."""
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
    """Map a shard's file into memory; processes that open it share its pages.

    Raises:
        ValueError: the file does not hold that many vectors.
    """
    path, matrix, graph = folder / name, None, None
    if name.endswith(".npy"):
        matrix = np.load(path, mmap_mode="r")
    else:
        graph = Index.restore(str(path), view=True, expansion_search=EXPANSION_SEARCH)
    vectors = graph if matrix is None else matrix
    if vectors is None or len(vectors) != size:
        raise ValueError(f"{name} does not hold {size} vectors")
    return Shard(start, size, graph, matrix, name)


def save_shard(shard: Shard, path: Path) -> None:
    """Write a shard's vectors."""
    if shard.graph is not None:
        shard.graph.save(str(path))
    else:
        np.save(path, np.asarray(shard.matrix))
