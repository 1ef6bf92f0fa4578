"""Signals while a server starts and answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="looks at what a process ignores"
)


def start(folder, *options):
    command = [sys.executable, "-m", "qagent_mlx", "serve", "--policy", "a", "--port", "0"]
    return subprocess.Popen(
        [*command, "--shop", str(folder), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ready(server):
    """The address, once it answers."""
    for line in server.stderr:
        if " on http://" in line:
            return line.partition(" on ")[2].split()[0]
    raise AssertionError("the server ended")


def imported(server):
    """Wait until the command runs: before, Python itself decides what signals do."""
    deadline = time.monotonic() + 60
    mask = 1 << (signal.SIGHUP - 1)
    while time.monotonic() < deadline:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        ignored = next(line for line in lines if line.startswith("SigIgn"))
        if int(ignored.split()[1], 16) & mask:
            return
        time.sleep(0.01)
    raise AssertionError("SIGHUP is never ignored")


@needs_proc
def test_hangups_while_starting_are_no_end_and_later_load_the_policy_again(own_folder):
    server = start(own_folder)
    try:
        imported(server)
        for _ in range(20):
            server.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        address = ready(server)
        server.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(f"{address}/healthz", timeout=20) as reply:
            assert reply.status == 200
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == -signal.SIGTERM
        server.stderr.close()


@needs_proc
@pytest.mark.parametrize("pause", [0.0, 0.8])
def test_a_server_that_is_stopped_while_it_starts_says_nothing(own_folder, pause):
    server = start(own_folder, "--workers", "3")
    imported(server)
    time.sleep(pause)
    server.send_signal(signal.SIGTERM)
    # Its processes hold the same stderr: it ends when the last of them does.
    assert server.communicate(timeout=60)[1] == ""
    assert server.returncode == -signal.SIGTERM
