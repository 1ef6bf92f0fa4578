"""Mixed load for a long time, in one process: ingest, index, training, serving, in turn.

    python tests/benchmarks/long_run.py --minutes 60 [--shop SHOP --policy NAME]

Each round ingests a file of events and one of products, updates the index, trains two steps,
and serves for a while: clients ask for recommendations, search, read
memories and post events. Without --shop it is the tests' small shop with a random policy.
Prints a line every few rounds, and at the end how memory went and whether anything failed:
an answer that is no answer, an event that is lost or there twice, an index that differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers"), str(Path(__file__).parent.parent)]

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from crashes import COMPONENTS, GRPO, SPLIT, events_agree, index_matches, small_shop
from starlette.testclient import TestClient

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory.index import open_index
from qagent_mlx.inventory.updates import refresh_index
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.http import create_app
from qagent_mlx.shop.shop import Shop
from qagent_mlx.train.grpo_run import train_grpo
from qagent_mlx.train.run_options import RunOptions
from qagent_mlx.utils.runtime import resident_memory

QUERIES = ("usb cable", "running shoes", "desk lamp", "acme coffee beans", "phone case", "gift")


def resident() -> float:
    """Megabytes of this process now."""
    return resident_memory() / 1e6


class Load:
    """A shop and what was done with it."""

    def __init__(self, path: Path, policy: str, serve_seconds: float) -> None:
        self.path, self.policy, self.serve_seconds = path, policy, serve_seconds
        self.draw = random.Random(0)
        self.events = self.requests = self.steps = self.rounds = 0
        self.errors: list[str] = []
        self.counting = threading.Lock()  # four clients do
        with Shop.open(path) as shop:
            self.first = shop.counts()["events"]
            rows = shop.connection.execute(
                "SELECT DISTINCT user_id FROM events LIMIT 200"
            ).fetchall()
        self.users = [user for (user,) in rows]

    def round(self) -> None:
        """Once all."""
        self.rounds += 1
        for part in (self.ingest, self.train, self.serve):
            try:
                part()
            except Exception as error:
                self.errors.append(f"{part.__name__}: {type(error).__name__}: {error}")

    def ingest(self) -> None:
        """A file of events, one of products, the index."""
        place = self.path.parent
        rows = []
        # Of the last seconds: what is ahead of the clock is refused, however long this runs.
        moment = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(seconds=10)
        for n in range(200):
            moment += timedelta(seconds=0.05)
            rows.append(
                {
                    "user_id": self.draw.choice(self.users),
                    "time": moment.isoformat(),
                    "type": "search",
                    "query": f"{self.draw.choice(QUERIES)} {n % 9}",
                }
            )
        (place / "e.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (place / "p.csv").write_text(
            f"product_id,title,price\nlong{self.rounds % 50},Kite {self.rounds},{self.draw.randint(1, 99)}\n"
        )
        with Shop.open(self.path, read_only=False) as shop:
            assert ingest_files(shop, "events", [place / "e.jsonl"]).accepted == len(rows)
            ingest_files(shop, "products", [place / "p.csv"])
            refresh_index(shop)
        self.events += len(rows)

    def train(self) -> None:
        """A run of two steps: the catalog has changed, so no earlier one could go on exactly."""
        with Shop.open(self.path) as shop:
            config = type(GRPO)(**{**GRPO.__dict__, "steps": 2})
            name = f"long-{self.rounds}"
            train_grpo(
                shop,
                self.policy,
                "long",
                config,
                split=SPLIT,
                components=COMPONENTS,
                options=RunOptions(run=name),
            )
            self.steps += 2
        shutil.rmtree(self.path / "runs" / name)

    def serve(self) -> None:
        """Four clients for a while."""
        config = ServeConfig(
            policy=self.policy, chains=2, rate=0.0, deadline_ms=60_000.0, cache_seconds=1.0
        )
        app = create_app(self.path, config)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            until = time.monotonic() + self.serve_seconds

            def ask(seed: int) -> None:
                draw = random.Random(f"{self.rounds}-{seed}")
                while time.monotonic() < until:
                    user, kind = draw.choice(self.users), draw.random()
                    if kind < 0.5:
                        answer = client.post("/recommend", json={"user_id": user, "k": 3})
                    elif kind < 0.7:
                        answer = client.get("/search", params={"q": draw.choice(QUERIES)})
                    elif kind < 0.8:
                        answer = client.get(f"/users/{user}/memory")
                    else:
                        answer = client.post(
                            "/events",
                            json={
                                "events": [
                                    {
                                        "user_id": user,
                                        "type": "search",
                                        "query": f"{draw.choice(QUERIES)} {n}",
                                    }
                                    for n in range(3)
                                ]
                            },
                        )
                        if answer.status_code == 200:
                            accepted = answer.json()["accepted"]
                            with self.counting:
                                self.events += accepted
                    with self.counting:
                        self.requests += 1
                    if answer.status_code != 200:
                        self.errors.append(f"{answer.status_code} {answer.text[:200]}")

            threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def check(self) -> None:
        """What was accepted is there once, and the index is the catalog's."""
        with Shop.open(self.path, read_only=False) as shop:
            events_agree(shop)
            found = shop.counts()["events"] - self.first
            if found != self.events:
                self.errors.append(f"{self.events:,} events were accepted, {found:,} are there")
            assert index_matches(open_index(shop), shop)


def main() -> None:
    """Run, print, and end with 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--shop", type=Path)
    parser.add_argument("--policy", default="base")
    parser.add_argument("--serve-seconds", type=float, default=10.0)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop"
        if given.shop:
            shutil.copytree(given.shop, path)
        else:
            from conftest import tiny_events, tiny_products

            for kind, rows in (("products", tiny_products()), ("events", tiny_events())):
                text = "\n".join(json.dumps(row, default=str) for row in rows)
                (path.parent / f"{kind}.jsonl").write_text(text)
            small_shop(path, path.parent / "products.jsonl", path.parent / "events.jsonl")
        load = Load(path, given.policy, given.serve_seconds)
        began = time.monotonic()
        sizes: list[float] = []
        print("minute | rounds | events | requests | steps | RSS MB | errors", flush=True)
        while time.monotonic() - began < 60 * given.minutes:
            load.round()
            sizes.append(resident())
            if load.rounds % 3 == 1:
                print(
                    f"{(time.monotonic() - began) / 60:.1f} | {load.rounds} | {load.events:,} | "
                    f"{load.requests:,} | {load.steps} | {sizes[-1]:.0f} | {len(load.errors)}",
                    flush=True,
                )
        load.check()
        third = max(1, len(sizes) // 3)
        print(
            f"RSS, mean of the rounds' first, second and last third: "
            f"{sum(sizes[:third]) / third:.0f}, {sum(sizes[third : 2 * third]) / max(1, len(sizes[third : 2 * third])):.0f}, "
            f"{sum(sizes[-third:]) / third:.0f} MB; {load.rounds} rounds, {load.events:,} events, "
            f"{load.requests:,} requests, {load.steps} steps, {len(load.errors)} errors"
        )
        for line in load.errors[:20]:
            print(line)
    sys.exit(bool(load.errors))


if __name__ == "__main__":
    main()
