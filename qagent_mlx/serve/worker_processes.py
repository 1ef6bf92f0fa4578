"""Processes that answer beside this one: a policy and a search each, on a core each.

They read the shop's index, whose large parts are mapped into memory and so shared, and then let
go of its database, which one process may write to. Memory is read by whoever asks them, so
that new events are known at once.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from ..agent.recommend import ProfileRecommender, RecommendRequest, UserRecommendations
from ..errors import QAgentError
from ..policy.files import load_policy
from ..shop.shop import Shop

log = logging.getLogger("qagent.pool")

START_SECONDS = 120.0  # in which a process must be ready
AHEAD = 2  # units that a process has been given: one it computes, one that waits for it

Answers = list[UserRecommendations]


class Pool:
    """Some processes with one policy. What one of them could not do, this process does itself.

    Args:
        path: The shop's folder; its index must be there (see `inventory.index.open_index`), and
            nobody may be writing to its database while the processes start.
        policy: The policy's folder.
        helpers: How many processes.
        dtype: Of the policy's weights.
    """

    def __init__(self, path: Path, policy: Path, helpers: int, dtype: str = "") -> None:
        self._helpers: list[_Helper] = []
        try:
            for _ in range(helpers):
                self._helpers.append(_Helper(path, policy, dtype))
            until = time.monotonic() + START_SECONDS
            for helper in self._helpers:
                helper.ready(until)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._helpers)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for helper in self._helpers:
            helper.end()
        self._helpers = []

    def use(self, policy: Path) -> None:
        """Answer with another policy from now on; a process that cannot is ended."""
        for helper in list(self._helpers):
            try:
                helper.connection.send(policy)
                _raised(helper.connection.recv())
            except (EOFError, OSError, QAgentError) as error:
                self._lose(helper, error)

    def answer(
        self,
        own: ProfileRecommender,
        asks: Sequence[RecommendRequest],
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Answers:
        """As `ProfileRecommender.answer`, with the users shared out evenly.

        Chains stay with the processes.

        Args:
            own: Answers this process's share.
            asks: Of all users.
            seed: Of the sampling.
            progress: Of this process's share, as in `ProfileRecommender.answer`.
        """
        workers = len(self._helpers) + 1
        shares = [list(asks[i::workers]) for i in range(workers)]
        given = [
            (helper, number, share)
            for number, (helper, share) in enumerate(
                zip(list(self._helpers), shares[1:], strict=True), 1
            )
            if share and self._send(helper, (share, seed))
        ]
        found: dict[int, Answers] = {}
        errors: list[QAgentError] = []
        try:
            found[0] = own.answer(shares[0], seed, progress)
        finally:
            # All of them, whatever happens: the next answer must not get this one's.
            for helper, number, share in given:
                try:
                    answers = self._receive(helper, share)
                except QAgentError as error:
                    errors.append(error)
                    continue
                if answers is not None:
                    found[number] = answers
        if errors:
            raise errors[0]
        for number, share in enumerate(shares):
            if number not in found:
                found[number] = own.answer(share, seed, progress)
        return [found[i % workers][i // workers] for i in range(len(asks))]

    def answer_units(
        self, own: ProfileRecommender, units: Iterable[Sequence[RecommendRequest]], seed: int = 0
    ) -> Iterator[Answers]:
        """Answers of a long row of units, in order; whoever is free takes the next.

        Args:
            own: Takes a unit itself when all processes have enough to do.
            units: Each is decoded in one batch; made when somebody takes it.
            seed: Of the sampling.
        """
        source = enumerate(units)
        given: dict[_Helper, deque[tuple[int, Sequence[RecommendRequest]]]] = {
            h: deque() for h in self._helpers
        }
        found: dict[int, Answers] = {}
        number, left = 0, True
        while left or any(given.values()) or number in found:
            for helper in list(self._helpers):
                while left and len(given[helper]) < AHEAD:
                    unit = next(source, None)
                    left = unit is not None
                    if unit is not None:
                        given[helper].append(unit)
                        if not self._send(helper, (unit[1], seed)):
                            break
            unit = next(source, None) if left else None
            left = left and unit is not None
            if unit is not None:
                found[unit[0]] = own.answer(unit[1], seed)
            busy = [h for h in given if given[h]]
            alive = [h.connection for h in busy if h in self._helpers]
            # With a unit of its own done, or with some of a lost one to do, it only looks; with
            # none it waits.
            idle = unit is None and len(alive) == len(busy)
            ready = wait(alive, None if idle else 0) if alive else []
            for helper in busy:
                lost = helper not in self._helpers
                if not lost and helper.connection not in ready:
                    continue
                answers = None if lost else self._receive(helper, given[helper][0][1])
                if answers is not None:
                    found[given[helper].popleft()[0]] = answers
                else:
                    for at, asks in given[helper]:
                        found[at] = own.answer(asks, seed)
                    given[helper].clear()
            while number in found:
                yield found.pop(number)
                number += 1

    def _send(self, helper: _Helper, job: Any) -> bool:
        try:
            helper.connection.send(job)
        except OSError as error:
            self._lose(helper, error)
            return False
        return True

    def _receive(self, helper: _Helper, asks: Sequence[RecommendRequest]) -> Answers | None:
        """What it answered; None where the process is gone."""
        try:
            found = _raised(helper.connection.recv())
        except (EOFError, OSError) as error:
            self._lose(helper, error)
            return None
        return [
            UserRecommendations(a.profile.user_id, a.as_of, recommendations, ms, (), a.profile)
            for a, (recommendations, ms) in zip(asks, found, strict=True)
        ]

    def _lose(self, helper: _Helper, error: BaseException) -> None:
        log.error("process %s is gone (%r); going on without it", helper.process.pid, error)
        helper.end()
        if helper in self._helpers:
            self._helpers.remove(helper)


# The process is configured before its modules import numpy and MLX.
_PROGRAM = (
    "import qagent_mlx; qagent_mlx.configure(threads=1); "
    "from qagent_mlx.serve.worker_processes import main; main()"
)


class _Helper:
    """One process and the line to it."""

    def __init__(self, path: Path, policy: Path, dtype: str) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _PROGRAM,
                    str(theirs.fileno()),
                    str(path),
                    str(policy),
                    dtype,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def ready(self, until: float) -> None:
        """Wait until it can answer.

        Raises:
            QAgentError: what the shop or the policy has to say, or it did not start.
        """
        try:
            if self.connection.poll(max(0.0, until - time.monotonic())):
                _raised(self.connection.recv())
                return
        except (EOFError, OSError):
            pass
        raise QAgentError("a process that should answer did not start; go on with --workers 1")

    def end(self) -> None:
        """It ends when nobody can ask it any more."""
        self.connection.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _raised(value: Any) -> Any:
    if isinstance(value, QAgentError):
        raise value
    return value


def main() -> None:
    """Answer requests in a worker process, until whoever started it closes the connection."""
    _, number, path, policy, dtype = sys.argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    connection: Connection[Any, Any] = Connection(int(number))
    try:
        with Shop.open(Path(path)) as shop:
            from ..inventory.product_search import open_shop_search

            answerer = ProfileRecommender(open_shop_search(shop), load_policy(Path(policy), dtype))
    except QAgentError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if isinstance(job, Path):
                answerer.use(load_policy(job, dtype))
                made: Any = None
            else:
                made = [(one.recommendations, one.latency_ms) for one in answerer.answer(*job)]
        except QAgentError as error:
            made = error
        connection.send(made)
