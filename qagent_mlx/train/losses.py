"""Objectives of policy optimisation, each from its paper, as sums over the trained tokens.

All maximise  sum_t share_t * (min(ratio_t * A, clip(ratio_t, 1 - low, 1 + high) * A)
- beta * kl_t)  and differ in three things only:

    loss      ratio of            a token's share                       clip range
    grpo      the token           1 / (chains * length of its chain)    0.2, 0.2
    dr_grpo   the token           1 / (chains * a constant)             0.2, 0.2
    dapo      the token           1 / tokens of the step                0.2, 0.28
    gspo      the whole chain     1 / (chains * length of its chain)    3e-4, 4e-4

GRPO: arXiv:2402.03300. Dr. GRPO: arXiv:2503.20783 (long wrong chains are no cheaper). DAPO:
arXiv:2503.14476 (every token counts the same, clip-higher, `overlong_penalty`). GSPO:
arXiv:2507.18071 (the ratio is the geometric mean over a chain). Lengths count the tokens that
the policy chose; what tools inserted is no part of them.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

# The papers' clip ranges: (low, high).
CLIPS: dict[str, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
}


def token_weights(loss: str, lengths: np.ndarray, copies: np.ndarray, most: int) -> np.ndarray:
    """What each token of a chain weighs in the objective, copies of the chain included.

    Args:
        loss: A name of `CLIPS`.
        lengths: Trained tokens of each chain, (chains,), at least 1.
        copies: How often each chain came, (chains,).
        most: Dr. GRPO's constant: the most tokens that a chain may have.

    Returns:
        (chains,); summed over all tokens and chains the shares of all but Dr. GRPO make 1.
    """
    count = copies.sum()
    if loss == "dapo":
        return copies / (copies * lengths).sum()
    if loss == "dr_grpo":
        return copies / (count * most)
    return copies / (count * lengths)


def importance_ratios(
    loss: str, logprob: mx.array, sampled: mx.array, row: mx.array, lengths: mx.array
) -> mx.array:
    """How much likelier the policy makes what it sampled, (tokens,).

    Args:
        loss: ``gspo`` gives every token its chain's ratio, others their own.
        logprob: Log-probabilities now.
        sampled: Log-probabilities when the token was sampled.
        row: The chain that a token belongs to, as its place in ``lengths``.
        lengths: Trained tokens of each chain.
    """
    difference = logprob - sampled
    if loss == "gspo":
        sums = mx.zeros(lengths.shape, difference.dtype).at[row].add(difference)
        difference = mx.take(sums / lengths, row)
    return mx.exp(difference)


def clipped_surrogate(
    ratio: mx.array, advantage: mx.array, low: float, high: float
) -> tuple[mx.array, mx.array]:
    """PPO's pessimistic gain of each token, and where the clip took the gradient away.

    Returns:
        Both (tokens,): the gain, and 1 where a token's gain no longer grows with its ratio.
    """
    free = ratio * advantage
    bound = mx.clip(ratio, 1 - low, 1 + high) * advantage
    return mx.minimum(free, bound), (bound < free).astype(mx.float32)


def k3(reference: mx.array, logprob: mx.array) -> mx.array:
    """KL(policy | reference) of each token: unbiased, never negative (Schulman, 2020)."""
    return mx.exp(reference - logprob) - (reference - logprob) - 1


def overlong_penalty(lengths: np.ndarray, most: int, cache: int) -> np.ndarray:
    """DAPO's soft punishment of long chains: from 0 down to -1 over the last ``cache`` tokens.

    Args:
        lengths: Sampled tokens of each chain, any shape.
        most: L_max, from which on the punishment is whole.
        cache: L_cache, over which it grows.
    """
    return np.clip((most - cache - lengths) / max(cache, 1), -1.0, 0.0)
