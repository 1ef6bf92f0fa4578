"""A shop in a lake on several machines, which are processes with folders of their own.

    python tests/benchmarks/lake.py build   --folder DIR --events 1000000
    python tests/benchmarks/lake.py servers --folder DIR [--shop SHOP] [--events 20] [--networks]
    python tests/benchmarks/lake.py kills   --kills 100 [--seed 0] [--networks]
    python tests/benchmarks/lake.py growth  --folder DIR --events 10000000 20000000

``build``: seconds until memory is built by one machine, and by two at once. ``servers``: seconds
from an event that one server has taken until another one's answer knows it. ``kills``: ingesters,
servers' stores, a builder of memory and one of the index are killed again and again; every event
must be in the lake once, memory must say what the log says, all must have the same index.
``growth``: seconds and peak memory of ingest, of memory and of a bulk recommendation to 1,000
users, with more and more events (40 a user).

The catalog is a PostgreSQL that the program starts, or SQLite with ``--catalog sqlite``. With
``--networks`` each machine is in a network namespace of its own, from which it reaches PostgreSQL
alone, by a cable; half of the kills then pull it first, as a power cut would (root, Linux). Needs
``pip install "qagent-mlx[lake]"``. Prints one JSON document, and ends with the first thing that is
lost.
"""

from __future__ import annotations

import argparse
import contextlib
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
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers"), str(Path(__file__).parent.parent)]

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import namespaces
from conftest import tiny_events, tiny_products
from crashes import small_shop
from lake_kills import WORKS, kill_machines
from lakes import lakes
from namespaces import Machine, seen_from
from simulated_log import EVENTS_A_USER, make_log

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.shop.moving import create_in, move
from qagent_mlx.shop.shop import Shop

BULK_USERS = 1000
TOLD = {"accepted", "users", "computed", "published", "buckets", "learned_from", "users_per_s"}
PROGRAM = [sys.executable, "-c", "from qagent_cli.main import cli; cli()"]
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


def started(*words: object) -> subprocess.Popen[str]:
    """A command of qagent, running."""
    command = [*PROGRAM, *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a command has used, and of its report what matters here."""
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args!r} ended with {process.returncode}")
    report = json.loads(text) if text else {}
    return {
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
        **{name: value for name, value in report.items() if name in TOLD},
    }


def timed(*words: object) -> dict[str, Any]:
    """The same, with the seconds that have passed."""
    start = time.perf_counter()
    used = ended(started(*words, "--json"))
    step = {"passed_s": round(time.perf_counter() - start, 1), **used}
    print(*words[:2], json.dumps(step), file=sys.stderr, flush=True)  # if a later one fails
    return step


def machines(folder: Path, address: str, count: int) -> list[Path]:
    """Further machines that share the lake."""
    paths = [folder / f"machine{number}" for number in range(count)]
    for path in paths:
        create_in(path, address, None)
    return paths


def measure_build(folder: Path, address: str, events: int) -> dict[str, Any]:
    """Memory built by one machine, then by two at once."""
    users = events // EVENTS_A_USER
    make_log(folder / "files", events, users)
    with Shop.create(folder / "first") as shop:
        ingest_files(shop, "products", [folder / "files" / "products.parquet"])
        ingest_files(shop, "events", sorted((folder / "files").glob("events-*.parquet")))
        move(shop, address, str(folder / "data"))
    two = machines(folder, address, 2)
    one = timed("memory", "build", "--anew", "--shop", folder / "first")
    start = time.perf_counter()
    at_once = [started("memory", "build", "--anew", "--json", "--shop", path) for path in two]
    reports = [ended(process) for process in at_once]
    passed = round(time.perf_counter() - start, 1)
    later = timed("memory", "build", "--shop", folder / "first")
    return {
        "events": events,
        "one": one,
        "two": {"passed_s": passed, "each": reports},
        "ratio": round(passed / one["passed_s"], 2),
        # What others who use the machine do not blur.
        "processor_ratio": round(
            max(each["processor_s"] for each in reports) / one["processor_s"], 2
        ),
        "loaded": later,
    }


def _served(path: Path, machine: Machine | None) -> tuple[subprocess.Popen[str], str]:
    command = [*PROGRAM, "serve", "--port", "0", "--rate", "0", "--cache", "0", "--shop", str(path)]
    if machine:
        command = machine.command(command)
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if "http://127.0.0.1:" in line:
            port = line.split("http://127.0.0.1:")[1].split()[0].rstrip("/.,")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, f"http://127.0.0.1:{port}"
    sys.exit("the server ended before it said where it answers")


def asked(address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A server's reply."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        value: dict[str, Any] = json.load(reply)
    return value


def measure_servers(
    folder: Path, address: str, shop_path: Path | None, events: int, networks: list[Machine]
) -> dict[str, Any]:
    """From an event that one server takes to another's answer, both ways in turn."""
    here, there = [*networks, None, None][:2]
    first = folder / "machine"
    if shop_path is None:
        files = {}
        for kind, rows in (("products", tiny_products()), ("events", tiny_events())):
            files[kind] = folder / f"{kind}.jsonl"
            files[kind].write_text("\n".join(json.dumps(row, default=str) for row in rows))
        small_shop(first, files["products"], files["events"])
    else:
        shutil.copytree(shop_path, first)
    with Shop.open(first, read_only=False) as shop:
        move(shop, seen_from(address, here), str(folder / "data"))
    (second,) = machines(folder, seen_from(address, there), 1)
    ended(started("index", "--json", "--shop", second))
    shutil.copytree(first / "policies", second / "policies", dirs_exist_ok=True)
    servers = [_served(path, at) for path, at in ((first, here), (second, there))]
    seconds = []
    with client(here) as ask_first, client(there) as ask_second:
        both = [(ask_first, servers[0][1]), (ask_second, servers[1][1])]
        try:
            for turn in range(events):
                (tell, takes), (ask, answers) = both if turn % 2 else both[::-1]
                event = {"user_id": f"somebody{turn}", "type": "search", "query": "desk lamp"}
                time.sleep(random.Random(turn).uniform(0, 2))  # at any moment of their rounds
                tell(f"{takes}/events", event)
                start = time.perf_counter()
                while not ask(f"{answers}/users/somebody{turn}/memory").get("events"):
                    time.sleep(0.02)
                seconds.append(round(time.perf_counter() - start, 2))
                print(f"{seconds[-1]} s", file=sys.stderr, flush=True)
        finally:
            for process, _ in servers:
                process.terminate()
                process.wait()
    median = statistics.median(seconds)
    return {"seconds": sorted(seconds), "median": median, "most": max(seconds)}


@contextlib.contextmanager
def client(machine: Machine | None) -> Iterator[Any]:
    """`asked` by somebody at a machine."""
    begin = machine.enter if machine else None
    with ThreadPoolExecutor(1, initializer=begin) as thread:
        yield lambda *words: thread.submit(asked, *words).result()


def measure_growth(folder: Path, new_lake: Any, sizes: list[int]) -> list[dict[str, Any]]:
    """Ingest into a lake, memory, and a bulk recommendation, for each number of events."""
    found = []
    for events in sizes:
        place = folder / str(events)
        users = events // EVENTS_A_USER
        make_log(place / "files", events, users)
        create_in(place / "shop", new_lake(place), str(place / "data"))
        shop = ("--shop", place / "shop")
        ended(started("ingest", "products", place / "files" / "products.parquet", "--json", *shop))
        files = sorted((place / "files").glob("events-*.parquet"))
        steps: dict[str, Any] = {"events": events, "users": users}
        steps["ingest"] = timed("ingest", "events", *files, *shop)
        steps["memory"] = timed("memory", "build", *shop)
        steps["joining"] = timed(
            "init", "--store", new_lake.known[place], "--shop", place / "other"
        )
        steps["loading"] = timed("memory", "build", "--shop", place / "other")
        steps["index"] = timed("index", *shop)
        step = max(users // BULK_USERS, 1)
        asked_for = place / "users.txt"
        asked_for.write_text("\n".join(f"u{number}" for number in range(0, users, step)))
        bulk = ("--users", asked_for, "--out", place / "bulk.parquet", "--policy", "sample")
        steps["bulk"] = timed("recommend", *bulk, "--group", "2", *shop)
        for kind in ("data", "shop"):
            files = [p for p in (place / kind).rglob("*") if p.is_file()]
            steps[f"{kind}_mb"] = sum(p.stat().st_size for p in files) // 2**20
        print(json.dumps(steps), file=sys.stderr, flush=True)
        found.append(steps)
        shutil.rmtree(place)
    return found


class KnownLakes:
    """Addresses of new lakes, remembered by their folder."""

    def __init__(self, new: Any) -> None:
        self._new, self.known = new, dict[Path, str]()

    def __call__(self, folder: Path) -> str:
        """A new lake's address."""
        folder.mkdir(parents=True, exist_ok=True)
        self.known[folder] = self._new(folder)
        return self.known[folder]


@contextlib.contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder that was named, which must be empty, or one for the moment."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="qagent-lakes-") as name:
            yield Path(name)
        return
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def main() -> None:
    """Measure one of the four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "servers", "kills", "growth"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--events", type=int, nargs="+")
    parser.add_argument("--shop", type=Path, help="a shop to copy, by default a small one")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", action="store_true", help="a network for each machine")
    parser.add_argument("--catalog", choices=["postgres", "sqlite"], default="postgres")
    given = parser.parse_args()
    if given.networks and (given.catalog == "sqlite" or not namespaces.can_make()):
        sys.exit("networks need PostgreSQL as the catalog, Linux, root, and the program ip")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(place(given.folder))
        networks = stack.enter_context(namespaces.machines(len(WORKS) if given.networks else 0))
        hosts = tuple(machine.gateway for machine in networks)
        new = stack.enter_context(lakes(given.catalog, hosts))
        new_lake = KnownLakes(new)
        found: Any
        if given.what == "build":
            count = (given.events or [1_000_000])[0]
            found = measure_build(folder, new_lake(folder), count)
        elif given.what == "servers":
            count = (given.events or [20])[0]
            found = measure_servers(folder, new_lake(folder), given.shop, count, networks)
        elif given.what == "kills":
            found = kill_machines(
                folder, new_lake(folder), given.kills, given.seed, given.pause, networks
            )
        else:
            found = measure_growth(folder, new_lake, given.events or [1_000_000])
        print(json.dumps(found))


if __name__ == "__main__":
    main()
