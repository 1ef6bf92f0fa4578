"""Data-parallel workers: each takes a share of a step's cases.

``qagent train … --workers N`` starts N processes of itself with one BLAS thread each, which
talk over MLX's ring on the loopback address. Over several machines, ``mlx.launch`` starts one
process on each, with a copy of the shop there; MLX chooses the way they talk. (On one machine
its launcher polls and takes a core of its own.) Every worker draws the same cases from the
seed and keeps its share; rewards and gradients are added up over all, so that all take the
same step, and it is the step that one worker alone would take, within float error. The first
worker alone writes files.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import msgspec
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..errors import QAgentError
from . import watchdog
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..agent.types import Rollout
    from ..runs.run import Run
    from ..shop.shop import Shop

WORKERS_ENV = "QAGENT_WORKER"  # "rank/size" in the processes that `launch` starts
LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # what they set for each process
MOST = 64
GRACE = 3.0  # seconds in which workers notice the same error
GONE = "gone"  # a file: the first worker ended because another one had
GO_ON = (
    "when all can start again, go on from the last checkpoint with: qagent train sft|grpo --resume"
)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class World:
    """The workers of a run, seen from one of them. Alone, every method gives back its input."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank: int = group.rank() if group is not None else 0
        self.size: int = group.size() if group is not None else 1
        self._watchdog = Watchdog(f"a worker is gone; {GO_ON}")

    @property
    def folder(self) -> Path | None:
        """A folder that all workers see and that is gone when they have ended; None where they
        may be on several machines."""
        return Path(os.environ["MLX_HOSTFILE"]).parent if WORKERS_ENV in os.environ else None

    @property
    def is_main_process(self) -> bool:
        """Whether this worker writes the files and shows the progress."""
        return self.rank == 0

    def local_indices(self, count: int) -> list[int]:
        """Which of ``count`` things this worker does; every thing is done by one worker."""
        return list(range(self.rank, count, self.size))

    def _collective(self, operation: Any, array: mx.array) -> mx.array:
        """What an operation of all workers gives.

        Raises:
            QAgentError: one of them is gone.
        """
        try:
            with self._watchdog.waiting():
                made: mx.array = operation(array, group=self._group)
                mx.eval(made)
        except RuntimeError as error:
            if self.is_main_process and self.folder is not None:
                (self.folder / GONE).touch()  # so its own error is not the reason
            raise QAgentError(f"a worker is gone ({error}); {GO_ON}") from error
        return made

    def all_reduce(self, tree: Any) -> Any:
        """The sum over all workers of each array in a tree, in one message."""
        if self._group is None:
            return tree
        flat: Any = tree_flatten(tree)
        joined = mx.concatenate([v.reshape(-1).astype(mx.float32) for _, v in flat])
        joined = self._collective(mx.distributed.all_sum, joined)
        made, start = [], 0
        for name, value in flat:
            part = joined[start : start + value.size].reshape(value.shape)
            made.append((name, part.astype(value.dtype)))
            start += value.size
        return tree_unflatten(made)

    def broadcast(self, tree: Any) -> Any:
        """The first worker's arrays, on all of them."""
        return self.all_reduce(tree if self.is_main_process else tree_map(mx.zeros_like, tree))

    def all_reduce_scalars(self, *values: float) -> list[float]:
        """The sums over all workers of some numbers, exact for counts up to 2^53."""
        if self._group is None:
            return list(values)
        # The ring adds float32; the two halves of a double keep counts exact.
        high = np.array(values, dtype=np.float32)
        low = (np.array(values) - high).astype(np.float32)
        parts = self._collective(mx.distributed.all_gather, mx.array(np.stack([high, low])[None]))
        found: list[float] = np.array(parts).astype(np.float64).sum(axis=(0, 1)).tolist()
        return found

    def all_reduce_max(self, value: float) -> float:
        """The highest of all workers' numbers."""
        if self._group is None:
            return value
        return float(self._collective(mx.distributed.all_gather, mx.array([value])).max())

    def all_gather_rows(self, own: np.ndarray, places: Sequence[int], count: int) -> np.ndarray:
        """All workers' rows put together: ``own[i]`` is row ``places[i]`` of ``count``."""
        if self._group is None:
            return own
        whole = np.zeros((count, *own.shape[1:]), dtype=np.float32)
        if len(places):
            whole[list(places)] = own
        # Each row comes from one worker, so the sum is exact.
        return np.array(self._collective(mx.distributed.all_sum, mx.array(whole)))

    def wait_for(self, path: Path) -> None:
        """Sleep until the first worker has made a file or folder. It never comes late for
        good: when that worker dies, `launch` ends the others.
        """
        while not path.exists():
            time.sleep(0.05)

    def local_groups(self, groups: Sequence[int]) -> list[int]:
        """Places of the chains whose groups this worker computes; groups are not torn."""
        order = {group: at for at, group in enumerate(dict.fromkeys(groups))}
        return [i for i, group in enumerate(groups) if order[group] % self.size == self.rank]

    def all_gather_texts(self, text: str) -> list[str]:
        """Every worker's text, by rank."""
        if self._group is None:
            return [text]
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        longest = int(self.all_reduce_max(len(data)))
        padded = np.full(longest, ord(" "), dtype=np.uint8)  # JSON does not mind
        padded[: len(data)] = data
        parts = self._collective(mx.distributed.all_gather, mx.array(padded[None]))
        return [bytes(row).decode() for row in np.array(parts)]

    def barrier(self) -> None:
        """Return when all workers have come here."""
        self.all_reduce_max(0.0)

    def watch(self) -> None:
        """Notice from now on when a worker on another machine ends; all of them call this."""
        watchdog.connect(self._watchdog, self.is_main_process, self.size, self.all_gather_texts)

    def local_size(self) -> int:
        """How many workers are on this machine, this one among them."""
        return self.all_gather_texts(name := socket.gethostname()).count(name)

    def assert_equal(self, what: str, value: str) -> None:
        """Refuse to go on where workers begin from different things.

        Raises:
            QAgentError: says what differs.
        """
        if len(set(self.all_gather_texts(value))) > 1:
            raise QAgentError(
                f"the workers have different {what}; copy the shop's folder to the same place on "
                "every machine, and start again"
            )

    def announce(self, record: Run, step: int = 0) -> None:
        """Tell the other workers which run it is and after which step it goes on."""
        if self.size > 1:
            self.all_gather_texts(json.dumps([record.name, step]))

    def silent_run(self, shop: Shop) -> SilentRun:
        """The run that the first worker announces, for one that writes nothing."""
        name, step = json.loads(self.all_gather_texts("")[0])
        return SilentRun(shop.folder("runs", name), step)


class SilentRun:
    """Stands for `runs.Run` on workers that write nothing."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self.name = folder.name

    def append(self, what: str, rows: Iterable[dict[str, Any]]) -> None:
        """Nothing is written."""

    def rows(self, what: str) -> Iterator[dict[str, Any]]:
        """What was written up to the step after which the run goes on."""
        from ..runs.run import Run

        return (row for row in Run(self.folder, {}).rows(what) if row["step"] <= self.step)

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing is written."""


def gather_rollouts(world: World, own: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of all workers, in order of case and member."""
    if world.size == 1:
        return list(own)
    from ..agent.types import Rollout

    texts = world.all_gather_texts(msgspec.json.encode(own).decode())
    rollouts = [r for text in texts for r in msgspec.json.decode(text, type=list[Rollout])]
    return sorted(rollouts, key=lambda rollout: (rollout.case, rollout.member))


def is_worker() -> bool:
    """Whether this process is a worker that `launch` started."""
    return WORKERS_ENV in os.environ


def started_by_launcher() -> bool:
    """Whether ``mlx.launch`` (or ``mpirun``, by it or alone) started this process."""
    return not is_worker() and any(name in os.environ for name in LAUNCHERS)


@cache
def current_world() -> World:
    """The workers that this process belongs to; itself alone outside of a launcher.

    Raises:
        QAgentError: the workers cannot reach each other.
    """
    if not is_worker() and not started_by_launcher():
        return World()
    try:
        group = mx.distributed.init(strict=True, backend="ring" if is_worker() else "any")
    except RuntimeError as error:
        where = "over the loopback address" if is_worker() else "by the addresses of the hosts file"
        raise QAgentError(
            f"the workers cannot reach each other {where} ({error}); "
            f"train without {'--workers' if is_worker() else 'mlx.launch'}"
        ) from error
    made = World(group if group.size() > 1 else None)
    if made.size > 1 and not is_worker() and "MLX_HOSTFILE" in os.environ:
        made.watch()
    return made
