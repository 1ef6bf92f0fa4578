"""How well search finds what people then engaged with: python tests/benchmarks/search_quality.py SHOP.

The log is cut at a moment (by default 80 % of its time; --test-from sets it). Each query that
led to an engagement after the cut is asked once, as of the cut, and the products that were
engaged with under it after the cut are the right answers, with log2(1 + times) as gain. Nothing
of what came after the cut reaches search. Reported are NDCG@10, recall@10 and the share that finds
nothing over distinct queries with 95 % bootstrap intervals, of the whole search (words, vectors and
past clicks), of it without the relevance floor, of each side alone, and of words and vectors without
clicks; then paired differences, the share of NDCG@10 that is kept when each query has one random
edit, and how many words of noise find nothing. No test runs this.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np

from qagent_mlx.evaluate.significance import bootstrap, paired_difference
from qagent_mlx.inventory.relevance import noise_word
from qagent_mlx.inventory.search import HybridSearch, open_search
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import words

NO_CLICKS = {"weight_clicks": 0.0, "weight_shares": 0.0}
SYSTEMS = {
    "hybrid": {},
    "no floor": {"relevance_floor": False},
    "ranks alone": {"weight_shares": 0.0},
    "words+vectors": NO_CLICKS,
    "BM25": {**NO_CLICKS, "weight_dense": 0.0},
    "dense": {**NO_CLICKS, "weight_lexical": 0.0},
    "clicks": {"weight_lexical": 0.0, "weight_dense": 0.0},
}
PAIRS = [("hybrid", "no floor")] + [
    (one, other) for one in ("hybrid", "words+vectors") for other in ("BM25", "dense")
]


def judgements(shop: Shop, after: datetime) -> dict[str, dict[str, float]]:
    """Query text -> product -> gain, from engagements at or after a moment."""
    rows = shop.connection.execute(
        """SELECT s.query_key, mode(s.query), e.product_id, count(*)
        FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
        JOIN products p ON p.product_id = e.product_id
        WHERE e.type IN ('click', 'cart', 'purchase') AND s.ts >= ?
        GROUP BY ALL ORDER BY ALL""",
        [after],
    ).fetchall()
    texts: dict[str, str] = {}
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for key, text, product, times in rows:
        text = texts.setdefault(key, text)
        found[text][product] = float(np.log2(1 + times))
    return dict(found)


def measure(
    search: HybridSearch, queries: list[str], truth: list[dict[str, float]], moment: datetime
) -> dict[str, np.ndarray]:
    """NDCG@10 and recall@10 of each query, and whether it finds nothing."""
    discount = 1 / np.log2(np.arange(2, 12))
    hits = search.search(queries, 10, [moment] * len(queries))
    ndcg, recall = [], []
    for found, gains in zip(hits, truth, strict=True):
        got = np.array([gains.get(h.product_id, 0.0) for h in found if h.score > 0])
        best = np.sort(list(gains.values()))[::-1][:10]
        ndcg.append((got * discount[: len(got)]).sum() / (best * discount[: len(best)]).sum())
        recall.append((got > 0).sum() / min(10, len(gains)))
    return {
        "ndcg@10": np.array(ndcg),
        "recall@10": np.array(recall),
        "nothing": np.array([not found for found in hits], float),
    }


def typo(query: str, draw: random.Random) -> str:
    """One letter deleted, doubled in place by another, changed, or swapped with the next."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    at = draw.randrange(len(query))
    kinds = ["insert", "change"] + ["delete"] * (len(query) > 1) + ["swap"] * (at + 1 < len(query))
    kind = draw.choice(kinds)
    if kind == "insert":
        return query[:at] + draw.choice(letters) + query[at:]
    if kind == "change":
        return query[:at] + draw.choice(letters) + query[at + 1 :]
    if kind == "delete":
        return query[:at] + query[at + 1 :]
    return query[:at] + query[at + 1] + query[at] + query[at + 2 :]


def main() -> None:
    """Measure and print; --json for a document."""
    options = argparse.ArgumentParser()
    options.add_argument("shop", type=Path)
    options.add_argument("--test-from", type=datetime.fromisoformat)
    options.add_argument("--json", action="store_true")
    options.add_argument("--set", action="append", default=[], help="search setting, NAME=NUMBER")
    given = options.parse_args()
    changes = {}
    for item in given.set:
        name, _, value = item.partition("=")
        changes[name] = json.loads(value)
    with Shop.open(given.shop) as shop:
        first, last = shop.connection.execute("SELECT min(ts), max(ts) FROM events").fetchone()
        moment = given.test_from or first + 0.8 * (last - first)
        truth_of = judgements(shop, moment)
        full = open_search(shop)
        seen = {
            key
            for (key,) in shop.connection.execute(
                """SELECT DISTINCT s.query_key FROM events e JOIN events s
                ON s.event_id = e.search_id WHERE e.type <> 'view' AND e.ts < ?""",
                [moment],
            ).fetchall()
        }
    assert full.index.clicks_until is None or full.index.clicks_until <= moment
    queries, truth = list(truth_of), list(truth_of.values())
    base = replace(full.config, **changes)
    report = {
        "shop": str(given.shop),
        "from": moment.isoformat(),
        "queries": len(queries),
        "with_earlier_clicks": sum("".join(words(q)) in seen for q in queries),
    }
    scores = {}
    for name, weights in SYSTEMS.items():
        search = HybridSearch(full.index, full.clicks, replace(base, **weights))
        scores[name] = measure(search, queries, truth, moment)
    report["systems"] = {
        name: {metric: asdict(bootstrap(values)) for metric, values in metrics.items()}
        for name, metrics in scores.items()
    }
    report["paired"] = {
        f"{one} - {other}": {
            metric: asdict(paired_difference(scores[one][metric], scores[other][metric]))
            for metric in ("ndcg@10", "recall@10")
        }
        for one, other in PAIRS
    }
    draw = random.Random(0)
    edited = [typo(query, draw) for query in queries]
    report["typos"] = {}
    for name in ("hybrid", "no floor", "words+vectors", "BM25", "dense"):
        search = HybridSearch(full.index, full.clicks, replace(base, **SYSTEMS[name]))
        after = measure(search, edited, truth, moment)["ndcg@10"]
        before = scores[name]["ndcg@10"]
        rows = np.random.default_rng(0).integers(0, len(queries), (2000, len(queries)))
        ratio = after[rows].mean(1) / np.maximum(before[rows].mean(1), 1e-9)
        lo, hi = np.quantile(ratio, (0.025, 0.975))
        report["typos"][name] = (after.mean(), after.mean() / before.mean(), lo, hi)
    noise = [noise_word(draw) for _ in range(1000)]
    report["noise_finds_nothing"] = {
        name: float(
            np.mean(
                [
                    not found
                    for found in HybridSearch(
                        full.index, full.clicks, replace(base, **SYSTEMS[name])
                    ).search(noise, 1, [moment] * len(noise))
                ]
            )
        )
        for name in ("hybrid", "no floor")
    }
    if given.json:
        json.dump(report, sys.stdout, indent=2, default=float)
        return
    print({k: v for k, v in report.items() if not isinstance(v, dict)})
    for name, metrics in report["systems"].items():
        line = "  ".join(
            f"{m} {v['mean']:.3f} [{v['lo']:.3f}, {v['hi']:.3f}]" for m, v in metrics.items()
        )
        print(f"{name:16}{line}")
    for name, differences in report["paired"].items():
        line = "  ".join(
            f"{m} {v['diff']:+.3f} [{v['lo']:+.3f}, {v['hi']:+.3f}]" for m, v in differences.items()
        )
        print(f"{name:24}{line}")
    for name, (value, ratio, lo, hi) in report["typos"].items():
        print(f"typos {name:16}ndcg@10 {value:.3f}, kept {ratio:.1%} [{lo:.1%}, {hi:.1%}]")
    for name, share in report["noise_finds_nothing"].items():
        print(f"noise {name:16}finds nothing {share:.1%}")


if __name__ == "__main__":
    main()
