"""Speed of search on made-up catalogs: python tests/benchmarks/search_speed.py PART.

    crossover    exact search against HNSW, by catalog size
    million      1,000,000 x 128 in shards of HNSW graphs: recall, one query, numpy brute force.
                 --folder keeps the graphs, so that they can be built in several runs (--build N)
    hybrid       all of search over 100,000 products: one by one, and in a batch of 256
    build        default encoder and index of 20,000 products

Times are medians of alternating runs in one process; compare ratios within one run only, on a
quiet machine. --cpu counts processor seconds instead, for a machine that others use as well
(set OPENBLAS_NUM_THREADS=1). No test runs this.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory import vector_index as module
from qagent_mlx.inventory.index import build_index
from qagent_mlx.inventory.search import HybridSearch, open_search
from qagent_mlx.inventory.vector_index import Shard, VectorIndex, open_shard
from qagent_mlx.shop.shop import Shop

DIMENSIONS = 128
clock = time.perf_counter


def seconds(functions: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function, called in alternation with the round's number."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name, function in functions.items():
            start = clock()
            function(number)
            found[name].append(clock() - start)
    return {name: float(np.median(times)) for name, times in found.items()}


def made_up(size: int, seed: int = 0, hidden: int = 48) -> np.ndarray:
    """Unit vectors of products in clusters of clusters, float32 (size, 128)."""
    random = np.random.default_rng(seed)
    kinds = np.random.default_rng(1).standard_normal((2000, hidden)).astype(np.float32)
    lift = np.random.default_rng(2).standard_normal((hidden, DIMENSIONS)).astype(np.float32)
    points = kinds[random.integers(0, 2000, size)]
    points += 0.7 * random.standard_normal((size, hidden), dtype=np.float32)
    points = points @ lift + random.standard_normal((size, DIMENSIONS), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def crossover(most: int = 6) -> None:
    """Exact against HNSW by size: one query, and 256 at once."""
    for size in (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)[:most]:
        vectors, queries = made_up(size), made_up(256, 9)
        exact = VectorIndex(
            DIMENSIONS, [Shard(0, size, matrix=module.rounded(vectors))], np.arange(size)
        )
        start = clock()
        graph = VectorIndex(
            DIMENSIONS, [Shard(0, size, graph=module._graph(vectors, 0))], np.arange(size)
        )
        built = clock() - start
        pair = {"exact": exact, "HNSW": graph}
        one = seconds({name: partial(_one, v, queries) for name, v in pair.items()}, 100)
        many = seconds({name: partial(_all, v, queries) for name, v in pair.items()}, 5)
        print(
            f"{size:>7,}: one query exact {one['exact'] * 1e3:.2f} ms, HNSW "
            f"{one['HNSW'] * 1e3:.2f} ms; of 256 exact {many['exact'] / 256 * 1e3:.3f} ms, HNSW "
            f"{many['HNSW'] / 256 * 1e3:.3f} ms; graph built in {built:.1f} s",
            flush=True,
        )


def _one(vectors: VectorIndex, queries: np.ndarray, number: int) -> object:
    return vectors.search(queries[number : number + 1], 50)


def _all(vectors: VectorIndex, queries: np.ndarray, _number: int) -> object:
    return vectors.search(queries, 50)


def million(folder: Path, build_only: int | None, size: int = 1_000_000) -> None:
    """HNSW over a million vectors in shards, against numpy brute force."""
    per, shards = module.SHARD, []
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, size, per)):
        count = min(per, size - start)
        path = folder / f"{number}.usearch"
        if not path.exists():
            if build_only is not None and build_only <= 0:
                return
            begin = time.perf_counter()
            graph = module._graph(made_up(count, 100 + number), start)
            graph.save(str(path))
            print(f"shard {number}: {count:,} in {time.perf_counter() - begin:.0f} s", flush=True)
            if build_only is not None:
                build_only -= 1
        shards.append(open_shard(folder, path.name, start, count))
    if build_only is not None:
        return
    vectors = VectorIndex(DIMENSIONS, shards, np.arange(size))
    matrix = np.concatenate([made_up(s.size, 100 + number) for number, s in enumerate(shards)])
    queries = made_up(300, 9)

    def brute(i: int) -> np.ndarray:
        scores = matrix @ queries[i]
        best = np.argpartition(-scores, 10)[:10]
        return best[np.argsort(-scores[best])]

    vectors.search(queries, 10)  # reads the graphs into memory once
    for k in (10, 50):
        found = seconds(
            {"HNSW": lambda i, k=k: vectors.search(queries[i : i + 1], k), "numpy": brute}, 60
        )
        print(
            f"one query, k={k}: HNSW {found['HNSW'] * 1e3:.2f} ms, numpy "
            f"{found['numpy'] * 1e3:.1f} ms: {found['numpy'] / found['HNSW']:.0f}x"
        )
    hits = [
        len(set(brute(i).tolist()) & set(rows[:10].tolist()))
        for i, (rows, _) in enumerate(vectors.search(queries, 10))
    ]
    print(f"recall@10 against exact: {np.mean(hits) / 10:.4f} over {len(queries)} queries")
    start = time.perf_counter()
    vectors.search(queries[:256], 10)
    print(f"256 queries in one call: {time.perf_counter() - start:.3f} s")


def made_up_shop(folder: Path, size: int) -> Shop:
    """Products with titles of brands, kinds, qualities and model numbers, and some clicks."""
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    draw = lambda n: ["".join(random.choice(syllables, random.integers(2, 4))) for _ in range(n)]  # noqa: E731
    brands, nouns, qualities = draw(400), draw(900), draw(300)
    kinds = [" ".join(random.choice(nouns, 2, replace=False)) for _ in range(700)]
    popular = lambda words: words[min(int(random.exponential(len(words) / 5)), len(words) - 1)]  # noqa: E731
    folder.mkdir(parents=True, exist_ok=True)
    titles = []
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "title", "brand", "category", "price", "stock"])
        for number in range(size):
            brand, kind = popular(brands), popular(kinds)
            title = (
                f"{brand.title()} {kind.title()}, {popular(qualities)} {popular(qualities)}, "
                f"{random.integers(1, 64)} {random.choice(['gb', 'cm', 'pack', 'inch'])} - "
                f"{brand[:2].upper()}{random.integers(100, 9999)}"
            )
            titles.append((brand, kind))
            writer.writerow(
                [
                    f"p{number:07}",
                    title,
                    brand,
                    f"{kind.split()[0]} > {kind}",
                    round(float(random.exponential(50)), 2),
                    random.random() < 0.9,
                ]
            )
    shop = Shop.create(folder / "shop")
    ingest_files(shop, "products", [folder / "products.csv"])
    events, clock = [], datetime(2026, 1, 1)
    for number in range(4000):
        row = int(random.integers(size))
        brand, kind = titles[row]
        query = kind if number % 2 else f"{brand} {kind}"
        clock += timedelta(minutes=10)
        base = {"user_id": f"u{number % 500}", "time": clock.isoformat(), "query": query}
        events.append({**base, "type": "search"})
        events.append({**base, "type": "click", "product_id": f"p{row:07}"})
    append_events(shop, events)
    return shop


def hybrid(size: int = 100_000) -> None:
    """One query and 256 at once over the whole of search; no query is asked twice."""
    with tempfile.TemporaryDirectory() as name:
        with made_up_shop(Path(name), size) as shop:
            start = clock()
            index = build_index(shop)
            print(f"index of {size:,} products built in {clock() - start:.1f} s")
            search = open_search(shop, index)
        random = np.random.default_rng(5)
        words = [title.split() for title in index.catalog.titles]

        def fresh(count: int) -> list[str]:
            return [
                " ".join([*words[i][:2], words[i][random.integers(2, 5)]])
                for i in random.integers(0, size, count)
            ]

        search.search(fresh(20))
        ones, batches = [], []
        for _ in range(5):
            for query in fresh(60):
                start = clock()
                search.search([query], 10)
                ones.append(clock() - start)
            queries = fresh(256)
            start = clock()
            search.search(queries, 10)
            batches.append(clock() - start)
        p50, p95 = np.quantile(ones, (0.5, 0.95))
        rate = 256 / float(np.median(batches))
        print(
            f"one query: p50 {p50 * 1e3:.2f} ms, p95 {p95 * 1e3:.2f} ms, "
            f"{1 / np.mean(ones):.0f} a second; 256 at once: {rate:.0f} a second, "
            f"{rate * np.mean(ones):.1f}x"
        )
        profile(search, fresh(256))


def profile(search: HybridSearch, queries: list[str]) -> None:
    """Milliseconds a query that the sides take, in a batch."""
    index, found = search.index, {}
    start = clock()
    vectors = index.encoder.encode(queries)
    found["encode"] = clock() - start
    start = clock()
    index.vectors.search(vectors, 50)
    found["vectors"] = clock() - start
    start = clock()
    search._words(queries, None)
    found["words"] = clock() - start
    print({name: round(value / len(queries) * 1e3, 3) for name, value in found.items()})


def build_speed(size: int = 20_000) -> None:
    """The default encoder and index."""
    with tempfile.TemporaryDirectory() as name, made_up_shop(Path(name), size) as shop:
        start = clock()
        build_index(shop)
        print(f"{size:,} products: encoder and index in {clock() - start:.1f} s")


def main() -> None:
    """Run one part."""
    options = argparse.ArgumentParser()
    options.add_argument("part", choices=("crossover", "million", "hybrid", "build"))
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "million")
    options.add_argument("--build", type=int, help="million: build at most N shards, then end")
    options.add_argument("--size", type=int)
    options.add_argument("--cpu", action="store_true", help="processor seconds, not the clock")
    given = options.parse_args()
    if given.cpu:
        global clock
        clock = time.process_time
    sized = (given.size,) if given.size else ()
    if given.part == "million":
        million(given.folder, given.build, *sized)
    elif given.part == "crossover":
        crossover(*sized)
    else:
        {"hybrid": hybrid, "build": build_speed}[given.part](*sized)


if __name__ == "__main__":
    main()
