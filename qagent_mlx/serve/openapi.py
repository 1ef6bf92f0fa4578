"""The description of the routes, as OpenAPI 3.1, generated from their types (`schema`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .config import ServeConfig
from .schema import ErrorReply
from .service import Service

_REFERENCE = "#/components/schemas/{name}"

Handler = Callable[[Service, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A route and the types of what goes in and comes out.

    Attributes:
        path: As Starlette has it; a parameter ``{name:path}`` may hold slashes.
        handler: The first line of its docstring describes the route.
        body: Types that the body of a POST may have; a GET has none.
        query: Type of the query's parameters.
        reply: Type of the JSON reply; None for another one.
        verb: The HTTP method, where it is neither POST nor GET.
    """

    path: str
    handler: Handler
    reply: type | None = None
    body: tuple[type, ...] = ()
    query: type | None = None
    verb: str = ""

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.verb or ("POST" if self.body else "GET")


def openapi_document(endpoints: Sequence[Endpoint], config: ServeConfig) -> dict[str, Any]:
    """The response of ``/openapi.json``, with the limits that a server was started with."""
    replies = [endpoint.reply for endpoint in endpoints if endpoint.reply]
    types = [*replies, *(body for endpoint in endpoints for body in endpoint.body), ErrorReply]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "qagent",
            "version": version("qagent-mlx"),
            "description": "Query recommendation by a search agent over one shop.",
        },
        "paths": _paths(endpoints),
        "components": {"schemas": _schemas(types, config)},
    }
    if config.token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"]["/healthz"]["get"]["security"] = []
    return document


def _paths(endpoints: Sequence[Endpoint]) -> dict[str, dict[str, Any]]:
    """The operations of each path, by method."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(endpoint.path.replace(":path", ""), {})
        operations[endpoint.method.lower()] = _operation(endpoint)
    return paths


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    reply = _json(_reference(endpoint.reply)) if endpoint.reply else {"text/plain": {}}
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(endpoint.handler) or "").splitlines()[0],
        "responses": {
            "200": {"description": "Done.", "content": reply},
            "default": {
                "description": "Refused; says why.",
                "content": _json(_reference(ErrorReply)),
            },
        },
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)", endpoint.path)
        ],
    }
    if endpoint.query:
        described = msgspec.json.schema_components([endpoint.query])[1][endpoint.query.__name__]
        operation["parameters"] += [
            {
                "name": name,
                "in": "query",
                "required": name in described.get("required", ()),
                "schema": kind,
            }
            for name, kind in described["properties"].items()
        ]
        operation["parameters"] += [
            {
                "name": old,
                "in": "query",
                "deprecated": True,
                "description": f"The old name of {name}.",
                "schema": described["properties"][name],
            }
            for old, name in getattr(endpoint.query, "old_names", {}).items()
        ]
    if endpoint.body:
        body = {"anyOf": [_reference(body) for body in endpoint.body]}
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _reference(kind: type) -> dict[str, Any]:
    return {"type": "object"} if kind is dict else {"$ref": _REFERENCE.format(name=kind.__name__)}


def _json(content: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": content}}


def _schemas(types: Sequence[type], config: ServeConfig) -> dict[str, Any]:
    """The types as JSON schemas, with the server's own defaults and limits."""
    schemas = msgspec.json.schema_components(types, ref_template=_REFERENCE)[1]
    for kind in types:
        for old, name in getattr(kind, "old_names", {}).items():
            properties = schemas[kind.__name__]["properties"]
            properties[old] = {
                **properties[name],
                "deprecated": True,
                "description": f"The old name of {name}.",
            }
    fields = schemas["RecommendBody"]["properties"]
    fields["k"]["default"] = config.k
    fields["deadline_ms"]["default"] = config.deadline_ms
    fields["chains"]["maximum"] = config.max_chains
    schemas["EventsBody"]["properties"]["events"]["maxItems"] = config.events_a_post
    schemas["ProductsBody"]["properties"]["products"]["maxItems"] = config.products_a_post
    schemas["RulesBody"]["properties"]["rules"]["maxItems"] = config.events_a_post
    return schemas
