"""Reading texts with mlx-lm models: hidden states for vectors, answers for relevance.

Embedding and reranking models of the Qwen3 family are decoders. Texts are padded on the right,
where a causal model's earlier states cannot see, and read in batches of like length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from ...errors import QAgentError
from ...utils.atomic_files import read_json
from ...utils.runtime import device_name

_BATCH_TOKENS = 8192  # of one batch, padding included


class TextReader:
    """A decoder that reads texts and says what it holds at their last token."""

    def __init__(self, folder: Path) -> None:
        """Load an mlx-lm model folder; no code in it is run.

        Raises:
            QAgentError: something is missing or damaged.
        """
        self.folder = folder
        config = read_json(folder / "config.json", f"the model {folder}")
        self.model = _load(folder)
        self.width = int(config["hidden_size"])
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
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text_ids(self, text: str, most: int) -> list[int]:
        """Token ids of a whole text, closed by the model's end token; at most ``most``."""
        ids = self.ids(text)
        if self._end is None:
            return ids[:most] or [0]
        return [*ids[: most - 1], self._end]

    def token(self, text: str) -> int:
        """The id of one token.

        Raises:
            QAgentError: the model has no such token.
        """
        found = self._tokenizer.token_to_id(text)
        if found is None:
            raise QAgentError(
                f"the model {self.folder} has no token {text!r}: it is no reranking model "
                "of the Qwen3 family; choose another"
            )
        return int(found)

    def last_hidden(self, rows: Sequence[Sequence[int]], batch: int) -> np.ndarray:
        """The last hidden state of each row of ids, float32 (rows, width)."""
        made = np.zeros((len(rows), self.width), dtype=np.float32)
        for part, ids, ends in _batches(rows, batch):
            hidden = self.model.model(ids)[mx.arange(len(part)), ends]
            made[part] = np.array(hidden.astype(mx.float32))
        return made

    def last_logits(
        self, rows: Sequence[Sequence[int]], tokens: Sequence[int], batch: int
    ) -> np.ndarray:
        """Logits of some tokens after each row of ids, float32 (rows, len(tokens))."""
        made = np.zeros((len(rows), len(tokens)), dtype=np.float32)
        wanted = mx.array(list(tokens))
        for part, ids, ends in _batches(rows, batch):
            hidden = self.model.model(ids)[mx.arange(len(part)), ends]
            if hasattr(self.model, "lm_head"):
                logits = self.model.lm_head(hidden)
            else:
                logits = self.model.model.embed_tokens.as_linear(hidden)
            made[part] = np.array(logits[:, wanted].astype(mx.float32))
        return made


def _batches(rows: Sequence[Sequence[int]], batch: int) -> Any:
    """(row numbers, padded ids, last positions) of batches of like length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    at = 0
    while at < len(order):
        size = 1
        while (
            size < batch
            and at + size < len(order)
            and (size + 1) * len(rows[order[at + size]]) <= _BATCH_TOKENS
        ):
            size += 1
        part = order[at : at + size]
        width = len(rows[part[-1]])
        ids = np.zeros((size, width), dtype=np.int32)
        for i, number in enumerate(part):
            ids[i, : len(rows[number])] = rows[number]
        yield part, mx.array(ids), mx.array([len(rows[number]) - 1 for number in part])
        at += size


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
    if device_name() == "cpu":
        model.set_dtype(mx.float32)  # other types are slow there
    model.eval()
    mx.eval(model.parameters())
    return model
