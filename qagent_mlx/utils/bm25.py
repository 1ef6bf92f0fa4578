"""The two formulas of BM25 that every index here uses (Lucene's; Kamphuis et al., 2020).

    score = sum over a query's terms of  idf * tf / (tf + length_norm)

The shop's search (`inventory.bm25`) stores these sums as float32 and updates them in place; the
baseline over past queries recomputes them at each moment in float64, and the simulated shop,
which must not depend on the search that is measured on it, has a fixed catalog. So the postings
are kept three times, the formulas once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

K1, B = 1.2, 0.4


def idf(documents: int, frequency: Any) -> Any:
    """Inverse document frequency of terms that ``frequency`` of all ``documents`` hold."""
    return np.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))


def length_norm(lengths: np.ndarray, mean: float) -> np.ndarray:
    """How much documents of these lengths are damped, compared with the mean length."""
    norm: np.ndarray = K1 * (1 - B + B * lengths / mean)
    return norm
