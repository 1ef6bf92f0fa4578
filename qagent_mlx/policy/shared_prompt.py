"""What all chains of a step begin with, computed once for all of them.

A chat model's instructions are some 300 tokens, the same in every chain. Their keys and values
are computed once a step: the chains attend to them (`blocks.Begin`), each micro-batch says what
it would have had them be, and one backward pass through the opening answers all of that. This is
the gradient of the whole, exactly; below the first adapter, and for the reference everywhere, the
opening never changes and is computed once a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..models import transformer_blocks
from .policy import Policy
from .scoring import TrainingSequence, common_prefix

LEAST = 32  # tokens from which on it pays
Kept = list[tuple[mx.array, mx.array]]  # keys and values, a pair a block


class SharedPrompt:
    """The shared first tokens of some chains, for one policy whose blocks run one by one."""

    def __init__(self, policy: Policy, tokens: list[int]) -> None:
        self.policy, self.tokens = policy, tokens
        self._first = policy.first_trained
        causal = transformer_blocks.CausalAttention(len(tokens))
        hidden = policy.embed(mx.array([tokens]))
        self._hidden = transformer_blocks.run(
            policy.model, hidden, causal, 0, self._first, norm=False
        )
        self.below = transformer_blocks.PrefixCache(len(tokens), causal.kept)
        mx.eval(self._hidden, list(causal.kept.values()))
        self._reference: transformer_blocks.PrefixCache | None = None
        self._asked: Any = None

    @classmethod
    def of(
        cls, policy: Policy, chains: Sequence[TrainingSequence], known: SharedPrompt | None = None
    ) -> SharedPrompt | None:
        """What chains of several groups begin with; None where that is not worth it.

        Args:
            policy: Whose chains.
            chains: The token that predicts a chain's first trained one stays with the chain.
            known: An opening of the same policy; is given back where the tokens are its own.
        """
        if len({chain.group for chain in chains}) < 2 or not policy.by_blocks:
            return None
        own = min(chain.trained.index(True) for chain in chains) - 1
        length = min(own, common_prefix([chain.tokens for chain in chains]))
        if length < LEAST or policy.first_trained >= len(policy.layers):
            return None
        tokens = chains[0].tokens[:length]
        return known if known and known.tokens == tokens else cls(policy, tokens)

    def cut(self, chain: TrainingSequence) -> TrainingSequence:
        """The chain without its opening."""
        at = len(self.tokens)
        return TrainingSequence(chain.tokens[at:], chain.trained[at:], chain.group)

    def computed(self, gradient: bool = False) -> Kept:
        """Keys and values of the blocks from the first adapter on, with the weights of now."""
        causal = transformer_blocks.CausalAttention(len(self.tokens))
        model, final = self.policy.model, len(self.policy.layers) - 1
        hidden = transformer_blocks.run(
            model, self._hidden, causal, self._first, final, False, gradient
        )
        transformer_blocks.run_last(
            model, hidden, causal, np.zeros((1, 0), dtype=np.int64), gradient
        )
        return [causal.kept[block] for block in range(self._first, final + 1)]

    def begin(self, kept: Kept) -> transformer_blocks.PrefixCache:
        """What the chains attend to, of all blocks."""
        above = dict(enumerate(kept, self._first))
        return transformer_blocks.PrefixCache(len(self.tokens), {**self.below.kept, **above})

    def reference(self) -> transformer_blocks.PrefixCache:
        """`begin` of the reference; the adapters must be switched off."""
        if self._reference is None:
            kept = self.computed()
            mx.eval(kept)
            self._reference = self.begin(kept)
        return self._reference

    def ask(self, slope: Any) -> None:
        """Add the slope of a micro-batch's loss by the keys and values of `computed`."""
        self._asked = slope if self._asked is None else tree_map(mx.add, self._asked, slope)
        mx.eval(self._asked)

    def answer(self) -> Any:
        """The slope, by the weights, of all that was asked since the last answer."""
        asked, self._asked = self._asked, None
        model = self.policy.model

        def product(parameters: Any) -> mx.array:
            model.update(parameters)
            made = [x for pair in self.computed(gradient=True) for x in pair]
            wanted = [x for pair in asked for x in pair]
            return mx.stack([(x * a).sum() for x, a in zip(made, wanted, strict=True)]).sum()

        gradient = mx.grad(product)(model.trainable_parameters())
        mx.eval(gradient)
        return gradient
