"""The jobs that the worker thread takes from its queue, and what a request for queries gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..ingest.report import IngestReport
from ..live.experiments import Arm
from ..types import Recommendation
from .schema import Reason, Source


@dataclass(frozen=True, slots=True)
class RecommendResponse:
    """What a request gets.

    ``source`` is ``agent``, ``top-line`` (the user's memory without a chain) or ``trending``
    (what the shop searches for now); the last two are fallbacks and ``reason`` says why. Where two
    systems share the answer it is ``interleaved``, and ``teams`` says who named each query.
    ``made`` is a time of `time.monotonic`. ``thought_before`` says that it was computed before
    anybody asked.
    """

    recommendations: tuple[Recommendation, ...]
    source: Source
    as_of: datetime | None
    policy: str
    version: int | None = None
    chains: int = 0
    reason: Reason = ""
    cached: bool = False
    teams: tuple[Arm, ...] = ()
    made: float = field(default_factory=time.monotonic, compare=False)
    thought_before: bool = False


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for recommendations.

    ``deadline`` is a time of `time.monotonic`. ``fallback`` is set as soon as the user's
    memory was read and time is short; ``given_up`` is set when the client has got a fallback.
    ``mix`` makes the response of the agent's, where another system shares it. ``interrupted`` is
    there of a request that nobody made (`thinking`), and says when to leave it. ``submitted`` is a
    time of `time.monotonic`, too.
    """

    user: str
    k: int
    chains: int
    deadline: float
    as_of: datetime | None = None
    future: Future[RecommendResponse] = field(default_factory=Future)
    fallback: RecommendResponse | None = None
    given_up: bool = False
    mix: Callable[[RecommendResponse], RecommendResponse] | None = None
    interrupted: Callable[[], bool] | None = None
    submitted: float = 0.0

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.given_up or (self.interrupted is not None and self.interrupted())

    @property
    def key(self) -> tuple[Any, ...]:
        """What the response depends on, apart from the user."""
        return (self.k, self.chains, self.as_of)


@dataclass(slots=True, eq=False)
class PendingCall:
    """A function that runs in the worker thread."""

    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class PendingEvents:
    """Events that one client posted."""

    events: Sequence[Mapping[str, Any]]
    future: Future[IngestReport] = field(default_factory=Future)


Job = PendingRequest | PendingEvents | PendingCall
