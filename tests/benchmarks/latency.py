"""Start-up and serving: python tests/benchmarks/latency.py SHOP [--policy sample].

Cold: ``qagent recommend`` in a new process, less ``python -c pass``. Warm: five queries for
one user, p50 and p95. Batch: 100 users at once against one by one. No test runs this.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median, quantiles

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.bench.measure import environment
from qagent_mlx.policy.registry import open_policy
from qagent_mlx.shop.shop import Shop

COMMAND = "from qagent_cli.main import cli; cli()"


def elapsed(*command: str) -> float:
    """Seconds of a process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def main(path: str, name: str, users: int) -> dict[str, object]:
    """All three measurements."""
    with Shop.open(path) as shop:
        ids = [
            row[0]
            for row in shop.connection.execute(
                "SELECT DISTINCT user_id FROM events ORDER BY user_id LIMIT ?", [users]
            ).fetchall()
        ]
        recommender = Recommender(shop, open_policy(shop, name))
        recommender.recommend(ids[:1])
        warm = []
        for user in ids:
            start = time.perf_counter()
            recommender.recommend([user], 5)
            warm.append(time.perf_counter() - start)
        start = time.perf_counter()
        recommender.recommend(ids, 5)
        batch = time.perf_counter() - start
    arguments = ("-c", COMMAND, "recommend", ids[0], "--shop", path, "--policy", name, "--json")
    cold = [elapsed(*arguments) - elapsed("-c", "pass") for _ in range(5)]
    return {
        **environment(),
        "policy": name,
        "cold_seconds": median(cold),
        "warm_p50_ms": 1000 * median(warm),
        "warm_p95_ms": 1000 * quantiles(warm, n=20)[-1],
        "users": len(ids),
        "batch_seconds": batch,
        "batch_speedup": sum(warm) / batch,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop")
    parser.add_argument("--policy", default="sample")
    parser.add_argument("--users", type=int, default=100)
    given = parser.parse_args()
    print(json.dumps(main(given.shop, given.policy, given.users), indent=1))
