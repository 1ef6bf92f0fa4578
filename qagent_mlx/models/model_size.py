"""How large a model is, and what memory it needs for serving and training."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.atomic_files import read_json
from .known_models import ModelShape

ROWS, CONTEXT = 8, 768  # a group of chains for one user, with prompt, profile and results
TRAIN_TOKENS = 8192  # padded tokens of one micro-batch, see GrpoConfig.token_budget
CHECKPOINTED_TOKENS = 2048  # of one on a CPU, see train/memory_estimate.py
TRAINED_SHARE = 0.1  # of the tokens carry loss, so that the head runs on them
LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class StoredSize:
    """A model folder's weights: how many, and their files' bytes."""

    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """Bytes for serving one group of chains and for training with the default settings."""

    serving: int
    training: int


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a ``config.json`` describes.

    Raises:
        QAgentError: it is no decoder that is known here.
    """
    text = config.get("text_config", config)  # models with pictures nest the decoder's part
    try:
        heads = text["num_attention_heads"]
        return ModelShape(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            feed_forward=text["intermediate_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            vocab=text.get("vocab_size") or 0,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise QAgentError(f"its config.json is of no known kind of model ({error})") from error


def memory_needed(
    parameters: int,
    shape: ModelShape,
    weight_bytes: float,
    activation_bytes: int = 4,
    checkpointed: bool = False,
) -> MemoryNeeded:
    """Estimate memory from a model's shape.

    Serving holds the weights, the keys and values of a group of chains, and a few copies of
    its logits. Training holds the weights, the adapter with gradient and two moments, what
    the backward pass keeps of each layer, and the logits of trained positions.

    Args:
        parameters: The number of weights.
        shape: The model's shape.
        weight_bytes: Bytes of a weight (4-bit weights take 0.56 with their scales).
        activation_bytes: Bytes of an activation.
        checkpointed: Whether an update keeps only the inputs of its operations, as on a CPU.
    """
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    cache = 2 * shape.layers * keys * activation_bytes * ROWS * CONTEXT
    serving = int(parameters * weight_bytes) + cache + 4 * ROWS * shape.vocab * 4
    inputs_and_outputs = 4 * shape.hidden + 2 * query + 2 * keys  # of the adapted layers
    inputs_and_outputs += 3 * shape.feed_forward + 3 * shape.hidden
    adapter = LORA_RANK * shape.layers * inputs_and_outputs
    scores = shape.heads * CONTEXT * activation_bytes  # of one layer at a time
    if checkpointed:
        layer = 8 * shape.hidden + 4 * keys + 3 * shape.feed_forward
        kept = CHECKPOINTED_TOKENS * (shape.layers * activation_bytes * layer + 12 * scores)
    else:
        # Two norms, projections and residuals; gate, up, their activation and product.
        layer = 8 * shape.hidden + 3 * query + 4 * keys + 6 * shape.feed_forward
        head = int(TRAIN_TOKENS * TRAINED_SHARE) * shape.vocab * 4 * 4
        kept = TRAIN_TOKENS * (shape.layers * activation_bytes * layer + 2 * scores) + head
    return MemoryNeeded(serving, serving + 16 * adapter + kept)


def stored_size(folder: Path) -> StoredSize:
    """The size of a folder's safetensors, from their headers alone.

    Packed weights count as the numbers that they hold.

    Raises:
        QAgentError: a file is damaged.
    """
    config = read_json(folder / "config.json", f"the model {folder}")
    quantization = config.get("quantization") or {}
    parameters = size = 0
    for path in sorted(folder.glob("model*.safetensors")):
        size += path.stat().st_size
        tensors = read_header(path)
        for name, tensor in tensors.items():
            module, _, part = name.rpartition(".")
            count = prod(tensor["shape"])
            if part in ("scales", "biases"):
                continue
            if f"{module}.scales" in tensors and part == "weight":
                own = quantization.get(module)
                group = (own if isinstance(own, dict) else quantization).get("group_size", 64)
                count = prod(tensors[f"{module}.scales"]["shape"]) * group
            parameters += count
    return StoredSize(parameters, size)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read a safetensors file's header and check the file's length.

    Returns:
        Tensor name -> dtype, shape and data_offsets.

    Raises:
        QAgentError: the file is cut short or no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((t["data_offsets"][1] for t in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end:,} bytes expected, {size:,} found")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QAgentError(f"{path} is damaged ({error}); pull the model again") from error
    return header
