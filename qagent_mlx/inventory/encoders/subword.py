"""The default encoder, learned from the shop's own text.

Latent semantic analysis over hashed words and character n-grams: products are weighted sparse
vectors (title, brand, category, and the queries that led to clicks on them), and a truncated SVD
finds the directions. Unseen words and typos share character n-grams with known ones and so still
get a useful vector. It needs no download and takes seconds for tens of thousands of products.
"""

from __future__ import annotations

import zipfile
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import QAgentError
from ...utils.atomic_files import write_with
from ...utils.sparse import sparse
from ..analyzer import product_terms
from .encoder import unit_length

BUCKETS = 1 << 16  # of the hashed words and n-grams
MAX_FIT_PRODUCTS = 100_000  # a random sample of larger catalogs is enough
TEXTS_AT_ONCE = 10_000  # that are encoded; each has some hundred features


class ClickedQuery(NamedTuple):
    """A query under which users engaged with a product."""

    row: int  # of the product
    query: str
    weight: float


class SubwordEncoder:
    """Made by `fit`, stored by `save`, read by `load`."""

    is_fast = True

    def __init__(self, idf: np.ndarray, components: np.ndarray) -> None:
        self.idf = idf  # (BUCKETS,)
        # (BUCKETS, dimensions), float32; contiguous, or each product would copy it all
        self.components = np.ascontiguousarray(components, dtype=np.float32)
        self.dimensions = components.shape[1]

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        clicked: Sequence[ClickedQuery] = (),
        dimensions: int = 128,
        seed: int = 0,
    ) -> SubwordEncoder:
        """Learn from product texts and from queries that led to clicks.

        Args:
            texts: One text per product.
            clicked: Queries whose terms are added to the products clicked under them.
            dimensions: Length of the vectors; fewer when there are fewer products.
            seed: Of the randomised SVD (Halko et al., 2011).
        """
        rng, sample = np.random.default_rng(seed), np.arange(len(texts))
        if len(texts) > MAX_FIT_PRODUCTS:
            sample = np.sort(rng.choice(len(texts), MAX_FIT_PRODUCTS, replace=False))
        features = hashed_features([texts[row] for row in sample.tolist()])
        if clicked:
            queries = hashed_features([click.query for click in clicked])
            weights = np.array([click.weight for click in clicked], dtype=np.float32)
            placement = sparse.csr_matrix(
                (weights, ([click.row for click in clicked], np.arange(len(clicked)))),
                shape=(len(texts), len(clicked)),
            )
            features = (features + placement[sample] @ queries).tocsr()
        frequency = np.bincount(features.indices, minlength=BUCKETS)
        idf = np.log((1 + features.shape[0]) / (1 + frequency)).astype(np.float32)
        strength, directions = _truncated_svd(_tf_idf(features, idf), dimensions, rng)
        # Between plain LSA (power 0 on both sides) and whitening: damp the strong directions.
        scale = (np.maximum(strength, 1e-9) / max(strength[0], 1e-9)) ** -0.35
        # float16 as `save` stores them, so that a new index answers as a loaded one does.
        return cls(idf, (directions.T * scale).astype(np.float16))

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        return self.encode_with_lengths(texts)[0]

    def encode_with_lengths(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors, and the lengths (len(texts),) that they had before.

        The length says how much of a text was seen in learning: about 1 where all of it was, near
        0 where hardly any n-gram was.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = slice(start, start + TEXTS_AT_ONCE)
            vectors[part] = _tf_idf(hashed_features(texts[part]), self.idf) @ self.components
        return unit_length(vectors), np.linalg.norm(vectors, axis=1)

    def save(self, path: Path) -> None:
        """Write to ``path`` (.npz)."""
        components = self.components.astype(np.float16)
        write_with(path, lambda p: np.savez_compressed(p, idf=self.idf, components=components))

    @classmethod
    def load(cls, path: Path) -> SubwordEncoder:
        """Read what `save` wrote; raises `QAgentError` when it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["idf"], stored["components"].astype(np.float32))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise QAgentError(f"{path} is damaged; run: qagent index") from error


def hashed_features(texts: Sequence[str]) -> sparse.csr_matrix:
    """Counts of hashed words and character n-grams, (len(texts), BUCKETS)."""
    # Arrays: a million products have more than a hundred million features.
    offsets, buckets, counts = [0], array("i"), array("f")
    for text in texts:
        features: dict[int, float] = {}
        for term in product_terms(text):
            for bucket, weight in _term_features(term):
                features[bucket] = features.get(bucket, 0.0) + weight
        buckets.extend(features.keys())
        counts.extend(features.values())
        offsets.append(len(buckets))
    return sparse.csr_matrix(
        (np.array(counts, dtype=np.float32), np.array(buckets, dtype=np.int32), offsets),
        shape=(len(texts), BUCKETS),
    )


@lru_cache(maxsize=1 << 17)
def _term_features(term: str) -> tuple[tuple[int, float], ...]:
    """Buckets and weights of a term and of its character 3- and 4-grams."""
    padded = f"#{term}#"
    grams = [padded[i : i + n] for n in (3, 4) for i in range(len(padded) - n + 1)]
    weight = 1.0 / max(len(grams), 1) ** 0.5
    return (
        (zlib.crc32(b"w" + term.encode()) % BUCKETS, 1.0),
        *((zlib.crc32(b"g" + gram.encode()) % BUCKETS, weight) for gram in grams),
    )


def _tf_idf(features: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """Damped counts times idf, each row scaled to length 1."""
    weights = np.log1p(features.data) * idf[features.indices]
    rows = np.repeat(np.arange(features.shape[0]), np.diff(features.indptr))
    length = np.sqrt(np.bincount(rows, weights * weights, minlength=features.shape[0]))
    weights = weights / np.maximum(length, 1e-9)[rows]
    return sparse.csr_matrix(
        (weights.astype(np.float32), features.indices, features.indptr), features.shape
    )


def _truncated_svd(
    matrix: sparse.csr_matrix, dimensions: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Leading singular values and right singular vectors, (d,) and (d, BUCKETS).

    A randomised range finder with power iterations; QR in between keeps it stable. Not scipy's
    `svds`: it iterates until each vector has converged, which takes many times as long, and
    stored indexes rest on these numbers.
    """
    width = max(1, min(dimensions, min(matrix.shape) - 1))
    basis = rng.standard_normal((BUCKETS, min(width + 16, min(matrix.shape))))
    # Most buckets are empty; they add zeros only.
    used, places = np.unique(matrix.indices, return_inverse=True)
    if not len(used):
        return np.zeros(1), np.zeros((1, BUCKETS))
    matrix = sparse.csr_matrix(
        (matrix.data.astype(float), places, matrix.indptr), (matrix.shape[0], len(used))
    )
    basis = basis[used]
    for _ in range(4):
        left, _ = np.linalg.qr(matrix @ basis)
        basis = matrix.T @ left
    _, strength, among_used = np.linalg.svd(basis.T, full_matrices=False)
    directions = np.zeros((len(strength), BUCKETS))
    directions[:, used] = among_used
    # Directions that the products do not span hold noise: in a catalog of one product, or of
    # many with the same title.
    width = max(1, int(np.count_nonzero(strength[:width] > 1e-4 * strength[0])))
    return strength[:width], directions[:width]
