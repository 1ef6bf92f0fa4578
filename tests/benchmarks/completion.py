"""Completions after one, two, three and five letters, against the most searched completion.

    python tests/benchmarks/completion.py SHOP [CASES]

Each test case of the shop is typed: MRR of what the user then searched among ten completions, and
the share of keystrokes that taking it would have saved. Both know the log before the first test
case; the profile is that of the case's moment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()

import numpy as np

from qagent_mlx.agent.suggest import Completer
from qagent_mlx.environment.cases import build_cases
from qagent_mlx.inventory.product_search import open_shop_search
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key

LETTERS = (1, 2, 3, 5)
K = 10


def most_popular(shop: Shop, as_of: datetime) -> Callable[[str], list[str]]:
    """Completes with what was searched most."""
    rows = shop.connection.execute(
        """SELECT lower(mode(query)), count(*) AS n FROM events WHERE type = 'search' AND ts < ?
        GROUP BY query_key ORDER BY n DESC, query_key""",
        [as_of],
    ).fetchall()
    return lambda prefix: [text for text, _ in rows if text.startswith(prefix)][:K]


def rank_of(key: str, queries: list[str]) -> float:
    """The reciprocal rank of a query."""
    keys = [query_key(query) for query in queries]
    return 1 / (keys.index(key) + 1) if key in keys else 0.0


def main(path: Path, most: int) -> None:
    """Print a table."""
    shop = Shop.snapshot(path)
    cases = [case for case in build_cases(shop.connection) if case.split == "test"]
    start = cases[0].as_of
    cases = cases[:: max(1, len(cases) // most)][:most]
    memory = Memory(shop.connection, shop.config.memory, count_words, MemoryRanker.of_shop(shop))
    profiles = memory.profiles([Moment(case.user_id, case.as_of) for case in cases])
    completer = Completer.of_shop(memory, open_shop_search(shop), start)
    popular = most_popular(shop, start)
    seconds: list[float] = []
    print(f"{len(cases)} cases of {path}")
    for letters in LETTERS:
        ranks: dict[str, list[float]] = {"popular": [], "suggest": []}
        saved: dict[str, list[float]] = {"popular": [], "suggest": []}
        for case, profile in zip(cases, profiles, strict=True):
            text = " ".join(case.query.lower().split())
            prefix = text[:letters]
            began = time.perf_counter()
            suggested = [s.query for s in completer.complete(prefix, profile, K)]
            seconds.append(time.perf_counter() - began)
            for name, queries in (("popular", popular(prefix)), ("suggest", suggested)):
                rank = rank_of(case.query_key, queries)
                ranks[name].append(rank)
                saved[name].append((len(text) - len(prefix)) / len(text) if rank else 0.0)
        mrr = {name: float(np.mean(values)) for name, values in ranks.items()}
        kept = {name: float(np.mean(values)) for name, values in saved.items()}
        print(
            f"{letters} letters: MRR {mrr['suggest']:.3f}, popular {mrr['popular']:.3f} "
            f"(x{mrr['suggest'] / max(mrr['popular'], 1e-9):.2f}); keystrokes saved "
            f"{kept['suggest']:.1%}, popular {kept['popular']:.1%}"
        )
    print("ms a completion, p50 and p95:", *np.round(1e3 * np.quantile(seconds, (0.5, 0.95)), 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500)
