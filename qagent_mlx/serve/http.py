"""The routes: they read and check requests, ask the service, and write JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import QAgentError
from ..inventory.product_search import search_products
from ..inventory.search import HybridSearch
from ..inventory.types import Filters
from ..policy.registry import SAMPLE, policy_names
from ..policy.shop_memory import inspect_memory
from ..utils.text import parse_utc
from .config import ServeConfig
from .metrics import CONTENT_TYPE
from .middleware import RequestGuard
from .openapi import openapi_document
from .service import Service
from .worker import Worker

BODY_SECONDS = 10.0  # in which a body must have come
CALL_SECONDS = 30.0  # in which the worker must have come to a call
MOST_QUERIES = 100
MOST_DEADLINE_MS = 60_000.0
EVENT_FIELDS = ("user_id", "type", "query", "product_id", "time")


def create_app(path: Path, config: ServeConfig) -> Starlette:
    """The application of one shop; its worker starts and stops with it.

    Raises:
        QAgentError: the settings are unsafe. When it starts: what the shop or the policy says.
    """
    config.check()
    worker = Worker(path, config)
    service = Service(worker, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(worker.start)
        yield
        await asyncio.to_thread(worker.stop)

    def route(path: str, handler: Handler, method: str) -> Route:
        return Route(path, partial(handler, service), methods=[method])

    middleware = [Middleware(RequestGuard, config=config, metrics=worker.metrics)]
    if config.loopback and not config.token:
        # A page in a browser of this machine cannot reach the shop through a name of its own.
        hosts = ["127.0.0.1", "localhost", "[::1]"]
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    app = Starlette(
        routes=[
            route("/recommend", recommend, "POST"),
            route("/events", events, "POST"),
            route("/search", search, "GET"),
            route("/users/{user:path}/memory", memory, "GET"),
            route("/policy", policy, "POST"),
            route("/healthz", health, "GET"),
            route("/metrics", metrics, "GET"),
            route("/openapi.json", openapi, "GET"),
        ],
        middleware=middleware,
        exception_handlers={
            HTTPException: _http_error,
            QAgentError: _user_error,
            Exception: _server_error,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


Handler = Callable[[Service, Request], Awaitable[Response]]

# ---------------------------------------------------------------- routes


async def recommend(service: Service, request: Request) -> Response:
    """POST /recommend."""
    body = await _body(service, request)
    config = service.config
    _known(body, ("user", "k", "chains", "deadline_ms", "as_of"))
    found = await service.recommend(
        _text(body, "user", 500),
        _number(body, "k", config.k, 1, MOST_QUERIES),
        _number(body, "chains", service.worker.chains, 1, config.most_chains),
        _real(body, "deadline_ms", config.deadline_ms, 1.0, MOST_DEADLINE_MS),
        _moment(body.get("as_of"), "as_of"),
    )
    return JSONResponse(found)


async def events(service: Service, request: Request) -> Response:
    """POST /events."""
    body = await _body(service, request)
    rows = body.get("events", [body])
    most = service.config.events_a_post
    if not isinstance(rows, list) or not 1 <= len(rows) <= most:
        raise HTTPException(422, f"events must be a list of 1 to {most} events")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise HTTPException(422, f"event {number} must be an object")
        _known(row, EVENT_FIELDS, f"event {number}: ")
        for name in EVENT_FIELDS:
            if row.get(name) is not None and not _valid(row[name]):
                raise HTTPException(422, f"event {number}: {name} must be text")
        row["time"] = _moment(row.get("time"), f"event {number}: time")
    report = await _awaited(service.worker.post(rows))
    answer = {
        "accepted": report.accepted,
        "rejected": report.rejected,
        "duplicates": report.duplicates,
        "reasons": report.reasons,
        "examples": report.examples,
    }
    return JSONResponse(answer, 422 if report.rejected and not report.accepted else 200)


async def search(service: Service, request: Request) -> Response:
    """GET /search."""
    given = request.query_params
    _known(given, ("q", "k", "in_stock", "min_price", "max_price", "category"))
    query = given.get("q", "")
    if not query or len(query) > 500:
        raise HTTPException(422, "q must be a query of 1 to 500 characters")
    k = _number(given, "k", 10, 1, MOST_QUERIES)
    filters = Filters(
        in_stock=_switch(given, "in_stock"),
        min_price=_price(given, "min_price"),
        max_price=_price(given, "max_price"),
        category=given.get("category"),
    )
    worker = service.worker
    engine = worker.recommender.search
    run = partial(search_products, worker.shop, query, k, filters=filters, search=engine)
    if isinstance(engine, HybridSearch) and engine.reranker is None:
        found = await asyncio.to_thread(run)  # it needs neither MLX nor the database
    else:
        found = await _called(service, run)
    return JSONResponse({"query": query, "results": [product.to_dict() for product in found]})


async def memory(service: Service, request: Request) -> Response:
    """GET /users/{id}/memory."""
    given = request.query_params
    _known(given, ("as_of",))
    user = request.path_params["user"]
    as_of = _moment(given.get("as_of"), "as_of")
    worker = service.worker
    found = await _called(
        service, lambda: inspect_memory(worker.shop, user, as_of, memory=worker.recommender.memory)
    )
    return JSONResponse(found.to_dict())


async def policy(service: Service, request: Request) -> Response:
    """POST /policy."""
    body = await _body(service, request)
    _known(body, ("policy",))
    name = _text(body, "policy", 100)
    worker = service.worker

    def change() -> str:
        known = [*policy_names(worker.shop), SAMPLE]
        if name not in known:  # never a path: whoever may ask for answers may not read files
            raise QAgentError(f"there is no policy {name}; known are {', '.join(known)}")
        return worker.use_policy(name)

    return JSONResponse({"policy": await _called(service, change)})


async def health(service: Service, _request: Request) -> Response:
    """GET /healthz."""
    worker = service.worker
    return JSONResponse(
        {
            "status": "ok" if worker.alive else "failed",
            "policy": worker.policy,
            "waiting": worker.waiting,
            "read_only": service.config.read_only,
        },
        200 if worker.alive else 503,
    )


async def metrics(service: Service, _request: Request) -> Response:
    """GET /metrics."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def openapi(service: Service, _request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(openapi_document(service.config))


# ---------------------------------------------------------------- reading


async def _called(service: Service, run: Callable[[], Any]) -> Any:
    """What a call in the worker's thread returns."""
    return await _awaited(service.worker.call(run))


async def _awaited(future: Future[Any]) -> Any:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), CALL_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(503, "the server is busy; try again") from None


async def _body(service: Service, request: Request) -> dict[str, Any]:
    """The JSON object of a body, which must be short and come soon."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send JSON with content-type: application/json")
    limit = service.config.body_bytes
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise HTTPException(413, f"the body may have {limit} bytes")
    data = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > limit:
                raise HTTPException(413, f"the body may have {limit} bytes")

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
        body = json.loads(data)
    except asyncio.TimeoutError:
        raise HTTPException(408, "the body did not come in time") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(422, "the body must be a JSON object")
    return body


def _known(given: Any, names: tuple[str, ...], where: str = "") -> None:
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise HTTPException(
            422, f"{where}unknown field {unknown[0][:40]!r}; known are {', '.join(names)}"
        )


def _text(given: Any, name: str, most: int) -> str:
    value = given.get(name)
    if not _valid(value) or not 1 <= len(value) <= most:
        raise HTTPException(422, f"{name} must be text of 1 to {most} characters")
    return str(value)


def _valid(value: Any) -> bool:
    """Whether it is text, without the half characters that JSON's escapes can make."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _number(given: Any, name: str, default: int, least: int, most: int) -> int:
    value = _real(given, name, default, least, most)
    if value != int(value):
        raise HTTPException(422, f"{name} must be a whole number")
    return int(value)


def _real(given: Any, name: str, default: float, least: float, most: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise HTTPException(422, f"{name} must be a number from {least:g} to {most:g}")
    return number


def _switch(given: Any, name: str) -> bool:
    values = {"": False, "0": False, "false": False, "1": True, "true": True}
    value = given.get(name, "").lower()
    if value not in values:
        raise HTTPException(422, f"{name} must be true or false")
    return values[value]


def _price(given: Any, name: str) -> float | None:
    return _real(given, name, 0.0, 0.0, 1e12) if name in given else None


def _moment(value: Any, name: str) -> datetime | None:
    """A naive UTC datetime of ISO 8601; one without a zone is UTC."""
    if value is None:
        return None
    try:
        return parse_utc(value)
    except (AttributeError, ValueError, OverflowError):
        raise HTTPException(422, f"{name} must be a time such as 2026-03-01T12:00:00Z") from None


# ---------------------------------------------------------------- errors


def _error(
    request: Request, status: int, text: str, headers: Mapping[str, str] | None = None
) -> Response:
    body = {"error": text, "request_id": request.state.request_id}
    return JSONResponse(body, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, error.detail, error.headers)


async def _user_error(request: Request, error: Exception) -> Response:
    return _error(request, 400, str(error))


async def _server_error(request: Request, _error_: Exception) -> Response:
    return _error(request, 500, "something went wrong; the server's log says what")
