"""Start the workers of data-parallel training on this machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import QAgentError
from ..utils.settings import SettingError
from .world import GONE, MAX_WORKERS, WORKERS_ENV

GRACE = 3.0  # seconds in which all workers notice the same error
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes after a checkpoint


def check_workers(workers: int, cases: int) -> None:
    """Refuse a number of workers that cannot share a step's cases."""
    if workers > min(cases, MAX_WORKERS):
        raise SettingError(
            "workers",
            f"cannot be {workers}: a step has {cases} cases to share; use at most "
            f"{min(cases, MAX_WORKERS)}",
        )


def launch(command: Sequence[str], workers: int, remedy: str = "") -> int:
    """Run a program with its arguments in several worker processes and wait for them.

    Returns the first worker's exit code; it has reported its reason itself. When a worker died,
    the others are ended; ``remedy`` ends the error's line.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="qagent-workers-") as name:
        folder = Path(name)
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(workers)]))

        def forward(number: int, _frame: Any) -> None:
            for process in processes:  # they save what they have
                process.send_signal(number)

        handler = signal.signal(signal.SIGTERM, forward)
        try:
            processes += (_start(command, rank, workers, hosts) for rank in range(workers))
            return _wait(processes, folder, remedy)
        except KeyboardInterrupt:
            # The terminal has interrupted the workers too: the first reports what is saved.
            return processes[0].wait()
        finally:
            signal.signal(signal.SIGTERM, handler)
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _start(command: Sequence[str], rank: int, size: int, hosts: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        WORKERS_ENV: f"{rank}/{size}",
        "MLX_RANK": str(rank),
        "MLX_HOSTFILE": str(hosts),
        # One core each: threads of several workers would only wait for each other.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    if rank == 0:
        return subprocess.Popen(command, env=environment)
    silent = subprocess.DEVNULL
    with (hosts.parent / f"worker-{rank}.txt").open("wb") as errors:
        return subprocess.Popen(
            command, env=environment, stdin=silent, stdout=silent, stderr=errors
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, remedy: str) -> int:
    """Wait for the workers in the order in which they end; see `launch`."""
    ended: queue.Queue[int] = queue.Queue()

    def watch(rank: int) -> None:
        processes[rank].wait()
        ended.put(rank)

    for rank in range(len(processes)):
        threading.Thread(target=watch, args=(rank,), daemon=True).start()
    for _ in processes:
        rank = ended.get()
        code = processes[rank].returncode
        if code in STOPPED:  # by a signal: the first worker reports it
            return processes[0].wait()
        if code == 0:
            continue
        first = _exit_code(processes[0]) if code > 0 else None
        if first and first > 0 and not (folder / GONE).exists():
            return first  # it has reported what is wrong with all of them
        raise QAgentError(_cause_of_death(rank, len(processes), code, folder) + remedy)
    return 0


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that ends within `GRACE`; None of one that does not."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _cause_of_death(rank: int, size: int, code: int, folder: Path) -> str:
    worker = f"worker {rank + 1} of {size}"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (is the machine out of memory?)" if -code == signal.SIGKILL else ""
        return f"{worker} was ended by {name}{hint}; the run has stopped"
    path = folder / f"worker-{rank}.txt"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    message = next((line for line in reversed(lines) if line.strip()), "")
    message = message.removeprefix("Error: ").strip()
    detail = f" ({message})" if message else ""
    return f"{worker} ended with exit code {code}{detail}; the run has stopped"
