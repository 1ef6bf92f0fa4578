"""Kills an updating process at random moments: python tests/benchmarks/search_kill.py SHOP [ROUNDS].

A copy of the shop is made. Each round starts a process that adds, changes, reprices and removes
products and updates the index, over and over; kills it with SIGKILL at a random moment; and then
opens the index and compares it with the catalog, scores of all words included. By default there
are 50 rounds. No test runs this; the tests run three rounds.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path

import qagent_mlx  # noqa: F401  (before mlx)


def main(shop: str, rounds: int = 50) -> None:
    """Kill and check."""
    path = Path(__file__).parent.parent / "inventory" / "test_inventory_updates.py"
    spec = importlib.util.spec_from_file_location("updates", path)
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "shop"
        shutil.copytree(shop, own)
        start = time.perf_counter()
        versions = tests.kill_and_check(own, Path(folder) / "more.csv", rounds)
    changed = len(set(versions))
    print(
        f"{rounds} kills, {versions[-1]} catalog versions, {changed} of the kills after a change: "
        f"each time the index opened and matched ({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
