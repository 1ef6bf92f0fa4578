"""Decodes one context at a time, for models that mlx-lm's caches for batches do not serve.

Slower than a batch and right: each context has a cache of its own, as if it were alone. It is
used like `numpy_decoder.NumpyDecoder`.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from .batch_cache import Run
from .composition import FAILURES, PROBE, difference


class RowCache:
    """The caches of some contexts, one list of layers for each."""

    def __init__(self, rows: list[list[Any]]) -> None:
        self.rows = rows

    @property
    def state(self) -> list[Any]:
        """MLX arrays to evaluate."""
        return [layer.state for row in self.rows for layer in row]

    def filter(self, rows: mx.array) -> None:
        """Keep these contexts, some of them several times."""
        # Caches write into their arrays, so two contexts never share one.
        self.rows = [copy.deepcopy(self.rows[int(i)]) for i in np.array(rows)]

    def extend(self, other: RowCache) -> None:
        """Add another cache's contexts to this one."""
        self.rows = self.rows + other.rows


class RowDecoder:
    """Maps ids to the logits after each context's last one.

    Args:
        model: Of mlx-lm.
        run: How it is run.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self._model, self._run = model, run

    def cache(self, rows: int) -> RowCache:
        """An empty cache of so many contexts."""
        return RowCache([make_prompt_cache(self._model) for _ in range(rows)])

    def logits(self, pending: list[list[int]], cache: RowCache) -> mx.array:
        """Append ids to the contexts; (contexts, vocabulary) logits after each one's last id."""
        last = []
        for ids, row in zip(pending, cache.rows, strict=True):
            output = self._run(mx.array([ids]), row)[:, -1]
            mx.eval(output, [layer.state for layer in row])
            last.append(output)
        return mx.concatenate(last)


def serves_rows(model: nn.Module, run: Run, tolerance: float) -> bool:
    """Whether tokens that come one after another are scored as all of them at once."""
    first, second = PROBE
    decoder = RowDecoder(model, run)
    try:
        alone = [run(mx.array([row]), None)[:, -1] for row in PROBE]
        cache = decoder.cache(2)
        decoder.logits([list(first[:5]), list(second[:3])], cache)
        cache.filter(mx.array([1, 0, 1]))
        output = decoder.logits([list(second[3:]), list(first[5:]), [1]], cache)
        wanted = mx.concatenate(alone[::-1])
        return difference(output[:2], wanted) <= tolerance
    except FAILURES:
        return False
