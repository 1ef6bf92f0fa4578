"""A shop in use: a server that is started again when it was killed, and its clients."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QAGENT = [sys.executable, "-m", "qagent_mlx"]
PATIENCE = 1800.0  # seconds in which a server must answer again, or a command end
RESTART = 0.2  # seconds until a server that was killed is started again


@dataclass(frozen=True)
class Load:
    """What clients do.

    Attributes:
        clients: How many.
        think: Seconds between a client's requests, on average.
        posts: Share of the requests that post events, while there are some.
    """

    clients: int = 4
    think: float = 0.05
    posts: float = 0.1


@dataclass(frozen=True)
class Answer:
    """A request that was answered, or not."""

    phase: str
    seconds: float
    failure: str = ""
    is_fallback: bool = False


class Server:
    """``qagent serve`` in a process that is started again whenever it was killed.

    Attributes:
        down: Whether it was killed and does not answer yet.
    """

    def __init__(self, shop: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        words = ["serve", "--port", str(self.port), "--rate", "0", "--cache", "0"]
        self._command = [*QAGENT, *words, "--workers", str(workers), "--shop", str(shop)]
        self.log = shop.parent / "server.log"
        self.starts, self.killed, self._stopping = 0, 0, False
        self.down = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Wait until it answers, and watch it from then on."""
        self._await()
        self._thread.start()

    def kill(self) -> None:
        """End it by SIGKILL; it is started again."""
        self.down.set()
        self.killed += 1
        self.process.kill()

    def wait_until_up(self) -> None:
        """Wait until it answers after a kill."""
        until = time.monotonic() + PATIENCE
        while self.down.is_set():
            assert time.monotonic() < until, f"the server does not come back; see {self.log}"
            time.sleep(0.1)

    def children(self) -> list[int]:
        """Its worker processes."""
        return children(self.process.pid)

    def stop(self) -> int:
        """End it as a service manager does; the exit code."""
        self._stopping = True
        self.process.terminate()
        return self.process.wait(60)

    def abandon(self) -> None:
        """End it without waiting for anything."""
        self._stopping = True
        self.down.set()
        self.killed += 1
        self.process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)

    def _watch(self) -> None:
        while not self._stopping:
            if self.process.poll() is None:
                time.sleep(0.05)
                continue
            if self._stopping:
                return
            assert self.down.is_set(), f"the server ended by itself, see {self.log}"
            time.sleep(RESTART)
            self.process = self._start()
            with suppress(TimeoutError):
                self._await()

    def _await(self) -> None:
        until, mine = time.monotonic() + PATIENCE, self.process
        while time.monotonic() < until and mine.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    self.down.clear()
                    return
            time.sleep(0.1)
        raise TimeoutError(f"the server does not answer; see {self.log}")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(n) for n in (task / "children").read_text().split()]
    return found


class Clients:
    """Threads that ask for recommendations over connections kept alive, and post events.

    A batch that got no answer because the server was killed is posted again, as it is.
    """

    def __init__(self, server: Server, users: list[str], load: Load, seed: int) -> None:
        self.server, self.users, self.load, self.seed = server, users, load, seed
        self.phase = "start"
        self.answers: list[Answer] = []
        self.acknowledged: list[list[dict[str, Any]]] = []
        self.policies: Counter[str] = Counter()
        self.again = 0  # posts whose answer a kill had taken, and that were stored all the same
        self._waiting: deque[list[dict[str, Any]]] = deque()
        self._unanswered = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(load.clients)]

    def begin(self) -> None:
        """Start all of them."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let them finish what they do."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def post(self, batches: list[list[dict[str, Any]]]) -> None:
        """Give them events to post."""
        with self._lock:
            self._unanswered += len(batches)
            self._waiting.extend(batches)

    @property
    def is_posting(self) -> bool:
        """Whether some events are not acknowledged yet."""
        return self._unanswered > 0

    @property
    def failures(self) -> list[str]:
        """What went wrong."""
        return [f"{a.phase}: {a.failure}" for a in self.answers if a.failure]

    def _run(self, number: int) -> None:
        draw = random.Random(f"{self.seed}-{number}")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        while not self._stop.is_set():
            batch = None
            if draw.random() < self.load.posts:
                with suppress(IndexError):
                    batch = self._waiting.popleft()
            if batch is None:
                self._recommend(connection, draw.choice(self.users))
            else:
                self._post(connection, batch)
            self._stop.wait(draw.expovariate(1 / self.load.think) if self.load.think else 0)
        connection.close()

    def _recommend(self, connection: http.client.HTTPConnection, user: str) -> None:
        def failure(status: int, body: Any) -> str:
            if status != 200 or body["user_id"] != user:
                return f"{status} {body} for {user}"
            if not 1 <= len(body["recommendations"]) <= 5:
                return f"{len(body['recommendations'])} recommendations: {body}"
            self.policies[f"{body['policy']}@{body['version']}"] += 1
            return ""

        self._ask(connection, "/recommend", {"user_id": user, "k": 5}, failure)

    def _post(self, connection: http.client.HTTPConnection, batch: list[dict[str, Any]]) -> None:
        def failure(status: int, body: Any) -> str:
            if status != 200 or body["accepted"] + body["duplicates"] != len(batch):
                return f"{status} {body} for {batch}"
            self.again += body["duplicates"] > 0
            self.acknowledged.append(batch)
            return ""

        while not self._ask(connection, "/events", {"events": batch}, failure):
            if self._stop.wait(0.1):
                return
        with self._lock:
            self._unanswered -= 1

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: dict[str, Any],
        failure: Callable[[int, Any], str],
    ) -> bool:
        """One request; False if a kill of the server took its answer."""
        phase, kills, began = self.phase, self.server.killed, time.perf_counter()
        try:
            text = json.dumps(body)
            connection.request("POST", path, text, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            wrong = failure(response.status, answer)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            connection.close()
            if self.server.down.is_set() or self.server.killed != kills:
                time.sleep(0.1)
                return False
            answer, wrong = {}, f"{path}: {error!r}"
        seconds = time.perf_counter() - began
        self.answers.append(Answer(phase, seconds, wrong, bool(answer.get("fallback"))))
        return True
