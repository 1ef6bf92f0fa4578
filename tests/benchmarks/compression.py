"""How many times shorter a profile is than the log that it stands in for.

    python tests/benchmarks/compression.py SHOP --least 100
    python tests/benchmarks/compression.py --days 270 --users 400   # a longer log is simulated

Prints one JSON document: for users with at least ``--least`` events, ``raw_tokens / tokens`` as
``qagent memory USER --json`` has them, after the end of the log. In the sample shop's 90 days nobody
has 100 events; with ``--days`` the same simulator draws a longer log with all else as in the sample
shop (`SimulatorConfig`), into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

import numpy as np

from qagent_mlx.build import build_shop
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.memory.profile import Memory
from qagent_mlx.memory.ranker import MemoryRanker
from qagent_mlx.memory.types import Moment
from qagent_mlx.policy.shop_memory import token_counter
from qagent_mlx.shop.config import ShopConfig
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig


def compression(shop: Shop, least: int) -> dict[str, Any]:
    """Users, events and ``raw_tokens / tokens`` of those with at least so many events."""
    rows = shop.connection.execute(
        "SELECT user_id, count(*) FROM events GROUP BY 1 HAVING count(*) >= ? ORDER BY 1", [least]
    ).fetchall()
    found: dict[str, Any] = {"least": least, "users": len(rows)}
    if not rows:
        return found
    memory = Memory(
        shop.connection, shop.config.memory, token_counter(shop), MemoryRanker.of_shop(shop)
    )
    moments = [Moment(user, shop.end_of_log()) for user, _ in rows]
    ratios = [
        memory.raw_tokens(moment) / profile.tokens
        for moment, profile in zip(moments, memory.profiles(moments), strict=True)
    ]
    least_, low, middle, high, most = np.quantile(ratios, (0, 0.1, 0.5, 0.9, 1)).round(1).tolist()
    return found | {
        "events": {
            "median": float(np.median([n for _, n in rows])),
            "most": max(n for _, n in rows),
        },
        "ratio": {"least": least_, "p10": low, "median": middle, "p90": high, "most": most},
        "at_least_10": float(np.mean(np.array(ratios) >= 10)),
    }


def simulated(folder: Path, config: SimulatorConfig) -> Shop:
    """A shop of the simulator in a folder, with its memory."""
    counts = write_sample(folder / "data", config)
    shop = Shop.create(folder / "shop", ShopConfig(name="simulated"))
    for kind in ("products", "events"):
        report = ingest_files(shop, kind, [folder / "data" / f"{kind}.parquet"])
        if report.rejected:
            raise SystemExit(f"{report.rejected} of {counts[kind]} {kind} were rejected")
    build_shop(shop)
    return shop


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shop", type=Path, nargs="?")
    parser.add_argument("--least", type=int, nargs="+", default=[100])
    parser.add_argument("--days", type=int, help="Simulate a log of so many days instead.")
    parser.add_argument("--users", type=int, default=SimulatorConfig.users)
    given = parser.parse_args()
    if (given.shop is None) == (given.days is None):
        parser.error("name a shop, or say with --days how long a log to simulate")
    with tempfile.TemporaryDirectory() as folder:
        if given.days:
            shop = simulated(Path(folder), SimulatorConfig(days=given.days, users=given.users))
        else:
            shop = Shop.open(given.shop)
        with shop:
            print(json.dumps([compression(shop, least) for least in given.least], indent=2))


if __name__ == "__main__":
    main()
