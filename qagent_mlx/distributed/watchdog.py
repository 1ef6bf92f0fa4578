"""Notices that a worker on another machine has ended while this one waits for it.

MLX's ring does not always: a worker can wait for ever for one that is gone. So the first worker
keeps a connection to each other one, over which nothing is ever sent: the operating system closes
it with the process at its far end, whatever ended that. A worker that still waits for the others
some seconds later ends.
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
_TOKEN_BYTES = 16


class Watchdog:
    """The connections of one worker, and whether it waits for others.

    After a connection has closed it waits for ``patience`` seconds more, prints ``last_words`` to
    stderr and ends the process.
    """

    def __init__(self, last_words: str, patience: float = PATIENCE) -> None:
        self.last_words, self.patience = last_words, patience
        self._waiting_since: float | None = None
        self._connections: list[socket.socket] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block this worker needs an answer of all others."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def follow(self, connection: socket.socket) -> None:
        """End this process if it waits for others after the far end has gone."""
        connection.settimeout(None)
        _keep_alive(connection)
        self._connections.append(connection)
        threading.Thread(target=self._follow, args=(connection,), daemon=True).start()

    def _follow(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1):
                pass
        closed = time.monotonic()
        while True:
            since = self._waiting_since
            if since is not None and time.monotonic() - max(since, closed) > self.patience:
                # The main thread waits inside MLX and cannot be woken.
                print(f"Error: {self.last_words}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(0.2)


def connect(
    watchdog: Watchdog, is_first: bool, size: int, all_gather: Callable[[str], list[str]]
) -> None:
    """Connect the first worker with the others; all of them call this.

    ``all_gather`` gives every worker's text to all, by rank (`World.all_gather_texts`).
    """
    server, address = None, ""
    if is_first:
        token = secrets.token_hex(_TOKEN_BYTES // 2)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            host = _own_host()
            server = socket.create_server((host, 0))
            address = json.dumps([host, server.getsockname()[1], token])
    first_address = all_gather(address)[0].strip()
    if server is not None:
        threading.Thread(
            target=_accept, args=(watchdog, server, size - 1, token.encode()), daemon=True
        ).start()
    elif first_address and not is_first:
        host, port, token = json.loads(first_address)
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=CONNECTING)
            connection.sendall(token.encode())
            watchdog.follow(connection)


def _own_host() -> str:
    """The first worker's address in the hosts file of MLX's ring."""
    address = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())[0][0]
    host, _, _ = str(address).rpartition(":")
    return host


def _accept(watchdog: Watchdog, server: socket.socket, count: int, token: bytes) -> None:
    """Follow the connections of ``count`` workers, which know the token."""
    with server, contextlib.suppress(OSError):
        deadline = time.monotonic() + CONNECTING
        while count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            connection, _ = server.accept()
            connection.settimeout(1.0)
            with contextlib.suppress(OSError):
                if hmac.compare_digest(connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL), token):
                    watchdog.follow(connection)
                    count -= 1
                    continue
            connection.close()


def _keep_alive(connection: socket.socket) -> None:
    """Notice within a minute that the far machine has lost its power or its cable."""
    with contextlib.suppress(OSError):  # not every socket and system knows these options
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
        for name, value in ((idle, 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
