"""Read texts with mlx-lm models: hidden states for vectors, next-token logits for relevance.

Embedding and reranking models of the Qwen3 family are decoders. Texts are padded on the right,
where a causal model's earlier states cannot see, and read in batches of like length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from ...errors import QAgentError
from ...models import backend
from ...models.loading import read_model_config
from .encoder import unit_length

_BATCH_TOKENS = 8192  # padding included


class ModelEncoder:
    """An mlx-lm model folder as an encoder: last-token pooling, cut to a length, of length 1."""

    is_fast = False
    max_tokens, batch_size = 512, 32

    def __init__(self, folder: Path, dimensions: int, instruction: str) -> None:
        self.folder, self.instruction = folder, instruction
        self._max_dimensions = dimensions

    @cached_property
    def _reader(self) -> TextReader:
        return TextReader(self.folder)

    @property
    def dimensions(self) -> int:
        """Length of the vectors: the model's, cut to what the settings say."""
        return min(self._max_dimensions, self._reader.width)

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        prefix = f"Instruct: {self.instruction}\nQuery:" if queries and self.instruction else ""
        ids = [self._reader.text_ids(prefix + text, self.max_tokens) for text in texts]
        vectors = self._reader.last_hidden(ids, self.batch_size)[:, : self.dimensions]
        vectors[[not text.strip() for text in texts]] = 0
        return unit_length(vectors)


class TextReader:
    """A decoder whose state at the last token of a text is read."""

    def __init__(self, folder: Path) -> None:
        """Load an mlx-lm model folder; no code in it is run.

        Raises:
            QAgentError: something is missing or damaged.
        """
        self.folder = folder
        config = read_model_config(folder)
        self.model = _load(folder)
        try:
            self.width = int(config["hidden_size"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise QAgentError(f"{folder}: config.json names no hidden_size") from error
        end = config.get("eos_token_id")
        self._end = end[0] if isinstance(end, list) else end
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise QAgentError(
                f"the model {folder} has no readable tokenizer.json; download it again"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def ids(self, text: str, *, markup: bool = False) -> list[int]:
        """Token ids. Only where ``markup`` is true can text form a special token."""
        self._tokenizer.encode_special_tokens = not markup
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text_ids(self, text: str, limit: int) -> list[int]:
        """Token ids of a whole text, closed by the model's end token; at most ``limit``."""
        ids = self.ids(text)
        if self._end is None:
            return ids[:limit] or [0]
        return [*ids[: limit - 1], self._end]

    def token(self, text: str) -> int:
        """The id of one token.

        Raises:
            QAgentError: the model has no such token.
        """
        token = self._tokenizer.token_to_id(text)
        if token is None:
            raise QAgentError(
                f"the model {self.folder} has no token {text!r}: it is no reranking model "
                "of the Qwen3 family; choose another"
            )
        return int(token)

    def last_hidden(self, sequences: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
        """The last hidden state of each sequence of ids, float32 (sequences, width)."""
        states = np.zeros((len(sequences), self.width), dtype=np.float32)
        for numbers, hidden in self._last_states(sequences, batch_size):
            states[numbers] = np.array(hidden.astype(mx.float32))
        return states

    def last_logits(
        self, sequences: Sequence[Sequence[int]], tokens: Sequence[int], batch_size: int
    ) -> np.ndarray:
        """Logits of some tokens after each sequence of ids, float32 (sequences, tokens)."""
        selected = np.zeros((len(sequences), len(tokens)), dtype=np.float32)
        columns = mx.array(list(tokens))
        for numbers, hidden in self._last_states(sequences, batch_size):
            if hasattr(self.model, "lm_head"):
                logits = self.model.lm_head(hidden)
            else:
                logits = self.model.model.embed_tokens.as_linear(hidden)
            selected[numbers] = np.array(logits[:, columns].astype(mx.float32))
        return selected

    def _last_states(
        self, sequences: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[list[int], mx.array]]:
        """Numbers of the sequences in a batch of like length, and their last hidden states."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        start = 0
        while start < len(order):
            size = 1
            while (
                size < batch_size
                and start + size < len(order)
                and (size + 1) * len(sequences[order[start + size]]) <= _BATCH_TOKENS
            ):
                size += 1
            numbers = order[start : start + size]
            ids = np.zeros((size, len(sequences[numbers[-1]])), dtype=np.int32)
            for i, number in enumerate(numbers):
                ids[i, : len(sequences[number])] = sequences[number]
            ends = mx.array([len(sequences[number]) - 1 for number in numbers])
            yield numbers, self.model.model(mx.array(ids))[mx.arange(size), ends]
            start += size


def _load(folder: Path) -> Any:
    from mlx_lm.utils import _get_classes, load_model

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, args_class = _get_classes(config)

        class Backbone(model_class):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
                # Embedding models are often published without their outer shell.
                if not any(name.startswith("model.") for name in weights):
                    weights = {f"model.{name}": value for name, value in weights.items()}
                inner = getattr(super(), "sanitize", None)
                weights = inner(weights) if inner is not None else weights
                own = getattr(self, "lm_head", None)
                if own is not None and "lm_head.weight" not in weights:
                    weights["lm_head.weight"] = own.weight  # never read for vectors
                return weights

        return Backbone, args_class

    try:
        model, _ = load_model(folder, get_model_classes=classes)
    except FileNotFoundError as error:
        raise QAgentError(
            f"{folder} has no model*.safetensors; download the model again"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        line = str(error).splitlines()[0]
        raise QAgentError(f"{folder}: the model cannot be loaded: {line}") from error
    if backend.on_cpu():
        model.set_dtype(mx.float32)  # other types are slow there
    model.eval()
    mx.eval(model.parameters())
    return model
