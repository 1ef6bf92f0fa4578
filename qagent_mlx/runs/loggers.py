"""Optional loggers of metrics: TensorBoard and Weights & Biases, where they are installed.

The run's own files hold everything already; nothing here is needed to train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import QAgentError

Log = Callable[[dict[str, Any]], None]


@contextmanager
def logging_to(names: Sequence[str], folder: Path, run: str) -> Iterator[Log]:
    """A callback for a training's ``on_step`` that logs each step's numbers.

    ``names`` are ``tensorboard`` or ``wandb``; TensorBoard's files and W&B's local copy go into
    ``folder``, under the name ``run``.
    """
    with ExitStack() as stack:
        loggers = [stack.enter_context(_LOGGERS[name](folder, run)) for name in names]

        def log(metrics: dict[str, Any]) -> None:
            numbers = {
                name: float(value)
                for name, value in metrics.items()
                if isinstance(value, (int, float)) and name not in ("step", "steps")
            }
            for logger in loggers:
                logger(int(metrics["step"]), numbers)

        yield log


def _package(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise QAgentError(f"logging needs {module}; run: pip install {module}") from error


@contextmanager
def _tensorboard(folder: Path, run: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
    writer = _package("tensorboardX").SummaryWriter(str(folder / run))

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, run: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
    wandb = _package("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    session = wandb.init(project="qagent-mlx", name=run, dir=str(folder))
    try:
        yield lambda step, numbers: session.log(numbers, step=step)
    finally:
        session.finish()


_LOGGERS: dict[str, Callable[[Path, str], Any]] = {"tensorboard": _tensorboard, "wandb": _wandb}
