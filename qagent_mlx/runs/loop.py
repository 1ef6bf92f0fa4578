"""The life of a training run, the same for SFT, GRPO, pretraining and distillation.

An `Algorithm` knows how to take one step. `TrainingLoop` does everything around it: checkpoints,
evaluations, early stopping, monitors, the stop signal, metrics and rollout files, and the
progress callback, in one process or in several workers that take every step together.
As a step is a function of the weights, the seed and its number, a run that goes on from a
checkpoint takes the very steps of an unbroken one (see `training_run`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.optimizers as optim

from ..distributed.stop_signal import StopRequested, StopSignal
from ..distributed.world import World, current_world
from ..errors import QAgentError
from ..policy.adapters import load_adapter
from ..policy.policy import Policy
from . import checkpoint
from .early_stopping import BestEvaluation
from .records import Alert, LoopResult, Metrics, RolloutRecord
from .run import Run

Interrupt = Callable[[], None]
OnStep = Callable[[Metrics], None]


def never() -> None:
    """The `Interrupt` of a step that nothing interrupts."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of training gave."""

    metrics: Metrics
    rollouts: Sequence[RolloutRecord] = ()


class Algorithm(ABC):
    """One way to train a policy, step by step."""

    policy: Policy
    optimizer: optim.Optimizer

    @abstractmethod
    def step(self, number: int, interrupt: Interrupt = never) -> StepResult:
        """Take a step; a function of the weights, the seed and the step's number, from 0.

        ``interrupt`` may be called wherever weights and optimizer are those of the last whole
        step; it raises where the run is to stop there.
        """

    def evaluate(self) -> dict[str, float]:
        """Measure the policy on validation cases; nothing by default."""
        return {}

    def begin(self) -> dict[str, Any]:
        """Measure what every checkpoint of a new run keeps; nothing by default."""
        return {}

    def restore(self, state: dict[str, Any], history: Sequence[Metrics]) -> None:
        """Take up a checkpoint's state and the metrics of the steps before it."""
        return None


class MetricsMonitor(Protocol):
    """Looks at every step's metrics for trouble; a function of these alone."""

    def replay(self, history: Sequence[Metrics]) -> None:
        """Take the steps of a run that is resumed; nothing fires."""

    def observe(self, metrics: Metrics) -> list[Alert]:
        """The alarms that fire at this step, those that stop the run first."""


class Stopped(QAgentError):
    """A signal ended the run, after a checkpoint was written."""

    def __init__(self, run: str, step: int, signal: StopSignal) -> None:
        super().__init__(f"stopped by {signal.name} after step {step}, which is saved")
        self.run, self.step, self.signal_number = run, step, signal.number


class AlarmStop(QAgentError):
    """An alarm ended the run, after a checkpoint was written."""

    def __init__(self, run: str, alert: Alert) -> None:
        super().__init__(
            f"the run {run} was stopped at step {alert.step} by its alarm {alert.name}: "
            f"{alert.reason}. Step {alert.step} is saved"
        )
        self.run, self.alert = run, alert


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long a loop runs, and what it saves and evaluates on the way; counts of steps."""

    steps: int
    save_every: int = 0  # 0: no checkpoints, and a signal is not waited for
    keep: int = 2  # last checkpoints that stay
    eval_every: int = 0  # 0: only at the end
    best_by: str = "reward"  # the measure whose best evaluation decides which policy is kept
    stop_after: int = 0  # evaluations without a better one; 0: never


@dataclass
class TrainingLoop:
    """Takes the steps of an algorithm.

    ``on_step`` is called after each step with its metrics, the planned ``steps``, and the reasons
    of the ``alarms`` that fired.
    """

    algorithm: Algorithm
    config: LoopConfig
    record: Run | None = None  # where steps are written; nowhere by default
    monitors: Sequence[MetricsMonitor] = ()
    on_step: OnStep | None = None
    world: World = field(default_factory=current_world)

    def run(self, state: dict[str, Any] | None = None) -> LoopResult:
        """Go on after the recorded steps to the end; the policy then has the weights to keep.

        Args:
            state: The last checkpoint's; what `Algorithm.begin` returned, in a new run.

        Raises:
            Stopped: SIGTERM or Ctrl-C ended the run, after a checkpoint.
            AlarmStop: a monitor did, after a checkpoint.
        """
        start = time.perf_counter()
        self._restore(state or {})
        with StopSignal(catch=self.config.save_every > 0) as self._signal:
            while self._done < self.config.steps and not self._best.exhausted:
                self._step()
        self._restore_best()
        validation = self.algorithm.evaluate()
        self.algorithm.policy.model.eval()
        best = self._best
        return LoopResult(
            run=self._run_name or None,
            history=self._history,
            best_step=best.step or None,
            best_value=best.value if best.step else None,
            stopped_early=self._done < self.config.steps,
            validation=validation,
            seconds=round(time.perf_counter() - start, 1),
        )

    def _restore(self, state: dict[str, Any]) -> None:
        config = self.config
        self._state = {k: v for k, v in state.items() if k not in ("step", "value")}
        self._done = int(state.get("step", 0))
        rows = self.record.rows("metrics") if self.record else ()
        self._history = [metrics for metrics in rows if metrics["step"] <= self._done]
        self._best = BestEvaluation(config.best_by, config.stop_after)
        self._best_weights: dict[str, mx.array] = {}  # of a loop that nothing records
        for metrics in self._history:
            self._best.update(metrics)
        for monitor in self.monitors:
            monitor.replay(self._history)
        self.algorithm.restore(state, self._history)
        if self.record and self.record.writable:
            checkpoint.clear(self.record.checkpoints)
        self.world.barrier()  # from here on the main process adds to what the others have read

    def _step(self) -> None:
        """Take one step and everything that follows it."""
        algorithm, config = self.algorithm, self.config
        try:
            self._signal.check(self.world)
            # Inside a step, workers are not at the same place and cannot agree to stop.
            interrupt = partial(self._signal.check, self.world) if self.world.size == 1 else never
            result = algorithm.step(self._done, interrupt)
        except StopRequested:
            self._save()
            raise Stopped(self._run_name, self._done, self._signal) from None
        metrics = dict(result.metrics)
        alerts = [alert for monitor in self.monitors for alert in monitor.observe(metrics)]
        self._done += 1
        last = self._done == config.steps
        evaluation: dict[str, float] = {}
        if config.eval_every and (self._done % config.eval_every == 0 or last):
            evaluation = algorithm.evaluate()
            metrics |= {f"eval_{name}": value for name, value in evaluation.items()}
        self._history.append(metrics)
        self._best.update(metrics)
        if self._best.step == self._done and not self.record:
            self._best_weights = algorithm.policy.adapter()
        if self.record:
            self.record.append("metrics", [metrics])
            self.record.append("rollouts", map(asdict, result.rollouts))
            self.record.append("alarms", map(asdict, alerts))
        stopping = next((alert for alert in alerts if alert.action == "stop"), None)
        due = config.save_every and (self._done % config.save_every == 0 or last)
        if due or evaluation or stopping or self._best.exhausted:
            self._save(evaluation.get(config.best_by))
        if self.on_step is not None:
            reasons = [alert.reason for alert in alerts]
            self.on_step({**metrics, "steps": config.steps, "alarms": reasons})
        if stopping:
            raise AlarmStop(self._run_name, stopping)

    def _save(self, value: float | None = None) -> None:
        """Write a checkpoint; one with a value is a candidate for the best."""
        if self.record and self.record.writable:
            state = self._state if value is None else {**self._state, "value": value}
            policy, optimizer = self.algorithm.policy, self.algorithm.optimizer
            folder, keep = self.record.checkpoints, self.config.keep
            checkpoint.save(folder, self._done, policy, optimizer, state, keep)

    def _restore_best(self) -> None:
        """Put the weights of the best evaluation in place, in all workers."""
        if self._best.step in (0, self._done):
            return
        policy = self.algorithm.policy
        if self.record is None:
            load_adapter(policy.model, self._best_weights, f"step {self._best.step}")
        elif self.record.writable and (folder := checkpoint.best(self.record.checkpoints)):
            checkpoint.restore_weights(folder, policy)
        policy.model.update(self.world.broadcast(policy.model.trainable_parameters()))

    @property
    def _run_name(self) -> str:
        return self.record.name if self.record else ""
