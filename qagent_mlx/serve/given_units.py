"""What each process beside this one has been given, and which of them can take more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from .decode_process import WorkerProcess
from .decode_units import Unit, unread
from .worker_processes import UNITS_AHEAD

LEAD_SECONDS = 0.03  # before a process is done, in which the next unit's memory is read
OVERDUE_SECONDS = 2.0  # at least, behind the time when a unit should be done
RISK = 3.0  # times as long as expected a decode may well take
STUCK_SECONDS = 60.0  # after which a process that replies nothing is replaced


class GivenUnits:
    """The units that processes owe. One thread gives them; replies come in others."""

    def __init__(self) -> None:
        self._owed: dict[WorkerProcess, list[tuple[Unit, Future[Any]]]] = {}

    def __iter__(self) -> Iterator[Unit]:
        return iter([unit for owed in list(self._owed.values()) for unit, _ in list(owed)])

    @property
    def replies(self) -> list[Future[Any]]:
        """The replies that are owed."""
        return [reply for owed in self._owed.values() for _, reply in owed]

    @property
    def is_helped(self) -> bool:
        """Whether some process is there that replies in time."""
        return any(not self._is_stuck(process) for process in self._owed)

    def add(self, process: WorkerProcess, unit: Unit, reply: Future[Any], seconds: float) -> None:
        """A process has been given a unit, which takes it so many seconds behind what it has."""
        owed = self._owed.setdefault(process, [])
        unit.due = max([unit.start, *(earlier.due for earlier, _ in owed)]) + seconds
        unit.overdue = unit.due + max(OVERDUE_SECONDS, (RISK - 1) * seconds)
        owed.append((unit, reply))

    def of(self, process: WorkerProcess) -> list[Unit]:
        """What a process owes."""
        return [unit for unit, _ in self._owed.get(process, ())]

    def drop_done(self, ready: Sequence[WorkerProcess]) -> None:
        """Forget units with which all has been done, and processes that are not ready any more."""
        alive = set(ready)
        for process, owed in list(self._owed.items()):
            owed[:] = [(unit, reply) for unit, reply in owed if not unit.settled]
            if process not in alive and not owed:
                del self._owed[process]

    def free(self, ready: Sequence[WorkerProcess]) -> list[WorkerProcess]:
        """The processes that can take a unit, the idlest first."""
        for process in ready:
            self._owed.setdefault(process, [])
        now = time.monotonic()
        free = [p for p in ready if not self._owed[p] or self._is_nearly_done(p, now)]
        return sorted(free, key=lambda process: len(self._owed[process]))

    def _is_nearly_done(self, process: WorkerProcess, now: float) -> bool:
        """Whether a process can get the next unit ahead."""
        units = self.of(process)
        is_due = all(now >= unit.due - LEAD_SECONDS for unit in units)
        return len(units) < UNITS_AHEAD and is_due and not self._is_stuck(process)

    def _is_stuck(self, process: WorkerProcess) -> bool:
        """Whether a process owes what was taken back from it."""
        return any(unit.taken_back and not unit.settled for unit in self.of(process))

    def overdue(self) -> Iterator[tuple[WorkerProcess, list[Unit], bool]]:
        """Processes that should be done for long, with all that they owe, the last unit first.

        With each goes whether it has been so for so long that another one should be there for it.
        """
        now = time.monotonic()
        for process in list(self._owed):
            units = [unit for unit in self.of(process) if not unit.settled]
            if any(now >= unit.overdue for unit in units):
                is_lost = any(now >= unit.overdue + STUCK_SECONDS for unit in units)
                yield process, units[::-1], is_lost

    def next_moment(self, *, somebody_waits: bool) -> float:
        """When somebody's patience ends, a unit is overdue, or a process can take who waits."""
        moments = [unit.patience for unit in self if any(unread(unit))]
        moments += [unit.overdue for unit in self if not unit.taken_back]
        if somebody_waits:
            # A process that is late already calls by its reply.
            now = time.monotonic()
            begins = (unit.due - LEAD_SECONDS for unit in self)
            moments += [begin for begin in begins if begin > now]
        return min(moments, default=float("inf"))
