"""Optional places for metrics: TensorBoard and Weights & Biases, where they are installed.

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
    """A callback for a trainer's ``on_step`` that writes each step's numbers.

    Args:
        names: ``tensorboard`` or ``wandb``; none for a callback that does nothing.
        folder: Where TensorBoard's files and W&B's local copy go.
        run: What the run is called there.

    Raises:
        QAgentError: the package is not installed.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(_LOGS[name](folder, run)) for name in names]

        def log(row: dict[str, Any]) -> None:
            numbers = {
                k: float(v)
                for k, v in row.items()
                if isinstance(v, (int, float)) and k not in ("step", "steps")
            }
            for one in logs:
                one({"step": row["step"], **numbers})

        yield log


def _installed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise QAgentError(f"--log needs {package}; run: pip install {package}") from error


@contextmanager
def _tensorboard(folder: Path, run: str) -> Iterator[Log]:
    board = _installed("tensorboardX", "tensorboardX")
    writer = board.SummaryWriter(str(folder / run))

    def log(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, run: str) -> Iterator[Log]:
    wandb = _installed("wandb", "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    session = wandb.init(project="qagent-mlx", name=run, dir=str(folder))
    try:
        yield lambda row: session.log(
            {k: v for k, v in row.items() if k != "step"}, step=int(row["step"])
        )
    finally:
        session.finish()


_LOGS: dict[str, Callable[[Path, str], Any]] = {"tensorboard": _tensorboard, "wandb": _wandb}
