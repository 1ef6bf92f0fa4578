"""What training shows while it runs: a live bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from .common import err, shown

EVERY = 10  # steps between lines where stderr is no terminal

_NAMES = {
    "reward": "reward",
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "eval_reward": "validation",
    "eval_cons@1": "cons@1",
}


class TrainingProgress:
    """Shows the metrics of each step on stderr. Call it with a step's metrics.

    Args:
        steps: How many steps there will be.
        title: What is being trained.
    """

    def __init__(self, steps: int, title: str) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from qagent_mlx.utils.text import clean

        title = clean(title)
        self._steps, self._title = steps, title
        self._console = err()
        self._start = self._first = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task(f"{title}: preparing", total=steps, left="")
        self._row: dict[str, Any] = {}
        self._group = Group
        self._live: Live | None = (
            Live(self._view(), console=self._console, refresh_per_second=4, transient=False)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> TrainingProgress:
        if self._live is not None:
            self._live.__enter__()
        else:
            self._console.print(f"{self._title}: preparing")
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def started(self) -> bool:
        """Whether a step has ended."""
        return bool(self._row)

    def __call__(self, row: dict[str, Any]) -> None:
        """Take one step's metrics."""
        for reason in row.get("alarms", ()):
            self._console.print(
                shown(f"alarm at step {row['step']}: {reason}", "bold red"), soft_wrap=True
            )
        steps = int(row.get("steps", self._steps))
        step = int(row["step"])
        now = time.perf_counter()
        if not self._row:
            # The first step has no step before it to measure from.
            self._first, self._first_step = now - row["seconds"], step - 1
        done = step - self._first_step
        left = (now - self._first) / done * (steps - step)
        # Supervised training counts its tokens up, GRPO counts them a step.
        rate = row.get("tokens_per_s") or row["tokens"] / max(now - self._first, 1e-9)
        self._row = {**row, "tokens_per_s": rate}
        remaining = f"{_clock(left)} left" if step < steps else f"{_clock(now - self._start)}"
        self._bar.update(
            self._task, completed=step, total=steps, description=self._title, left=remaining
        )
        if self._live is not None:
            self._live.update(self._view())
        elif step == 1 or step % EVERY == 0 or step == steps:
            self._console.print(
                shown(f"step {step}/{steps}  {'  '.join(describe(self._row))}  {remaining}"),
                soft_wrap=True,
            )

    def _view(self) -> Any:
        from rich.text import Text

        parts = describe(self._row) if self._row else []
        return self._group(self._bar, Text("  ".join(parts), no_wrap=False))


class CountProgress:
    """How many of something are done: a bar on a terminal, now and then a line elsewhere.

    Args:
        title: What is being done.
        total: How many there are.
    """

    def __init__(self, title: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._title, self._total = title, total
        self._console = err()
        self._said = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, left="")

    def __enter__(self) -> CountProgress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, fresh: int, seconds: float, left: float) -> None:
        """So many are done, ``fresh`` of them in this run's ``seconds``."""
        text = f"{fresh / seconds:.1f}/s, {_clock(left)} left" if fresh else ""
        self._bar.update(self._task, completed=done, left=text)
        now = time.perf_counter()
        if not self._console.is_terminal and (now - self._said >= 10 or done == self._total):
            self._said = now
            self._console.print(
                shown(f"{self._title}: {done:,} of {self._total:,}  {text}"), soft_wrap=True
            )


def describe(row: dict[str, Any]) -> list[str]:
    """A step's metrics as short texts: reward or loss first, then what explains it."""
    parts = [f"{name} {row[key]:.3f}" for key, name in _NAMES.items() if key in row]
    if "reward" in row:
        # The loss of a policy gradient says nothing; its reward components do.
        parts = [p for p in parts if not p.startswith("loss")]
        components = [
            f"{key.removeprefix('reward_')} {value:.2f}"
            for key, value in row.items()
            if key.startswith("reward_") and key not in ("reward_format", "reward_tool")
        ]
        parts[1:1] = components
    if "tokens_per_s" in row:
        parts.append(f"{row['tokens_per_s']:,.0f} tok/s")
    return parts


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
