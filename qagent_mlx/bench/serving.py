"""Serving, measured without a network: clients that ask a server's application in this process.

Each client asks for a user at random as soon as it was answered. Nothing is cached or thought
before, so each answer is computed; where its time goes comes from the server's own counters.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.types import Message

from ..errors import QAgentError
from ..serve.batch import all_users
from ..serve.config import ServeConfig
from ..serve.http import create_app
from ..serve.service import Service
from ..shop.shop import Shop

LOADS = (1, 4, 16)  # clients
K = 5  # queries an answer
WARM_UP = 10  # answers before the measured ones
DEADLINE_MS = 10_000.0  # nobody gets a fallback for being measured


@dataclass(frozen=True, slots=True)
class Load:
    """What some clients saw, and where the time of an answer went.

    ``stages`` are milliseconds of one answer, on average; ``rest`` is what no stage accounts for,
    the request's reading and the event loop above all.
    """

    clients: int
    answers: int
    fallbacks: int
    p50_ms: float
    p95_ms: float
    per_second: float
    stages: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def serving(path: Path, seconds: float, workers: int, policy: str = "") -> dict[str, Any]:
    """Measure a shop's server under 1, 4 and 16 clients; the shop stays as it is.

    Args:
        path: The shop's folder.
        seconds: Of each load.
        workers: Processes that decode.
        policy: By default the one that would be served.

    Raises:
        QAgentError: what the shop or the policy has to say, or it has no users.
    """
    config = ServeConfig(
        policy=policy,
        workers=workers,
        cache_seconds=0.0,
        deadline_ms=DEADLINE_MS,
        rate=0.0,
        read_only=True,
        watch=False,
        think="off",
    )
    with Shop.open(path) as shop:
        users = all_users(shop)
    if not users:
        raise QAgentError(f"{path} has no events; run: qagent ingest events FILE")
    app = create_app(path, config)
    service: Service = app.state.service
    service.worker.start()
    try:
        loads = asyncio.run(_play(app, service, users, seconds))
        served = service.worker.responder.served
        name, version = served.name, served.version
    finally:
        service.worker.stop()
    return {
        "workload": "serving",
        "policy": name,
        "version": version,
        "workers": workers,
        "users": len(users),
        "k": K,
        "loads": [load.to_dict() for load in loads],
    }


async def _play(
    app: Starlette, service: Service, users: Sequence[str], seconds: float
) -> list[Load]:
    for user in users[:WARM_UP]:
        await _ask(app, user)
    return [await _load(app, service, users, clients, seconds) for clients in LOADS]


async def _load(
    app: Starlette, service: Service, users: Sequence[str], clients: int, seconds: float
) -> Load:
    before = _stage_seconds(service)
    start = time.perf_counter()

    async def client(number: int) -> list[tuple[float, bool]]:
        chance, seen = random.Random(1000 * clients + number), []
        while time.perf_counter() < start + seconds:
            asked = time.perf_counter()
            reply = await _ask(app, chance.choice(users))
            seen.append((time.perf_counter() - asked, reply["fallback"]))
        return seen

    seen = [x for part in await asyncio.gather(*map(client, range(clients))) for x in part]
    spent = time.perf_counter() - start
    times = 1000 * np.array([waited for waited, _ in seen])
    stages = {
        stage: 1000 * (total - before.get(stage, 0.0)) / len(seen)
        for stage, total in _stage_seconds(service).items()
    }
    stages["rest"] = max(0.0, float(times.mean()) - sum(stages.values()))
    return Load(
        clients,
        len(seen),
        sum(is_fallback for _, is_fallback in seen),
        round(float(np.quantile(times, 0.5)), 1),
        round(float(np.quantile(times, 0.95)), 1),
        round(len(seen) / spent, 2),
        {stage: round(ms, 2) for stage, ms in stages.items()},
    )


def _stage_seconds(service: Service) -> dict[str, float]:
    """Seconds that answers waited for each stage so far."""
    return {
        sample.labels["stage"]: sample.value
        for family in service.metrics.stages.collect()
        for sample in family.samples
        if sample.name.endswith("_sum")
    }


async def _ask(app: Starlette, user: str) -> dict[str, Any]:
    """One POST /recommend, as a server hands it to the application."""
    body = json.dumps({"user_id": user, "k": K}).encode()
    received: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/recommend",
        "raw_path": b"/recommend",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    reply = json.loads(b"".join(message.get("body", b"") for message in sent))
    if sent[0]["status"] != 200:
        raise QAgentError(f"a request for {user} failed: {reply.get('error', reply)}")
    answer: dict[str, Any] = reply
    return answer
