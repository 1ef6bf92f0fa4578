"""The encoders that a shop can choose instead of the default: a model, or its own function.

    "subword"            learned from the shop itself (`encoder.SubwordEncoder`)
    "path/to/model"      an mlx-lm embedding model, such as Qwen3-Embedding
    "file.py:function"   a Python function from a list of texts to an array, one row a text

A model reads each text once, causally, and the vector is its last hidden state at the closing
token (arXiv:2506.05176). Queries carry an instruction, products do not.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import QAgentError
from ...shop.config import SearchConfig
from ...utils import trusted_code
from .subword import Encoder

SUBWORD = "subword"


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Which encoder an index was made with; another one makes its vectors worthless."""

    place: str  # "subword", a model folder, or FILE:NAME
    dimensions: int  # at most; a model's vectors are cut to it
    instruction: str  # before queries, for models
    fingerprint: str  # of the model's weights, or of the function's file

    @property
    def learned(self) -> bool:
        """Whether it is the default, which is learned when the index is built."""
        return self.place == SUBWORD

    @classmethod
    def of(cls, config: SearchConfig) -> EncoderSpec:
        """The encoder that a shop's settings name.

        Raises:
            QAgentError: its files are not there.
        """
        place = config.encoder
        if place == SUBWORD:
            return cls(place, config.dimensions, "", "")
        source = python_file(place)
        if source is not None:
            return cls(place, config.dimensions, "", _file_mark(source))
        folder = Path(place)
        if not (folder / "config.json").exists():
            raise QAgentError(
                f"the encoder {place} is neither {SUBWORD!r}, nor a model folder, nor "
                "FILE.py:FUNCTION; correct search.encoder in shop.json, or run: "
                f"qagent index --encoder {SUBWORD}"
            )
        from ...models.fingerprint import fingerprint

        return cls(place, config.dimensions, config.encoder_instruction, fingerprint(folder))

    @classmethod
    def from_stored(cls, values: dict[str, Any]) -> EncoderSpec:
        """What `stored` gave; raises KeyError or TypeError when something is missing."""
        return cls(**{name: values[name] for name in cls.__slots__})

    def stored(self, encoder: Encoder) -> dict[str, Any]:
        """For the manifest."""
        return {"name": encoder.name, **asdict(self)}


def open_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec that is not learned; a model is loaded when it is first needed."""
    source = python_file(spec.place)
    if source is not None:
        trusted_code.require(
            source,
            "the shop's encoder",
            f"run: qagent index --encoder {spec.place}, or --encoder {SUBWORD} to do without",
        )
        return PythonEncoder(spec.place)
    return ModelEncoder(Path(spec.place), spec.dimensions, spec.instruction)


class ModelEncoder:
    """An mlx-lm model folder as an encoder: last-token pooling, cut, and length 1."""

    cheap = False

    def __init__(
        self,
        folder: Path,
        dimensions: int,
        instruction: str,
        max_tokens: int = 512,
        batch: int = 32,
    ) -> None:
        self.name = folder.name
        self.folder, self.instruction = folder, instruction
        self.max_tokens, self.batch = max_tokens, batch
        self._wanted = dimensions

    @cached_property
    def _reader(self) -> Any:
        from .language_model import TextReader

        return TextReader(self.folder)

    @property
    def dimensions(self) -> int:
        """Length of the vectors: the model's, cut to what was asked for."""
        return min(self._wanted, self._reader.width)

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        reader = self._reader
        lead = f"Instruct: {self.instruction}\nQuery:" if queries and self.instruction else ""
        empty = np.array([not text.strip() for text in texts], dtype=bool)
        ids = [reader.text_ids(lead + text, self.max_tokens) for text in texts]
        vectors = reader.last_hidden(ids, self.batch)[:, : self.dimensions]
        vectors[empty] = 0
        return unit(vectors)


class PythonEncoder:
    """A shop's own function as an encoder.

    It takes a list of texts, and ``queries=True`` when it has such a parameter and the texts
    are queries, and returns an array (len(texts), dimensions).
    """

    cheap = False

    def __init__(self, place: str) -> None:
        self.name = place
        self._place = place

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return load_function(self._place, "encoder")

    @cached_property
    def dimensions(self) -> int:
        """Length of the vectors, found by asking for one."""
        return self.encode(["a"]).shape[1]

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """Unit vectors, float32 (len(texts), dimensions)."""
        takes = "queries" in inspect.signature(self._function).parameters
        made = self._function(list(texts), **({"queries": queries} if takes else {}))
        vectors = np.asarray(made, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise QAgentError(
                f"the encoder {self._place} returned an array of shape {vectors.shape} for "
                f"{len(texts)} texts; it must return finite numbers of shape "
                f"({len(texts)}, dimensions)"
            )
        return unit(vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    made: np.ndarray = vectors / np.maximum(length, 1e-9)
    return made


def load_function(place: str, what: str) -> Callable[..., Any]:
    """The function that ``FILE.py:NAME`` names.

    Raises:
        QAgentError: there is no such file or function, or the file cannot be run.
    """
    source = python_file(place)
    name = place.rpartition(":")[2]
    if source is None or not source.exists():
        raise QAgentError(f"the {what} {place} is not there; write it as FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"qagent_{what}_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError) as error:
        raise QAgentError(f"the {what} {source} cannot be run: {error}; correct it") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise QAgentError(f"the {what} {source} has no function {name}; correct the name")
    found: Callable[..., Any] = function
    return found


def python_file(place: str) -> Path | None:
    """FILE of ``FILE.py:NAME``; None where it is not written so."""
    file, colon, name = place.rpartition(":")
    return Path(file) if colon and file.endswith(".py") and name.isidentifier() else None


def _file_mark(path: Path) -> str:
    import hashlib

    if not path.exists():
        raise QAgentError(
            f"the encoder's file {path} is not there; put it back, or run: "
            f"qagent index --encoder {SUBWORD}"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
