"""A process that decodes beside this one: what it does, and this process's end of it.

It reads the shop's index, whose large parts are mapped into memory and so shared, and then lets
go of its database, which one process may write to. Jobs are done in the order in which they come.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..agent.recommend import ProfileRecommender
from ..errors import QAgentError
from ..inventory.types import ProductSearch
from ..policy.files import load_policy
from ..shop.shop import Shop
from ..utils.child_process import python_command

# A process is configured before its modules import numpy and MLX.
_PROGRAM = (
    "import qagent_mlx; qagent_mlx.configure(threads=1); "
    "from qagent_mlx.serve.decode_process import main; main()"
)
_END = "end"  # the job after the last one
LOST = (EOFError, OSError)  # what is raised for a process that is gone


class WorkerProcess:
    """One process, and the replies that it owes.

    Attributes:
        ready: Done when it can decode; with an error where the shop or the policy has something
            to say, or where it is gone.
    """

    def __init__(self, path: Path, policy: Path, dtype: str) -> None:
        self._connection, remote = Pipe()
        with remote:
            arguments = [str(remote.fileno()), str(path), str(policy), dtype]
            self._process = subprocess.Popen(
                [*python_command(_PROGRAM), *arguments],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # signals of a terminal are for the process that starts it
            )
        self._replies = ThreadPoolExecutor(1, "qagent-replies")  # received in the jobs' order
        self.ready: Future[Any] = self._replies.submit(self._receive)

    @property
    def pid(self) -> int:
        """The number that the system gave the process."""
        return self._process.pid

    def ask(self, job: Any) -> Future[Any]:
        """Let it do a job behind those that it has; the future gets the reply.

        A job is requests with a seed, a policy's folder to load, or None to search the catalog
        that the file holds now. The reply is a `QAgentError` of the job, or one of `LOST`.

        Raises:
            OSError: the process is gone.
        """
        self._connection.send(job)
        return self._replies.submit(self._receive)

    def _receive(self) -> Any:
        received = self._connection.recv()
        if isinstance(received, QAgentError):
            raise received
        return received

    def end(self) -> None:
        """Let it end when it has done what it has."""
        with suppress(OSError):
            self._connection.send(_END)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.wait()
        self._replies.shutdown()  # whoever receives finds the other end closed
        self._connection.close()


def _search(path: str) -> ProductSearch:
    from ..inventory.product_search import open_shop_search

    with Shop.open(Path(path)) as shop:
        return open_shop_search(shop)


def main() -> None:
    """Do the jobs that come through a connection until it is closed."""
    _, descriptor, path, policy, dtype = sys.argv
    connection: Connection[Any, Any] = Connection(int(descriptor))
    # Where the other end is gone, so is the process that this one works for.
    with suppress(BrokenPipeError, ConnectionResetError):
        _answer(connection, path, policy, dtype)


def _jobs(connection: Connection[Any, Any]) -> Iterator[Any]:
    """The jobs; read as they come, so that nobody who sends one waits for those before it."""
    jobs: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:
        job = None
        while job != _END:
            try:
                job = connection.recv()
            except LOST:
                job = _END
            jobs.put(job)

    threading.Thread(target=read, daemon=True).start()
    return iter(jobs.get, _END)


def _answer(connection: Connection[Any, Any], path: str, policy: str, dtype: str) -> None:
    try:
        recommender = ProfileRecommender(_search(path), load_policy(Path(policy), dtype))
    except QAgentError as error:
        connection.send(error)
        return
    connection.send(None)
    for job in _jobs(connection):
        reply: Any = None
        try:
            if job is None:
                recommender.use_search(_search(path))
            elif isinstance(job, Path):
                recommender.use_policy(load_policy(job, dtype))
            else:
                before = dict(recommender.spent)
                results = [(r.recommendations, r.latency_ms) for r in recommender.answer(*job)]
                reply = results, {k: s - before[k] for k, s in recommender.spent.items()}
        except QAgentError as error:
            reply = error
        connection.send(reply)
