"""Objectives of policy optimisation, each from its paper, as sums over the trained tokens.

All maximise  sum_t weight_t * (min(ratio_t * A, clip(ratio_t, 1 - low, 1 + high) * A)
- beta * kl_t)  and differ in three things only:

    loss      ratio of            a token's weight                      clip range
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

import math

import mlx.core as mx
import numpy as np

MAX_RATIO = 10.0  # of the reference's probability of a token to the policy's, in a KL's gradient

CLIP_RANGES: dict[str, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
}  # (low, high) of the papers


def token_weights(
    loss: str, lengths: np.ndarray, copies: np.ndarray, max_length: int
) -> np.ndarray:
    """Weight of each token of a chain in the objective, copies of the chain included.

    Args:
        loss: A name of `CLIP_RANGES`.
        lengths: Trained tokens of each chain, (chains,), at least 1.
        copies: How often each chain was sampled, (chains,).
        max_length: Dr. GRPO's constant: the most tokens that a chain may have.

    Returns:
        (chains,); over all tokens and chains the weights sum to 1, but for Dr. GRPO.
    """
    count = copies.sum()
    if loss == "dapo":
        return copies / (copies * lengths).sum()
    if loss == "dr_grpo":
        return copies / (count * max_length)
    return copies / (count * lengths)


def importance_ratios(
    loss: str, logprob: mx.array, old: mx.array, sequence: mx.array, lengths: mx.array
) -> mx.array:
    """Probability under the policy over that when the token was sampled, (tokens,).

    Args:
        loss: ``gspo`` gives every token its chain's ratio, others their own.
        logprob: Log-probabilities now, (tokens,).
        old: Log-probabilities when the token was sampled, (tokens,).
        sequence: Index of the chain that a token belongs to, (tokens,).
        lengths: Trained tokens of each chain, (chains,).
    """
    difference = logprob - old
    if loss == "gspo":
        sums = mx.zeros(lengths.shape, difference.dtype).at[sequence].add(difference)
        difference = mx.take(sums / lengths, sequence)
    return mx.exp(difference)


def clipped_surrogate(
    ratio: mx.array, advantage: mx.array, low: float, high: float
) -> tuple[mx.array, mx.array]:
    """PPO's pessimistic surrogate of each token, and where the clip took the gradient away.

    Returns:
        Both (tokens,): the surrogate, and 1 where it no longer grows with the ratio.
    """
    unclipped = ratio * advantage
    clipped = mx.clip(ratio, 1 - low, 1 + high) * advantage
    return mx.minimum(unclipped, clipped), (clipped < unclipped).astype(mx.float32)


def k3(reference: mx.array, logprob: mx.array) -> mx.array:
    """KL(policy | reference) of each token: never negative, and unbiased (Schulman, 2020).

    That is its value. Its gradient over the policy's own tokens is in mean that of
    KL(reference | policy), as in every trainer that adds it to the loss (arXiv:2506.09477).

    The gradient weighs a token by how much likelier the reference would draw it. A settled policy
    that draws a token of the reference's which it has all but given up would meet a weight of
    thousands, and that token alone would make the step. From `MAX_RATIO` on the estimate goes on
    as a straight line: it still pulls back, with a bounded gradient.
    """
    difference = reference - logprob
    near = mx.minimum(difference, math.log(MAX_RATIO))
    return mx.exp(near) * (1 + difference - near) - difference - 1


def overlong_penalty(lengths: np.ndarray, max_length: int, cache: int) -> np.ndarray:
    """DAPO's soft penalty of long chains: from 0 down to -1 over the last ``cache`` tokens.

    Args:
        lengths: Sampled tokens of each chain, any shape.
        max_length: L_max, from which on the penalty is whole.
        cache: L_cache, over which it grows; at most ``max_length`` of it counts.
    """
    cache = min(cache, max_length)
    return np.clip((max_length - cache - lengths) / max(cache, 1), -1.0, 0.0)
