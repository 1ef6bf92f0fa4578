"""Play three weeks of the sample shop: nights, Sundays, a server and clients all the time.

    python tests/benchmarks/three_weeks.py
    python tests/benchmarks/three_weeks.py --kills 200 --workers 2
    python tests/benchmarks/three_weeks.py --days 2 --users 150      # a smaller shop, a minute

Prints one JSON document and, on stderr, a table: requests, failures and waits of the clients by
phase. Ends with exit code 1 if a request failed, a policy broke, or an accepted event is not in
the shop exactly once. tests/helpers/weeks.py says what happens and what is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

from live_shop import Load
from weeks import Plan, Play, problems

from qagent_mlx.shop.sample import sample_data_folder
from qagent_mlx.simulator.sample_files import write_sample
from qagent_mlx.simulator.world import SimulatorConfig


def table(phases: dict[str, dict[str, Any]]) -> str:
    """The clients' waits by phase, as text."""
    columns = ["requests", "failures", "fallbacks", "p50_ms", "p95_ms", "max_ms"]
    lines = [f"{'phase':<22}" + "".join(f"{column:>11}" for column in columns)]
    for name, row in phases.items():
        lines.append(f"{name:<22}" + "".join(f"{row[column]:>11,}" for column in columns))
    return "\n".join(lines)


def main() -> int:
    """Play, print, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=21)
    parser.add_argument("--end", type=date.fromisoformat, help="The last day; the log's if none.")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--think", type=float, default=0.05, help="Seconds between requests.")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="Processes of the server.")
    parser.add_argument("--steps", type=int, default=3, help="Of each training; 0 for none.")
    parser.add_argument("--users", type=int, help="Simulate a shop of so many, of 40 days.")
    parser.add_argument("--keep", type=Path, help="Play in this new folder, and leave it there.")
    given = parser.parse_args()
    plan = Plan(
        given.days,
        given.kills,
        given.seed,
        given.workers,
        Load(given.clients, given.think),
        steps=given.steps,
        end=given.end,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder) / "play"
        place.mkdir(parents=True)
        source = sample_data_folder()
        if given.users:
            source = place / "source"
            write_sample(source, SimulatorConfig(users=given.users, days=40, products_per_pair=2))
        report = Play(plan, source, place).run()
    print(json.dumps(report, indent=1))
    print(table(report["phases"]), file=sys.stderr)
    wrong = problems(report)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
