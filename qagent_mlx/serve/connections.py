"""Connections before their requests: none waits for ever, and there is room for the next one.

A client that has sent no token yet may hold a connection open and say nothing, or send its
headers a byte at a time. So a request's headers must have come in time, there are only so many
connections, and when there are more, the client with the most of them that ask nothing loses one.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # in which a request's headers must have come
ANSWER_SECONDS = 180.0  # in which it must be answered and the answer be taken
RESERVED_FILES = 256  # for everything but connections: the shop, the policy, the processes


class GuardedConnection(H11Protocol):
    """uvicorn's connection, which closes itself when no request comes.

    Attributes:
        most: Connections of a server, at most; `protocol` sets it.
        idle_since: When it was opened, or its last request was answered.
    """

    most = 500

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.idle_since = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._times_headers = True  # else the answer

    @property
    def is_idle(self) -> bool:
        """Whether it asks nothing now."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        # asyncio asks for it only of sockets that name their protocol, which those of a listening
        # socket do not. Without it a reply's body waits for the client's delayed ACK of its
        # headers, 40 ms on Linux.
        if connected := transport.get_extra_info("socket"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer()
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Read what has come of a request."""
        super().data_received(data)
        if self._timer is None or self._times_headers != self.is_idle:
            self._start_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.idle_since = time.monotonic()
        self._stop_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        """Time a request from its first byte to its last header, and from there to its answer."""
        self._stop_timer()
        self._times_headers = self.is_idle
        if not self.transport.is_closing():
            seconds = HEADER_SECONDS if self._times_headers else ANSWER_SECONDS
            self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abort()

    def _make_room(self) -> None:
        """Close the oldest idle connection of the client that has the most of them."""
        idle = [c for c in self.connections if isinstance(c, GuardedConnection) and c.is_idle]
        count = Counter(connection.client and connection.client[0] for connection in idle)
        worst = max(
            idle, key=lambda c: (count[c.client and c.client[0]], c is not self, -c.idle_since)
        )
        # It counts no longer from now on; the loop calls `connection_lost` later.
        self.connections.discard(worst)
        worst.transport.abort()


def protocol(connections: int) -> type[GuardedConnection]:
    """The class of a server's connections, at most so many as the system's open files allow."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_FILES
    if files < wanted:
        with contextlib.suppress(ValueError, OSError):
            files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = min(connections, max(1, files - RESERVED_FILES)) if files > 0 else connections

    class Connection(GuardedConnection):
        most = allowed

    return Connection
