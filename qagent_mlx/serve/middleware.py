"""Middleware around all routes: request ids, the token, rate limits, a log line, counters."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable

from cachetools import LRUCache
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServeConfig
from .metrics import Metrics

log = logging.getLogger("qagent.serve")

OPEN_PATHS = ("/healthz",)  # a load balancer has no token
CLIENTS = 10_000  # whose rates are remembered
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RateLimiter:
    """A token bucket for each client.

    Args:
        rate: Requests a second; 0 for no limit.
        burst: Requests at once.
        clock: Gives seconds; for tests.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, max(burst, 1.0), clock
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(CLIENTS)  # (tokens, time)

    def wait(self, client: str) -> float:
        """Take one token; returns 0, or the seconds until there is one."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        tokens, filled_at = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - filled_at) * self._rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        return 0.0 if allowed else (1 - tokens) / self._rate


def _network(host: str) -> str:
    """Whom a rate is for: an address, or of IPv6 the /64 network, all of which one client has."""
    if ":" not in host:
        return host
    try:
        return str(ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host


class RequestGuard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._token = config.token.encode()
        burst = 2 * config.rate if config.burst is None else config.burst
        self._rates = RateLimiter(config.rate, burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _ID.fullmatch(given_id) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-ID"] = request_id
                # A browser must not take text from data for a page.
                response_headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refusal = self._refusal(scope, headers, request_id)
        try:
            await (refusal or self.app)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            # The route's pattern, not the path: users' ids belong in no log.
            route = getattr(scope.get("route"), "path", "refused" if refusal else "none")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info(
                "id=%s method=%s route=%s status=%d ms=%.1f",
                request_id,
                scope["method"],
                route,
                status,
                seconds * 1000,
            )

    def _refusal(self, scope: Scope, headers: Headers, request_id: str) -> Response | None:
        """The response to a request that may not pass: too many of them, or a wrong token."""

        def refuse(status: int, text: str, extra: dict[str, str]) -> Response:
            return JSONResponse({"error": text, "request_id": request_id}, status, extra)

        wait = self._rates.wait(_network((scope.get("client") or ("", 0))[0]))
        if wait:
            seconds = str(max(1, round(wait + 0.5)))
            return refuse(429, "too many requests; wait a little", {"retry-after": seconds})
        if self._token and scope["path"] not in OPEN_PATHS:
            kind, _, token = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token)
            if kind.lower() != "bearer" or not same:
                text = "send the token as: Authorization: Bearer TOKEN"
                return refuse(401, text, {"www-authenticate": "Bearer"})
        return None
