"""Units of work: requests that one process decodes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..agent.recommend import RecommendRequest
from .pace import DecodePace
from .requests import PendingRequest

Asked = Sequence[tuple[PendingRequest, RecommendRequest]]


@dataclass(slots=True)
class Shared:
    """Requests of one user that ask the same at the same time: decoded once."""

    request: RecommendRequest
    waiting: list[PendingRequest] = field(default_factory=list)


@dataclass(slots=True)
class Unit:
    """Requests that one process decodes together.

    Attributes:
        shared: The requests.
        policy: The policy's name and version when it was begun.
        start: When it was begun.
        patience: When memory's lines are read for those who may not get more in time.
        due: When its process will be done with it, by what decodes took lately.
        overdue: When somebody else does it: its process may be stopped, or get no core.
        taken_back: Whether that has happened. Its reply still counts if it comes first.
        void: Users who did something since; None where all is void that was computed before.
        settled: Whether all has been done with its reply.
    """

    shared: list[Shared]
    policy: tuple[str, int | None]
    start: float
    patience: float
    due: float = 0.0
    overdue: float = float("inf")
    taken_back: bool = False
    void: set[str] | None = field(default_factory=set)
    settled: bool = False

    @property
    def requests(self) -> list[RecommendRequest]:
        """What is decoded."""
        return [s.request for s in self.shared]

    @property
    def asked(self) -> list[tuple[PendingRequest, RecommendRequest]]:
        """Who waits, and for what."""
        return [(waiting, s.request) for s in self.shared for waiting in s.waiting]

    @property
    def chains(self) -> int:
        """How many chains run."""
        return sum(s.request.group for s in self.shared)


def fit_in_time(
    asked: Asked, pace: DecodePace, begin: float
) -> tuple[list[Shared], list[tuple[PendingRequest, RecommendRequest]]]:
    """What can be decoded before the deadlines, with fewer chains if need be, and what cannot.

    Args:
        asked: Who waits, and for what.
        pace: How long decodes take.
        begin: When the decode begins, a time of `time.monotonic`.
    """
    shortest = pace.seconds(len(asked))  # with a single chain for each
    in_time, late = [], []
    for waiting, request in asked:
        if waiting.deadline - begin >= shortest:
            in_time.append((waiting, request))
        else:
            late.append((waiting, request))
    if not in_time:
        return [], late
    chains = pace.chains(min(w.deadline for w, _ in in_time) - begin)
    share = min(1.0, max(0.0, chains / sum(w.chains for w, _ in in_time)))
    shared: dict[tuple[Any, ...], Shared] = {}
    for waiting, request in in_time:
        request = replace(request, group=max(1, int(request.group * share)))
        key = (waiting.user, waiting.key)
        shared.setdefault(key, Shared(request)).waiting.append(waiting)
    return list(shared.values()), late


def unread(unit: Unit) -> Iterable[tuple[PendingRequest, RecommendRequest]]:
    """Those of a unit who wait without knowing what memory alone answers."""
    return ((w, r) for w, r in unit.asked if w.fallback is None and not w.future.done())
