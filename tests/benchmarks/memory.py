"""How fast memory is built, refreshed and read, on a made-up log of a million events.

    python tests/benchmarks/memory.py --events 1000000 --users 50000 --folder /tmp/big

The log has sessions of searches with clicks, carts and purchases; users, products and queries
follow power laws. The shop is kept in the folder, so that a second run can skip making it.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import duckdb
import numpy as np
from simulated_log import NOUNS

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop

START, DAYS = datetime(2026, 1, 1), 90


def make_files(folder: Path, events: int, users: int, products: int, seed: int) -> None:
    """``products.parquet`` and ``events.parquet``: about ``events`` events of ``users`` users."""
    r = np.random.default_rng(seed)
    leaf = r.integers(0, 200, products)
    brand = r.integers(0, 300, products)
    sessions = int(events / 3.2)
    heavy = np.minimum((r.pareto(1.2, sessions) * users / 20).astype(int), users - 1)
    heavy[: sessions // 10] = 0  # one user with a tenth of the log
    # One session of everybody, then a power law.
    who = np.concatenate([np.arange(users), heavy])[:sessions]
    start = r.integers(0, DAYS * 86400, sessions)
    taste = r.integers(0, 200, users)
    made: dict[str, list[np.ndarray]] = {k: [] for k in ("user", "at", "type", "query", "item")}

    def add(mask: np.ndarray, offset: int, kind: str, query: np.ndarray, item: np.ndarray) -> None:
        n = int(mask.sum())
        made["user"].append(who[mask])
        made["at"].append(start[mask] + offset)
        made["type"].append(np.full(n, kind))
        made["query"].append(query[mask])
        made["item"].append(item[mask])

    by_leaf = [np.flatnonzero(leaf == k) for k in range(200)]
    for turn in range(2):
        on = np.ones(sessions, bool) if turn == 0 else r.random(sessions) < 0.4
        want = np.where(r.random(sessions) < 0.6, taste[who], r.integers(0, 200, sessions))
        item = np.array(
            [
                by_leaf[k][int(u**3 * len(by_leaf[k]))]
                for k, u in zip(want, r.random(sessions), strict=True)
            ]
        )
        style = r.integers(0, 3, sessions)
        none = np.full(sessions, "", object)
        query = np.array(
            [
                f"{NOUNS[k % 15]} kind{k}"
                + (f" brand{b}" if s == 1 else f" size{i % 40}" if s == 2 else "")
                for k, b, s, i in zip(want, brand[item], style, item, strict=True)
            ],
            object,
        )
        product = np.array([f"p{i}" for i in item], object)
        add(on, turn * 120, "search", query, none)
        hit = on & (r.random(sessions) < 0.75)
        add(hit, turn * 120 + 20, "click", query, product)
        more = hit & (r.random(sessions) < 0.5)
        add(more, turn * 120 + 40, "cart", none, product)
        add(more & (r.random(sessions) < 0.6), turn * 120 + 60, "purchase", none, product)
    at = np.concatenate(made["at"])
    order = np.argsort(at, kind="stable")[:events]
    table = {
        "user_id": np.char.add("u", np.concatenate(made["user"])[order].astype(str)),
        "time": np.datetime64(START, "us") + at[order].astype("timedelta64[s]"),
        "type": np.concatenate(made["type"])[order].astype(object),
        "query": np.concatenate(made["query"])[order],
        "product_id": np.concatenate(made["item"])[order],
    }
    numbers = np.arange(products)
    catalog = {
        "product_id": np.char.add("p", numbers.astype(str)).astype(object),
        "title": np.array(
            [
                f"Brand{b} {NOUNS[k % 15]} kind{k} size{i % 40}"
                for i, k, b in zip(numbers, leaf, brand, strict=True)
            ],
            object,
        ),
        "brand": np.array([f"Brand{b}" for b in brand], object),
        "category": np.array([f"Dept{k // 20} > Kind{k}" for k in leaf], object),
        "price": np.round(r.lognormal(3, 1, products), 2),
        "attributes": np.array([json.dumps({"size": f"size{i % 40}"}) for i in numbers], object),
    }
    with duckdb.connect() as connection:
        for name, columns in (("events", table), ("products", catalog)):
            connection.register(name, columns)
            connection.execute(f"COPY {name} TO '{folder / name}.parquet' (FORMAT parquet)")


def new_events(
    shop: Shop, n: int, users: int, products: int, r: np.random.Generator
) -> list[dict[str, object]]:
    """``n`` events after the log, on its last day."""
    end = shop.connection.execute("SELECT max(ts) FROM events").fetchall()[0][0]
    rows: list[dict[str, object]] = []
    while len(rows) < n:
        user = f"u{r.integers(0, users)}"
        k = int(r.integers(0, 200))
        time_ = end + timedelta(milliseconds=int(len(rows) + 1))
        query = f"{NOUNS[k % 15]} kind{k}"
        rows.append({"user_id": user, "time": time_, "type": "search", "query": query})
        rows.append(
            {
                "user_id": user,
                "time": time_ + timedelta(milliseconds=1),
                "type": "click",
                "query": query,
                "product_id": f"p{r.integers(0, products)}",
            }
        )
    return rows[:n]


def timed(call, *arguments):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    value = call(*arguments)
    return value, round(time.perf_counter() - start, 4)


def spent(call, *arguments):  # type: ignore[no-untyped-def]
    """The value, and the processor's seconds: what a busy machine does not blur."""
    start = time.process_time()
    value = call(*arguments)
    return value, round(time.process_time() - start, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--only-make", action="store_true", help="the log, and nothing else")
    options = parser.parse_args()
    folder, report = options.folder, {}
    r = np.random.default_rng(1)
    if not (folder / "shop").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _, report["generate_s"] = timed(
            make_files, folder, options.events, options.users, options.products, 0
        )
        with Shop.create(folder / "shop") as shop:
            ingest_files(shop, "products", [folder / "products.parquet"])
            loaded, report["ingest_s"] = timed(
                ingest_files, shop, "events", [folder / "events.parquet"]
            )
            assert loaded.rejected == 0, loaded
    if options.only_make:
        return
    with Shop.open(folder / "shop", read_only=False) as shop:
        report |= shop.counts()
        config = shop.config.memory

        def build() -> int:
            with shop.transaction() as connection:
                return MemoryStore(connection, config).build()

        if not options.skip_build:
            (report["profiles"], report["build_s"]), report["build_cpu_s"] = spent(timed, build)
        for events in (1000, 1):
            refresh, cpu = [], []
            for _ in range(5):
                rows = new_events(shop, events, options.users, options.products, r)
                (got, seconds), busy = spent(timed, append_events, shop, rows)
                assert got.accepted == events, got
                refresh.append(seconds)
                cpu.append(busy)
            report[f"ingest_and_refresh_{events}_s"] = refresh
            report[f"ingest_and_refresh_{events}_cpu_s"] = cpu
    with Shop.open(folder / "shop") as shop:
        memory = Memory(shop.connection, shop.config.memory, count_words)
        end = shop.connection.execute("SELECT max(ts) FROM events").fetchall()[0][0]
        now = end + timedelta(seconds=1)
        heavy = shop.connection.execute(
            "SELECT user_id, count(*) n FROM events GROUP BY 1 ORDER BY n DESC, 1 LIMIT 1"
        ).fetchall()[0]
        people = [f"u{i}" for i in r.integers(0, options.users, 300)]
        report["first_read_ms"] = timed(memory.profiles, [Moment(heavy[0], now)])[1] * 1000
        report["read_a_day_s"] = timed(memory.read_all, now)[1]
        found = [spent(timed, memory.profiles, [Moment(u, now)]) for u in people]
        times = [seconds * 1000 for (_, seconds), _ in found]
        report["read_ms_p50"] = round(statistics.median(times), 2)
        report["read_ms_p95"] = round(float(np.quantile(times, 0.95)), 2)
        report["read_cpu_ms_p50"] = round(statistics.median(c * 1000 for _, c in found), 2)
        times = [timed(memory.profiles, [Moment(heavy[0], now)])[1] * 1000 for _ in range(50)]
        report["heaviest_user_events"] = heavy[1]
        report["read_ms_p50_heaviest"] = round(statistics.median(times), 2)
        times = [timed(memory.profiles, [Moment(f"x{i}", now)])[1] * 1000 for i in range(50)]
        report["read_ms_p50_unknown"] = round(statistics.median(times), 2)
        tomorrow = now + timedelta(days=1)
        times = [timed(memory.profiles, [Moment(u, tomorrow)])[1] * 1000 for u in people[:100]]
        report["tomorrow_ms_first"] = [round(t, 1) for t in times[:12]]
        report["tomorrow_ms_p50_then"] = round(statistics.median(times[50:]), 2)
        before = end - timedelta(days=20)
        times = [timed(memory.profiles, [Moment(u, before)])[1] * 1000 for u in people[:20]]
        report["past_ms_p50"] = round(statistics.median(times), 1)
    report["peak_rss_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    report["database_mb"] = round((folder / "shop" / "shop.duckdb").stat().st_size / 1e6)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
