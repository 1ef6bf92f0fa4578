"""Token sequences while they are decoded, and batches of them that share a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.batch_cache import select_rows
from ..protocol.actions import Stopper


@dataclass(slots=True)
class DecodingSequence:
    """A sequence while it is decoded.

    ``tokens`` holds the ids so far. ``sampled`` and ``logprobs`` have an entry for each id
    that came after the initial ones: whether the policy chose it, and its log-probability (0.0
    for inserted ids).
    """

    tokens: list[int]
    stopper: Stopper
    stream: np.random.Generator | None  # the source of its draws; None decodes greedily
    turn_limit: int  # ids that a turn may have
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)  # ids drawn in this turn
    pending: list[int] = field(default_factory=list)  # ids that are not in the cache yet
    tag: Any = None  # whatever the sequence belongs to
    # (V,) mask of the next id, or None where all may follow; without it, all may always follow
    allowed_ids: Callable[[], np.ndarray | None] | None = None
    min_p: float = 0.0  # leaves out allowed ids that are this much less likely than the likeliest

    def insert(self, ids: Sequence[int]) -> None:
        """Append ids that the policy did not choose."""
        self.tokens += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.pending += ids

    def append(self, token: int, logprob: float) -> bool:
        """Append an id that the policy chose; returns whether it ends the turn."""
        self.tokens.append(token)
        self.sampled.append(True)
        self.logprobs.append(logprob)
        self.turn.append(token)
        return self.stopper.feed(token) or len(self.turn) >= self.turn_limit

    def start_turn(self) -> None:
        """Begin a turn; all ids so far are in the cache."""
        self.pending, self.turn = [], []
        self.stopper.reset()


class DecodingBatch:
    """Sequences that are decoded together; those with equal tokens share one context.

    ``context_of[i]`` is the row of sequence i's context in the batched ``cache`` and in
    ``logits`` (contexts, V), which predict the id after each context.
    """

    def __init__(
        self,
        sequences: Sequence[DecodingSequence] = (),
        cache: Sequence[Any] = (),
        logits: mx.array | np.ndarray | None = None,
        context_of: Sequence[int] | None = None,
    ) -> None:
        self.sequences, self.cache, self.logits = list(sequences), list(cache), logits
        self.context_of = list(range(len(sequences)) if context_of is None else context_of)

    @property
    def contexts(self) -> int:
        """Number of distinct contexts."""
        return max(self.context_of, default=-1) + 1

    def select(
        self, indices: Sequence[int], keys: Sequence[Any] | None = None, *, copied: bool = False
    ) -> DecodingBatch:
        """A batch of some of the sequences; those of different ``keys`` share no context.

        It goes on with this batch's cache where it can, unless it must be ``copied``.
        """
        row_of: dict[tuple[int, Any], int] = {}  # (context here, key) -> context there
        context_of = [
            row_of.setdefault((self.context_of[i], key), len(row_of))
            for i, key in zip(indices, keys or [None] * len(indices), strict=True)
        ]
        contexts = [context for context, _ in row_of]
        sequences = [self.sequences[i] for i in indices]
        if not copied and contexts == list(range(self.contexts)):
            return DecodingBatch(sequences, self.cache, self.logits, context_of)
        cache = [select_rows(layer, contexts) for layer in self.cache]
        logits = None if self.logits is None else take_rows(self.logits, contexts)
        return DecodingBatch(sequences, cache, logits, context_of)

    def extend(self, other: DecodingBatch) -> None:
        """Add another batch's sequences to this one."""
        if not other.sequences:
            return
        if not self.sequences:
            self.sequences, self.cache = other.sequences, other.cache
            self.logits, self.context_of = other.logits, other.context_of
            return
        before = self.contexts
        for layer, added in zip(self.cache, other.cache, strict=True):
            layer.extend(added)
        if self.logits is not None and other.logits is not None:
            both: list[Any] = [self.logits, other.logits]
            is_numpy = isinstance(self.logits, np.ndarray)
            self.logits = np.concatenate(both) if is_numpy else mx.concatenate(both)
        self.sequences = self.sequences + other.sequences
        self.context_of = self.context_of + [before + row for row in other.context_of]

    def evaluate(self) -> None:
        """Compute the cache and the logits.

        A cache that waits without having been evaluated would keep its whole graph alive.
        """
        logits = [self.logits] if isinstance(self.logits, mx.array) else []
        mx.eval(logits, [layer.state for layer in self.cache])


def take_rows(logits: mx.array | np.ndarray, rows: Sequence[int]) -> mx.array | np.ndarray:
    """Some rows of logits, which the decoder of a small model computes with numpy."""
    return logits[rows] if isinstance(logits, np.ndarray) else logits[mx.array(list(rows))]
