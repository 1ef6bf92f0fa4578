"""Start the workers of data-parallel training on this machine."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import QAgentError
from .world import GONE, GRACE, MOST, STOPPED, WORKERS_ENV

if TYPE_CHECKING:
    pass


def check(workers: int, cases: int) -> None:
    """Refuse a number of workers that cannot share the work.

    Raises:
        QAgentError: says how many there may be.
    """
    if workers > min(cases, MOST):
        raise QAgentError(
            f"--workers {workers}: a step has {cases} cases to share; use at most "
            f"{min(cases, MOST)}"
        )


def launch(workers: int, arguments: Sequence[str], then: str = "") -> int:
    """Run a ``qagent`` command line in several processes and wait for them.

    Args:
        workers: How many.
        arguments: Of the command, without the program's name.
        then: How to go on after a worker died; ends the error's line.

    Returns:
        The first worker's exit code; it has said why itself.

    Raises:
        QAgentError: a worker died; the others have been ended.
    """
    program = "from qagent_cli.main import cli; cli()"
    with tempfile.TemporaryDirectory(prefix="qagent-workers-") as name:
        folder = Path(name)
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(workers)]))
        started: list[subprocess.Popen[bytes]] = []

        def terminated(number: int, _frame: Any) -> None:
            # A terminated command lets its workers save what they have.
            for process in started:
                process.send_signal(number)

        before = signal.signal(signal.SIGTERM, terminated)
        ended: queue.Queue[int] = queue.Queue()
        try:
            for rank in range(workers):
                started.append(
                    _start([sys.executable, "-c", program, *arguments], rank, workers, hosts)
                )

            def watch(rank: int) -> None:
                started[rank].wait()
                ended.put(rank)

            for rank in range(workers):
                threading.Thread(target=watch, args=(rank,), daemon=True).start()
            for _ in started:
                rank = ended.get()
                code = started[rank].returncode
                if code in STOPPED:  # by a signal, after the checkpoint: the first says so
                    return started[0].wait()
                if code == 0:
                    continue
                first = _soon(started[0]) if code > 0 else None
                if first and first > 0 and not (folder / GONE).exists():
                    return first  # it says itself what is wrong with all
                raise QAgentError(_obituary(rank, workers, code, folder) + then)
            return 0
        except KeyboardInterrupt:
            # The terminal has interrupted the workers too: the first says what is kept.
            return started[0].wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _start(command: list[str], rank: int, size: int, hosts: Path) -> subprocess.Popen[bytes]:
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
    with (hosts.parent / f"worker-{rank}.txt").open("wb") as said:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def _soon(process: subprocess.Popen[bytes]) -> int | None:
    """How a process ended, where it does so in these seconds."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _obituary(rank: int, size: int, code: int, folder: Path) -> str:
    if code < 0:
        try:
            how = f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was ended by signal {-code}"
        if -code == signal.SIGKILL:
            how += " (is the machine out of memory?)"
    else:
        how = f"ended with exit code {code}"
        path = folder / f"worker-{rank}.txt"
        lines = path.read_text(errors="replace").split("\n") if path.exists() else []
        said = next((line for line in reversed(lines) if line.strip()), "")
        how += f" ({said.removeprefix('Error: ').strip()})" if said else ""
    return f"worker {rank + 1} of {size} {how}; the run has stopped"
