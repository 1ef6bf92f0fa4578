"""Encoders: text to unit vectors. The default is learned from the shop's own text.

`SubwordEncoder` is latent semantic analysis over hashed words and character n-grams:
products are weighted sparse rows (title, brand, category, and the queries that led to
clicks on them), and a truncated SVD finds the directions. Unseen words and typos share
character n-grams with known ones and so still get a useful vector. It needs no download
and takes seconds for tens of thousands of products.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import sparse

from ...errors import QAgentError
from ...utils.atomic_files import write_with
from ..analyzer import product_terms

BUCKETS = 1 << 16
FIT_SAMPLE = 100_000


class Encoder(Protocol):
    """Turns texts into unit vectors."""

    cheap: bool  # whether hundreds of texts a second cost nothing to speak of

    @property
    def name(self) -> str:
        """What it is called in the manifest."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        ...

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Float32 array (len(texts), dimensions), each row of length 1 (or 0 for no text).

        ``queries`` says that the texts are queries, which some encoders read differently.
        """
        ...


@lru_cache(maxsize=1 << 17)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    """Hash buckets of a word and of its character 3- and 4-grams, with weights."""
    made = [(zlib.crc32(b"w" + word.encode()) % BUCKETS, 1.0)]
    padded = f"#{word}#"
    grams = [padded[i : i + n] for n in (3, 4) for i in range(len(padded) - n + 1)]
    weight = 1.0 / max(len(grams), 1) ** 0.5
    made += [(zlib.crc32(b"g" + g.encode()) % BUCKETS, weight) for g in grams]
    return tuple(made)


def sparse_rows(texts: Sequence[str]) -> sparse.csr_matrix:
    """Hashed feature counts, one row a text: (len(texts), BUCKETS)."""
    indptr, indices = [0], list[int]()
    data: list[float] = []
    for text in texts:
        row: dict[int, float] = {}
        for term in product_terms(text):
            for bucket, weight in _features(term):
                row[bucket] = row.get(bucket, 0.0) + weight
        indices.extend(row.keys())
        data.extend(row.values())
        indptr.append(len(indices))
    return sparse.csr_matrix(
        (np.array(data, dtype=np.float32), np.array(indices, dtype=np.int32), indptr),
        shape=(len(texts), BUCKETS),
    )


class SubwordEncoder:
    """See the module's text. Make with `fit`, keep with `save`, get back with `load`."""

    name = "subword"
    cheap = True

    def __init__(self, idf: np.ndarray, components: np.ndarray) -> None:
        self.idf = idf  # (BUCKETS,)
        # (BUCKETS, dimensions), float32; rows must be contiguous or each product copies it all
        self.components = np.ascontiguousarray(components, dtype=np.float32)
        self.dimensions = components.shape[1]

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        clicked: Sequence[tuple[int, str, float]] = (),
        dimensions: int = 128,
        seed: int = 0,
    ) -> SubwordEncoder:
        """Learn from product texts and from queries that led to clicks.

        Args:
            texts: One text a product.
            clicked: (row of the product, query, weight) for queries with clicks on it.
            dimensions: Length of the vectors; fewer when there are fewer products.
            seed: Of the randomised SVD (Halko et al., 2011).
        """
        rows = sparse_rows(texts)
        if clicked:
            queries = sparse_rows([q for _, q, _ in clicked])
            weight = np.array([w for *_, w in clicked], dtype=np.float32)
            place = sparse.csr_matrix(
                (weight, ([p for p, *_ in clicked], np.arange(len(clicked)))),
                shape=(len(texts), len(clicked)),
            )
            rows = (rows + place @ queries).tocsr()
        rng = np.random.default_rng(seed)
        if len(texts) > FIT_SAMPLE:
            rows = rows[np.sort(rng.choice(len(texts), FIT_SAMPLE, replace=False))]
        seen = np.bincount(rows.indices, minlength=BUCKETS)
        idf = np.log((1 + rows.shape[0]) / (1 + seen)).astype(np.float32)
        matrix = _weighted(rows, idf)
        width = max(1, min(dimensions, min(matrix.shape) - 1))
        # Randomised range finder with power iterations; QR in between keeps it stable.
        basis = rng.standard_normal((BUCKETS, min(width + 16, min(matrix.shape))))
        for _ in range(4):
            left, _ = np.linalg.qr(matrix @ basis)
            basis = matrix.T @ left
        _, strength, right = np.linalg.svd(basis.T, full_matrices=False)
        # Directions that the products do not span hold noise: in a catalog of one product, or
        # of many with the same title.
        width = max(1, int(np.count_nonzero(strength[:width] > 1e-4 * strength[0])))
        # Between plain LSA (power 0 on both sides) and whitening: damp the strong directions.
        scale = (np.maximum(strength[:width], 1e-9) / max(strength[0], 1e-9)) ** -0.35
        # As `save` keeps them, so that an index that was just built answers as a loaded one does.
        return cls(idf, (right[:width].T * scale).astype(np.float16))

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        weighted = _weighted(sparse_rows(texts), self.idf)
        vectors = np.asarray(weighted @ self.components, dtype=np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(length, 1e-9)

    def save(self, path: Path) -> None:
        """Write to ``path`` (.npz)."""
        write_with(
            path,
            lambda p: np.savez_compressed(
                p, idf=self.idf, components=self.components.astype(np.float16)
            ),
        )

    @classmethod
    def load(cls, path: Path) -> SubwordEncoder:
        """Read what `save` wrote; raises `QAgentError` when it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["idf"], stored["components"].astype(np.float32))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise QAgentError(f"{path} is damaged; run: qagent index") from error


def _weighted(rows: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """Damped counts times idf, each row scaled to length 1."""
    data = np.log1p(rows.data) * idf[rows.indices]
    owner = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    length = np.sqrt(np.bincount(owner, data * data, minlength=rows.shape[0]))
    data = data / np.maximum(length, 1e-9)[owner]
    return sparse.csr_matrix((data.astype(np.float32), rows.indices, rows.indptr), rows.shape)
