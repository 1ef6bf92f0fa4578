"""Responses within a deadline: from the cache, from the worker, or the best fallback at hand."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from ..agent.suggest import Suggestion
from ..live.off_policy import propensities, shuffled
from ..live.shown import ShownAnswer, new_recommendation_id
from ..utils.stamps import utc_now
from .config import ServeConfig
from .requests import PendingRequest, RecommendResponse
from .schema import Reason, RecommendedQuery, RecommendReply, SuggestedQuery, SuggestReply
from .worker import Worker

COMPLETION_SECONDS = 0.003  # for which a completion may hold up the event loop, on average
PERSONAL_SECONDS = 0.008  # that a completion waits for what memory expects of its user
WRITE_SECONDS = 0.01  # of a deadline: what it takes to write the response


class Service:
    """Answers requests for queries in time; the routes use it.

    Args:
        worker: Started.
        config: Deadline and queue.
    """

    def __init__(self, worker: Worker, config: ServeConfig) -> None:
        self.worker, self.config = worker, config
        self.metrics = worker.metrics
        self._chance = np.random.default_rng()
        self._completing = 0.0  # seconds of processor time that completions took lately

    async def recommend(
        self, user: str, k: int, chains: int, deadline_ms: float, as_of: datetime | None = None
    ) -> RecommendReply:
        """Recommendations in time: the agent's, or a fallback that is marked as one."""
        start = time.monotonic()
        deadline = start + deadline_ms / 1000 - WRITE_SECONDS
        request = PendingRequest(user, k, chains, deadline, as_of, submitted=start)
        responder = self.worker.responder
        response = responder.ready(request)
        is_ready = response is not None
        self.metrics.cache.labels("hit" if is_ready else "miss").inc()
        if response is not None:
            if response.thought_before:
                self.metrics.thought_age.observe(start - response.made)
        elif self.worker.waiting >= self.config.queue:
            response = self._fallback(request, "overload")
        else:
            response = await self._wait(request)
        fallback = response.source != "agent" and response.reason != "experiment"
        self.metrics.answers.labels(_origin(response)).inc()
        known = time.monotonic()
        if fallback:
            self.metrics.fallbacks.labels(response.reason).inc()
        shown = replace(
            response, recommendations=response.recommendations[:k], teams=response.teams[:k]
        )
        order = list(range(len(shown.recommendations)))
        if self.config.explore and as_of is None and not shown.teams:
            if self._chance.random() < self.config.explore:
                order = shuffled(len(order), self._chance)
            shown = replace(
                shown, recommendations=tuple(shown.recommendations[rank] for rank in order)
            )
        latency_ms = round((time.monotonic() - start) * 1000, 1)
        recommendation_id = (
            None if as_of is not None else self._record(user, shown, order, latency_ms)
        )
        queries = [r.to_dict(responder.titles) for r in shown.recommendations]
        reply = RecommendReply(
            recommendation_id=recommendation_id,
            user_id=user,
            user=user,
            as_of=response.as_of.isoformat() if response.as_of else None,
            recommendations=[RecommendedQuery(**query) for query in queries],
            source=response.source,
            fallback=fallback,
            reason=response.reason,
            policy=response.policy,
            version=response.version,
            chains=response.chains,
            cached=response.cached,
            thought_before=response.thought_before,
            age_seconds=round(max(0.0, start - response.made), 1) if is_ready else 0.0,
            latency_ms=latency_ms,
        )
        if response.source == "agent" and not is_ready:
            self.metrics.stages.labels("hand-off").observe(known - response.made)
            self.metrics.stages.labels("reply").observe(time.monotonic() - known)
        return reply

    def _record(
        self, user: str, response: RecommendResponse, order: Sequence[int], latency_ms: float
    ) -> str | None:
        """Record what a user is shown now; its id, None where nothing is recorded.

        ``order`` has the rank that the query at each position had before it was explored.
        """
        queries = tuple(r.query for r in response.recommendations)
        responder = self.worker.responder
        if not self.config.record or self.config.read_only:
            return None
        # A simulated shop lives in a time of its own.
        is_simulated = responder.shop.config.simulated is not None
        experiment = responder.experiment
        answer = ShownAnswer(
            new_recommendation_id(),
            user,
            responder.moment if is_simulated else utc_now(),
            queries,
            propensities(order, 0.0 if response.teams else self.config.explore),
            response.source,
            response.policy,
            response.version,
            experiment.name if experiment else None,
            experiment.arm(user) if experiment and experiment.kind == "split" else None,
            latency_ms,
            response.teams,
        )
        is_recorded = responder.store.record_shown(answer)
        self.metrics.shown.labels("recorded" if is_recorded else "lost").inc()
        return answer.recommendation_id if is_recorded else None

    async def suggest(self, user: str | None, prefix: str, k: int) -> SuggestReply:
        """Completions of a prefix, without waiting for what computes recommendations.

        What memory expects of a user comes in as soon as it was read, for the next letter at
        the latest.
        """
        start = time.monotonic()
        responder = self.worker.responder
        personal = responder.readings.personal(user) if user else None
        if user and personal is None:
            future = self.worker.call(lambda: responder.read_personal(user))
            waiter = asyncio.wrap_future(future)
            done, _ = await asyncio.wait({waiter}, timeout=PERSONAL_SECONDS)
            personal = waiter.result() if done else None
            if not done:
                waiter.add_done_callback(_ignore)
        profile, limits = personal or (None, responder.common.limits)
        response = responder.cache.latest(user) if user else None
        recommended = [r.query for r in response.recommendations] if response else []

        def complete() -> list[Suggestion]:
            began = time.thread_time()
            found = responder.common.completer.complete(prefix, profile, k, limits, recommended)
            self._completing += 0.1 * (time.thread_time() - began - self._completing)
            return found

        # To hand it to a thread and back takes longer than most completions do.
        is_short = self._completing < COMPLETION_SECONDS
        found = complete() if is_short else await asyncio.to_thread(complete)
        queries = [SuggestedQuery(s.query, s.source) for s in found]
        return SuggestReply(prefix, queries, round((time.monotonic() - start) * 1000, 1))

    async def _wait(self, request: PendingRequest) -> RecommendResponse:
        self.worker.submit(request)
        waiter = asyncio.wrap_future(request.future)
        seconds = max(0.0, request.deadline - time.monotonic())
        done, _ = await asyncio.wait({waiter}, timeout=seconds)
        if not done:
            request.given_up = True
            # What comes too late is dropped; an error in it was logged by the worker.
            waiter.add_done_callback(_ignore)
            return self._fallback(request, "deadline")
        if waiter.exception() is not None:
            return self._fallback(request, "error")
        return waiter.result()

    def _fallback(self, request: PendingRequest, reason: Reason) -> RecommendResponse:
        """The user's memory without the agent where it was read, else what is trending."""
        responder = self.worker.responder
        response = request.fallback or responder.common.trending
        if response is None:
            return RecommendResponse((), "trending", None, responder.served.name, reason=reason)
        return replace(response, reason=reason)


def _origin(response: RecommendResponse) -> str:
    """Where an answer came from, as it is counted."""
    if response.cached:
        return "cache"
    return "thought" if response.thought_before else response.source


def _ignore(waiter: asyncio.Future[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        waiter.exception()
