"""The routes of experiments: start one, see what it shows, stop it."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import QAgentError
from ..live.experiments import (
    AGENT,
    MEMORY,
    Experiment,
    experiments,
    running,
    start_experiment,
    stop_experiment,
)
from ..live.interleaving import report_of
from ..live.limits import shop_time
from ..policy.registry import policy_names
from ..shop.policy_folders import parse_reference
from ..shop.shop import Shop
from . import schema
from .bodies import json_body, json_reply, result_of
from .schema import parse
from .service import Service


async def list_experiments(service: Service, _request: Request) -> Response:
    """The experiments, the oldest first; one without an end runs."""
    store = service.worker.responder.store
    known = await result_of(store.call(experiments))
    return json_reply(schema.ExperimentsReply([e.to_dict() for e in known]))


async def start(service: Service, request: Request) -> Response:
    """Start an experiment. Answers take part within seconds."""
    given = parse(schema.ExperimentBody, await json_body(service, request))

    def begin(shop: Shop) -> Experiment:
        known = [AGENT, MEMORY, *policy_names(shop)]
        for system in (given.control, given.treatment):
            # Never a path: a client that may ask may not read files.
            if parse_reference(system)[0] not in known:
                raise QAgentError(f"there is no system {system}; known are {', '.join(known)}")
        return start_experiment(
            shop,
            given.name,
            given.control,
            given.treatment,
            given.share,
            shop_time(shop),
            given.kind,
        )

    made = await result_of(service.worker.responder.store.change(begin))
    return json_reply(schema.ExperimentReply(made.to_dict()))


async def stop(service: Service, request: Request) -> Response:
    """Stop an experiment that runs."""
    name = request.path_params["name"]

    def end(shop: Shop) -> Experiment | None:
        experiment = running(shop)
        is_it = experiment is not None and experiment.name == name
        return stop_experiment(shop, shop_time(shop)) if is_it else None

    stopped = await result_of(service.worker.responder.store.change(end))
    if stopped is None:
        raise HTTPException(404, f"no experiment {name} runs")
    return json_reply(schema.ExperimentReply(stopped.to_dict()))


async def report(service: Service, request: Request) -> Response:
    """What an experiment has shown so far, as `qagent experiment report --json` says it."""
    name = request.path_params["name"]

    def count(shop: Shop) -> dict[str, Any] | None:
        found = next((e for e in experiments(shop) if e.name == name), None)
        return report_of(shop, found, shop_time(shop)).to_dict() if found else None

    counted = await result_of(service.worker.responder.store.call(count))
    if counted is None:
        raise HTTPException(404, f"there is no experiment {name}")
    return json_reply(schema.ExperimentReportReply(counted))
