"""SASRec (arXiv:1808.09781) over queries: causal self-attention over a user's last searches.

A position that ends a session predicts the query that begins the next one, as cases ask. The
model trains on the log before the first case that it is asked about, and reads each user's
searches up to the case. Queries that are first searched later are unknown to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from msgspec import Meta

from ...environment.environment import Example
from ...types import Case
from ...utils.runtime import release_mlx_with_thread
from ...utils.settings import check
from .point_in_time import PointInTimeBaseline
from .search_log import SearchLog, SweepState, moment_of

BATCH = 256  # cases that are scored at once


@dataclass(frozen=True)
class SasRecConfig:
    """Size of the model and length of its training."""

    width: Annotated[int, Meta(ge=1, description="Width of the hidden states.")] = 64
    blocks: Annotated[int, Meta(ge=1, description="Transformer blocks.")] = 2
    heads: Annotated[int, Meta(ge=1, description="Attention heads of a block.")] = 2
    length: Annotated[int, Meta(ge=1, description="Last searches that the model reads.")] = 24
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout rate.")] = 0.2
    epochs: Annotated[int, Meta(ge=1, description="Passes over the training sequences.")] = 12
    batch: Annotated[int, Meta(ge=1, description="Sequences of a training step.")] = 64
    learning_rate: Annotated[
        float, Meta(gt=0, description="Peak learning rate, from which it decays by a cosine.")
    ] = 2e-3
    seed: Annotated[int, Meta(ge=0, description="Seed of the weights and batches.")] = 0


class _Block(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.before = nn.LayerNorm(config.width)
        self.attention = nn.MultiHeadAttention(config.width, config.heads)
        self.middle = nn.LayerNorm(config.width)
        self.wide = nn.Linear(config.width, config.width * 2)
        self.narrow = nn.Linear(config.width * 2, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        y = self.before(x)
        x = x + self.dropout(self.attention(y, y, y, mask))
        return x + self.dropout(self.narrow(nn.relu(self.wide(self.middle(x)))))


class _Model(nn.Module):
    """Query ids, (B, T) with 0 for padding -> hidden states, (B, T, width)."""

    def __init__(self, queries: int, config: SasRecConfig) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries + 1, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [_Block(config) for _ in range(config.blocks)]
        self.last = nn.LayerNorm(config.width)

    def __call__(self, x: mx.array) -> mx.array:
        length = x.shape[1]
        causal = mx.triu(mx.full((length, length), -1e9), k=1)
        padding = mx.where(x == 0, -1e9, 0.0)[:, None, None, :]
        # A padding position attends to itself, or its attention would be over nothing.
        mask = mx.maximum(causal + padding, mx.where(mx.eye(length) > 0, 0.0, -2e9))
        h = self.dropout(self.queries(x) + self.positions(mx.arange(length)))
        for block in self.blocks:
            h = block(h, mask)
        return self.last(h)

    def logits(self, hidden: mx.array) -> mx.array:
        """Scores of all ids, that of padding included."""
        return self.queries.as_linear(hidden)


class SasRec(PointInTimeBaseline):
    """Scores the queries known at training time by the user's sequence of searches."""

    name = "sasrec"

    def __init__(self, log: SearchLog, config: SasRecConfig | None = None) -> None:
        super().__init__(log)
        self._config = config or SasRecConfig()
        check(self._config)
        self._trained_until = -1  # searches that the model has learned from

    def _start(self, examples: Sequence[Example]) -> None:
        if not examples or not len(self.log.times):
            return
        until = self.log.before(min(moment_of(e.case.as_of) for e in examples))
        if until != self._trained_until:
            self._train(until)
        length, known = self._config.length, len(self._known)
        sequences = np.zeros((len(examples), length), dtype=np.int64)
        for i, example in enumerate(examples):
            searches = self.log.of_user(example.case.user_id, moment_of(example.case.as_of))
            ids = self._ids[self.log.queries[searches]]
            ids = ids[ids > 0][-length:]
            sequences[i, length - len(ids) :] = ids
        self._scores_of_cases = np.zeros((len(examples), known))
        if known:
            for start in range(0, len(examples), BATCH):
                batch = slice(start, start + BATCH)
                hidden = self._model(mx.array(sequences[batch]))[:, -1]
                logits = np.array(self._model.logits(hidden))[:, 1:]
                # Users without a known search get the most popular queries.
                has_history = sequences[batch].any(axis=1, keepdims=True)
                self._scores_of_cases[batch] = np.where(has_history, logits, 0.0)

    def _scores(self, case: Case, state: SweepState) -> np.ndarray:
        scores = np.full(len(self.log.spellings), -np.inf)
        scores[self._known] = np.round(self._scores_of_cases[state.index], 5)
        return scores

    def _train(self, until: int) -> None:
        """Train a new model on the first ``until`` searches."""
        log, config = self.log, self._config
        self._trained_until = until
        self._known = np.unique(log.queries[:until])
        self._ids = np.zeros(len(log.spellings), dtype=np.int64)
        self._ids[self._known] = np.arange(1, len(self._known) + 1)
        release_mlx_with_thread()
        mx.random.seed(config.seed)
        self._model = _Model(len(self._known), config)
        inputs, targets = self._sequences(until)
        if len(inputs):
            _fit(self._model, inputs, targets, config)
        self._model.eval()

    def _sequences(self, until: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, (N, T) each; a target is where the next search begins a session."""
        log, length = self.log, self._config.length
        inputs, targets = [], []
        for user in range(len(log.user_numbers)):
            own = log.by_user[log.user_spans[user] : log.user_spans[user + 1]]
            own = own[own < until]
            ids, sessions = self._ids[log.queries[own]], log.sessions[own]
            for end in range(len(own), 1, -length):
                window = slice(max(0, end - length - 1), end)
                x, s = ids[window], sessions[window]
                sequence, target = np.zeros((2, length), dtype=np.int64)
                sequence[length - len(x) + 1 :] = x[:-1]
                target[length - len(x) + 1 :] = np.where(s[1:] != s[:-1], x[1:], 0)
                if target.any():
                    inputs.append(sequence)
                    targets.append(target)
        return np.array(inputs), np.array(targets)


def _fit(model: _Model, inputs: np.ndarray, targets: np.ndarray, config: SasRecConfig) -> None:
    """Minimise the cross-entropy over all queries at the positions that have a target."""

    def mean_loss(model: _Model, x: mx.array, positions: mx.array, y: mx.array) -> mx.array:
        hidden = model(x).reshape(-1, config.width)[positions]
        return nn.losses.cross_entropy(model.logits(hidden), y, reduction="mean")

    loss_and_gradient = nn.value_and_grad(model, mean_loss)
    batches = -(-len(inputs) // config.batch)
    rate = optim.cosine_decay(config.learning_rate, config.epochs * batches)
    optimizer = optim.AdamW(learning_rate=rate, weight_decay=0.01)
    random = np.random.default_rng([config.seed, 21])
    model.train()
    for _ in range(config.epochs):
        order = random.permutation(len(inputs))
        for start in range(0, len(order), config.batch):
            batch = order[start : start + config.batch]
            y = targets[batch].reshape(-1)
            positions = np.flatnonzero(y)
            _, gradient = loss_and_gradient(
                model, mx.array(inputs[batch]), mx.array(positions), mx.array(y[positions])
            )
            optimizer.update(model, gradient)
            mx.eval(model.parameters(), optimizer.state)
