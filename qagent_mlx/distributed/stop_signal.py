"""Stopping on a signal without losing anything.

A trainer asks `StopSignal.check` at its safe points, where weights and optimizer are those of
the last whole step. The first SIGTERM or Ctrl-C ends the run there; a second one ends the
process at once, and the last checkpoint remains.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import QAgentError

if TYPE_CHECKING:
    from .world import World


class Stopped(QAgentError):
    """A signal ended the run, after a checkpoint was written. ``number`` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class StopRequested(Exception):
    """Raised by `StopSignal.check`: leave the step, weights and optimizer are whole."""


class StopSignal:
    """Catches SIGTERM and SIGINT inside a ``with`` block."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # Python delivers signals to the main thread only; elsewhere somebody else has them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()  # the next one is not caught

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self, world: World | None) -> None:
        """Leave the step if a signal came to any worker.

        Args:
            world: All workers, which ask at the same place; None where they cannot agree.

        Raises:
            StopRequested: it did.
        """
        if world is None:
            return
        self.number = int(world.all_reduce_max(self.number))
        if self.number:
            raise StopRequested

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else ""
