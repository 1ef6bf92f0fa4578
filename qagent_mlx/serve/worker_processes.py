"""Processes that decode beside this one: a policy and a search each, on a core each.

They read the shop's index, whose large parts are mapped into memory and so shared, and then let
go of its database, which one process may write to. Profiles are read by the process that asks,
so that new events are known at once.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from ..agent.recommend import ProfileRecommender, RecommendRequest, UserRecommendations
from ..errors import QAgentError
from ..inventory.types import ProductSearch
from ..policy.files import load_policy
from ..shop.shop import Shop

log = logging.getLogger("qagent.pool")

START_SECONDS = 120.0  # in which a process must be ready
PAUSE_SECONDS = 1.0  # until one that is gone is replaced; twice as long each time
LONGEST_PAUSE_SECONDS = 300.0
WAIT_SECONDS = 0.02  # for a process, before progress is told again
UNITS_AHEAD = 2  # units that a process has been given: one it computes, one that waits for it

# A process is configured before its modules import numpy and MLX.
_PROGRAM = (
    "import qagent_mlx; qagent_mlx.configure(threads=1); "
    "from qagent_mlx.serve.worker_processes import main; main()"
)

Results = list[UserRecommendations]
Unit = Sequence[RecommendRequest]


class WorkerPool:
    """Processes with one policy. What one of them could not do, this process does itself.

    One that is gone, killed by the system for its memory perhaps, is replaced after a while, as
    soon as `answer` is called and finds the other one ready.

    Args:
        path: The shop's folder; its index must be there (see `inventory.index.open_index`), and
            no process may be writing to its database while these start.
        policy: The policy's folder.
        processes: How many.
        dtype: Number type of the policy's weights.
    """

    def __init__(self, path: Path, policy: Path, processes: int, dtype: str = "") -> None:
        self._path, self._policy, self._dtype = path, policy, dtype
        self._wanted = processes
        self._processes: list[WorkerProcess] = []
        self._starting: WorkerProcess | None = None  # in the place of one that is gone
        self._start_at, self._pause = 0.0, PAUSE_SECONDS
        try:
            for _ in range(processes):
                self._processes.append(WorkerProcess(path, policy, dtype))
            deadline = time.monotonic() + START_SECONDS
            for process in self._processes:
                process.wait_until_ready(deadline)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._stop_starting()
        for process in self._processes:
            process.end()
        self._processes = []

    def use(self, policy: Path) -> None:
        """Recommend with another policy from now on; a process that cannot is ended."""
        self._policy = policy
        self._stop_starting()
        loading = [process for process in list(self._processes) if self._send(process, policy)]
        for process in loading:
            try:
                _raised(process.connection.recv())
            except (EOFError, OSError, QAgentError) as error:
                self._remove(process, error)

    def reload(self) -> None:
        """Search the shop's catalog as it is now; a process that cannot is ended."""
        self._stop_starting()
        for process in list(self._processes):
            try:
                process.connection.send(None)
                _raised(process.connection.recv())
            except (EOFError, OSError, QAgentError) as error:
                self._remove(process, error)

    def answer(
        self,
        own: ProfileRecommender,
        requests: Sequence[RecommendRequest],
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Results:
        """As `ProfileRecommender.answer`, with the users shared out evenly.

        The results of the processes come without their chains.

        Args:
            own: Answers this process's share.
            requests: Of all users.
            seed: Seed of the sampling.
            progress: Follows this process's share, as in `ProfileRecommender.answer`; called with
                0 now and then while the others are waited for.
        """
        self._replace_one()
        workers = len(self._processes) + 1
        shares = [list(requests[i::workers]) for i in range(workers)]
        sent = [
            (process, number, share)
            for number, (process, share) in enumerate(
                zip(list(self._processes), shares[1:], strict=True), 1
            )
            if share and self._send(process, (share, seed))
        ]
        results: dict[int, Results] = {}
        errors: list[QAgentError] = []
        try:
            results[0] = own.answer(shares[0], seed, progress)
            if progress is not None:
                _await([process for process, _, _ in sent], progress)
        finally:
            # Receive from all of them, whatever happens: the next call must not get this one's.
            for process, number, share in sent:
                try:
                    received = self._receive(process, share)
                except QAgentError as error:
                    errors.append(error)
                    continue
                if received is not None:
                    results[number] = received
        if errors:
            raise errors[0]
        for number, share in enumerate(shares):
            if number not in results:
                results[number] = own.answer(share, seed, progress)
        return [results[i % workers][i // workers] for i in range(len(requests))]

    def answer_units(
        self, own: ProfileRecommender, units: Iterable[Unit], seed: int = 0
    ) -> Iterator[Results]:
        """Results of a long sequence of units, in order; each goes to a process that is free.

        Args:
            own: Takes a unit itself when all processes have enough to do.
            units: Each is decoded in one batch; computed when a process takes it.
            seed: Seed of the sampling.
        """
        source = enumerate(units)
        assigned: dict[WorkerProcess, deque[tuple[int, Unit]]] = {
            process: deque() for process in self._processes
        }
        results: dict[int, Results] = {}
        exhausted, number = False, 0
        while not exhausted or any(assigned.values()) or number in results:
            for process in list(self._processes):
                while not exhausted and len(assigned[process]) < UNITS_AHEAD:
                    unit = next(source, None)
                    if unit is None:
                        exhausted = True
                        break
                    assigned[process].append(unit)
                    if not self._send(process, (unit[1], seed)):
                        break
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
        assigned: dict[WorkerProcess, deque[tuple[int, Unit]]],
        results: dict[int, Results],
        seed: int,
        block: bool,
    ) -> None:
        """Take the results that are ready; do the units of processes that are gone.

        Waits for a result where ``block`` says that this process has nothing else to do.
        """
        busy = [process for process, units in assigned.items() if units]
        alive = [process.connection for process in busy if process in self._processes]
        block = block and len(alive) == len(busy)
        ready = wait(alive, None if block else 0) if alive else []
        for process in busy:
            units = assigned[process]
            if process in self._processes:
                if process.connection not in ready:
                    continue
                received = self._receive(process, units[0][1])
                if received is not None:
                    results[units.popleft()[0]] = received
                    continue
            for number, unit in units:
                results[number] = own.answer(unit, seed)
            units.clear()

    def _send(self, process: WorkerProcess, job: Any) -> bool:
        try:
            process.connection.send(job)
        except OSError as error:
            self._remove(process, error)
            return False
        return True

    def _receive(self, process: WorkerProcess, unit: Unit) -> Results | None:
        """What a process computed; None where it is gone."""
        try:
            received = _raised(process.connection.recv())
        except (EOFError, OSError) as error:
            self._remove(process, error)
            return None
        return [
            UserRecommendations(r.profile.user_id, r.as_of, recommendations, ms, (), r.profile)
            for r, (recommendations, ms) in zip(unit, received, strict=True)
        ]

    def _remove(self, process: WorkerProcess, error: BaseException) -> None:
        log.error("process %s is gone (%r); going on without it", process.pid, error)
        process.end()
        if process in self._processes:
            self._processes.remove(process)
        self._start_later()

    def _replace_one(self) -> None:
        """Start a process in the place of one that is gone; take it up when it is ready."""
        if self._starting is None:
            is_time = time.monotonic() >= self._start_at
            if is_time and len(self._processes) < self._wanted:
                self._starting = WorkerProcess(self._path, self._policy, self._dtype)
            return
        starting = self._starting
        try:
            if not starting.connection.poll():
                return
            _raised(starting.connection.recv())
        except (EOFError, OSError, QAgentError) as error:
            log.error("process %s did not start (%r); trying again later", starting.pid, error)
            self._stop_starting()
            self._start_later()
            return
        log.info("process %s takes the place of one that was gone", starting.pid)
        self._processes.append(starting)
        self._starting = None

    def _stop_starting(self) -> None:
        """Give up a process that may have read an older policy or catalog; another one follows."""
        if self._starting is not None:
            self._starting.kill()
            self._starting = None

    def _start_later(self) -> None:
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


class WorkerProcess:
    """One process and the connection to it."""

    def __init__(self, path: Path, policy: Path, dtype: str) -> None:
        self.connection, remote = Pipe()
        with remote:
            arguments = [str(remote.fileno()), str(path), str(policy), dtype]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # signals of a terminal are for the process that starts it
            )

    @property
    def pid(self) -> int:
        """The number that the system gave the process."""
        return self._process.pid

    def wait_until_ready(self, deadline: float) -> None:
        """Wait until it can decode.

        Raises:
            QAgentError: what the shop or the policy has to say, or it did not start.
        """
        try:
            if self.connection.poll(max(0.0, deadline - time.monotonic())):
                _raised(self.connection.recv())
                return
        except (EOFError, OSError):
            pass
        raise QAgentError("a worker process did not start; go on with one worker")

    def end(self) -> None:
        """Close the connection, at which the process ends."""
        self.connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _await(processes: Sequence[WorkerProcess], progress: Callable[[int], None]) -> None:
    """Wait until processes have something to say, or are gone."""
    for process in processes:
        with suppress(OSError):
            while not process.connection.poll(WAIT_SECONDS):
                progress(0)


def _raised(received: Any) -> Any:
    if isinstance(received, QAgentError):
        raise received
    return received


def _search(path: str) -> ProductSearch:
    from ..inventory.product_search import open_shop_search

    with Shop.open(Path(path)) as shop:
        return open_shop_search(shop)


def main() -> None:
    """Answer the jobs that come through a connection until it is closed."""
    _, descriptor, path, policy, dtype = sys.argv
    connection: Connection[Any, Any] = Connection(int(descriptor))
    # Where the other end is gone, so is the process that this one works for.
    with suppress(BrokenPipeError, ConnectionResetError):
        _answer(connection, path, policy, dtype)


def _answer(connection: Connection[Any, Any], path: str, policy: str, dtype: str) -> None:
    try:
        recommender = ProfileRecommender(_search(path), load_policy(Path(policy), dtype))
    except QAgentError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        reply: Any = None
        try:
            if job is None:
                recommender.use_search(_search(path))
            elif isinstance(job, Path):
                recommender.use_policy(load_policy(job, dtype))
            else:
                reply = [(r.recommendations, r.latency_ms) for r in recommender.answer(*job)]
        except QAgentError as error:
            reply = error
        connection.send(reply)
