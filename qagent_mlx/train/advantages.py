"""From the rewards of a group to advantages.

All estimators take rewards of shape (C groups, G chains, R components) and weights of shape (R,),
and return (C, G). A group in which every chain scored the same teaches nothing: its advantages
are 0, and `non_constant_groups` leaves it out, so that the trainer can drop and count it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EPSILON = 1e-6
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]


def grpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """GRPO (arXiv:2402.03300): the weighted sum, normalised within its group."""
    total = rewards @ weights
    centred = total - total.mean(axis=1, keepdims=True)
    spread = total.std(axis=1, keepdims=True)
    return np.where(spread > EPSILON, centred / (spread + EPSILON), 0.0)


def dr_grpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Dr. GRPO (arXiv:2503.20783): centred only, so easy and hard cases keep their weight."""
    total = rewards @ weights
    return total - total.mean(axis=1, keepdims=True)


def gdpo(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """GDPO (arXiv:2601.05242): each component normalised in its group, summed, then whitened.

    Decoupled, a dense component (format) cannot drown a sparse one (a hit). Only groups that are
    not constant are whitened.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, keepdims=True)
    parts = np.where(spread > EPSILON, centred / (spread + EPSILON), 0.0)
    summed = parts @ weights
    informative = non_constant_groups(rewards, weights)
    if not informative.any():
        return np.zeros_like(summed)
    chosen = summed[informative]
    deviation = chosen.std()
    if deviation <= EPSILON:
        return np.zeros_like(summed)
    whitened = (summed - chosen.mean()) / (deviation + EPSILON)
    return np.where(informative[:, None], whitened, 0.0)


def non_constant_groups(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether a group's chains differ in a component that counts: bool (C,)."""
    differs = (rewards.std(axis=1) > EPSILON) & (np.abs(weights) > 0)
    informative: np.ndarray = differs.any(axis=1)
    return informative


ESTIMATORS: dict[str, Estimator] = {"gdpo": gdpo, "grpo": grpo, "dr_grpo": dr_grpo}
