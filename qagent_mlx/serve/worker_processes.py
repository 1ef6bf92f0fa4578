"""The processes that decode beside this one: started, replaced when gone, kept up to date.

Profiles are read by the process that asks, so that new events are known at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from ..agent.recommend import ProfileRecommender, RecommendRequest, UserRecommendations
from ..errors import QAgentError
from .decode_process import LOST, WorkerProcess

log = logging.getLogger("qagent.pool")

START_SECONDS = 120.0  # in which a process must be ready
PAUSE_SECONDS = 1.0  # until one that is gone is replaced; twice as long each time
LONGEST_PAUSE_SECONDS = 300.0
UNITS_AHEAD = 2  # units that a process has been given: one it computes, one that waits for it

Results = list[UserRecommendations]
Unit = Sequence[RecommendRequest]


class WorkerPool:
    """Processes with one policy. For one thread.

    One that is gone, killed by the system for its memory perhaps, is replaced after a while
    (`look_after`). What it was given is done by who gave it.

    Args:
        path: The shop's folder; its index must be there (see `inventory.index.open_index`), and
            no process may be writing to its database while these start.
        policy: The policy's folder.
        processes: How many.
        dtype: Number type of the policy's weights.
        wait: Whether all must be ready at once; else each is used as soon as it is.
    """

    def __init__(
        self, path: Path, policy: Path, processes: int, dtype: str = "", wait: bool = True
    ) -> None:
        self._path, self._policy, self._dtype = path, policy, dtype
        self._wanted = processes
        self._processes: list[WorkerProcess] = []
        self._starting: list[WorkerProcess] = []
        self._changing: dict[WorkerProcess, list[Future[Any]]] = {}
        self._start_at, self._pause = 0.0, PAUSE_SECONDS
        try:
            self._start()
            if wait:
                self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def ready(self) -> list[WorkerProcess]:
        """The processes that decode with the policy and the catalog of now."""
        return [process for process in self._processes if not self._changing.get(process)]

    def close(self) -> None:
        """End the processes."""
        for process in self._starting:
            process.kill()
        for process in self._processes:
            process.end()
        self._processes, self._starting = [], []

    def use(self, policy: Path) -> None:
        """Recommend with another policy from now on.

        A process is asked again when it has loaded it; one that cannot is ended.
        """
        self._policy = policy
        self._change(policy)

    def reload(self) -> None:
        """Search the shop's catalog as it is now; the same holds."""
        self._change(None)

    def _change(self, job: Path | None) -> None:
        # One that starts has read the old policy or catalog perhaps, and does this first.
        for process in [*self._processes, *self._starting]:
            reply = self.ask(process, job)
            if reply is not None:
                self._changing.setdefault(process, []).append(reply)

    def ask(self, process: WorkerProcess, job: Any) -> Future[Any] | None:
        """The reply to a job (`WorkerProcess.ask`); None where the process is gone."""
        try:
            return process.ask(job)
        except OSError as error:
            self.remove(process, error)
            return None

    def answer_units(
        self, own: ProfileRecommender, units: Iterable[Unit], seed: int = 0
    ) -> Iterator[Results]:
        """Results of a long sequence of units, in order; each goes to a process that is free.

        Args:
            own: Takes a unit itself when all processes have enough to do, and what is lost.
            units: Each is decoded in one batch; computed when a process takes it.
            seed: Seed of the sampling.
        """
        source = enumerate(units)
        assigned: dict[WorkerProcess, deque[tuple[int, Unit, Future[Any] | None]]] = {}
        results: dict[int, Results] = {}
        exhausted, number = False, 0
        while not exhausted or any(assigned.values()) or number in results:
            self.look_after()
            for process in self.ready:
                owed = assigned.setdefault(process, deque())
                while not exhausted and len(owed) < UNITS_AHEAD:
                    unit = next(source, None)
                    if unit is None:
                        exhausted = True
                        break
                    owed.append((*unit, self.ask(process, (unit[1], seed))))
            unit = None if exhausted else next(source, None)
            exhausted = unit is None
            if unit is not None:
                results[unit[0]] = own.answer(unit[1], seed)
            self._gather(own, assigned, results, seed, block=exhausted)
            while number in results:
                yield results.pop(number)
                number += 1

    def _gather(
        self,
        own: ProfileRecommender,
        assigned: dict[WorkerProcess, deque[tuple[int, Unit, Future[Any] | None]]],
        results: dict[int, Results],
        seed: int,
        block: bool,
    ) -> None:
        """Take the results that are there; do the units of processes that are gone.

        Waits for a result where ``block`` says that this process has nothing else to do.
        """
        first = [owed[0][2] for owed in assigned.values() if owed]
        if block and first and all(reply is not None for reply in first):
            wait([reply for reply in first if reply is not None], return_when=FIRST_COMPLETED)
        for process, owed in assigned.items():
            while owed and ((reply := owed[0][2]) is None or reply.done()):
                number, unit, _ = owed.popleft()
                received = None if reply is None else self._received(process, reply)
                results[number] = (
                    own.answer(unit, seed) if received is None else completed(unit, received[0])
                )

    def _received(self, process: WorkerProcess, reply: Future[Any]) -> Any:
        """A reply that is there; None where the process was lost before."""
        try:
            return reply.result()
        except LOST as error:
            self.remove(process, error)
            return None

    def _changed(self, process: WorkerProcess, reply: Future[Any]) -> None:
        """Go on with a process that has loaded what it should, and without one that could not."""
        try:
            reply.result()
        except (*LOST, QAgentError) as error:
            self.remove(process, error)

    def remove(self, process: WorkerProcess, error: BaseException) -> None:
        """Go on without a process."""
        if process not in self._processes:
            return
        log.error("process %s is gone (%r); going on without it", process.pid, error)
        self._processes.remove(process)
        self._changing.pop(process, None)
        process.end()
        self._start_later()

    def replace(self, process: WorkerProcess) -> None:
        """End a process that answers nothing; another one is started for it."""
        if process in self._processes:
            process.kill()  # it may be stopped, and then no other signal reaches it
            self.remove(process, TimeoutError("it answers nothing"))

    def look_after(self) -> None:
        """Take up processes that are ready, and start others for those that are gone."""
        for process in list(self._starting):
            if not process.ready.done():
                continue
            self._starting.remove(process)
            try:
                process.ready.result()
            except (*LOST, QAgentError) as error:
                log.error("process %s did not start (%r); trying again later", process.pid, error)
                self._changing.pop(process, None)
                process.kill()
                self._start_later()
                continue
            log.info("process %s decodes from now on", process.pid)
            self._processes.append(process)
        for process, replies in list(self._changing.items()):
            while replies and replies[0].done():
                self._changed(process, replies.pop(0))
        if time.monotonic() >= self._start_at:
            self._start()

    def _start(self) -> None:
        while len(self._processes) + len(self._starting) < self._wanted:
            self._starting.append(WorkerProcess(self._path, self._policy, self._dtype))

    def _wait_until_ready(self) -> None:
        """Wait for all that start.

        Raises:
            QAgentError: what the shop or the policy has to say, or one did not start.
        """
        deadline = time.monotonic() + START_SECONDS
        for process in self._starting:
            try:
                process.ready.result(max(0.0, deadline - time.monotonic()))
            except (*LOST, TimeoutError) as error:
                raise QAgentError(
                    "a worker process did not start; go on with one worker"
                ) from error
        self._processes, self._starting = self._starting, []

    def _start_later(self) -> None:
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


def completed(unit: Unit, received: Sequence[tuple[Any, float]]) -> Results:
    """The results of requests, from what a process sent: without their chains."""
    return [
        UserRecommendations(r.profile.user_id, r.as_of, recommendations, ms, (), r.profile)
        for r, (recommendations, ms) in zip(unit, received, strict=True)
    ]
