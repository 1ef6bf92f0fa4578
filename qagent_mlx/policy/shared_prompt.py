"""The prompt that all sequences of an update begin with, computed once for all of them.

A chat model's instructions are some 300 tokens, the same in every chain. Their keys and values
are computed once an update: all sequences attend to them, each micro-batch gives the gradient of
its loss with respect to them, and one backward pass through the prompt turns the sum of these
into a gradient with respect to the weights. The result is exact. It serves every machine, for
models that run block by block (`transformer_blocks.supported`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..models import transformer_blocks
from ..models.attention import CausalAttention, PrefixCache
from .batches import TrainingSequence, common_prefix
from .policy import Policy

SHORTEST = 32  # tokens; a shorter prompt is cheaper to compute with every group
KeysAndValues = list[tuple[mx.array, mx.array]]  # a pair for each block


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """The first tokens of all sequences, and what of them no update changes."""

    tokens: list[int]
    hidden: mx.array  # (1, tokens, width) states below the first block with an adapter
    frozen: PrefixCache  # keys and values of the blocks below it

    def strip(self, sequence: TrainingSequence) -> TrainingSequence:
        """The sequence without the shared prompt."""
        return sequence.without_first(len(self.tokens))

    def prefix_cache(self, trained: KeysAndValues) -> PrefixCache:
        """The keys and values of all blocks, given those of `trained_blocks`."""
        frozen = self.frozen.blocks
        return PrefixCache(len(self.tokens), {**frozen, **dict(enumerate(trained, len(frozen)))})


def find_shared_prompt(
    policy: Policy, sequences: Sequence[TrainingSequence]
) -> SharedPrompt | None:
    """The prompt of the sequences of several groups; None where sharing it does not pay.

    The token that predicts a sequence's first trained token stays with the sequence.
    """
    if len({s.group for s in sequences}) < 2 or not policy.by_blocks:
        return None
    untrained = min(s.trained.index(True) for s in sequences) - 1
    length = min(untrained, common_prefix([s.tokens for s in sequences]))
    first = policy.first_trained
    if length < SHORTEST or first >= len(policy.layers):
        return None
    tokens = sequences[0].tokens[:length]
    attention = CausalAttention(length)
    hidden = policy.embed(mx.array([tokens]))
    hidden = transformer_blocks.run(policy.model, hidden, attention, 0, first, norm=False)
    mx.eval(hidden, list(attention.blocks.values()))
    return SharedPrompt(tokens, hidden, PrefixCache(length, attention.blocks))


def trained_blocks(policy: Policy, prompt: SharedPrompt, gradient: bool = False) -> KeysAndValues:
    """Keys and values of the prompt in the blocks from the first adapter on."""
    first, last = len(prompt.frozen.blocks), len(policy.layers) - 1
    attention = CausalAttention(len(prompt.tokens))
    hidden = transformer_blocks.run(
        policy.model, prompt.hidden, attention, first, last, False, gradient
    )
    nowhere = np.zeros((1, 0), dtype=np.int64)  # no token after the last block is asked for
    transformer_blocks.run_last(policy.model, hidden, attention, nowhere, gradient)
    return [attention.blocks[block] for block in range(first, last + 1)]


def backpropagate(policy: Policy, prompt: SharedPrompt, gradients: KeysAndValues) -> Any:
    """The gradient with respect to the weights, given that of the `trained_blocks`."""
    model = policy.model

    def product(parameters: Any) -> mx.array:
        model.update(parameters)
        states = [x for pair in trained_blocks(policy, prompt, gradient=True) for x in pair]
        wanted = [x for pair in gradients for x in pair]
        return mx.stack([(x * g).sum() for x, g in zip(states, wanted, strict=True)]).sum()

    gradient = mx.grad(product)(model.trainable_parameters())
    mx.eval(gradient)
    return gradient
