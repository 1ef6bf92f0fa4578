"""From the rewards of a group to advantages.

All estimators take rewards of shape (C groups, G chains, R components) and weights of shape (R,),
and return (C, G). Advantages are exactly 0 where a group teaches nothing: every chain scored the
same, differences cancel out in the weighted sum, or they are tiny. `has_signal` finds the others,
so that the trainer can drop and count those without.

What is tiny: a standard deviation of no more than `TINY` of a component's range. Rounding, or a
judge's last digit, would otherwise be blown up to advantages as large as those of a hit, or take
a whole step of an optimizer that knows no scale.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

EPSILON = 1e-6
MIN_CHANCE = 0.1  # so that no group weighs more than ten times itself
TINY = 1e-3  # of a component's range, which is 1 but for its weight
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]


def grpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """GRPO (arXiv:2402.03300): the weighted sum, normalised within its group."""
    centred = dr_grpo(rewards, weights)
    return centred / (centred.std(axis=1, keepdims=True) + EPSILON)


def dr_grpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Dr. GRPO (arXiv:2503.20783): centred only, so easy and hard cases keep their weight."""
    total = rewards @ weights
    centred = total - total.mean(axis=1, keepdims=True)
    return np.where(total.std(axis=1, keepdims=True) > _tiny(weights), centred, 0.0)


def gdpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """GDPO (arXiv:2601.05242): each component normalised in its group, summed, then whitened.

    Decoupled, a dense component (format) cannot drown a sparse one (a hit). Only groups with a
    signal are whitened.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, keepdims=True)
    parts = np.where(spread > TINY, centred / (spread + EPSILON), 0.0)
    summed = parts @ weights
    summed = np.where(summed.std(axis=1, keepdims=True) > _tiny(weights), summed, 0.0)
    signal = has_signal(summed)
    if not signal.any():
        return summed
    chosen = summed[signal]
    whitened = (summed - chosen.mean()) / (chosen.std() + EPSILON)
    return np.where(signal[:, None], whitened, 0.0)


def row_gains(totals: np.ndarray, size: int) -> np.ndarray:
    """What each chain adds to the best of a row of queries that it is shown in: (C, G).

    A row is as good as its best query. A chain's gain is the expected increase of that by it, over
    rows with ``size`` - 1 other chains of its group. Maximising it maximises the expected reward of
    the best of ``size`` chains (PKPO, arXiv:2505.15201, with the leave-one-out baseline), so that
    chains share out what the user may want instead of agreeing on what is likeliest.

    Args:
        totals: Weighted rewards of chains, (C, G).
        size: Queries in a row, from 1 (where a gain is the reward itself) to G.
    """
    others = totals.shape[1] - 1
    if size == 1:
        return totals
    # Of others in ascending order, the j-th is the best of size - 1 drawn with this probability.
    chances = np.array([comb(j, size - 2) for j in range(others)]) / comb(others, size - 1)
    gains = np.empty_like(totals, dtype=np.float64)
    for chain in range(others + 1):
        rest = np.sort(np.delete(totals, chain, axis=1), axis=1)
        gains[:, chain] = np.maximum(totals[:, chain, None] - rest, 0.0) @ chances
    return gains


def has_signal(advantages: np.ndarray) -> np.ndarray:
    """Whether a group's advantages teach anything: bool (C,)."""
    signal: np.ndarray = (advantages != 0).any(axis=1)
    return signal


def differs(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether a group's chains differ in a component that counts: bool (C,)."""
    counted = (rewards.std(axis=1) > EPSILON) & (np.abs(weights) > 0)
    differing: np.ndarray = counted.any(axis=1)
    return differing


def chances(sizes: np.ndarray, noise: float) -> np.ndarray:
    """Probabilities with which groups are trained on, where small ones are not worth the time.

    A group that is kept weighs 1 / its chance, so on average the gradient is that of all groups
    (compare arXiv:2504.13818, which keeps the extremes of a group and is biased). Chances are
    proportional to sizes up to 1, which for a given cost adds the least noise.

    Args:
        sizes: Norm of each group's advantages, (C,), above 0.
        noise: Variance that leaving out groups may add, as a share of the sum of squared sizes;
            0 keeps all.

    Returns:
        (C,) in [`MIN_CHANCE`, 1]; the largest group's is 1.
    """
    result = np.ones(len(sizes))
    if not len(sizes) or noise <= 0:
        return result
    allowed = noise * (sizes**2).sum()
    low, high = 0.0, 2 * float(sizes.max())  # of the size from which on a group is always kept
    for _ in range(30):
        bound = min((low + high) / 2, float(sizes.max()))
        tried = np.clip(sizes / bound, MIN_CHANCE, 1.0)
        if ((1 / tried - 1) * sizes**2).sum() <= allowed:
            low, result = bound, tried
        else:
            high = bound
    return result


def _tiny(weights: np.ndarray) -> float:
    """The standard deviation of a weighted sum that counts as none."""
    return TINY * float(np.abs(weights).max(initial=0.0))


ESTIMATORS: dict[str, Estimator] = {"gdpo": gdpo, "grpo": grpo, "dr_grpo": dr_grpo}
