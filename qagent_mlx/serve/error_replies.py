"""What clients are told when a request fails: one line, and nothing of the server's files."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import duckdb
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import QAgentError
from ..inventory.external_engines import EngineFailed
from ..privacy import UnknownUser
from ..shop.database_file import DatabaseInUse
from .bodies import json_reply
from .schema import ErrorReply

_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
_FOLDERS = re.compile(r"(?<![\w.:/~])/(?:[^/\s:;,'\"()][^/:;,'\"()\n]*/)+")

log = logging.getLogger("qagent.serve")


# What a user's own input causes in the database, such as a pattern that is none.
_ERRORS_OF_INPUT = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
)


def _error(
    request: Request, status: int, text: str, headers: Mapping[str, str] | None = None
) -> Response:
    return json_reply(ErrorReply(text, request.state.request_id), status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = error.detail
    if text == HTTPStatus(error.status_code).phrase:  # the router's
        text = _what_there_is(request, error)
    return _error(request, error.status_code, text, error.headers)


def _what_there_is(request: Request, error: HTTPException) -> str:
    """What to say of an address or a method that there is not."""
    place = request.url.path[:100]
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and allowed:
        return f"{place} takes {allowed}, not {request.method}"
    return f"there is nothing at {place}; GET /openapi.json lists all there is"


async def _user_error(request: Request, error: Exception) -> Response:
    reason = _of_the_system(error)
    if reason is None:
        return _error(request, 400, _public(request, error))
    log.error("id=%s %s", request.state.request_id, error)
    text = f"the server cannot do this now ({reason}); try again later"
    return _error(request, 503, text, {"retry-after": "5"})


def _of_the_system(error: BaseException | None) -> str | None:
    """What the system said, where an error is its: a full or broken disk; None for others."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            return os.strerror(error.errno).lower()
        if isinstance(error, duckdb.Error) and not isinstance(error, _ERRORS_OF_INPUT):
            return "its database cannot be written"
        error = error.__cause__
    return None


def without_paths(text: str, shop: Path) -> str:
    """A message without the folders of the server's files: where they lie is nobody's business.

    What lies in the ``shop`` is named from there.
    """
    for folder in (shop, shop.resolve()):
        text = text.replace(f"{folder}/", "")
    return _FOLDERS.sub("", text)


def _public(request: Request, error: Exception) -> str:
    return without_paths(str(error), request.app.state.service.worker.path)


async def _engine_error(request: Request, error: Exception) -> Response:
    log.error("id=%s %s", request.state.request_id, error)
    text = "the shop's search engine does not answer; try again later"
    return _error(request, 503, text, {"retry-after": "5"})


async def _busy_error(request: Request, error: Exception) -> Response:
    return _error(request, 503, _public(request, error), {"retry-after": "5"})


async def _unknown_error(request: Request, error: Exception) -> Response:
    return _error(request, 404, str(error))


async def _server_error(request: Request, _: Exception) -> Response:
    return _error(request, 500, "something went wrong; the server's log says what")


HANDLERS: dict[Any, Callable[[Request, Exception], Any]] = {
    HTTPException: _http_error,
    DatabaseInUse: _busy_error,
    EngineFailed: _engine_error,
    UnknownUser: _unknown_error,
    QAgentError: _user_error,
    Exception: _server_error,
}
