"""Answers within a deadline: from the cache, from the worker, or the best that is at hand."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..agent.recommend import recommendations_to_dicts
from .config import ServeConfig
from .metrics import Metrics
from .worker import PendingRequest, RecommendResponse, Worker

MARGIN = 0.01  # seconds kept for writing the answer


class Service:
    """What the routes ask.

    Args:
        worker: Started.
        config: Deadline and queue.
    """

    def __init__(self, worker: Worker, config: ServeConfig) -> None:
        self.worker, self.config = worker, config
        self.metrics: Metrics = worker.metrics

    async def recommend(
        self, user: str, k: int, chains: int, deadline_ms: float, as_of: datetime | None = None
    ) -> dict[str, Any]:
        """Recommendations in time: what the agent says, or a fallback that is marked as one."""
        began = time.monotonic()
        request = PendingRequest(user, k, chains, began + deadline_ms / 1000 - MARGIN, as_of)
        answer = self.worker.cache.get(user, request.key)
        self.metrics.cache.labels("hit" if answer else "miss").inc()
        if answer is not None:
            answer = replace(answer, cached=True)
        elif self.worker.waiting >= self.config.queue:
            answer = self._fallback(request, "overload")
        else:
            answer = await self._ask(request)
        self.metrics.answers.labels("cache" if answer.cached else answer.source).inc()
        if answer.source != "agent":
            self.metrics.fallbacks.labels(answer.reason).inc()
        return {
            "user": user,
            "as_of": answer.as_of.isoformat() if answer.as_of else None,
            "recommendations": recommendations_to_dicts(
                answer.recommendations[:k], self.worker.titles
            ),
            "source": answer.source,
            "fallback": answer.source != "agent",
            "reason": answer.reason,
            "policy": answer.policy,
            "chains": answer.chains,
            "cached": answer.cached,
            "latency_ms": round((time.monotonic() - began) * 1000, 1),
        }

    async def _ask(self, request: PendingRequest) -> RecommendResponse:
        self.worker.submit(request)
        waiter = asyncio.wrap_future(request.future)
        left = max(0.0, request.deadline - time.monotonic())
        done, _ = await asyncio.wait({waiter}, timeout=left)
        if not done:
            request.given_up = True
            # Nobody listens to what comes too late; an error in it was logged by the worker.
            waiter.add_done_callback(_ignored)
            return self._fallback(request, "deadline")
        if waiter.exception() is not None:
            return self._fallback(request, "error")
        return waiter.result()

    def _fallback(self, request: PendingRequest, reason: str) -> RecommendResponse:
        """The user's memory without the agent where it was read, else what is trending."""
        found = request.fallback or self.worker.trending
        if found is None:
            return RecommendResponse((), "trending", None, self.worker.policy, reason=reason)
        return replace(found, reason=reason)


def _ignored(waiter: asyncio.Future[RecommendResponse]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        waiter.exception()
