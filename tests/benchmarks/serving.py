"""Latency, throughput and memory of `qagent serve` under concurrent clients.

    python tests/benchmarks/serving.py --shop shop --seconds 30 --clients 1 4 16

Starts a server on a copy of the shop, lets clients ask for random users as fast as they are
answered (a closed loop), one request in twenty an event, and prints one JSON document: for
each number of clients p50, p95 and throughput of /recommend, the share of fallbacks, the processor
time of an answer in the server's own process and in those beside it, and the server's memory before
and after. Answers are not cached unless --cache says so.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def processor_seconds(pid: int) -> tuple[float, float]:
    """Processor time that the server's own process has spent so far, and those beside it."""
    spent = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if pid in (int(path.parent.name), int(fields[1])):
            spent[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    own = spent.pop(pid)
    return own, sum(spent.values())


class Client(threading.Thread):
    """Asks again as soon as it is answered."""

    def __init__(self, port: int, users: list[str], until: float, seed: int, events: float):
        super().__init__()
        self.port, self.users, self.until, self.events = port, users, until, events
        self.random = random.Random(seed)
        self.times: list[float] = []
        self.sources: list[str] = []
        self.errors = self.posted = 0

    def post(self, connection: http.client.HTTPConnection, path: str, body: dict) -> dict:
        """One request; what is no 200 is an error."""
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        self.errors += response.status != 200
        return answer

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while time.monotonic() < self.until:
            user = self.random.choice(self.users)
            if self.random.random() < self.events:
                self.post(
                    connection, "/events", {"user_id": user, "type": "search", "query": "lamp"}
                )
                self.posted += 1
                continue
            began = time.perf_counter()
            answer = self.post(connection, "/recommend", {"user_id": user, "k": 5})
            self.times.append(time.perf_counter() - began)
            self.sources.append(answer.get("source", "error"))


def measure(port: int, pid: int, users: list[str], clients: int, seconds: float, events: float):
    """One load: its numbers."""
    before, began, used = resident(pid), time.monotonic(), processor_seconds(pid)
    threads = [
        Client(port, users, began + seconds, 1000 * clients + n, events) for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - began
    own, others = (x - y for x, y in zip(processor_seconds(pid), used, strict=True))
    times = sorted(t for thread in threads for t in thread.times)
    sources = [s for thread in threads for s in thread.sources]
    cuts = statistics.quantiles(times, n=20)
    return {
        "clients": clients,
        "requests": len(times),
        "events": sum(t.posted for t in threads),
        "errors": sum(t.errors for t in threads),
        "p50_ms": round(cuts[9] * 1000, 1),
        "p95_ms": round(cuts[18] * 1000, 1),
        "per_second": round(len(times) / spent, 2),
        "fallbacks": round(1 - sources.count("agent") / len(sources), 4),
        "processor_ms": [round(1000 * x / len(times), 1) for x in (own, others)],
        "rss_mb": [round(before), round(resident(pid))],
    }


def main() -> None:
    """Run the loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", type=Path, required=True)
    parser.add_argument("--policy", default="")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--chains", type=int, default=0, help="0: what the policy needs.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--deadline", type=float, default=10_000.0)
    parser.add_argument("--cache", type=float, default=0.0)
    parser.add_argument("--events", type=float, default=0.05)
    parser.add_argument("--warm-up", type=float, default=5.0, help="Seconds before the loads.")
    parser.add_argument("--rounds", type=int, default=1, help="Alternate through the loads.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop = shutil.copytree(given.shop, Path(folder) / "shop")
        import duckdb

        with duckdb.connect(str(shop / "shop.duckdb")) as connection:
            rows = connection.execute("SELECT DISTINCT user_id FROM events ORDER BY 1").fetchall()
        users = [user for (user,) in rows]
        command = [
            sys.executable,
            "-m",
            "qagent_mlx",
            "serve",
            "--shop",
            str(shop),
            "--port",
            "0",
            "--cache",
            str(given.cache),
            "--rate",
            "0",
            "--workers",
            str(given.workers),
            "--deadline",
            str(given.deadline),
            *(["--group", str(given.chains)] * bool(given.chains)),
            *(["--policy", given.policy] * bool(given.policy)),
        ]
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file)
            try:
                while not (found := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
                    if process.poll() is not None:
                        sys.exit(log.read_text())
                    time.sleep(0.2)
                port = int(found[1])
                measure(
                    port, process.pid, users, 2, given.warm_up, 0.0
                )  # compiles, starts processes
                loads = [
                    measure(port, process.pid, users, n, given.seconds, given.events)
                    for _ in range(given.rounds)
                    for n in given.clients
                ]
            finally:
                process.terminate()
                process.wait()
    print(json.dumps({"chains": given.chains, "cache": given.cache, "loads": loads}, indent=2))


if __name__ == "__main__":
    main()
