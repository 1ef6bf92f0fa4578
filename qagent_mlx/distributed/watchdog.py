"""Notices that a worker on another machine has ended while this one waits for it.

MLX's ring does not always: a worker that waits for one that is gone can wait for ever. So the
first worker keeps a connection to each other one, over which nothing is ever sent: the system
closes it with the process at its far end, whatever ended that. What still waits for the others
some seconds later will not get an answer, and ends.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 5.0  # seconds that what is under way still has to arrive
CONNECTING = 20.0  # seconds to connect in; without a connection the ring is all there is
_TOKEN = 16


class Watchdog:
    """The connections of one worker, and whether it waits for others."""

    def __init__(self, epitaph: str, patience: float = PATIENCE) -> None:
        self.epitaph, self.patience = epitaph, patience
        self._since: float | None = None
        self._kept: list[socket.socket] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block this worker needs an answer of all others."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def follow(self, connection: socket.socket) -> None:
        """End this process if it waits for others after the far end has gone."""
        connection.settimeout(None)
        _keep_alive(connection)
        self._kept.append(connection)
        threading.Thread(target=self._follow, args=(connection,), daemon=True).start()

    def _follow(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1):
                pass
        gone = time.monotonic()
        while True:
            since = self._since
            if since is not None and time.monotonic() - max(since, gone) > self.patience:
                # The main thread waits inside MLX and cannot be woken.
                print(f"Error: {self.epitaph}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(0.2)


def connect(lifeline: Watchdog, first: bool, size: int, share: Callable[[str], list[str]]) -> None:
    """Connect the first worker with the others; all of them call this.

    Args:
        lifeline: Of this worker.
        first: Whether this is the first worker.
        size: How many there are.
        share: Gives every worker's text to all, by rank (`distributed.World.texts`).
    """
    server, said = None, ""
    if first:
        token = secrets.token_hex(_TOKEN // 2)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            host = _own_host()
            server = socket.create_server((host, 0))
            said = json.dumps([host, server.getsockname()[1], token])
    told = share(said)[0].strip()
    if server is not None:
        threading.Thread(
            target=_accept, args=(lifeline, server, size - 1, token.encode()), daemon=True
        ).start()
    elif told and not first:
        host, port, token = json.loads(told)
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=CONNECTING)
            connection.sendall(token.encode())
            lifeline.follow(connection)


def _own_host() -> str:
    """The first worker's address, where the hosts file of MLX's ring says it."""
    address = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())[0][0]
    host, _, _ = str(address).rpartition(":")
    return host


def _accept(lifeline: Watchdog, server: socket.socket, count: int, token: bytes) -> None:
    with server, contextlib.suppress(OSError):
        until = time.monotonic() + CONNECTING
        while count and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            connection, _ = server.accept()
            connection.settimeout(1.0)
            with contextlib.suppress(OSError):
                if hmac.compare_digest(connection.recv(_TOKEN, socket.MSG_WAITALL), token):
                    lifeline.follow(connection)
                    count -= 1
                    continue
            connection.close()


def _keep_alive(connection: socket.socket) -> None:
    """Notice within a minute that the far machine has lost its power or its cable."""
    with contextlib.suppress(OSError):  # not every socket and system knows them
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for names, value in (
            (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 30),
            (("TCP_KEEPINTVL",), 10),
            (("TCP_KEEPCNT",), 3),
        ):
            known = [getattr(socket, name) for name in names if hasattr(socket, name)]
            if known:
                connection.setsockopt(socket.IPPROTO_TCP, known[0], value)
