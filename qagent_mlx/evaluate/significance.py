"""Bootstrap intervals, permutation tests and sample sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FLIPS = 10_000  # sign flips of a permutation test: no p-value is below 0.0001
RESAMPLES = 2000
POWER = 0.8
_CHUNK = 1 << 20  # resampled values that are held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over cases with its 95 % bootstrap interval."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of a - b over cases, its 95 % bootstrap interval, and a two-sided p-value."""

    diff: float
    lo: float
    hi: float
    p: float


@dataclass(frozen=True, slots=True)
class RateComparison:
    """A rate in both arms of a paired test."""

    control: float
    treatment: float
    lift: float | None  # relative difference, with its 95 % bootstrap interval
    lo: float | None
    hi: float | None
    p: float  # two-sided, of a permutation test
    needed: int | None = None  # users in each arm of an unpaired test, see `sample_size`


def bootstrap(values: np.ndarray, seed: int = 0, samples: int = RESAMPLES) -> Interval:
    """The mean of ``values``, (cases,), with its 95 % percentile bootstrap interval (Efron, 1979).

    Equal seeds and numbers of cases draw the same resamples.
    """
    values = _one_per_case(values)
    means = np.empty(samples)
    random = np.random.default_rng(seed)
    for chunk in _chunks(samples, len(values)):
        drawn = random.integers(0, len(values), (chunk.stop - chunk.start, len(values)))
        means[chunk] = values[drawn].mean(axis=1)
    lo, hi = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(lo), float(hi))


def paired_difference(
    a: np.ndarray, b: np.ndarray, seed: int = 0, samples: int = RESAMPLES
) -> PairedDifference:
    """Compare two systems on the same cases, (cases,) each.

    The p-value is that of a sign-flip permutation test: under the null hypothesis either
    system could have had either of a case's two scores.
    """
    a, b = _one_per_case(a), _one_per_case(b)
    if a.shape != b.shape:
        raise ValueError(f"paired systems need the same cases, not {a.shape} and {b.shape}")
    difference = a - b
    interval = bootstrap(difference, seed, samples)
    nonzero = difference[difference != 0]
    # A sum that equals the observed one may differ from it in the last bits.
    observed = abs(nonzero.sum()) - 1e-9
    random = np.random.default_rng([seed, 1])
    extreme = 0
    for chunk in _chunks(FLIPS, max(len(nonzero), 1)):
        signs = random.integers(0, 2, (chunk.stop - chunk.start, len(nonzero)), dtype=np.int8)
        extreme += int((np.abs((2.0 * signs - 1.0) @ nonzero) >= observed).sum())
    p = (1 + extreme) / (1 + FLIPS)
    return PairedDifference(interval.mean, interval.lo, interval.hi, p)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, 1979); in the order given."""
    adjusted = [0.0] * len(pvalues)
    largest = 0.0
    for done, i in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        largest = max(largest, min(1.0, (len(pvalues) - done) * pvalues[i]))
        adjusted[i] = largest
    return adjusted


def compare_rates(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> RateComparison:
    """Compare a ratio of sums in two paired arms, (2, users) each, control first.

    Users are resampled for the interval of the lift, and swapped between arms for p.
    """
    users = numerators.shape[1]
    control, treatment = (_ratio(numerators[i].sum(), denominators[i].sum()) for i in (0, 1))
    random = np.random.default_rng([seed, 11])
    lifts = []
    for _ in range(RESAMPLES):
        weight = np.bincount(random.integers(0, users, users), minlength=users)
        a, b = (_ratio(numerators[i] @ weight, denominators[i] @ weight) for i in (0, 1))
        if a > 0:
            lifts.append(b / a - 1)
    p = permutation_p(numerators, denominators, seed)
    if control <= 0 or len(lifts) <= RESAMPLES / 2:
        return RateComparison(control, treatment, None, None, None, p)
    lo, hi = np.quantile(lifts, (0.025, 0.975))
    return RateComparison(control, treatment, treatment / control - 1, float(lo), float(hi), p)


def permutation_p(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of a permutation test that swaps the two arms within users."""
    control, treatment = (_ratio(numerators[i].sum(), denominators[i].sum()) for i in (0, 1))
    observed = abs(treatment - control)
    differs = (numerators[0] != numerators[1]) | (denominators[0] != denominators[1])
    if not differs.any() or not observed:
        return 1.0
    fixed = [counts[:, ~differs].sum(axis=1) for counts in (numerators, denominators)]
    varied = [counts[:, differs] for counts in (numerators, denominators)]
    random = np.random.default_rng([seed, 12])
    extreme = 0
    for start in range(0, FLIPS, 1000):
        swap = random.integers(0, 2, (min(1000, FLIPS - start), varied[0].shape[1])).astype(float)
        # Sums of each arm after the swaps, (2 counts, 2 arms, permutations).
        top, bottom = (
            [base[arm] + (1 - swap) @ counts[arm] + swap @ counts[1 - arm] for arm in (0, 1)]
            for base, counts in zip(fixed, varied, strict=True)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = [np.where(n > 0, t / n, 0.0) for t, n in zip(top, bottom, strict=True)]
        extreme += int((np.abs(rates[1] - rates[0]) >= observed - 1e-12).sum())
    return (1 + extreme) / (1 + FLIPS)


def sample_size(numerators: np.ndarray, denominators: np.ndarray, detect: float) -> int | None:
    """Users in each arm of an unpaired test that detects a relative lift.

    For a power of 80 % at a two-sided 5 %; the counts are (draws, 2, users), control first. The
    variance of the control's ratio between users is taken by the delta method, for each draw
    alone: a real user lives through a visit once.
    """
    control = _ratio(numerators[:, 0].sum(), denominators[:, 0].sum())
    if not control or detect <= 0:
        return None
    residual = (numerators[:, 0] - control * denominators[:, 0]) / denominators[:, 0].mean()
    variance = float(residual.var(axis=1).mean())
    z = NormalDist().inv_cdf((1 + 0.95) / 2) + NormalDist().inv_cdf(POWER)
    return int(np.ceil(2 * variance * (z / (detect * control)) ** 2)) if variance else None


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0


def _one_per_case(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"one number a case is needed, not an array of shape {values.shape}")
    return values


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of ``count`` resamples of ``width`` values that fit into `_CHUNK`."""
    step = max(1, _CHUNK // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
