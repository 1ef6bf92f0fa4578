"""What every request passes: an id, the token, the rate, a log line and the counters."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServeConfig
from .metrics import Metrics

log = logging.getLogger("qagent.serve")

OPEN = ("/healthz",)  # what a load balancer asks without a token
CLIENTS = 10_000  # whose rates are remembered
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RateLimiter:
    """A bucket of tokens for each client, filled at a rate.

    Args:
        rate: Requests a second; 0 for no limit.
        burst: Requests at once.
        clock: Gives seconds; for tests.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, max(burst, 1.0), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take one token; 0, or the seconds until there is one."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        left, at = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[client] = (left - allowed, now)
        if len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class RequestGuard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._token = config.token.encode()
        self._rates = RateLimiter(config.rate, config.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = name
        began = time.perf_counter()
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = name
                added["X-Content-Type-Options"] = "nosniff"  # text from data is never a page
            await send(message)

        refused = self._refused(scope, headers)
        try:
            if refused is not None:
                await _refuse(sending, name, *refused)
            else:
                await self.app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            # The route's pattern, not the path: users' ids belong in no log.
            route = getattr(scope.get("route"), "path", "refused" if refused else "none")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info(
                "id=%s method=%s route=%s status=%d ms=%.1f",
                name,
                scope["method"],
                route,
                status,
                seconds * 1000,
            )

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        wait = self._rates.wait((scope.get("client") or ("", 0))[0])
        if wait:
            seconds = str(max(1, round(wait + 0.5)))
            return 429, "too many requests; wait a little", {"retry-after": seconds}
        if self._token and scope["path"] not in OPEN:
            kind, _, token = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token)
            if kind.lower() != "bearer" or not same:
                text = "send the token as: Authorization: Bearer TOKEN"
                return 401, text, {"www-authenticate": "Bearer"}
        return None


async def _refuse(
    send: Callable[[Message], Any], name: str, status: int, text: str, headers: dict[str, str]
) -> None:
    body = json.dumps({"error": text, "request_id": name}).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(k.encode(), v.encode()) for k, v in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
