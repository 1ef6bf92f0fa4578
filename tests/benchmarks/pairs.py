"""This checkout beside another: python tests/benchmarks/pairs.py OTHER FOLDER [--pairs N] [--only NAME].

OTHER is a folder of the repository at another commit, with a .venv of its own. Each makes a sample
shop in FOLDER with its own program (kept, so that a second run can skip it). Then every command runs
in turn with both, and the processor time of its process and all its children is compared: that of
this checkout over that of OTHER. Prints the median ratio of each command, those of all pairs, and
the median seconds of both. No test runs this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
COMMANDS: dict[str, list[str]] = {
    "help": ["--help"],
    "one recommend": ["recommend", "u0001", "--policy", "sample", "--json"],
    "bulk recommend": [
        *("recommend", "--all", "--policy", "sample", "--workers", "1", "--group", "2"),
        *("--out", "{folder}/bulk.parquet"),
    ],
    "memory build": ["memory", "build"],
    "GRPO step, shipped policy": ["bench", "--model", "tiny", "--json"],
    "GRPO step, SmolLM2's shape": [
        *("bench", "--model", "smol", "--steps", "1", "--warmup", "0", "--prompts", "1"),
        *("--prompt-tokens", "128", "--group", "4", "--new-tokens", "16", "--json"),
    ],
}

WITHOUT_SHOP = ("help", "GRPO step, shipped policy", "GRPO step, SmolLM2's shape")


def run(checkout: Path, folder: Path, command: list[str]) -> float:
    """Processor seconds of a command of a checkout's program, on that checkout's shop."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QAGENT_")},
        "QAGENT_SHOP": str(folder / "shop"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, with compiled modules
    words = [word.replace("{folder}", str(folder)) for word in command]
    process = subprocess.Popen(
        [str(checkout / ".venv/bin/python"), "-m", "qagent_mlx", *words],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{checkout}: qagent {' '.join(words)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def prepare(checkout: Path, folder: Path) -> None:
    """Make the sample shop."""
    if not (folder / "shop" / "shop.duckdb").exists():
        run(checkout, folder, ["init", "--sample"])


def clear(folder: Path) -> None:
    """Remove what a run has made, as the next would go on from it."""
    for path in folder.glob("bulk*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Prepare, run in pairs, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=COMMANDS)
    given = parser.parse_args()
    places = [(HERE, given.folder / "this"), (given.other.resolve(), given.folder / "other")]
    names = given.only or list(COMMANDS)
    for checkout, folder in places:
        folder.mkdir(parents=True, exist_ok=True)
        if not set(names) <= set(WITHOUT_SHOP):
            prepare(checkout, folder.resolve())
    for name in names:
        times = []
        for number in range(given.pairs + 1):
            pair = []
            for checkout, folder in places if number % 2 else places[::-1]:
                clear(folder)
                pair.append(run(checkout, folder.resolve(), COMMANDS[name]))
            times.append(pair if number % 2 else pair[::-1])
        times = times[1:]  # the first of each warms the file cache up
        ratios = [this / other for this, other in times]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{name:28} {statistics.median(ratios):.2f}  ({shown})  {mine:.2f} s, {theirs:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
