"""Reordering the best hits by a reranking model's P(yes), as Qwen3-Reranker gives it.

The model reads the query and one product, and is asked whether the product meets the query;
the score is the probability of "yes" against "no" as the next token (arXiv:2506.05176).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .encoders.language_model import TextReader

_LEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_CLOSE = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Reranker:
    """Scores query and product pairs with a model folder; loaded when first needed."""

    def __init__(
        self, folder: Path, instruction: str, max_tokens: int = 512, batch: int = 32
    ) -> None:
        self.folder, self.instruction = folder, instruction
        self.max_tokens, self.batch = max_tokens, batch

    @cached_property
    def _reader(self) -> TextReader:
        from .encoders.language_model import TextReader

        return TextReader(self.folder)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """P(yes) of each (query, product text), float32 (len(pairs),)."""
        reader = self._reader
        yes, no = reader.token("yes"), reader.token("no")
        lead, close = reader.ids(_LEAD, markup=True), reader.ids(_CLOSE, markup=True)
        space = max(8, self.max_tokens - len(lead) - len(close))
        rows = []
        for query, text in pairs:
            body = f"<Instruct>: {self.instruction}\n<Query>: {query}\n<Document>: {text}"
            rows.append([*lead, *reader.ids(body)[:space], *close])
        logits = reader.last_logits(rows, (yes, no), self.batch).astype(np.float64)
        answer: np.ndarray = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
        return answer.astype(np.float32)
