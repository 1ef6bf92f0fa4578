"""Check README's numbers against a fresh run of the commands that made them (`make readme-check`).

Trains on the sample shop and evaluates, some six minutes on two quiet cores. ``--evaluation FILE``
checks against the saved output of `qagent evaluate --json` instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
SYSTEMS = {
    "GRPO, with search": "grpo",
    "SFT, with search": "sft",
    "memory's first line": "top-line",
    "SASRec": "sasrec",
}
METRICS = ("q_em", "cons@1")  # the columns of README's table
COMMANDS = (
    ("init", "--sample"),
    ("train", "sft", "--policy", "sample"),
    ("train", "grpo", "--policy", "sft", "--steps", "80", "--seed", "1"),
    ("evaluate", "--policy", "sft", "--policy", "grpo", "--baselines", "--baseline", "sasrec"),
)


def run() -> dict[str, Any]:
    """Run the commands in a new folder; returns what the evaluation printed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "QAGENT_SHOP": str(Path(folder) / "shop")}
        for command in COMMANDS:
            print("qagent", *command, file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "qagent_mlx", *command, "--json"],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
            )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def differences(readme: str, report: dict[str, Any]) -> list[str]:
    """What README says otherwise than a report, a line each."""
    metrics = {system["name"]: system["metrics"] for system in report["systems"]}
    wrong = []
    if f"{report['cases']:,} test cases" not in readme:
        wrong.append(f"cases: measured {report['cases']:,}")
    for label, name in SYSTEMS.items():
        (row,) = re.findall(rf"^\| {re.escape(label)}.*$", readme, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        for metric, cell in zip(METRICS, cells, strict=True):
            value = metrics[name][metric]
            low, high = value["lo"], value["hi"]
            measured = f"{100 * value['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            if cell != measured:
                wrong.append(f"{label}, {metric}: README {cell}, measured {measured}")
    return wrong


def main() -> None:
    """Check, and end with status 1 where README differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluation", type=Path)
    path = parser.parse_args().evaluation
    report = json.loads(path.read_text(encoding="utf-8")) if path else run()
    wrong = differences(README.read_text(encoding="utf-8"), report)
    print("\n".join(wrong) or "README's numbers are those that were measured")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
