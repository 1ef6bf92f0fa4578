"""Read bodies and parameters of requests, wait for the worker, and write JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..utils.text import clean_id
from .service import Service

BODY_SECONDS = 10.0  # in which a body must have come
CALL_SECONDS = 30.0  # in which the worker must have begun with a call

T = TypeVar("T")


def posted_objects(
    body: dict[str, Any], noun: str, limit: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a body, a list of them or one alone, each behind its place for errors."""
    values = body.get(f"{noun}s", [body])
    if not isinstance(values, list) or not 1 <= len(values) <= limit:
        raise HTTPException(422, f"{noun}s must be a list of 1 to {limit} {noun}s")
    for number, value in enumerate(values, 1):
        where = f"{noun} {number}: "
        if not isinstance(value, dict):
            raise HTTPException(422, f"{where}must be an object")
        yield where, value


async def result_of(future: Future[T]) -> T:
    """The result of a job of the worker's thread.

    One that has begun is waited for: whoever was told to try again would have it done twice.
    """
    waiter = asyncio.wrap_future(future)
    done, _ = await asyncio.wait({waiter}, timeout=CALL_SECONDS)
    if not done and future.cancel():
        raise HTTPException(503, "the server is busy; try again")
    return await waiter


async def json_body(service: Service, request: Request) -> dict[str, Any]:
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
    except ClientDisconnect:
        raise HTTPException(400, "the client hung up before its body was there") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(422, "the body must be a JSON object")
    return body


def posted_id(text: str, name: str) -> str:
    """The id of a user or a product in the form in which the shop stores it."""
    cleaned = clean_id(text)
    if not cleaned:
        raise HTTPException(422, f"{name} must have a visible character")
    return cleaned


def path_id(request: Request, name: str) -> str:
    """An id in the path of a request; see `posted_id`."""
    return posted_id(request.path_params[name], name)


def query_parameters(request: Request) -> dict[str, str]:
    """The parameters of a request's query; an empty one is left out."""
    return {name: value for name, value in request.query_params.items() if value}


def json_reply(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(document), status, headers, "application/json")
