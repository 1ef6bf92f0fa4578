"""The routes: they read and check requests, ask the service, and write JSON."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..errors import QAgentError
from ..ingest.journal import products_entry, removal_entry
from ..ingest.report import IngestReport
from ..inventory.product_search import search_products
from ..inventory.search import HybridSearch
from ..inventory.types import Filters
from ..policy.registry import PROMOTED, SHIPPED_POLICIES, policy_names
from ..policy.shop_memory import inspect_memory
from ..privacy import erase_user, export_user
from ..shop.policy_folders import parse_reference
from . import experiments, say, schema
from .bodies import (
    json_body,
    json_reply,
    path_id,
    posted_id,
    posted_objects,
    query_parameters,
    result_of,
)
from .config import ServeConfig
from .error_replies import HANDLERS, without_paths
from .metrics import CONTENT_TYPE
from .middleware import RequestGuard
from .openapi import Endpoint, openapi_document
from .schema import parse, parse_time
from .service import Service
from .worker import Worker


async def recommend(service: Service, request: Request) -> Response:
    """Recommend queries to a user, in time."""
    body = parse(schema.RecommendBody, await json_body(service, request))
    config = service.config
    if body.chains is not None and body.chains > config.max_chains:
        text = f"chains must be a whole number of at most {config.max_chains}"
        raise HTTPException(422, text)
    reply = await service.recommend(
        posted_id(body.user_id, "user_id"),
        config.k if body.k is None else body.k,
        service.worker.responder.chains if body.chains is None else body.chains,
        config.deadline_ms if body.deadline_ms is None else body.deadline_ms,
        parse_time(body.as_of, "as_of"),
    )
    return json_reply(reply)


async def suggest(service: Service, request: Request) -> Response:
    """Complete what a user types."""
    body = parse(schema.SuggestBody, await json_body(service, request))
    user = None if body.user_id is None else posted_id(body.user_id, "user_id")
    return json_reply(await service.suggest(user, body.prefix, body.k))


async def events(service: Service, request: Request) -> Response:
    """Store what users did. The next recommendation knows it."""
    body = await json_body(service, request)
    posted = []
    for where, value in posted_objects(body, "event", service.config.events_a_post):
        event = msgspec.structs.asdict(parse(schema.EventBody, value, where))
        posted.append({**event, "time": parse_time(event["time"], f"{where}time")})
    report = await result_of(service.worker.post(posted))
    return json_reply(report, 422 if report.rejected and not report.accepted else 200)


async def products(service: Service, request: Request) -> Response:
    """Add or change products, whole or in part. The next search and recommendation know it."""
    body = await json_body(service, request)
    posted = []
    for where, value in posted_objects(body, "product", service.config.products_a_post):
        product = parse(schema.ProductBody, value, where)
        if product.time is not UNSET:
            parse_time(product.time, f"{where}time")
        posted.append(_product_fields(product))
    worker = service.worker
    entry = products_entry(posted)
    report = await result_of(worker.call(lambda: worker.responder.change_catalog(entry)))
    return json_reply(report, 422 if report.rejected and not report.accepted else 200)


def _product_fields(product: schema.ProductBody) -> dict[str, Any]:
    """The fields that were given, as ingest reads them."""
    fields: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(product).items() if value is not UNSET
    }
    fields["product_id"] = posted_id(product.product_id, "product_id")
    if isinstance(product.category, list):
        fields["category"] = " > ".join(product.category)
    return fields


async def delete_product(service: Service, request: Request) -> Response:
    """Take a product out of the catalog. What users did with it stays in the log."""
    product_id = path_id(request, "product_id")
    worker = service.worker

    def delete() -> bool:
        responder = worker.responder
        if product_id not in responder.titles:
            return False
        if len(responder.titles) == 1:
            raise QAgentError("this is the shop's last product; add another one first")
        responder.change_catalog(removal_entry(product_id))
        return True

    if not await result_of(worker.call(delete)):
        raise HTTPException(404, f"there is no product {product_id}")
    return json_reply(schema.RemovalReply(product_id))


async def export(service: Service, request: Request) -> Response:
    """Everything that is stored about a user."""
    user = path_id(request, "user_id")
    store = service.worker.responder.store
    document = await result_of(store.call(lambda shop: export_user(shop, user).to_dict()))
    del document["user"]
    return json_reply(schema.ExportReply(user_id=user, **document))


async def erase(service: Service, request: Request) -> Response:
    """Erase everything about a user, also from caches and from what runs keep."""
    user = path_id(request, "user_id")
    store = service.worker.responder.store
    document = (await result_of(store.change(lambda shop: erase_user(shop, user)))).to_dict()
    del document["user"]
    document["remains"] = [
        without_paths(place, service.worker.path) for place in document["remains"]
    ]
    return json_reply(schema.ErasureReply(user_id=user, **document))


async def search(service: Service, request: Request) -> Response:
    """Search the inventory."""
    given = parse(schema.SearchParameters, query_parameters(request))
    filters = Filters(given.in_stock, given.min_price, given.max_price, given.category)
    responder = service.worker.responder
    engine = responder.recommender.search
    run = partial(
        search_products, responder.shop, given.query, given.k, filters=filters, search=engine
    )
    if isinstance(engine, HybridSearch) and engine.reranker is None:
        results = await asyncio.to_thread(run)  # it needs neither MLX nor the database
    else:
        results = await result_of(service.worker.call(run))
    products = [schema.FoundProduct(**product.to_dict()) for product in results]
    return json_reply(schema.SearchReply(given.query, products))


async def memory(service: Service, request: Request) -> Response:
    """What is remembered of a user."""
    given = parse(schema.MemoryParameters, query_parameters(request))
    user = path_id(request, "user_id")
    as_of = parse_time(given.as_of, "as_of")
    responder = service.worker.responder

    view = await result_of(
        service.worker.call(
            lambda: inspect_memory(responder.shop, user, as_of, memory=responder.recommender.memory)
        )
    )
    return json_reply(schema.MemoryReply(user_id=user, **view.to_dict()))


async def policy(service: Service, request: Request) -> Response:
    """Recommend with another policy of the shop."""
    name = parse(schema.PolicyBody, await json_body(service, request)).policy
    responder = service.worker.responder

    def change() -> schema.PolicyReply:
        names = [*policy_names(responder.shop), *SHIPPED_POLICIES]
        # Never a path: a client that may ask may not read files.
        if parse_reference(name)[0] not in (*names, PROMOTED):
            raise QAgentError(f"there is no policy {name}; known are {', '.join(names)}")
        responder.use_policy(name)
        return schema.PolicyReply(responder.served.name, responder.served.version)

    return json_reply(await result_of(service.worker.call(change)))


async def health(service: Service, _request: Request) -> Response:
    """Whether the server answers, and can store what clients post."""
    worker, responder = service.worker, service.worker.responder
    storing = responder.store.problem
    problem = storing or responder.search_problem or responder.served.problem
    is_well = worker.alive and not storing
    reply = schema.HealthReply(
        status="ok" if is_well else "failed",
        policy=responder.served.name,
        version=responder.served.version,
        problem=without_paths(problem, worker.path),
        waiting=worker.waiting,
        read_only=service.config.read_only,
    )
    return json_reply(reply, 200 if is_well else 503)


async def metrics(service: Service, _request: Request) -> Response:
    """Counters in Prometheus' text format."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def openapi(service: Service, _request: Request) -> Response:
    """This document."""
    return json_reply(openapi_document(ENDPOINTS, service.config))


ENDPOINTS = (
    Endpoint("/recommend", recommend, schema.RecommendReply, body=(schema.RecommendBody,)),
    Endpoint("/suggest", suggest, schema.SuggestReply, body=(schema.SuggestBody,)),
    Endpoint("/events", events, IngestReport, body=(schema.EventBody, schema.EventsBody)),
    Endpoint("/search", search, schema.SearchReply, query=schema.SearchParameters),
    Endpoint(
        "/users/{user_id:path}/memory", memory, schema.MemoryReply, query=schema.MemoryParameters
    ),
    Endpoint("/users/{user_id:path}/wishes", say.list_wishes, schema.WishesReply),
    Endpoint("/users/{user_id:path}/wishes", say.add_wish, schema.WishReply, (schema.WishBody,)),
    Endpoint(
        "/users/{user_id:path}/wishes/{wish_id}", say.withdraw_wish, schema.WishReply, verb="DELETE"
    ),
    Endpoint("/users/{user_id:path}/export", export, schema.ExportReply),
    Endpoint("/users/{user_id:path}", erase, schema.ErasureReply, verb="DELETE"),
    Endpoint("/products", products, IngestReport, body=(schema.ProductBody, schema.ProductsBody)),
    Endpoint("/products/{product_id:path}", delete_product, schema.RemovalReply, verb="DELETE"),
    Endpoint("/rules", say.list_rules, schema.RulesReply, query=schema.RulesParameters),
    Endpoint("/rules", say.add_rules, schema.RulesReply, (schema.RuleBody, schema.RulesBody)),
    Endpoint(
        "/rules/{rule_id}",
        say.withdraw_rule,
        schema.RulesReply,
        query=schema.WithdrawParameters,
        verb="DELETE",
    ),
    Endpoint("/experiments", experiments.list_experiments, schema.ExperimentsReply),
    Endpoint("/experiments", experiments.start, schema.ExperimentReply, (schema.ExperimentBody,)),
    Endpoint("/experiments/{name}", experiments.report, schema.ExperimentReportReply),
    Endpoint("/experiments/{name}", experiments.stop, schema.ExperimentReply, verb="DELETE"),
    Endpoint("/policy", policy, schema.PolicyReply, body=(schema.PolicyBody,)),
    Endpoint("/healthz", health, schema.HealthReply),
    Endpoint("/metrics", metrics),
    Endpoint("/openapi.json", openapi, dict),
)


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

    middleware = [Middleware(RequestGuard, config=config, metrics=worker.metrics)]
    if config.proxies:
        forwarded = Middleware(ProxyHeadersMiddleware, trusted_hosts=config.proxies)
        middleware.insert(0, forwarded)
    if config.loopback and not config.token:
        # A page in a browser of this machine cannot reach the shop through a name of its own.
        hosts = ["127.0.0.1", "localhost", "[::1]"]
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    app = Starlette(
        routes=[Route(e.path, partial(e.handler, service), methods=[e.method]) for e in ENDPOINTS],
        middleware=middleware,
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.service = service
    return app
