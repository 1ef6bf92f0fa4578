"""What happened in a run, in words: rewards, groups, searches, entropy, KL, and spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median, stdev
from typing import NamedTuple

from .reader import curves
from .records import Metrics, first_and_last_mean

WINDOW = 5  # steps on either side that a spike is measured against
SPIKE = 4.0  # times the median around it
SPIKING = ("kl", "grad_norm", "loss")  # a peak of these is trouble
FEW = 0.98  # share of chains that recommend, below which it is said
MUTE = 0.6  # share of groups without variance, above which a remedy is named

Points = Sequence[tuple[int, float]]


class Spike(NamedTuple):
    """A step whose value stands far above those around it."""

    step: int
    value: float
    around: float  # median of the steps beside it


def spikes(points: Points) -> list[Spike]:
    """Peaks of at least four times the median around them; of neighbouring ones the highest.

    What is below a tenth of the curve's maximum is none: a KL that starts at 0 multiplies at once.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    values = [value for _, value in finite]
    if len(finite) < 2 * WINDOW:
        return []
    found: list[Spike] = []
    last = -math.inf  # place of the last peak
    for i, (step, value) in enumerate(finite):
        around = median([*values[max(0, i - WINDOW) : i], *values[i + 1 : i + 1 + WINDOW]])
        if around <= 0 or value <= SPIKE * around or value < max(values) / 10:
            continue
        if i - last > WINDOW:
            found.append(Spike(step, value, around))
        elif value > found[-1].value:
            found[-1] = Spike(step, value, around)
        last = i
    return found


def findings(history: Sequence[Metrics]) -> list[str]:
    """Sentences about a run's steps, the most important first; none where there are no steps."""
    drawn = {
        name: [(step, value) for step, value in points if math.isfinite(value)]
        for name, points in curves(history).items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    said = []
    if "reward" in drawn:
        said.append(_change("The mean reward", drawn["reward"], ".3f", _noisy(drawn["reward"])))
    elif "loss" in drawn:
        said.append(_change("The loss", drawn["loss"], ".3f", _noisy(drawn["loss"])))
    said += _evaluations(drawn)
    said += _groups(history)
    if "searches" in drawn:
        said.append(_change("Searches of a chain", drawn["searches"], ".2f"))
    if "entropy" in drawn:
        said.append(_change("Entropy", drawn["entropy"], ".3f", unit=" nats a token"))
    if "kl" in drawn:
        step, highest = max(drawn["kl"], key=lambda point: point[1])
        last = first_and_last_mean([value for _, value in drawn["kl"]])[1]
        said.append(
            f"KL from the reference ended at {last:.3g} nats a token; its highest was "
            f"{highest:.3g} at step {step}."
        )
    if "recommended" in drawn:
        step, lowest = min(drawn["recommended"], key=lambda point: point[1])
        if lowest < FEW:
            said.append(
                f"Not all chains came to a recommendation: the fewest at step {step}, {lowest:.0%}."
            )
    for name in SPIKING:
        said += _spike_sentence(name, spikes(drawn.get(name, ())))
    return said


def _noisy(points: Points) -> float:
    """A difference of first and last tenth that single steps explain (two standard errors)."""
    values = [value for _, value in points]
    if len(values) < 3:
        return math.inf
    # From one step to the next, so that a trend is no noise.
    jumps = [b - a for a, b in pairwise(values)]
    return 2 * stdev(jumps) / math.sqrt(max(1, len(values) // 10))


def _change(what: str, points: Points, form: str, noise: float = 0.0, unit: str = "") -> str:
    """How the mean of a curve's last tenth stands to that of its first."""
    first, last = first_and_last_mean([value for _, value in points])
    before, after = f"{first:{form}}", f"{last:{form}}{unit}"
    if len(points) == 1 or f"{first:{form}}" == f"{last:{form}}":
        return f"{what}: {after}{' all along' if len(points) > 1 else ', of one step'}."
    if abs(last - first) < noise:
        return f"{what} went from {before} to {after}, which is within the noise of single steps."
    return f"{what} {'rose' if last > first else 'fell'} from {before} to {after}."


def _evaluations(drawn: dict[str, list[tuple[int, float]]]) -> list[str]:
    said = []
    for name, points in drawn.items():
        if name.startswith("eval_") and len(points) > 1:
            step, best = max(points, key=lambda point: point[1])
            if name.endswith("loss"):
                step, best = min(points, key=lambda point: point[1])
            said.append(
                f"On validation cases {name.removeprefix('eval_').replace('_', ' ')} was best at "
                f"step {step} ({best:.3f}) and ended at {points[-1][1]:.3f}."
            )
    return said


def _groups(history: Sequence[Metrics]) -> list[str]:
    counted = [m for m in history if m.get("groups") and m.get("dropped_groups") is not None]
    if not counted:
        return []

    def share(steps: Sequence[Metrics]) -> float:
        return sum(m["dropped_groups"] for m in steps) / sum(m["groups"] for m in steps)

    tenth = max(1, len(counted) // 10)
    said = (
        f"{share(counted):.0%} of the groups had no variance and taught nothing "
        f"({share(counted[:tenth]):.0%} in the first tenth, {share(counted[-tenth:]):.0%} in the "
        "last)"
    )
    if share(counted) > MUTE:
        said += "; a larger group or dynamic_sampling finds more to learn from"
    idle = sum(m["dropped_groups"] >= m["groups"] for m in counted)
    return [f"{said}.", *([f"{idle:,} steps changed nothing."] if idle else [])]


def _spike_sentence(name: str, found: Sequence[Spike]) -> list[str]:
    if not found:
        return []
    what = {"kl": "KL", "grad_norm": "The gradient norm", "loss": "The loss"}[name]
    highest = max(found, key=lambda spike: spike.value)
    others = f", and spiked {len(found) - 1} times more" if len(found) > 1 else ""
    return [
        f"{what} spiked to {highest.value:.3g} at step {highest.step}, where "
        f"{highest.around:.2g} was usual{others}."
    ]
