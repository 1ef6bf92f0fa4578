"""Batched decoding of sequences that stop, wait for a tool, and go on.

What sequences have in common (the task, a case's profile, a search that several chains of a
group made) is computed once and forked where they part. Sequences that stop leave the batch
with their cache, so one that waits for a tool does not hold up the others.

This module sees token ids only. It builds on mlx-lm's caches rather than on its
BatchGenerator, which keeps all V log-probabilities of every token, cannot fork the sequences
of a running batch, and draws from one random stream for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..models import sampling
from ..models.batch_cache import batch_cache, prefill
from ..models.numpy_decoder import NumpyDecoder
from ..models.row_decoder import RowDecoder
from ..policy.policy import Policy
from ..utils.blas import one_blas_thread
from .sequences import DecodingBatch, DecodingSequence, take_rows

SMALL_MODEL = 20_000_000  # weights below which the products of a step are too thin to share out


class Decoder:
    """Decodes sequences with one policy.

    On a CPU, ``use_numpy`` decodes a small model with a numpy copy of its weights (see
    `models.numpy_decoder`); call `refresh` when the policy was trained. A model that computes
    wrong in batches decodes one context at a time (see `models.row_decoder`).
    """

    def __init__(self, policy: Policy, use_numpy: bool = True) -> None:
        self.policy = policy
        self._use_numpy = use_numpy
        self._own: NumpyDecoder | RowDecoder | None = None
        self.refresh()
        self._is_small = policy.parameters < SMALL_MODEL
        self.prefill_tokens = 0
        self.decode_tokens = 0

    def refresh(self) -> None:
        """Decode with the policy's weights as they are now."""
        if self._use_numpy:
            self._own = NumpyDecoder.of(self.policy.model, self.policy.parameters)
        if self._own is None and not self.policy.decodes_batches:
            self._own = RowDecoder(self.policy.model, self.policy.logits)

    def start(self, sequences: Sequence[DecodingSequence]) -> DecodingBatch:
        """Compute the contexts of new sequences, each distinct one once."""
        for sequence in sequences:
            sequence.pending = list(sequence.tokens)
        return self.resume(DecodingBatch(sequences))

    def resume(self, batch: DecodingBatch) -> DecodingBatch:
        """Compute the pending ids of sequences that waited; equal contexts share the work."""
        first_with: dict[tuple[int, ...], int] = {}
        representative = [
            first_with.setdefault(tuple(s.tokens), i) for i, s in enumerate(batch.sequences)
        ]
        unique = list(first_with.values())
        # Sequences that shared a context may have been given different answers.
        cache = batch.select(unique, unique).cache or self.empty_cache(len(unique))
        logits = self.prefill([batch.sequences[i].pending for i in unique], cache)
        row_of = {index: row for row, index in enumerate(unique)}
        context_of = [row_of[i] for i in representative]
        resumed = DecodingBatch(batch.sequences, cache, logits, context_of)
        for sequence in resumed.sequences:
            sequence.start_turn()
        resumed.evaluate()
        return resumed

    def empty_cache(self, contexts: int) -> list[Any]:
        """A cache without tokens, one entry for each layer."""
        if self._own is not None:
            return [self._own.cache(contexts)]
        return batch_cache(self.policy.model, contexts)

    def prefill(self, pending: Sequence[list[int]], cache: list[Any]) -> mx.array | np.ndarray:
        """Put ids behind each context of a cache; returns the logits after them (contexts, V)."""
        self.prefill_tokens += sum(len(ids) for ids in pending)
        if self._own is not None:
            with one_blas_thread(self._is_small):
                return self._own.logits(list(pending), cache[0])
        return self.policy.head(prefill(self.policy.backbone, pending, cache))

    def draw(self, batch: DecodingBatch) -> tuple[DecodingBatch, DecodingBatch]:
        """Draw one id for each sequence; returns (sequences that go on, those that stopped).

        A sequence stops at the end of an action or at its turn's limit. Its last id is not in
        its cache yet: it becomes the first pending one.
        """
        assert batch.logits is not None
        logits, context_of = batch.logits, batch.context_of
        masks = [s.allowed_ids() if s.allowed_ids else None for s in batch.sequences]
        if any(mask is not None for mask in masks):
            least = [s.min_p for s in batch.sequences]
            logits = sampling.constrain(take_rows(logits, context_of), masks, least)
            context_of = list(range(len(batch.sequences)))
        ids, logprobs = self.sample(logits, batch.sequences, context_of)
        self.decode_tokens += len(ids)
        batch.logits = None
        going: list[int] = []
        stopped: list[int] = []
        for i, sequence in enumerate(batch.sequences):
            (stopped if sequence.append(ids[i], logprobs[i]) else going).append(i)
        for i in stopped:
            batch.sequences[i].pending = [ids[i]]
        if not going:
            return DecodingBatch(), batch
        # Sequences that drew different ids share no context any more.
        parted = batch.select(going, [ids[i] for i in going])
        return parted, batch.select(stopped, copied=True) if stopped else DecodingBatch()

    def sample(
        self,
        logits: mx.array | np.ndarray,
        sequences: Sequence[DecodingSequence],
        context_of: Sequence[int],
    ) -> tuple[list[int], list[float]]:
        """Draw from each sequence's own stream; see `models.sampling.sample`."""
        return sampling.sample(logits, [s.stream for s in sequences], context_of)

    def advance(self, batch: DecodingBatch) -> None:
        """Compute the logits after the last id of each context."""
        last = {
            row: sequence.tokens[-1]
            for row, sequence in zip(batch.context_of, batch.sequences, strict=True)
        }
        ids = [[last[row]] for row in range(len(last))]
        with one_blas_thread(self._is_small):
            if self._own is not None:
                batch.logits = self._own.logits(ids, batch.cache[0])
                return
            hidden = self.policy.backbone(mx.array(ids), batch.cache)
            batch.logits = self.policy.head(hidden[:, -1])
            batch.evaluate()
