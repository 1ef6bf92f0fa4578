"""A sequential recommender the size of SASRec (arXiv:1808.09781), over queries, in MLX.

Causal self-attention over a user's last searches; a position that begins a session is asked
to tell the query that begins it, as cases ask. It trains on the log before the first case
that it is asked about, and reads each user's searches up to the case. Queries that are first
searched later are unknown to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from ..metrics import Ranking
from .search_log import SearchLog, moment_of, ranking, top_queries

if TYPE_CHECKING:
    from ...environment.environment import Example


@dataclass(frozen=True)
class SasRecConfig:
    """Size of the model and how long it learns."""

    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 24  # searches that it sees
    dropout: float = 0.2
    epochs: int = 12
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


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
        made: mx.array = x + self.dropout(self.narrow(nn.relu(self.wide(self.middle(x)))))
        return made


class _Model(nn.Module):
    """(rows, length) numbers of queries, 0 for none -> hidden states, (rows, length, width)."""

    def __init__(self, queries: int, config: SasRecConfig) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries + 1, config.width)
        self.places = nn.Embedding(config.length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [_Block(config) for _ in range(config.blocks)]
        self.last = nn.LayerNorm(config.width)

    def __call__(self, x: mx.array) -> mx.array:
        length = x.shape[1]
        causal = mx.triu(mx.full((length, length), -1e9), k=1)
        padding = mx.where(x == 0, -1e9, 0.0)[:, None, None, :]
        # A row sees itself even where it is padding, or its attention would be over nothing.
        mask = mx.maximum(causal + padding, mx.where(mx.eye(length) > 0, 0.0, -2e9))
        h = self.dropout(self.queries(x) + self.places(mx.arange(length)))
        for block in self.blocks:
            h = block(h, mask)
        made: mx.array = self.last(h)
        return made

    def logits(self, hidden: mx.array) -> mx.array:
        """Scores of all queries, those of the embedding of nothing included."""
        return self.queries.as_linear(hidden)


class SasRec:
    """Scores every known query by the user's sequence of searches."""

    name = "sasrec"

    def __init__(self, log: SearchLog, config: SasRecConfig | None = None) -> None:
        self._log = log
        self._config = config or SasRecConfig()
        self._trained: tuple[int, _Model, np.ndarray] | None = None

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        log = self._log
        if not examples or not len(log.times):
            return [Ranking(())] * len(examples)
        until = log.before(min(moment_of(e.case.as_of) for e in examples))
        if self._trained is None or self._trained[0] != until:
            self._trained = (until, *self._train(until))
        _, model, known = self._trained
        place = np.zeros(len(log.spellings), dtype=np.int64)
        place[known] = np.arange(1, len(known) + 1)
        rows = np.zeros((len(examples), self._config.length), dtype=np.int64)
        for i, example in enumerate(examples):
            mine = self._of_user(example.case.user_id, moment_of(example.case.as_of))
            mine = place[log.queries[mine]]
            mine = mine[mine > 0][-self._config.length :]
            rows[i, self._config.length - len(mine) :] = mine
        scores = np.zeros((len(examples), len(known)))
        if len(known):
            for at in range(0, len(rows), 256):
                hidden = model(mx.array(rows[at : at + 256]))[:, -1]
                scores[at : at + 256] = np.array(model.logits(hidden))[:, 1:]
        made = [Ranking(())] * len(examples)
        for i, _, counts in log.sweep(examples):
            mine = np.full(len(log.spellings), -np.inf)
            # Who has searched nothing that is known gets the most popular.
            mine[known] = np.round(scores[i], 5) if rows[i].any() else 0.0
            made[i] = ranking(log, top_queries(k, counts, mine))
        return made

    def _of_user(self, user_id: str, moment: np.datetime64) -> np.ndarray:
        log = self._log
        user = log.user_numbers.get(user_id)
        if user is None:
            return np.empty(0, dtype=np.int64)
        mine = log.own[log.spans[user] : log.spans[user + 1]]
        return mine[: np.searchsorted(log.times[mine], moment, "left")]

    def _train(self, until: int) -> tuple[_Model, np.ndarray]:
        """The model of the first ``until`` searches, and the numbers of their queries."""
        log, config = self._log, self._config
        known = np.unique(log.queries[:until])
        place = np.zeros(len(log.spellings), dtype=np.int64)
        place[known] = np.arange(1, len(known) + 1)
        # Parts of users' sequences: inputs, and targets where the next search begins a session.
        inputs, targets = [], []
        for user in range(len(log.spans) - 1):
            mine = log.own[log.spans[user] : log.spans[user + 1]]
            mine = mine[mine < until]
            numbers, sessions = place[log.queries[mine]], log.sessions[mine]
            for end in range(len(mine), 1, -config.length):
                part = slice(max(0, end - config.length - 1), end)
                x, s = numbers[part], sessions[part]
                row, target = np.zeros((2, config.length), dtype=np.int64)
                row[config.length - len(x) + 1 :] = x[:-1]
                target[config.length - len(x) + 1 :] = np.where(s[1:] != s[:-1], x[1:], 0)
                if target.any():
                    inputs.append(row)
                    targets.append(target)
        mx.random.seed(config.seed)
        model = _Model(len(known), config)
        if inputs:
            _fit(model, np.array(inputs), np.array(targets), config)
        model.eval()
        return model, known


def _fit(model: _Model, inputs: np.ndarray, targets: np.ndarray, config: SasRecConfig) -> None:
    """Cross-entropy over all queries at the positions that have a target."""

    def loss_of(model: _Model, x: mx.array, where: mx.array, y: mx.array) -> mx.array:
        hidden = model(x).reshape(-1, config.width)[where]
        return nn.losses.cross_entropy(model.logits(hidden), y, reduction="mean")

    step = nn.value_and_grad(model, loss_of)
    batches = -(-len(inputs) // config.batch)
    rate = optim.cosine_decay(config.learning_rate, config.epochs * batches)
    optimizer = optim.AdamW(learning_rate=rate, weight_decay=0.01)
    random = np.random.default_rng([config.seed, 21])
    model.train()
    for _ in range(config.epochs):
        order = random.permutation(len(inputs))
        for at in range(0, len(order), config.batch):
            rows = order[at : at + config.batch]
            y = targets[rows].reshape(-1)
            where = np.flatnonzero(y)
            _, gradient = step(model, mx.array(inputs[rows]), mx.array(where), mx.array(y[where]))
            optimizer.update(model, gradient)
            mx.eval(model.parameters(), optimizer.state)
