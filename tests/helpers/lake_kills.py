"""Machines of one lake that are killed at random moments, and what must hold afterwards.

Six machines, each a process with a folder of its own: two that ingest files, two whose server's
store takes posts, one that builds memory, one that changes prices and brings them into the search
index, which it publishes. Each writes down what it was told is stored: those events
must be in the lake once. What was being stored when the machine died may be there or not, and is
stored again by the next process with the same rows.

Where each has a network of its own (`namespaces`), half of them die as by a power cut: nobody is
told, least of all the catalog.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from crashes import memory_agrees
from namespaces import Machine, seen_from

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.journal import events_entry
from qagent_mlx.inventory.index import open_index
from qagent_mlx.memory.buckets import build_memory
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.serve.store import ShopStore
from qagent_mlx.shop.moving import create_in
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import hash_file

START = datetime(2026, 1, 1)
QUERIES = ("red lamp", "desk lamp", "usb cable", "yoga mat", "shoes")
EVENTS_A_FILE = 20


def _rows(machine: str, number: int) -> list[dict[str, Any]]:
    """The events of a machine's file, or post, of a number: always the same."""
    draw = random.Random(f"{machine}-{number}")
    return [
        {
            "user_id": f"u{draw.randrange(40)}",
            # No two events of all machines have the same time.
            "time": (
                START + timedelta(minutes=number * 2, seconds=place, microseconds=int(machine) + 1)
            ).isoformat(),
            "type": "search",
            "query": draw.choice(QUERIES),
        }
        for place in range(EVENTS_A_FILE)
    ]


def _told(folder: Path) -> int:
    """How many files or posts of a machine are stored, as it was told."""
    path = folder.parent / f"{folder.name}.told"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _tell(folder: Path, number: int) -> None:
    with (folder.parent / f"{folder.name}.told").open("a") as file:
        file.write(f"{number}\n")


def _again(step: Callable[[], Any]) -> Any:
    """Do it until nobody else is in the way."""
    while True:
        try:
            return step()
        except QAgentError as error:
            if not any(reason in str(error) for reason in ("in use", "by others")):
                raise


def ingest(folder: Path, machine: str) -> None:
    """Ingest one file after the other."""
    path = folder.parent / f"{folder.name}.jsonl"
    while True:
        number = _told(folder)
        path.write_text("\n".join(map(json.dumps, _rows(machine, number))))

        def step() -> None:
            with Shop.open(folder, read_only=False) as shop:
                report = ingest_files(shop, "events", [path])
                assert report.accepted + report.duplicates == EVENTS_A_FILE, report

        _again(step)
        _tell(folder, number)


def serve(folder: Path, machine: str) -> None:
    """Take posts as a server does, some each second."""
    store = ShopStore(folder, False, Metrics())

    def use(shop: Shop) -> Future[Shop]:
        done: Future[Shop] = Future()
        before, store.shop = store.shop, shop
        done.set_result(before)
        return done

    store.start(use, lambda: None)
    while True:
        number = _told(folder)
        store.append([events_entry(_rows(machine, number))])
        _tell(folder, number)
        time.sleep(0.3)


def build(folder: Path, _machine: str) -> None:
    """Build memory again and again."""
    while True:
        with Shop.open(folder, read_only=False) as shop:
            build_memory(shop)
        _tell(folder, 0)


def index(folder: Path, _machine: str) -> None:
    """Change a product and the search index, again and again."""
    path = folder.parent / f"{folder.name}.jsonl"
    while True:
        number = _told(folder)
        path.write_text("\n".join(map(json.dumps, _products(number))))

        def step() -> None:
            with Shop.open(folder, read_only=False) as shop:
                ingest_files(shop, "products", [path])
                open_index(shop)

        _again(step)
        _tell(folder, number)
        time.sleep(0.3)


def _products(number: int) -> list[dict[str, Any]]:
    """The products as the machine that indexes makes them in a round, one with a title of its own."""
    return [
        {
            "product_id": f"p{place}",
            "title": f"{query} {'new' if place == number % len(QUERIES) else 'plain'}",
            "price": number + place,
        }
        for place, query in enumerate(QUERIES)
    ]


WORKS = (ingest, ingest, serve, serve, build, index)


def _work(number: int, folder: str, machine: Machine | None) -> None:
    if machine is not None:
        machine.enter()
    WORKS[number](Path(folder), str(number))


def _die(process: Any, machine: Machine | None, has_power: bool) -> None:
    """Kill a process; without power its machine also leaves the network, before and meanwhile."""
    if machine is None or has_power:
        process.kill()
        process.join()
        return
    machine.cut()
    process.kill()
    process.join()
    machine.mend()


def kill_machines(
    folder: Path,
    address: str,
    kills: int,
    seed: int,
    pause: float,
    machines: Sequence[Machine] = (),
) -> dict[str, Any]:
    """Kill machines one at a time, start them again, then compare; AssertionError at a loss.

    ``pause`` is the longest time between two kills, in seconds. ``machines`` are the networks that
    they are in; by default all are in this one.
    """
    paths = [folder / f"machine{number}" for number in range(len(WORKS))]
    networks = dict(enumerate(machines))
    for number, path in enumerate(paths):
        data = str(folder / "data") if not number else None
        create_in(path, seen_from(address, networks.get(number)), data)
    draw, start = random.Random(seed), time.perf_counter()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lake_kills"])

    def begin(number: int) -> Any:
        words = (number, str(paths[number]), networks.get(number))
        process = context.Process(target=_work, args=words)
        process.start()
        return process

    power_cuts = 0
    running = [begin(number) for number in range(len(WORKS))]
    for _ in range(kills):
        time.sleep(draw.uniform(0.0, pause))
        number = draw.randrange(len(WORKS))
        ended = [n for n, process in enumerate(running) if not process.is_alive()]
        assert not ended, f"{WORKS[ended[0]].__name__} of machine {ended[0]} ended by itself"
        has_power = bool(draw.randrange(2)) if networks else True
        power_cuts += not has_power
        _die(running[number], networks.get(number), has_power)
        running[number] = begin(number)
    for process in running:
        process.kill()
        process.join()
    report = _compare(paths)
    cuts = {"power_cuts": power_cuts} if networks else {}
    return {"kills": kills, **cuts, "seconds": round(time.perf_counter() - start), **report}


def _compare(paths: list[Path]) -> dict[str, Any]:
    """Every event that a machine was told of is there once, on each of them, and nothing else."""
    stored, tables = dict.fromkeys(("ingest", "serve", "build", "index"), 0), []
    wanted, possible = set(), set()
    for number, (path, work) in enumerate(zip(paths, WORKS, strict=True)):
        told = _told(path)
        stored[work.__name__] += told
        if work in (build, index):
            continue
        for post in range(told + 1):  # the last one was perhaps stored, and nobody was told
            rows = {
                (r["user_id"], datetime.fromisoformat(r["time"])) for r in _rows(str(number), post)
            }
            possible |= rows
            if post < told:
                wanted |= rows
    for path in paths:
        with Shop.open(path, read_only=False) as shop:
            shop.connection  # noqa: B018  (stores what is left in the journal)
    for path in paths:
        with Shop.open(path, read_only=False) as shop:
            rows = shop.connection.execute("SELECT user_id, ts FROM events ORDER BY ALL").fetchall()
            sessions = shop.connection.execute(
                "SELECT user_id, ts, session_id, search_id, event_id FROM events ORDER BY ALL"
            ).fetchall()
            assert len(rows) == len(set(rows)), (
                f"{len(rows) - len(set(rows))} events are there twice"
            )
            assert wanted <= set(rows), f"{len(wanted - set(rows))} events are lost"
            assert set(rows) <= possible, f"{len(set(rows) - possible)} events are nobody's"
            tables.append(sessions)
    assert all(table == tables[0] for table in tables), "machines hold different rows"
    assert all(stored.values()), f"machines died too soon to be told anything: {stored}"
    last = _told(paths[WORKS.index(index)])
    _compare_indexes(paths, {last - 1, last})
    with Shop.open(paths[-1], read_only=False) as shop:
        built = build_memory(shop)
        memory_agrees(shop, [f"u{number}" for number in range(40)])
    return {
        "acknowledged": stored,
        "events": len(tables[0]),
        "lost": 0,
        "doubled": 0,
        "users": built.users,
    }


def _compare_indexes(paths: list[Path], rounds: set[int]) -> None:
    """All machines have the same index, of the products of one of the last rounds."""
    found = []
    for path in paths:
        with Shop.open(path, read_only=False) as shop:
            index = open_index(shop)
        files = {
            name.partition("-")[0]: hash_file(index.folder / name) for name in index.manifest.files
        }
        found.append((index.manifest.published, files))
    assert all(one == found[0] for one in found), "machines have different indexes"
    titles = [[row["title"] for row in _products(number)] for number in rounds]
    assert sorted(index.catalog.titles) in map(sorted, titles), "the index is of other products"
