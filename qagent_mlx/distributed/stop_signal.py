"""Stop on a signal without losing anything.

A training loop asks `StopSignal.check` at its safe points, where weights and optimizer are those
of the last whole step. The first SIGTERM or Ctrl-C ends the run there; a second one ends the
process at once, and the last checkpoint remains.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from .world import World


class StopRequested(Exception):
    """Raised by `StopSignal.check`: leave the step; weights and optimizer are whole."""


class StopSignal:
    """Catches SIGTERM and SIGINT inside a ``with`` block, unless ``catch`` is false."""

    def __init__(self, catch: bool = True) -> None:
        self.number = 0
        # Python delivers signals to the main thread only; elsewhere another thread has them.
        self._catch = catch and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if self._catch:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._restore()  # a second signal is not caught

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def check(self, world: World) -> None:
        """Raise `StopRequested` if any worker received a signal; all ask at the same place."""
        self.number = int(world.all_reduce_max(self.number))
        if self.number:
            raise StopRequested

    @property
    def name(self) -> str:
        """The signal's name; empty before there was one."""
        return signal.Signals(self.number).name if self.number else ""
