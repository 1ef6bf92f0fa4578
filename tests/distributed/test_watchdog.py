import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from qagent_mlx.distributed import watchdog
from qagent_mlx.distributed.watchdog import Watchdog

WAITS = """
import socket, sys, time
from qagent_mlx.distributed.watchdog import Watchdog
here, there = socket.socketpair()
line = Watchdog("a worker is gone", patience=0.3)
line.follow(here)
there.close()
if sys.argv[1] == "works":
    time.sleep(1.5)  # needs nobody
    with line.waiting():
        pass  # what was under way came
else:
    with line.waiting():
        time.sleep(60)
print("done")
"""


@pytest.mark.parametrize("what", ["waits", "works"])
def test_only_who_waits_for_one_that_is_gone_ends(what):
    done = subprocess.run(
        [sys.executable, "-c", WAITS, what],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == (1 if what == "waits" else 0)
    assert done.stderr == ("Error: a worker is gone\n" if what == "waits" else "")
    assert done.stdout == ("" if what == "waits" else "done\n")


class Recorded(Watchdog):
    """Keeps connections without following them."""

    def __init__(self):
        super().__init__("never")

    def follow(self, connection):
        self._connections.append(connection)


def both(tmp_path, monkeypatch, between=lambda told: None):
    """The lifelines of two workers that share their texts."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"]]))
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    one, two = Recorded(), Recorded()
    meet, texts = threading.Barrier(2), {}

    def share(rank):
        def shared(text):
            texts[rank] = text
            meet.wait(20)
            return [texts[0], texts[1]]

        return shared

    first = threading.Thread(target=watchdog.connect, args=(one, True, 2, share(0)))
    first.start()

    def later(text):
        told = share(1)(text)
        between(told)
        return told

    watchdog.connect(two, False, 2, later)
    first.join()
    return one, two


def until(found):
    end = time.monotonic() + 20
    while not found() and time.monotonic() < end:
        time.sleep(0.02)
    return found()


def test_the_first_worker_is_connected_with_the_other(tmp_path, monkeypatch):
    one, two = both(tmp_path, monkeypatch)
    assert until(lambda: one._connections) and len(two._connections) == 1
    two._connections[0].close()
    assert one._connections[0].recv(1) == b""


def test_a_stranger_at_the_port_is_no_worker(tmp_path, monkeypatch):
    strangers = []

    def knock(told):
        host, port, _ = json.loads(told[0])
        strangers.append(socket.create_connection((host, port), timeout=20))
        strangers[0].sendall(b"x" * 16)

    one, two = both(tmp_path, monkeypatch, knock)
    assert until(lambda: one._connections) and len(one._connections) == 1
    assert strangers[0].recv(1) == b""
    assert one._connections[0].getpeername() == two._connections[0].getsockname()


def test_without_a_hosts_file_nothing_is_connected(tmp_path, monkeypatch):
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    line = Recorded()
    watchdog.connect(line, True, 2, lambda text: [text, ""])
    assert not line._connections
