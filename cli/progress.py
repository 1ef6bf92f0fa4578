"""Progress on stderr: a live bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .console import err, safe

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import Progress

LINE_STEPS = 10  # steps between lines where stderr is no terminal
LINE_SECONDS = 10.0

_NAMES = {
    "reward": "reward",
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "eval_reward": "validation",
    "eval_cons@1": "cons@1",
}


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=console,
    )


class TrainingProgress:
    """Show the metrics of each of ``steps`` training steps; call it with a step's metrics.

    ``then`` says what goes on after the last step.
    """

    def __init__(self, steps: int, title: str, then: str = "") -> None:
        from rich.live import Live

        from qagent_mlx.utils.text import clean

        self._steps, self._title, self._then = steps, clean(title), then
        self._console = err()
        self._start = self._first_step_start = time.perf_counter()
        self._first_step = 0
        self._metrics: dict[str, Any] = {}
        self._bar = _bar(self._console)
        self._task = self._bar.add_task(f"{self._title}: preparing", total=steps, left="")
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(self._view(), console=self._console, refresh_per_second=4)

    def __enter__(self) -> TrainingProgress:
        if self._live is not None:
            self._live.start()
        else:
            self._print(f"{self._title}: preparing")
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._bar.update(self._task, description=self._title)
            self._live.update(self._view())
            self._live.stop()

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Show one step's metrics."""
        step, steps = int(metrics["step"]), int(metrics.get("steps", self._steps))
        for reason in metrics.get("alarms", ()):
            self._print(f"alarm at step {step}: {reason}", "bold red")
        now = time.perf_counter()
        if not self._metrics:
            # The first step has no step before it to measure from.
            self._first_step_start, self._first_step = now - metrics["seconds"], step - 1
        seconds = now - self._first_step_start
        # Supervised training counts its tokens up, GRPO counts them a step.
        rate = metrics.get("tokens_per_s") or metrics["tokens"] / max(seconds, 1e-9)
        self._metrics = {**metrics, "tokens_per_s": rate}
        left = seconds / (step - self._first_step) * (steps - step)
        remaining = f"{_clock(left)} left" if step < steps else _clock(now - self._start)
        last = f"{self._title}: {self._then}" if step >= steps and self._then else ""
        self._bar.update(
            self._task, completed=step, total=steps, description=last or self._title, left=remaining
        )
        if self._live is not None:
            self._live.update(self._view())
        elif step == 1 or step % LINE_STEPS == 0 or step == steps:
            described = "  ".join(describe_metrics(self._metrics))
            self._print(f"step {step}/{steps}  {described}  {remaining}")
            if last:
                self._print(last)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(safe(text, style), soft_wrap=True)

    def _view(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text("  ".join(describe_metrics(self._metrics))))


class CountProgress:
    """Show how many of ``total`` things are done."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._console = err()
        self._printed_at = time.perf_counter()
        self._bar = _bar(self._console)
        self._bar.disable = not self._console.is_terminal
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
        if self._console.is_terminal:
            return
        if now - self._printed_at >= LINE_SECONDS or done == self._total:
            self._printed_at = now
            line = f"{self._title}: {done:,} of {self._total:,}  {text}"
            self._console.print(safe(line), soft_wrap=True)


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """A step's metrics as short texts: reward or loss first, then what explains it."""
    parts = [f"{name} {metrics[key]:.3f}" for key, name in _NAMES.items() if key in metrics]
    if "reward" in metrics:
        # The loss of a policy gradient says nothing; its reward components do.
        parts = [part for part in parts if not part.startswith("loss")]
        parts[1:1] = [
            f"{key.removeprefix('reward_')} {value:.2f}"
            for key, value in metrics.items()
            if key.startswith("reward_") and key not in ("reward_format", "reward_tool")
        ]
    if "tokens_per_s" in metrics:
        parts.append(f"{metrics['tokens_per_s']:,.0f} tok/s")
    return parts


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
