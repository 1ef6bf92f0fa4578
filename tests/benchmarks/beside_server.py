"""How long commands take beside a server under load, and how long its clients wait meanwhile.

    python tests/benchmarks/beside_server.py --shop SHOP

Works on a copy of a shop. Prints one JSON document: seconds of each command alone and beside the
server, and for each the clients' p50 and p95 and their errors; then how long plain ``duckdb`` found
the file in use, and how many accepted events are in the shop (which must be all).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
from serving import Client

QAGENT = [sys.executable, "-m", "qagent_mlx"]


def commands(place: Path) -> dict[str, list[str]]:
    """Each command that must work beside a server, by name."""
    events, products = place / "events.csv", place / "products.csv"
    lines = [f"night{n},2026-04-05T{n % 24:02}:00:00,search,desk lamp" for n in range(2000)]
    events.write_text("user_id,time,type,query\n" + "\n".join(lines))
    lines = [f"new{n},Kite number {n},{n + 1},true" for n in range(100)]
    products.write_text("product_id,title,price,stock\n" + "\n".join(lines))
    user = "night1"
    return {
        "ingest events": ["ingest", "events", str(events)],
        "ingest products": ["ingest", "products", str(products)],
        "memory": ["memory", user],
        "recommend": ["recommend", user],
        "search": ["search", "kite"],
        "index": ["index"],
        "evaluate": ["evaluate", "--baselines", "--limit", "100"],
        "train": ["train", "sft", "--steps", "3", "--name", "beside"],
        "memory forget": ["memory", "forget", user, "--yes"],
    }


def seconds_of(words: list[str], shop: Path) -> float:
    """Run a command that must succeed."""
    began = time.monotonic()
    done = subprocess.run(
        [*QAGENT, *words, "--shop", str(shop)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return round(time.monotonic() - began, 2)


def load(port: int, users: list[str], stop: threading.Event) -> list[Client]:
    """Four clients that ask, and post events a twentieth of the time."""
    clients = [Client(port, users, time.monotonic() + 3600, n, 0.05) for n in range(4)]
    for client in clients:
        client.start()
    threading.Thread(
        target=lambda: (stop.wait(), [setattr(c, "until", 0.0) for c in clients]), daemon=True
    ).start()
    return clients


def plain_duckdb(path: Path, stop: threading.Event, tries: list[bool]) -> None:
    """Open the file as a program that waits for nobody, again and again."""
    while not stop.wait(random.uniform(0.2, 0.6)):
        try:
            duckdb.connect(str(path), read_only=True).close()
            tries.append(True)
        except duckdb.IOException:
            tries.append(False)


def measure(shop: Path, place: Path) -> dict[str, object]:
    """All commands alone, then beside a server."""
    words = commands(place)
    alone = {}
    copy = place / "alone"
    shutil.copytree(shop, copy)
    for name, command in words.items():
        alone[name] = seconds_of(command, copy)
    served = place / "served"
    shutil.copytree(shop, served)
    server = subprocess.Popen(
        [*QAGENT, "serve", "--shop", str(served), "--port", "0", "--rate", "0", "--cache", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert server.stderr is not None
    line = ""
    while "http://" not in line:
        line = server.stderr.readline()
        assert line, "the server did not start"
    threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
    port = int(line.split("http://127.0.0.1:")[1].split()[0])
    stop, rows = threading.Event(), {}
    users = [f"u{n:04}" for n in range(1, 200)]
    clients = load(port, users, stop)

    def window(name: str, run: object) -> None:
        marks = [len(client.times) for client in clients]
        seconds = run() if callable(run) else None
        times = [t for c, m in zip(clients, marks, strict=True) for t in c.times[m:]]
        cuts = statistics.quantiles(times, n=20) if len(times) > 1 else [0.0] * 19
        rows[name] = {
            "alone_s": alone.get(name),
            "beside_s": seconds,
            "requests": len(times),
            "p50_ms": round(cuts[9] * 1000),
            "p95_ms": round(cuts[18] * 1000),
            "max_ms": round(max(times, default=0.0) * 1000),
        }

    window("nothing", lambda: time.sleep(20))
    for name, command in words.items():
        window(name, lambda command=command: seconds_of(command, served))
    tries: list[bool] = []
    window("plain duckdb", lambda: _for_a_while(served / "shop.duckdb", tries))
    stop.set()
    for client in clients:
        client.join()
    server.terminate()
    server.wait()
    with duckdb.connect(str(served / "shop.duckdb")) as connection:
        (stored,) = connection.execute(
            "SELECT count(*) FROM events WHERE type = 'search' AND query = 'lamp'"
        ).fetchone()
    return {
        "commands": rows,
        "duckdb_refused": round(1 - sum(tries) / max(1, len(tries)), 3),
        "events_accepted": sum(client.posted for client in clients),
        "events_stored": stored,
        "errors": sum(client.errors for client in clients),
    }


def _for_a_while(path: Path, tries: list[bool]) -> float:
    end = threading.Event()
    threading.Timer(40, end.set).start()
    plain_duckdb(path, end, tries)
    return 40.0


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(given.shop, Path(place)), indent=1))


if __name__ == "__main__":
    main()
