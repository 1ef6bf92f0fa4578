"""SIGKILLs at random moments: of a server, its worker processes, and the command that runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from live_shop import PATIENCE, QAGENT, Server


class Killer:
    """Sends SIGKILL to the server, its worker processes, and the command that runs.

    Args:
        server: Is killed, or one of its worker processes.
        kills: How many; they are shared out among the steps of the play by `plan_day`.
        seed: Of the moments and of who is hit.
    """

    def __init__(self, server: Server, kills: int, seed: int) -> None:
        self.server, self.left = server, kills
        self.hits: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._due = 0
        self._seconds: dict[str, float] = {}  # that a step takes

    def plan_day(self, steps: Sequence[str], days_left: int) -> Counter[str]:
        """Which steps of a day are hit, how often."""
        today = round((self.left - self._due) / max(1, days_left))
        return Counter(self._draw.choices(steps, k=today))

    @contextmanager
    def during(self, step: str, kills: int, command: Command | None) -> Iterator[None]:
        """Kill so many times while the block runs; those that came too late, in the next one."""
        self._due += kills
        over = threading.Event()
        thread = threading.Thread(target=self._work, args=(step, command, over))
        began = time.monotonic()
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._seconds.setdefault(step, time.monotonic() - began)

    def _work(self, step: str, command: Command | None, over: threading.Event) -> None:
        while self._due:
            if over.wait(self._draw.uniform(0.0, min(self._seconds.get(step, 8.0), 40.0))):
                return
            lot = self._draw.random()
            if command is not None and command.is_running and lot < 0.65:
                name = command.name
                command.kill()
            elif lot > 0.9 and (workers := self.server.children()):
                name = "worker process"
                with suppress(ProcessLookupError):
                    os.kill(self._draw.choice(workers), signal.SIGKILL)
            elif self.server.process.poll() is None:
                name = "server"
                self.server.kill()
            else:
                continue  # it is being started again
            self.hits[name] += 1
            self._due -= 1
            self.left -= 1


class Command:
    """A command that is run again where it was killed, as the next night's would.

    Args:
        words: What follows ``qagent``.
        shop: The shop's folder.
        name: Of the step.
    """

    def __init__(self, words: Sequence[str], shop: Path, name: str) -> None:
        self.words, self.shop, self.name = list(words), shop, name
        self.process: subprocess.Popen[str] | None = None
        self.killed = 0

    @property
    def is_running(self) -> bool:
        """Whether it can be killed."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended just now."""
        assert self.process is not None
        self.process.kill()

    def run(self, is_done: Callable[[], bool] = lambda: False, again: Sequence[str] = ()) -> str:
        """Run it to its end; what it printed.

        Args:
            is_done: Whether a command that was killed had done its work already.
            again: Words that are tried first after a kill, such as those with ``--resume``.
        """
        while True:
            if self.killed and again:
                code, out, _ = self._once(again)
                if code == 0:
                    return out
                if code < 0:
                    continue
                if is_done():
                    return ""
            code, out, error = self._once(self.words)
            if code == 0:
                return out
            if self.killed and is_done():
                return ""
            assert code < 0, f"{self.name} ended with {code}: {error or out}"

    def _once(self, words: Sequence[str]) -> tuple[int, str, str]:
        self.process = subprocess.Popen(
            # As in a crontab, so that whoever asks the server comes first.
            ["nice", *QAGENT, *words, "--shop", str(self.shop)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, error = self.process.communicate(timeout=PATIENCE)
        self.killed += self.process.returncode < 0
        return self.process.returncode, out, error
