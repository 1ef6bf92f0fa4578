"""Chains in time: what can be decoded before the deadlines is, here or in other processes.

Who waits is answered in units. A process beside this one gets the next unit when it is nearly done
with the one that it computes: so it never idles while this process reads memory and writes replies,
and who comes meanwhile is in one unit with the others, as a large one costs less for each. What the
processes cannot take yet waits here. A unit that takes much longer than it should is taken back,
and its process gets no other until it has replied. Without processes that reply this one decodes
itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ..agent.recommend import Recommender
from ..errors import QAgentError
from ..types import Slate
from .config import ServeConfig
from .decode_process import LOST, WorkerProcess
from .decode_units import Asked, Unit, fit_in_time, unread
from .given_units import RISK, GivenUnits
from .metrics import Metrics
from .pace import DecodePace
from .requests import PendingRequest, RecommendResponse
from .served_policy import ServedPolicy
from .worker_processes import WorkerPool

log = logging.getLogger("qagent.serve")

WATCHED_RISK = 1.5  # the same of a decode beside which this process is free
UNIT_USERS = 16  # of a process's unit, at most: who comes next waits for all of it


class _Abandoned(Exception):
    """No client waits for this decode any more."""


class TimedDecoder:
    """Decodes for those who wait, or falls back to memory's lines. For the worker's thread.

    Args:
        recommender: Decodes in this process.
        pool: The processes beside it.
        config: Seed of the sampling.
        metrics: Counts what was done.
        policy: The one that recommends.
        later: Runs something in the worker's thread; any thread may call it.

    Attributes:
        pace: How long decodes take.
        prepare: What to ask for those who wait, of those whom chains shall answer.
        remember: Keeps an answer.
        is_pool_stale: The processes do not know the newest products yet.
    """

    prepare: Callable[[Sequence[PendingRequest]], Asked]
    remember: Callable[[PendingRequest, RecommendResponse], None]

    def __init__(
        self,
        recommender: Recommender,
        pool: WorkerPool,
        config: ServeConfig,
        metrics: Metrics,
        policy: ServedPolicy,
        later: Callable[[Callable[[], Any]], object],
    ) -> None:
        self._recommender, self._pool, self._config = recommender, pool, config
        self._metrics, self._policy, self._later = metrics, policy, later
        self.pace = DecodePace()
        self.is_pool_stale = False
        self._waiting: deque[PendingRequest] = deque()
        self._given = GivenUnits()
        self._remembering = threading.Lock()  # replies are received in other threads

    @property
    def waiting(self) -> int:
        """How many requests no process has begun with."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether somebody waits, here or for another process."""
        self._given.drop_done(self._pool.ready)
        return bool(self._waiting or any(not unit.taken_back for unit in self._given))

    def decode(self, pending: Iterable[PendingRequest]) -> None:
        """Answer requests; the future of each is set as soon as its answer is known."""
        self._waiting += pending
        self.go_on()

    def go_on(self) -> None:
        """Give those who wait to processes that can take them, or decode for them here."""
        self._pool.look_after()
        self._take_back()
        while self._waiting:
            free = self._free()
            is_alone = len(self._waiting) == 1 and not any(True for _ in self._given)
            is_helped = self._given.is_helped and not self.is_pool_stale
            if not free and not is_alone and is_helped:
                break  # all have enough to do
            here = is_alone or not free
            unit = self._take(self._config.batch if here else self._share(free))
            if not unit:
                continue
            try:
                if here:
                    self._decode_here(unit)
                else:
                    self._give(free[0], unit)
            except BaseException as error:
                _fail(unit, error)
        self._read_in_time()

    def pause(self) -> float:
        """Seconds until `go_on` may have something to do; infinite where nobody waits."""
        waits = bool(self._waiting) and not self.is_pool_stale
        return max(0.0, self._given.next_moment(somebody_waits=waits) - time.monotonic())

    def finish(self) -> None:
        """Answer all who wait."""
        while self.busy:
            self.go_on()
            wait(self._given.replies, timeout=min(1.0, self.pause()))

    def forget(self, users: Iterable[str] | None, drop: Callable[[], None]) -> None:
        """What is being computed of users is not to be kept; None: of all.

        ``drop`` drops what was kept; no answer of before is kept behind it.
        """
        with self._remembering:
            named = None if users is None else set(users)
            for unit in self._given:
                if named is None:
                    unit.void = None
                elif unit.void is not None:
                    unit.void |= named
            drop()

    def note_stages(self, pending: Iterable[PendingRequest], seconds: Mapping[str, float]) -> None:
        """Note what a unit spent, for each of those who waited for it."""
        for waiting in pending:
            if waiting.interrupted is None:
                for stage, spent in seconds.items():
                    self._metrics.stages.labels(stage).observe(spent)

    def read_fallbacks(self, asked: Asked) -> None:
        """What memory alone answers, for those who may not get more in time."""
        missing = [(waiting, r) for waiting, r in asked if waiting.fallback is None]
        if not missing:
            return
        start = time.monotonic()
        lines = self._recommender.recommend_from_memory([request for _, request in missing])
        for (waiting, request), line in zip(missing, lines, strict=True):
            waiting.fallback = RecommendResponse(
                line, "top-line", request.as_of, self._policy.name, self._policy.version
            )
        self.note_stages([w for w, _ in missing], {"fallback": time.monotonic() - start})

    def fall_back(self, late: Asked) -> None:
        """Answer from memory those for whose chains there is no time."""
        self.read_fallbacks(late)
        for waiting, _ in late:
            if waiting.fallback is not None:
                _answer(waiting, replace(waiting.fallback, reason="deadline"))

    def _free(self) -> list[WorkerProcess]:
        """The processes that can take a unit, the idlest first."""
        ready = self._pool.ready
        self._given.drop_done(ready)
        return [] if self.is_pool_stale else self._given.free(ready)

    def _take_back(self) -> None:
        """Take units back from processes that should be done for long, and replace stuck ones."""
        for process, units, is_lost in self._given.overdue():
            if not all(unit.taken_back for unit in units):
                log.warning("process %s is late; others do what it was given", process.pid)
            for unit in units:
                self._return(unit)
            if is_lost:
                self._pool.replace(process)

    def _return(self, unit: Unit) -> None:
        """Let those wait again who waited for a unit; nothing where that was done before."""
        with self._remembering:
            if unit.taken_back:
                return
            unit.taken_back = True
        self._waiting.extendleft(reversed([waiting for waiting, _ in unit.asked]))

    def _share(self, free: Sequence[WorkerProcess]) -> int:
        """How many of those who wait the first of the free processes takes."""
        owed = [len(self._given.of(process)) for process in free]
        alike = owed.count(owed[0])
        return min(UNIT_USERS, self._config.batch, -(-len(self._waiting) // alike))

    def _take(self, users: int) -> list[PendingRequest]:
        """The next of those who wait, but for those who have got something else meanwhile."""
        taken = [self._waiting.popleft() for _ in range(min(users, len(self._waiting)))]
        return [w for w in taken if not w.given_up and not w.future.done()]

    def _begin(
        self, pending: Sequence[PendingRequest], seconds_before: float, here: bool = False
    ) -> Unit | None:
        """Read memory, and see what can be decoded in time; None where nothing can.

        Args:
            pending: Who waits.
            seconds_before: What the process has to compute first.
            here: Whether this process decodes.
        """
        start = time.monotonic()
        for waiting in pending:
            self.note_stages([waiting], {"queue": start - waiting.submitted})
        asked = self.prepare(pending)
        shared, late = fit_in_time(asked, self.pace, time.monotonic() + seconds_before)
        self.fall_back(late)
        if not shared:
            return None
        self.note_stages(
            [w for s in shared for w in s.waiting], {"memory": time.monotonic() - start}
        )
        unit = Unit(shared, (self._policy.name, self._policy.version), time.monotonic(), 0.0)
        # Where the time may not be enough, somebody else can tell what memory knows.
        left = min(waiting.deadline for waiting, _ in unit.asked) - unit.start
        takes = seconds_before + self.pace.seconds(unit.chains)
        # What others decode is looked after, so memory's lines can wait for longer there.
        risk = RISK if here else WATCHED_RISK
        unit.patience = unit.start + (0.0 if left < risk * takes else left / 2)
        return unit

    def _decode_here(self, pending: Sequence[PendingRequest]) -> None:
        """Run the chains of a unit in this process."""
        unit = self._begin(pending, 0.0, here=True)
        if unit is None:
            return
        asked = unit.asked

        def progress(_done: int) -> None:
            if all(waiting.abandoned for waiting, _ in asked):
                raise _Abandoned
            if time.monotonic() >= unit.patience:
                self.read_fallbacks(asked)
            self._read_in_time()

        before = dict(self._recommender.spent)
        try:
            progress(0)
            results = self._recommender.answer(unit.requests, self._config.seed, progress)
        except _Abandoned:
            if all(waiting.interrupted is None for waiting, _ in asked):
                self.pace.slow_down()
            return  # nobody looks at their futures
        except Exception:
            self.read_fallbacks(asked)
            raise
        spent = {name: s - before[name] for name, s in self._recommender.spent.items()}
        self._settle(unit, [r.recommendations for r in results], spent)

    def _give(self, process: WorkerProcess, pending: Sequence[PendingRequest]) -> None:
        """Let another process run the chains of a unit."""
        before = sum(self.pace.seconds(unit.chains) for unit in self._given.of(process))
        unit = self._begin(pending, before)
        if unit is None:
            return
        reply = self._pool.ask(process, (unit.requests, self._config.seed))
        if reply is None:
            self._waiting.extendleft(reversed([waiting for waiting, _ in unit.asked]))
            return
        self._given.add(process, unit, reply, self.pace.seconds(unit.chains))
        reply.add_done_callback(partial(self._receive, process, unit))

    def _receive(self, process: WorkerProcess, unit: Unit, reply: Future[Any]) -> None:
        """Take what a process has computed; in a thread of its own, as the worker may decode."""
        try:
            received, spent = reply.result()
            self._settle(unit, [recommendations for recommendations, _ in received], spent)
        except LOST as error:
            self._return(unit)
            self._later(partial(self._lost, process, error))
        except BaseException as error:
            self._later(partial(self._failed, unit, error))
        finally:
            unit.settled = True
        if self._waiting:
            self._later(self.go_on)

    def _lost(self, process: WorkerProcess, error: BaseException) -> None:
        self._pool.remove(process, error)
        self.go_on()

    def _failed(self, unit: Unit, error: BaseException) -> None:
        asked = unit.asked
        try:
            self.read_fallbacks(asked)
        finally:
            _fail([waiting for waiting, _ in asked], error)

    def _settle(self, unit: Unit, slates: Sequence[Slate], spent: Mapping[str, float]) -> None:
        """Answer those who waited for a unit."""
        seconds = time.monotonic() - unit.start
        computing = sum(spent.values())
        # What is left was spent waiting for the process, above all.
        self.note_stages(
            [waiting for waiting, _ in unit.asked],
            {**spent, "others": max(0.0, seconds - computing)},
        )
        if not unit.taken_back:  # else it measures how long the process was stopped
            self.pace.observe(unit.chains, computing)
        self._metrics.batch.observe(len(unit.shared))
        self._metrics.decode.observe(seconds)
        self._metrics.chains.inc(unit.chains)
        for s, slate in zip(unit.shared, slates, strict=True):
            response = RecommendResponse(
                slate, "agent", s.request.as_of, *unit.policy, s.request.group
            )
            for waiting in s.waiting:
                final = waiting.mix(response) if waiting.mix else response
                with self._remembering:
                    is_good = unit.void is not None and waiting.user not in unit.void
                    # Not one that had to be cut short either.
                    if is_good and response.chains == waiting.chains:
                        self.remember(waiting, final)
                _answer(waiting, final)

    def _read_in_time(self) -> None:
        """Read memory's lines for those whose patience has ended while a process computes."""
        now = time.monotonic()
        for unit in self._given:
            if now >= unit.patience:
                self.read_fallbacks(list(unread(unit)))


def _answer(waiting: PendingRequest, response: RecommendResponse) -> None:
    """Answer a request, unless it is: two work at a unit that was taken back, in two threads."""
    with suppress(InvalidStateError):
        waiting.future.set_result(response)


def _fail(pending: Iterable[PendingRequest], error: BaseException) -> None:
    if not isinstance(error, QAgentError):
        log.error("the worker met an error", exc_info=error)
    for waiting in pending:
        with suppress(InvalidStateError):
            waiting.future.set_exception(error)
