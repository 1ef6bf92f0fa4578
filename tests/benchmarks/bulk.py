"""Users a second of bulk recommendation, beside asking for one user after another.

    python tests/benchmarks/bulk.py --shop shop --users 200 --single 20

Alternates between the two, takes medians, and prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.serve import batch
from qagent_mlx.serve.config import BulkConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.blas import one_blas_thread


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", type=Path, required=True)
    parser.add_argument("--policy", default="grpo")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--single", type=int, default=20)
    parser.add_argument("--group", type=int, default=0, help="0: what the policy needs.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with Shop.open(given.shop) as shop, tempfile.TemporaryDirectory() as folder, one_blas_thread():
        recommender = Recommender(shop, open_policy(shop, given.policy), group=given.group or None)
        users = batch.all_users(shop)[: given.users]
        recommender.recommend(users[:2])  # compiles
        rates: dict[str, list[float]] = {}
        for _ in range(given.rounds):
            began = time.perf_counter()
            for user in users[: given.single]:
                recommender.recommend([user])
            rates.setdefault("one by one", []).append(given.single / (time.perf_counter() - began))
            for workers in given.workers:
                report = batch.bulk_recommend(
                    recommender, users, Path(folder) / "out.parquet", BulkConfig(workers=workers)
                )
                name = f"bulk, {workers} workers"
                rates.setdefault(name, []).append(report.users_per_s)
    print(json.dumps({name: round(statistics.median(r), 2) for name, r in rates.items()}))


if __name__ == "__main__":
    main()
