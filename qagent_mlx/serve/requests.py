"""The jobs that the worker thread takes from its queue, and what a request for queries gets."""

from __future__ import annotations

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


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for recommendations.

    ``deadline`` is a time of `time.monotonic`. ``fallback`` is set as soon as the user's
    memory was read; ``given_up`` is set when the client has got a fallback. ``mix`` makes the
    response of the agent's, where another system shares it.
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
