"""A run as one HTML file: settings, curves as inline SVG, chains. No script, nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.html import render
from ..utils.text import clean
from .findings import SPIKING, Spike, findings, spikes
from .reader import curves, flatten_settings, overview, read_alerts, read_metrics, read_rollouts
from .records import first_and_last_mean
from .run import Run

CHAINS = 12  # of the best, worst and latest each
WIDTH, HEIGHT, LEFT, BELOW = 360, 130, 46, 18  # pixels of a plot and of its margins


@dataclass(frozen=True)
class Plot:
    """One curve, with its points where they are drawn."""

    title: str
    points: Sequence[tuple[str, str]] = ()  # pixels; empty where no value is finite
    first: float = math.nan  # mean of the first tenth
    last: float = math.nan
    low: float = math.nan
    high: float = math.nan
    first_step: int = 0
    last_step: int = 0
    marks: Sequence[tuple[str, str, Spike]] = ()  # spikes, and where they are drawn


def page(run: Run) -> str:
    """The report of a run as an HTML document; everything that comes from data is escaped."""
    chains = read_rollouts(run)
    ranked = sorted(chains, key=lambda chain: (-chain.reward, chain.step))
    shown = {"Latest": chains[-CHAINS:], "Best": ranked[:CHAINS], "Worst": ranked[-CHAINS:]}
    history = read_metrics(run)
    return render(
        "runs/report.html",
        clean=_clean,
        run=overview(run),
        findings=findings(history),
        alerts=read_alerts(run),
        summary=flatten_settings(run.summary or {}),
        plots=[_plot(name, points) for name, points in curves(history).items() if points],
        chains=shown if chains else {},
        chain_count=len(chains),
        settings=flatten_settings(run.config),
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "floor": HEIGHT - BELOW},
    )


def _clean(value: Any) -> str:
    return clean(str(value))


def _plot(name: str, values: Sequence[tuple[int, float]]) -> Plot:
    """The curve of some (step, value) points; what is not finite is left out."""
    title = clean(name.replace("_", " "))
    finite = [(step, value) for step, value in values if math.isfinite(value)]
    if not finite:
        return Plot(title)
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    start, end = finite[0][0], max(finite[-1][0], finite[0][0] + 1)

    def place(step: int, value: float) -> tuple[str, str]:
        x = LEFT + (step - start) / (end - start) * (WIDTH - LEFT - 6)
        y = 6 + (high - value) / (high - low) * (HEIGHT - BELOW - 12)
        return f"{x:.1f}", f"{y:.1f}"

    points = [place(step, value) for step, value in finite]
    found = spikes(finite) if name in SPIKING else []
    marks = [(*place(spike.step, spike.value), spike) for spike in found]
    first, last = first_and_last_mean([value for _, value in finite])
    return Plot(title, points, first, last, low, high, start, finite[-1][0], marks)
