"""The description of the routes, as OpenAPI 3.1."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ..types import EVENT_TYPES
from .config import ServeConfig

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_TIME = {"type": "string", "format": "date-time", "description": "UTC unless it has a zone."}


def openapi_document(config: ServeConfig) -> dict[str, Any]:
    """What ``/openapi.json`` answers."""
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "qagent",
            "version": version("qagent-mlx"),
            "description": "Query recommendation by a search agent over one shop.",
        },
        "paths": {
            "/recommend": {"post": _post("Recommend queries to a user, in time.", "Ask", "Answer")},
            "/events": {
                "post": _post(
                    "Store what users did. The next recommendation knows it.", "Events", "Stored"
                )
            },
            "/search": {"get": _search()},
            "/users/{user}/memory": {
                "get": _operation(
                    "What is remembered of a user.",
                    "Memory",
                    [
                        {"name": "user", "in": "path", "required": True, "schema": _TEXT},
                        {"name": "as_of", "in": "query", "schema": _TIME},
                    ],
                )
            },
            "/policy": {
                "post": _post("Answer with another policy of the shop.", "Policy", "Policy")
            },
            "/healthz": {"get": _operation("Whether the server answers.", "Health", [])},
            "/metrics": {
                "get": {
                    "summary": "Counters in Prometheus' text format.",
                    "responses": {"200": {"description": "Done.", "content": {"text/plain": {}}}},
                }
            },
            "/openapi.json": {
                "get": {"summary": "This document.", "responses": {"200": {"description": "."}}}
            },
        },
        "components": {"schemas": _schemas(config)},
    }
    if config.token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
        described["paths"]["/healthz"]["get"]["security"] = []
    return described


def _operation(summary: str, answer: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    refused = {"description": "Refused; says why.", "content": _content("Error")}
    made: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": _content(answer)},
            "default": refused,
        },
    }
    if parameters:
        made["parameters"] = parameters
    return made


def _post(summary: str, body: str, answer: str) -> dict[str, Any]:
    made = _operation(summary, answer, [])
    made["requestBody"] = {"required": True, "content": _content(body)}
    return made


def _search() -> dict[str, Any]:
    number = {"type": "number", "minimum": 0}
    fields = {
        "q": _TEXT,
        "k": {"type": "integer", "minimum": 1, "maximum": 100},
        "in_stock": {"type": "boolean"},
        "min_price": number,
        "max_price": number,
        "category": _TEXT,
    }
    parameters = [
        {"name": name, "in": "query", "required": name == "q", "schema": schema}
        for name, schema in fields.items()
    ]
    return _operation("Search the inventory.", "Results", parameters)


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _schemas(config: ServeConfig) -> dict[str, Any]:
    product = _object(("product_id", "title"), product_id=_TEXT, title=_TEXT)
    event = _object(
        ("user_id", "type"),
        user_id=_TEXT,
        type={"enum": list(EVENT_TYPES)},
        query={**_TEXT, "description": "What was typed; needed for a search."},
        product_id={**_TEXT, "description": "Needed for everything but a search."},
        time={**_TIME, "description": "When it happened; by default now."},
    )
    return {
        "Ask": _object(
            ("user",),
            user={**_TEXT, "description": "Somebody unknown is a new user."},
            k={"type": "integer", "minimum": 1, "maximum": 100, "default": config.k},
            chains={
                "type": "integer",
                "minimum": 1,
                "maximum": config.most_chains,
                "description": "The budget: chains of retrieval that are run; by default what "
                "the server was started with, or as many as the policy needs.",
            },
            deadline_ms={
                "type": "number",
                "minimum": 1,
                "default": config.deadline_ms,
                "description": "When it cannot be met the answer is a fallback.",
            },
            as_of={**_TIME, "description": "Nothing at or after it is used."},
        ),
        "Answer": _object(
            ("user", "recommendations", "source", "fallback", "latency_ms"),
            user=_TEXT,
            as_of={"type": ["string", "null"]},
            recommendations=_list(
                _object(
                    ("query", "score", "products", "reason"),
                    query=_TEXT,
                    score={"type": "number", "description": "Share of the chains that agree."},
                    products=_list(product),
                    reason=_TEXT,
                    votes=_COUNT,
                )
            ),
            source={
                "enum": ["agent", "top-line", "trending"],
                "description": "top-line: the user's memory without a chain; trending: what "
                "the shop searches for now.",
            },
            fallback={"type": "boolean"},
            reason={"enum": ["", "deadline", "overload", "error"]},
            policy=_TEXT,
            chains=_COUNT,
            cached={"type": "boolean"},
            latency_ms={"type": "number"},
        ),
        "Event": event,
        "Events": {
            "oneOf": [
                {"$ref": "#/components/schemas/Event"},
                _object(
                    ("events",),
                    events={
                        **_list({"$ref": "#/components/schemas/Event"}),
                        "minItems": 1,
                        "maxItems": config.events_a_post,
                    },
                ),
            ]
        },
        "Stored": _object(
            ("accepted", "rejected", "duplicates"),
            accepted=_COUNT,
            rejected=_COUNT,
            duplicates=_COUNT,
            reasons={"type": "object", "additionalProperties": _COUNT},
            examples=_list(_TEXT),
        ),
        "Results": _object(
            ("query", "results"),
            query=_TEXT,
            results=_list(
                _object(
                    ("product_id", "title", "score"),
                    product_id=_TEXT,
                    title=_TEXT,
                    score={"type": "number"},
                    price={"type": ["number", "null"]},
                    in_stock={"type": "boolean"},
                    brand={"type": ["string", "null"]},
                )
            ),
        ),
        "Memory": _object(
            ("user", "as_of", "tokens", "text", "sections", "graph"),
            user=_TEXT,
            as_of=_TEXT,
            events=_COUNT,
            tokens=_COUNT,
            raw_tokens=_COUNT,
            text=_TEXT,
            sections={"type": "object"},
            graph={"type": "object"},
        ),
        "Policy": _object(("policy",), policy=_TEXT),
        "Health": _object(
            ("status", "policy"),
            status={"enum": ["ok", "failed"]},
            policy=_TEXT,
            waiting=_COUNT,
            read_only={"type": "boolean"},
        ),
        "Error": _object(("error", "request_id"), error=_TEXT, request_id=_TEXT),
    }
