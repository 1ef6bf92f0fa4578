"""Data-parallel workers: each takes a share of a step's cases.

``qagent train … --workers N`` starts N processes of itself with one BLAS thread each, which
talk over MLX's ring on the loopback address. Over several machines, ``mlx.launch`` starts one
process on each, with a copy of the shop there; MLX chooses the way they talk. (On one machine
its launcher polls and takes a core of its own.) Every worker draws the same cases from the
seed and keeps its share; rewards and gradients are added up over all, so that all take the
same step, and it is the step that one worker alone would take, within float error. The main
process alone writes files.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..agent.types import Rollout
from ..errors import QAgentError
from . import watchdog

WORKERS_ENV = "QAGENT_WORKER"  # "rank/size" in the processes that `launcher.launch` starts
LAUNCHER_ENVS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # what launchers set in each process
MAX_WORKERS = 64
GONE = "gone"  # a file: the main process ended because another one had
REMEDY = "when all can start again, resume the run from its last checkpoint"


class World:
    """The workers of a run, seen from one of them; alone, every method returns its input."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank: int = group.rank() if group is not None else 0
        self.size: int = group.size() if group is not None else 1
        self._watchdog = watchdog.Watchdog(f"a worker is gone; {REMEDY}")

    @property
    def folder(self) -> Path | None:
        """A folder that all workers see, and that is deleted when they have ended.

        None where the workers may be on several machines.
        """
        return Path(os.environ["MLX_HOSTFILE"]).parent if is_worker() else None

    @property
    def is_main_process(self) -> bool:
        """Whether this worker writes the files and shows the progress."""
        return self.rank == 0

    def local_indices(self, count: int) -> list[int]:
        """Which of ``count`` items this worker computes; every item has one worker."""
        return list(range(self.rank, count, self.size))

    def local_groups(self, groups: Sequence[int]) -> list[int]:
        """Indices of the items whose group this worker computes; groups are not torn."""
        order = {group: at for at, group in enumerate(dict.fromkeys(groups))}
        return [i for i, group in enumerate(groups) if order[group] % self.size == self.rank]

    def _collective(self, operation: Any, array: mx.array) -> mx.array:
        """The result of an operation of all workers; a `QAgentError` if one of them is gone."""
        try:
            with self._watchdog.waiting():
                result: mx.array = operation(array, group=self._group)
                mx.eval(result)
        except RuntimeError as error:
            if self.is_main_process and self.folder is not None:
                (self.folder / GONE).touch()  # so its own error is not the reason
            raise QAgentError(f"a worker is gone ({error}); {REMEDY}") from error
        return result

    def all_reduce(self, tree: Any) -> Any:
        """The sum over all workers of each array in a tree, in one message."""
        if self._group is None:
            return tree
        leaves: Any = tree_flatten(tree)
        joined = mx.concatenate([v.reshape(-1).astype(mx.float32) for _, v in leaves])
        joined = self._collective(mx.distributed.all_sum, joined)
        summed, start = [], 0
        for name, value in leaves:
            part = joined[start : start + value.size].reshape(value.shape)
            summed.append((name, part.astype(value.dtype)))
            start += value.size
        return tree_unflatten(summed)

    def broadcast(self, tree: Any) -> Any:
        """The main process's arrays, in all workers."""
        return self.all_reduce(tree if self.is_main_process else tree_map(mx.zeros_like, tree))

    def all_reduce_scalars(self, *values: float) -> list[float]:
        """The sums over all workers of some numbers, exact for counts up to 2^53."""
        if self._group is None:
            return list(values)
        # The ring adds float32; the two halves of a double keep counts exact.
        high = np.array(values, dtype=np.float32)
        low = (np.array(values) - high).astype(np.float32)
        parts = self._collective(mx.distributed.all_gather, mx.array(np.stack([high, low])[None]))
        sums: list[float] = np.array(parts).astype(np.float64).sum(axis=(0, 1)).tolist()
        return sums

    def all_reduce_max(self, value: float) -> float:
        """The highest of all workers' numbers."""
        if self._group is None:
            return value
        return float(self._collective(mx.distributed.all_gather, mx.array([value])).max())

    def all_gather_rows(self, rows: np.ndarray, indices: Sequence[int], count: int) -> np.ndarray:
        """All workers' rows in one array, in which ``rows[i]`` has index ``indices[i]``."""
        if self._group is None:
            return rows
        array = np.zeros((count, *rows.shape[1:]), dtype=np.float32)
        if len(indices):
            array[list(indices)] = rows
        # Each row comes from one worker, so the sum is exact.
        return np.array(self._collective(mx.distributed.all_sum, mx.array(array)))

    def all_gather_texts(self, text: str) -> list[str]:
        """Every worker's text, by rank; shorter ones are padded with spaces."""
        if self._group is None:
            return [text]
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        longest = int(self.all_reduce_max(len(data)))
        padded = np.full(longest, ord(" "), dtype=np.uint8)
        padded[: len(data)] = data
        parts = self._collective(mx.distributed.all_gather, mx.array(padded[None]))
        return [bytes(row).decode() for row in np.array(parts)]

    def barrier(self) -> None:
        """Return when all workers have come here."""
        self.all_reduce_max(0.0)

    def wait_for(self, path: Path) -> None:
        """Sleep until the main process has made a file or folder.

        If that process dies, `launcher.launch` ends the others.
        """
        while not path.exists():
            time.sleep(0.05)

    def watch(self) -> None:
        """Notice from now on when a worker on another machine ends; all of them call this."""
        watchdog.connect(self._watchdog, self.is_main_process, self.size, self.all_gather_texts)

    def local_size(self) -> int:
        """Number of workers on this machine, this one included."""
        name = socket.gethostname()
        return self.all_gather_texts(name).count(name)

    def assert_equal(self, what: str, value: str) -> None:
        """Refuse to go on where a value differs between workers; ``what`` names it."""
        if len(set(self.all_gather_texts(value))) > 1:
            raise QAgentError(
                f"the workers have different {what}; copy the shop's folder to the same place on "
                "every machine, and start again"
            )


def gather_rollouts(world: World, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of all workers, in order of case and member."""
    if world.size == 1:
        return list(rollouts)
    texts = world.all_gather_texts(msgspec.json.encode(list(rollouts)).decode())
    gathered = [r for text in texts for r in msgspec.json.decode(text, type=list[Rollout])]
    return sorted(gathered, key=lambda rollout: (rollout.case, rollout.member))


def is_worker() -> bool:
    """Whether `launcher.launch` started this process as one of several workers."""
    return WORKERS_ENV in os.environ


def started_by_launcher() -> bool:
    """Whether ``mlx.launch`` (or ``mpirun``, by it or alone) started this process."""
    return not is_worker() and any(name in os.environ for name in LAUNCHER_ENVS)


@cache
def current_world() -> World:
    """The workers that this process belongs to; itself alone outside of a launcher."""
    if not is_worker() and not started_by_launcher():
        return World()
    try:
        group = mx.distributed.init(strict=True, backend="ring" if is_worker() else "any")
    except RuntimeError as error:
        where = "over the loopback address" if is_worker() else "by the addresses of the hosts file"
        raise QAgentError(
            f"the workers cannot reach each other {where} ({error}); train in one process"
        ) from error
    world = World(group if group.size() > 1 else None)
    if world.size > 1 and not is_worker() and "MLX_HOSTFILE" in os.environ:
        world.watch()
    return world
