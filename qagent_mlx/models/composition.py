"""What a language model of mlx-lm is made of: a body that gives hidden states, and its head.

Training runs the head at few positions only, so a model is taken apart. How the parts fit
together differs: some scale their logits, some cap them, some name their body otherwise. So the
head is the model's own code, run with a body that returns given states; and whether body and
head together compute what the model computes is tried on a few tokens, never assumed. A model
that cannot be taken apart runs as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ..errors import QAgentError
from . import transformer_blocks

Composition = Literal["blocks", "body", "whole"]

PROBE = ((5, 99, 42, 17, 3, 64, 200, 8), (5, 99, 42, 7, 120, 31, 11, 77))  # any token ids
# What a model may raise that runs in another way than the one that is tried.
FAILURES = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    ArithmeticError,
    AssertionError,
)
# By how much log-probabilities may differ where nothing is wrong: (float32, half precision).
TOLERANCES = (0.01, 0.5)


def composition_of(model: nn.Module, tolerance: float) -> Composition:
    """How a model is run: block by block, as body and head, or as a whole."""
    if transformer_blocks.supported(model):
        return "blocks"
    tokens = mx.array([PROBE[0]])
    whole = run_whole(model, tokens)
    try:
        parts = run_head(model, run_body(model, tokens))
        return "body" if difference(parts, whole) <= tolerance else "whole"
    except FAILURES:
        return "whole"


def run_whole(model: Any, tokens: mx.array, cache: Any = None) -> mx.array:
    """The model's own logits, float32, (B, N, vocabulary) of (B, N) ids."""
    logits: mx.array = model(tokens, cache=cache)
    return logits.astype(mx.float32)


def run_body(model: nn.Module, tokens: mx.array, cache: Any = None) -> mx.array:
    """Hidden states before the head: (B, N, width) of (B, N) ids.

    Raises:
        QAgentError: the model's blocks lie in no part of it.
    """
    hidden: mx.array = _body(language_model(model))[1](tokens, cache=cache)
    return hidden


def run_head(model: nn.Module, hidden: mx.array) -> mx.array:
    """The model's own logits, float32, of hidden states of any leading shape."""
    language = language_model(model)
    name, body = _body(language)
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    shell = copy.copy(language)  # shares all weights; the model itself is never changed
    setattr(shell, name, _Given(body, rows))
    logits: mx.array = shell(mx.zeros(rows.shape[:2], mx.int32))
    return logits.reshape(*hidden.shape[:-1], -1).astype(mx.float32)


def language_model(model: Any) -> Any:
    """The part that deals with text: models with pictures wrap it once more."""
    return getattr(model, "language_model", model)


def difference(logits: mx.array, others: mx.array) -> float:
    """The largest difference of log-probabilities; infinite where the shapes differ."""
    if logits.shape != others.shape:
        return float("inf")
    a, b = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (logits, others))
    # Of tokens that nobody would draw a small float keeps few digits.
    likely = mx.maximum(a, b) > -30.0
    return float(mx.where(likely, mx.abs(a - b), 0.0).max())


def describe(error: BaseException) -> str:
    """An error of MLX's or mlx-lm's in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def attempt(run: Callable[[], mx.array]) -> mx.array | str:
    """What a computation gives, evaluated; or in one line why it fails."""
    try:
        value = run()
        mx.eval(value)
        return value
    except FAILURES as error:
        return describe(error)


def _body(language: Any) -> tuple[str, Any]:
    """The name and the module of the child that holds the blocks."""
    first = language.layers[0]
    for name, child in language.children().items():
        if isinstance(child, nn.Module) and _holds(child, first):
            return name, child
    raise QAgentError(
        "the model's blocks lie in no part of it; choose one that qagent models list names"
    )


def _holds(part: Any, block: nn.Module) -> bool:
    """Whether a block lies in a part; ends with it, as each decoding step asks for the body."""
    if isinstance(part, nn.Module):
        return part is block or _holds(part.children(), block)
    within = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return any(_holds(p, block) for p in within)


class _Given:
    """Stands where a model's body stood, and returns states that are given."""

    def __init__(self, body: nn.Module, states: mx.array) -> None:
        self._body, self._states = body, states

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self._states

    def __getattr__(self, name: str) -> Any:  # a head may use the body's embedding
        return getattr(self._body, name)
