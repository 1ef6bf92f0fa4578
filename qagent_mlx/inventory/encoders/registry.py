"""The encoders that a shop can choose.

    "subword"            learned from the shop itself (`subword.SubwordEncoder`)
    "path/to/model"      an mlx-lm embedding model, such as Qwen3-Embedding
    "file.py:function"   a Python function from a list of texts to an array, one row per text

A model reads each text once, causally, and the vector is its last hidden state at the closing
token (arXiv:2506.05176). Queries carry an instruction, products do not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import QAgentError
from ...shop.config import SearchConfig
from ...utils import trust
from .encoder import Encoder, unit_length

SUBWORD = "subword"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """Which encoder an index was built with; the vectors of another one do not compare."""

    name: str = field(default="", compare=False)
    place: str  # "subword", a model folder, or FILE.py:FUNCTION
    dimensions: int  # at most; a model's vectors are cut to it
    instruction: str = ""  # before queries, for models
    fingerprint: str = ""  # of the model's weights, or of the function's file

    @property
    def is_learned(self) -> bool:
        """Whether it is the default, which is learned when the index is built."""
        return self.place == SUBWORD

    @classmethod
    def of(cls, config: SearchConfig) -> EncoderSpec:
        """The encoder that a shop's settings name.

        Raises:
            QAgentError: its files are not there.
        """
        place = config.encoder
        spec = cls(name=place, place=place, dimensions=config.dimensions)
        if spec.is_learned:
            return spec
        source = python_file(place)
        if source is not None:
            if not source.is_file():
                raise QAgentError(
                    f"the encoder's file {source} is not there; put it back, or choose {SUBWORD}"
                )
            return replace(spec, fingerprint=hashlib.sha256(source.read_bytes()).hexdigest()[:16])
        folder = Path(place)
        if not (folder / "config.json").exists():
            raise QAgentError(
                f"the encoder {place} is neither {SUBWORD!r}, nor a model folder, nor "
                f"FILE.py:FUNCTION; correct search.encoder in shop.json, or choose {SUBWORD}"
            )
        from ...models.fingerprint import fingerprint

        instruction, mark = config.encoder_instruction, fingerprint(folder)
        return replace(spec, name=folder.name, instruction=instruction, fingerprint=mark)


def open_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec that is not learned; a model is loaded when it is first needed."""
    source = python_file(spec.place)
    if source is None:
        from .language_model import ModelEncoder

        return ModelEncoder(Path(spec.place), spec.dimensions, spec.instruction)
    remedy = f"choose {SUBWORD} as the encoder to do without"
    trust.require_file(source, "the shop's encoder", remedy)
    return PythonEncoder(spec.place)


class PythonEncoder:
    """A shop's own function as an encoder.

    It takes a list of texts, and ``queries=True`` when it has such a parameter and the texts
    are queries, and returns an array (len(texts), dimensions).
    """

    is_fast = False

    def __init__(self, place: str) -> None:
        self._place = place

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return load_function(self._place, "encoder")

    @cached_property
    def dimensions(self) -> int:
        """Length of the vectors, found by encoding one text."""
        return self.encode(["a"]).shape[1]

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        takes_queries = "queries" in inspect.signature(self._function).parameters
        options = {"queries": queries} if takes_queries else {}
        vectors = np.asarray(self._function(list(texts), **options), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise QAgentError(
                f"the encoder {self._place} returned an array of shape {vectors.shape} for "
                f"{len(texts)} texts; it must return finite numbers of shape "
                f"({len(texts)}, dimensions)"
            )
        return unit_length(vectors)


def load_function(place: str, kind: str) -> Callable[..., Any]:
    """The function that ``FILE.py:NAME`` names; ``kind`` says in errors what it is.

    Raises:
        QAgentError: there is no such file or function, or the file cannot be run.
    """
    source = python_file(place)
    name = place.rpartition(":")[2]
    if source is None or not source.exists():
        raise QAgentError(f"the {kind} {place} is not there; write it as FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"qagent_{kind}_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError) as error:
        raise QAgentError(f"the {kind} {source} cannot be run: {error}; correct it") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise QAgentError(f"the {kind} {source} has no function {name}; correct the name")
    return function


def python_file(place: str) -> Path | None:
    """FILE of ``FILE.py:NAME``; None where it is not written so."""
    file, colon, name = place.rpartition(":")
    return Path(file) if colon and file.endswith(".py") and name.isidentifier() else None
