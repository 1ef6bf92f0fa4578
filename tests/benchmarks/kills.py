"""Kills work at random moments and checks the shop each time.

    python tests/benchmarks/kills.py --kills 200 [--only ingest] [--seed 0]

The kills are shared out among ingest, index updates, checkpointing, training with resume (GRPO
and SFT), and a server with events coming in; see tests/helpers/crashes.py for what is checked.
Prints a table, and ends with the first thing that was lost. tests/reliability does 20 kills.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "helpers"), str(Path(__file__).parent.parent)]

import qagent_mlx

qagent_mlx.configure()  # before numpy and MLX are imported

from conftest import tiny_events, tiny_products
from crashes import WORKS, kill_and_check, small_shop


def main() -> None:
    """Kill, check and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", help="part of a work's name")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    works = [work for work in WORKS if not given.only or given.only in work.name]
    print("work | kills | operations acknowledged | events | lost | doubled | undone | whole | s")
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for kind, rows in (("products", tiny_products()), ("events", tiny_events())):
            files[kind] = Path(folder) / f"{kind}.jsonl"
            files[kind].write_text("\n".join(json.dumps(row, default=str) for row in rows))
        base = small_shop(Path(folder) / "base", files["products"], files["events"])
        for number, work in enumerate(works):
            kills = given.kills // len(works) + (number < given.kills % len(works))
            place = shutil.copytree(base, Path(folder) / str(number) / "shop")

            def progress(one, kills=kills):
                print(
                    f"\r{one.name}: {one.tally.kills}/{kills}", end="", file=sys.stderr, flush=True
                )

            tally = kill_and_check(work(place, given.seed), kills, progress)
            print(file=sys.stderr)
            # A loss or a double ends the run by an AssertionError, so here they are none.
            print(
                f"{work.name} | {tally.kills} | {tally.operations:,} | {tally.events:,} | 0 | 0 | "
                f"{tally.undone} | {tally.done} | {tally.seconds:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
