"""Play seven days of a live shop over HTTP: an experiment between memory's lines and the agent.

    python tests/benchmarks/live_drill.py SHOP [--users N] [--interleave]

The last seven days of a simulated shop's log are taken out of a copy, and come back as posts to a
server, with the visits of fresh shoppers in between, each shown what the experiment gives them; they
tap, click and buy as simulated shoppers do, and say which answer it came of. Then the report of the
server, and beside it what `qagent abtest` says of the same shoppers, who see both systems.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import qagent_mlx

qagent_mlx.configure()

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

from live_shop import Server

from qagent_mlx.evaluate.abtest import Population, abtest, fresh_shoppers, simulated_world
from qagent_mlx.evaluate.config import AbConfig
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.click_model import QueryInterpreter, SlateOutcome, Visit
from qagent_mlx.simulator.world import moment

DAYS, VISITS, K, FOUND = 7, 3, 5, 10
EVENTS = """SELECT user_id, ts AS time, type, query, product_id FROM events WHERE ts >= ?
    ORDER BY event_id"""


class Client:
    """Talks to a server."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a reply; anything but 200 ends the drill."""
        headers = {"content-type": "application/json"}
        data = json.dumps(body, default=datetime.isoformat) if body is not None else None
        self._connection.request(method, path, data, headers)
        reply = self._connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise SystemExit(f"{method} {path}: {reply.status} {text[:300]!r}")
        return json.loads(text)


class Play:
    """The seven days, by a server.

    Args:
        client: Of the server.
        shop: The original shop, which knows products and world.
    """

    def __init__(self, client: Client, shop: Shop) -> None:
        self.client, self.world = client, simulated_world(shop)
        self.interpreter = QueryInterpreter(self.world)
        self.index = {p.product_id: n for n, p in enumerate(self.world.products)}
        self.sources: dict[str, int] = {}

    def post(self, events: list[dict[str, Any]]) -> None:
        """Store events."""
        for start in range(0, len(events), 500):
            self.client.ask("POST", "/events", {"events": events[start : start + 500]})

    def retrieve(self, query: str) -> np.ndarray:
        """What the server finds, as indices of the world's products."""
        from urllib.parse import urlencode

        found = self.client.ask("GET", "/search?" + urlencode({"query": query, "k": FOUND}))
        return np.array([self.index[p["product_id"]] for p in found["results"]], dtype=int)

    def visit(self, visit: Visit, user: str) -> None:
        """Show a shopper an answer, and post what comes of it."""
        body = {"user_id": user, "k": K, "deadline_ms": 60_000}
        reply = self.client.ask("POST", "/recommend", body)
        self.sources[reply["source"]] = self.sources.get(reply["source"], 0) + 1
        queries = [item["query"] for item in reply["recommendations"]]
        (outcome,) = visit.outcomes(self.interpreter, queries, self.retrieve)
        if outcome.tapped:
            self.post(list(self._done(outcome, reply["recommendation_id"], user, visit.day)))

    def _done(
        self, outcome: SlateOutcome, answer: str, user: str, day: float
    ) -> Iterator[dict[str, Any]]:
        said = {"user_id": user, "recommendation_id": answer, "position": outcome.position + 1}
        product = self.world.products[int(self.retrieve(outcome.query)[0])].product_id
        kinds = ["search", *["click"] * bool(outcome.clicks), *["purchase"] * outcome.bought]
        for seconds, kind in enumerate(kinds, 1):
            event = {**said, "type": kind, "time": moment(day) + timedelta(seconds=seconds)}
            if kind == "search":
                yield {**event, "query": outcome.query}
            else:
                yield {**event, "product_id": product}


def copy_until(shop: Shop, path: Path, start: datetime, log: list[dict[str, Any]]) -> None:
    """A copy of a shop as it was at a moment, with the log of fresh shoppers."""
    shutil.copytree(shop.path, path, ignore=shutil.ignore_patterns("runs"))
    with Shop.open(path, read_only=False) as copy:
        copy.connection.execute("DELETE FROM events WHERE ts >= ?", [start])
        append_events(copy, [event for event in log if event["time"] < start])
        MemoryStore(copy.connection, copy.config.memory).build()


def play(
    shop: Shop, path: Path, people: Population, start: datetime, kind: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Run the days; the experiment's report, and how often each source answered."""
    rows = shop.connection.execute(EVENTS, [start]).fetchall()
    names = ("user_id", "time", "type", "query", "product_id")
    events = [dict(zip(names, row, strict=True)) for row in rows]
    events += [event for event in people.log if event["time"] >= start]
    events.sort(key=lambda event: event["time"])
    events = [{k: v for k, v in e.items() if v is not None} for e in events]
    server = Server(path, 1)
    server.begin()
    try:
        client = Client(server.port)
        playing = Play(client, shop)
        body = {"name": "drill", "control": "memory", "treatment": "agent", "kind": kind}
        client.ask("POST", "/experiments", body)
        at = 0
        visits = zip(people.visits, people.cases, strict=True)
        for number, (visit, case) in enumerate(sorted(visits, key=lambda pair: pair[1].as_of)):
            before = at
            while at < len(events) and events[at]["time"] < case.as_of:
                at += 1
            playing.post(events[before:at])
            playing.visit(visit, case.user_id)
            if number % 100 == 0:
                print(f"{case.as_of:%Y-%m-%d %H:%M}, visit {number}", file=sys.stderr, flush=True)
        playing.post(events[at:])
        return client.ask("GET", "/experiments/drill")["report"], playing.sources
    finally:
        server.stop()


def main(path: Path, users: int, kind: str) -> None:
    """Print the report beside `abtest`'s."""
    with Shop.open(path) as shop, tempfile.TemporaryDirectory() as folder:
        start = (shop.end_of_log() - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0)
        config = AbConfig(users=users, visits=VISITS, k=K)
        people = fresh_shoppers(simulated_world(shop), config, start)
        copy_until(shop, Path(folder) / "shop", start, people.log)
        report, sources = play(shop, Path(folder) / "shop", people, start, kind)
        print(json.dumps({"report": report, "answers": sources}, indent=1), flush=True)
        if kind == "interleave":
            return
        paired = abtest(shop, "top-line", "sample", config, test_from=start).to_dict()
    for name in ("ctr", "orders"):
        live, offline = report[name], paired[name]
        low, high = (live[end] / live["control"] if live["control"] else 0 for end in ("lo", "hi"))
        agrees = low <= offline["hi"] and offline["lo"] <= high
        print(
            f"{name}: live {live['control']:.3f} and {live['treatment']:.3f}, lift "
            f"{live['lift'] or 0:+.1%} [{low:+.1%}, {high:+.1%}]; abtest {offline['control']:.3f} and "
            f"{offline['treatment']:.3f}, lift {offline['lift']:+.1%} [{offline['lo']:+.1%}, "
            f"{offline['hi']:+.1%}]; {'agree' if agrees else 'DISAGREE'}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop", type=Path)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--interleave", action="store_true")
    given = parser.parse_args()
    main(given.shop, given.users, "interleave" if given.interleave else "split")
