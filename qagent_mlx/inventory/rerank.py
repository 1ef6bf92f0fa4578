"""Rerank the best hits by a model's P(yes), as Qwen3-Reranker does.

The model reads the query and one product, and is asked whether the product meets the query;
the score is the probability of "yes" against "no" as the next token (arXiv:2506.05176).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from .encoders.language_model import TextReader

_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Reranker:
    """Scores pairs of query and product with a model, which is loaded when first needed."""

    max_tokens, batch_size = 512, 32

    def __init__(self, folder: Path, instruction: str) -> None:
        self.folder, self.instruction = folder, instruction

    @cached_property
    def _reader(self) -> TextReader:
        return TextReader(self.folder)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """P(yes) of each (query, product text), float32 (len(pairs),)."""
        reader = self._reader
        yes, no = reader.token("yes"), reader.token("no")
        prefix, suffix = reader.ids(_PREFIX, markup=True), reader.ids(_SUFFIX, markup=True)
        limit = max(8, self.max_tokens - len(prefix) - len(suffix))
        prompts = []
        for query, text in pairs:
            body = f"<Instruct>: {self.instruction}\n<Query>: {query}\n<Document>: {text}"
            prompts.append([*prefix, *reader.ids(body)[:limit], *suffix])
        logits = reader.last_logits(prompts, (yes, no), self.batch_size).astype(np.float64)
        probabilities: np.ndarray = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
        return probabilities.astype(np.float32)
