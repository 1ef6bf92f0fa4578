"""How long completions take at a server, alone and beside others who wait for recommendations.

    python tests/benchmarks/suggest_latency.py SHOP [--seconds S] [--clients N]

Clients type queries of the log letter by letter, a letter every 150 ms or so, as a random user
each; p50 and p95 of POST /suggest, without and with two clients that ask for recommendations.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

import numpy as np
from live_shop import Server

from qagent_mlx.shop.shop import Shop

PAUSE = 0.15  # between two letters


class Client(threading.Thread):
    """Asks one route until a time."""

    def __init__(self, port: int, until: float, seed: int) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.until, self.random = until, random.Random(seed)
        self.seconds: list[float] = []

    def ask(self, path: str, body: dict[str, object]) -> None:
        """One request, timed."""
        began = time.perf_counter()
        self.connection.request(
            "POST", path, json.dumps(body), {"content-type": "application/json"}
        )
        reply = self.connection.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        self.seconds.append(time.perf_counter() - began)


class Typist(Client):
    """Types queries."""

    users: list[str]
    queries: list[str]

    def run(self) -> None:
        """Letter by letter."""
        while time.monotonic() < self.until:
            user, query = self.random.choice(self.users), self.random.choice(self.queries)
            for letters in range(1, min(len(query), 9)):
                self.ask("/suggest", {"user_id": user, "prefix": query[:letters]})
                time.sleep(PAUSE * 2 * self.random.random())


class Waiting(Client):
    """Asks for recommendations, as fast as they come."""

    users: list[str]

    def run(self) -> None:
        """One after another."""
        while time.monotonic() < self.until:
            self.ask("/recommend", {"user_id": self.random.choice(self.users)})


def main(path: Path, seconds: float, clients: int) -> None:
    """Print a line alone, and one beside others."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "shop"
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("runs"))
        with Shop.open(copy) as shop:
            rows = shop.connection.execute(
                "SELECT DISTINCT user_id, query FROM events WHERE type = 'search'"
            ).fetchall()
        Typist.users = Waiting.users = sorted({user for user, _ in rows})
        Typist.queries = sorted({query for _, query in rows})
        server = Server(copy, 1)
        server.begin()
        try:
            for others in (0, 2):
                until = time.monotonic() + seconds
                typists = [Typist(server.port, until, n) for n in range(clients)]
                waiting = [Waiting(server.port, until, 100 + n) for n in range(others)]
                for client in (*typists, *waiting):
                    client.start()
                for client in (*typists, *waiting):
                    client.join()
                times = 1e3 * np.array([s for client in typists for s in client.seconds])
                asked = sum(len(client.seconds) for client in waiting)
                print(
                    f"{clients} typists beside {others} who got {asked} recommendations: "
                    f"{len(times)} completions, p50 {np.quantile(times, 0.5):.1f} ms, "
                    f"p95 {np.quantile(times, 0.95):.1f} ms",
                    flush=True,
                )
        finally:
            server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    main(given.shop, given.seconds, given.clients)
