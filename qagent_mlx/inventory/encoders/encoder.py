"""The protocol of encoders: texts to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Encoder(Protocol):
    """Turns texts into unit vectors."""

    is_fast: bool  # whether encoding thousands of texts takes no time to speak of

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        ...

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Encode texts; returns float32 (len(texts), dimensions), of length 1 (0 without text).

        ``queries`` says that the texts are queries, which some encoders read differently.
        """
        ...


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1, float32; vectors of zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(length, 1e-9)
    return scaled
