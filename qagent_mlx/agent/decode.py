"""Batched decoding of many rows that stop, wait for a tool, and go on.

Rows share what they have in common: a context that several rows hold (the task, a case's
profile, a search that several rollouts of a group made) is computed once and forked. Rows
that stop leave the batch with their cache, so a waiting row does not hold the others.

This module sees token ids only. It builds on mlx-lm's caches rather than on its
BatchGenerator, which keeps a full vocabulary row of log-probabilities a token, has no way to
fork rows of a running batch, and draws from one random stream for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..models.numpy_decoder import NumpyDecoder
from ..protocol.grammar import constrained
from ..utils.blas import one_blas_thread
from ..utils.runtime import device_name

if TYPE_CHECKING:
    from ..policy.policy import Policy
    from ..protocol.actions import Stopper


GROWTH = 64  # tokens by which a full cache grows; mlx-lm's 256 are mostly air in short chains
SMALL = 20_000_000  # weights below which a step's products are too thin to be shared out


@dataclass(slots=True)
class DecodingSequence:
    """One sequence that is being decoded.

    ``tokens`` is everything so far, ``sampled`` marks the ids that the policy chose, and
    ``logprobs`` holds their log-probabilities (0.0 for inserted ids).
    """

    tokens: list[int]
    stopper: Stopper
    uniforms: np.random.Generator | None  # None decodes greedily
    turn_limit: int
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)  # inserted ids not yet in the cache
    budget: int = 1 << 30  # tokens this row may still sample
    tag: Any = None
    allowed: Callable[[], np.ndarray] | None = None  # which ids may come next; None: all

    def insert(self, ids: Sequence[int]) -> None:
        """Put ids that the policy did not choose after the row's tokens."""
        self.tokens += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.pending += ids

    def take(self, token: int, logprob: float) -> None:
        """Append a sampled id."""
        self.tokens.append(token)
        self.sampled.append(True)
        self.logprobs.append(logprob)
        self.turn.append(token)
        self.budget -= 1


class DecodingBatch:
    """Rows that are decoded together; rows with the same tokens so far share one context.

    ``owner[i]`` is the place of row i's context in the batched cache and in ``logits``, which
    predicts the next token after each context. Rows part when they draw different tokens.
    """

    def __init__(
        self,
        rows: list[DecodingSequence],
        cache: list[Any],
        logits: mx.array | None,
        owner: list[int] | None = None,
    ) -> None:
        self.rows, self.cache, self.logits = rows, cache, logits
        self.owner = list(range(len(rows))) if owner is None else owner

    @property
    def contexts(self) -> int:
        """How many contexts are computed."""
        return max(self.owner, default=-1) + 1

    def take(
        self, indices: Sequence[int], keys: Sequence[Any] | None = None, *, alone: bool = False
    ) -> DecodingBatch:
        """A batch of some of the rows; it may go on with this batch's cache.

        Args:
            indices: Which.
            keys: One a taken row; rows whose keys differ share no context any more.
            alone: With a cache of its own in any case, as this one's is written to elsewhere.
        """
        first: dict[tuple[int, Any], int] = {}
        marks = keys if keys is not None else [None] * len(indices)
        owner = [
            first.setdefault((self.owner[i], mark), len(first))
            for i, mark in zip(indices, marks, strict=True)
        ]
        contexts = [place for place, _ in first]
        rows = [self.rows[i] for i in indices]
        if not alone and contexts == list(range(self.contexts)):
            return DecodingBatch(rows, self.cache, self.logits, owner)
        cache = [_select(c, contexts) for c in self.cache]
        logits = self.logits[mx.array(contexts)] if self.logits is not None else None
        return DecodingBatch(rows, cache, logits, owner)

    def extend(self, other: DecodingBatch) -> None:
        """Add another batch's rows to this one."""
        if not other.rows:
            return
        if not self.rows:
            self.rows, self.cache, self.logits = other.rows, other.cache, other.logits
            self.owner = other.owner
            return
        before = self.contexts
        for mine, theirs in zip(self.cache, other.cache, strict=True):
            mine.extend(theirs)
        if self.logits is not None and other.logits is not None:
            self.logits = mx.concatenate([self.logits, other.logits])
        self.rows = self.rows + other.rows
        self.owner = self.owner + [before + place for place in other.owner]


def _select(cache: Any, indices: list[int]) -> Any:
    """A new cache with the given rows; the old one is left as it is."""
    import copy

    made = copy.copy(cache)
    made.filter(mx.array(indices))
    return made


class Decoder:
    """Decodes rows with one policy.

    Args:
        policy: Whose rows.
        light: Compute a small model on a CPU with a copy of its weights that is laid out for
            decoding (see `models.numpy_decoder`); `refresh` it when the policy was trained.
    """

    def __init__(self, policy: Policy, light: bool = False) -> None:
        self.policy = policy
        self._wants_light = light
        self.refresh()
        self._small = policy.parameters < SMALL
        self.prefill_tokens = 0
        self.decode_tokens = 0

    def refresh(self) -> None:
        """Decode with the policy's weights as they are now."""
        self._light = (
            NumpyDecoder.of(self.policy.model, self.policy.parameters)
            if self._wants_light
            else None
        )

    def start(self, rows: Sequence[DecodingSequence]) -> DecodingBatch:
        """Compute the rows' contexts, each distinct one once."""
        for row in rows:
            row.pending = list(row.tokens)
        return self.resume(DecodingBatch(list(rows), [], None))

    def resume(self, batch: DecodingBatch) -> DecodingBatch:
        """Compute the pending ids of waiting rows; rows with equal contexts share the work."""
        first: dict[tuple[int, ...], int] = {}
        owner = [first.setdefault(tuple(row.tokens), i) for i, row in enumerate(batch.rows)]
        unique = list(first.values())
        place = {index: at for at, index in enumerate(unique)}
        rows = [batch.rows[i] for i in unique]
        # Of rows that shared a context some may have got other answers than the rest.
        cache = batch.take(unique, unique).cache if batch.cache else self.fresh(len(unique))
        logits = self._prefill([row.pending for row in rows], cache)
        made = DecodingBatch(list(batch.rows), cache, logits, [place[i] for i in owner])
        for row in made.rows:
            row.pending = []
            row.turn = []
            row.stopper.reset()
        # A cache must be evaluated before its rows wait or it holds on to the whole graph.
        mx.eval(made.logits, [c.state for c in made.cache])
        return made

    def fresh(self, rows: int) -> list[Any]:
        """An empty cache of so many rows."""
        if self._light is not None:
            return [self._light.cache(rows)]
        made = [type(c).merge([c] * rows) for c in make_prompt_cache(self.policy.model)]
        for c in made:
            c.step = GROWTH
        return made

    def _prefill(self, pending: list[list[int]], cache: list[Any]) -> mx.array:
        lengths = [len(p) for p in pending]
        if self._light is not None:
            self.prefill_tokens += sum(lengths)
            with one_blas_thread():
                return mx.array(self._light.logits(pending, cache[0]))
        longest = max(lengths)
        padding = [longest - n for n in lengths]
        tokens = mx.array([p + [0] * (longest - len(p)) for p in pending])
        if max(padding):
            for c in cache:
                c.prepare(lengths=lengths, right_padding=padding)
        hidden = self.policy.backbone(tokens, cache)
        last = hidden[mx.arange(len(pending)), mx.array(lengths) - 1]
        if max(padding):
            for c in cache:
                c.finalize()
        self.prefill_tokens += sum(lengths)
        return self.policy.head(last)

    def draw(self, batch: DecodingBatch) -> tuple[DecodingBatch, DecodingBatch]:
        """Sample one token a row; returns (rows that go on, rows that stopped).

        A row stops at the end of an action, at its turn's limit, or when its budget is
        spent. Its last token is not in its cache yet: it becomes the first pending id.
        """
        assert batch.logits is not None
        logits, owner = batch.logits, batch.owner
        if any(row.allowed is not None for row in batch.rows):
            masks = [row.allowed() if row.allowed is not None else None for row in batch.rows]
            logits = constrained(logits[mx.array(owner)], masks)
            owner = list(range(len(batch.rows)))
        chosen, logprobs = sample(logits, batch.rows, owner)
        going: list[int] = []
        stopped: list[int] = []
        for i, row in enumerate(batch.rows):
            row.take(chosen[i], logprobs[i])
            done = row.stopper.feed(chosen[i]) or len(row.turn) >= row.turn_limit or row.budget <= 0
            (stopped if done else going).append(i)
        self.decode_tokens += len(batch.rows)
        batch.logits = None
        for i in stopped:
            batch.rows[i].pending = [batch.rows[i].tokens[-1]]
        if not going:
            return DecodingBatch([], [], None), batch
        parted = batch.take(going, [chosen[i] for i in going])
        return parted, batch.take(stopped, alone=True) if stopped else DecodingBatch([], [], None)

    def advance(self, batch: DecodingBatch) -> None:
        """Compute the logits after each context's last token."""
        last = {place: row.tokens[-1] for place, row in zip(batch.owner, batch.rows, strict=True)}
        ids = [last[place] for place in range(len(last))]
        if self._light is not None:
            with one_blas_thread():
                batch.logits = mx.array(
                    self._light.logits([[token] for token in ids], batch.cache[0])
                )
            return
        tokens = mx.array(ids)[:, None]
        with one_blas_thread(self._small):
            hidden = self.policy.backbone(tokens, batch.cache)
            batch.logits = self.policy.head(hidden[:, -1])
            mx.eval(batch.logits, [c.state for c in batch.cache])


def sample(
    logits: mx.array, rows: Sequence[DecodingSequence], owner: Sequence[int]
) -> tuple[list[int], list[float]]:
    """One token a row and its log-probability under the full distribution.

    Row ``i`` draws from ``logits[owner[i]]``.

    Each row has its own stream of uniform numbers and is sampled by inverting the
    cumulative distribution, so what a row gets does not depend on the batch around it:
    one worker or two, a resumed run or an unbroken one, the draw is the same. It also
    needs one exponential a logit where Gumbel noise needs two logarithms more.
    """
    if device_name() == "cpu":
        return _sample_by_numpy(logits, rows, owner)
    if list(owner) != list(range(logits.shape[0])):
        logits = logits[mx.array(list(owner))]
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    best = mx.argmax(logits, axis=-1)
    if any(row.uniforms is not None for row in rows):
        uniform = np.array(
            [2.0 if r.uniforms is None else r.uniforms.random() for r in rows], dtype=np.float32
        )
        cumulative = mx.cumsum(mx.exp(logits - norm), axis=-1)
        # The last entry is 1 up to rounding; scaling by it keeps every draw inside.
        target = mx.array(uniform)[:, None] * cumulative[:, -1:]
        drawn = (cumulative <= target).sum(axis=-1)
        drawn = mx.minimum(drawn, logits.shape[-1] - 1)
        best = mx.where(mx.array(uniform) > 1.5, best, drawn)
    logprob = mx.take_along_axis(logits, best[:, None], axis=-1) - norm
    mx.eval(best, logprob)
    ids: list[int] = best.tolist()  # type: ignore[assignment]
    values: list[float] = logprob[:, 0].tolist()  # type: ignore[assignment]
    return ids, values


def _sample_by_numpy(
    logits: mx.array, rows: Sequence[DecodingSequence], owner: Sequence[int]
) -> tuple[list[int], list[float]]:
    """`sample` on a CPU, where numpy's exponential is many times faster than MLX's."""
    mx.eval(logits)
    scores = np.asarray(logits)
    highest = scores.max(axis=-1, keepdims=True)
    cumulative = np.exp(scores - highest).cumsum(axis=-1, dtype=np.float64)
    ids, logprobs = [], []
    for row, at in zip(rows, owner, strict=True):
        total = float(cumulative[at, -1])
        if row.uniforms is None:
            token = int(scores[at].argmax())
        else:
            # Of entries that are equal the first adds something: the others are impossible.
            drawn = row.uniforms.random() * total
            token = int(cumulative[at].searchsorted(drawn, side="right"))
            token = min(token, scores.shape[-1] - 1)
        ids.append(token)
        logprobs.append(float(scores[at, token] - highest[at, 0]) - math.log(total))
    return ids, logprobs
