"""Do the tests notice faults? Puts small faults into the code, one at a time, and runs tests.

python tests/benchmarks/mutants.py cover [TESTS…]     which test runs which line: once, some minutes
python tests/benchmarks/mutants.py run --count 400    a seeded sample of faults; goes on where it was
python tests/benchmarks/mutants.py show               what was not caught, with its lines

A fault is put into a copy of the tree, and the tests that run its line are run there, the cheap
ones and those of the same room first, until one fails: seconds for most. All third-party packages are
imported once, each run of tests is a fork, and a folder that a fixture takes long to make is made
once for all faults that it does not run. The records are in `.mutants/`. A small `--budget` first is
quickest: `run --again --budget 120` tries what nobody caught with the tests that were not run.
Wants `coverage` (`pip install coverage`) for `cover`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from kept_folders import KeptFolders
from mutation import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".mutants"
COVERAGE, RESULTS = PLACE / "coverage.json", PLACE / "results.jsonl"
ROOMS = ("train", "environment", "agent", "protocol", "memory", "inventory")
COPIED = ("qagent_mlx", "cli", "sample_data", "tests", "docs", "pyproject.toml", "README.md")
PRELOADED = (
    "numpy", "scipy.sparse", "duckdb", "pyarrow", "msgspec", "usearch.index", "mlx.core", "mlx.nn",
    "mlx.optimizers", "mlx_lm", "mlx_lm.utils", "transformers", "hypothesis", "pytest", "click",
    "coverage",
)  # fmt: skip
CAUGHT = ("failed", "timeout")
PATIENCE = 1200  # seconds by the clock


def cover(tests: list[str]) -> None:
    """Note which tests run which lines; tests that are named are added to what is known."""
    PLACE.mkdir(exist_ok=True)
    rooms = ",".join(str(ROOT / "qagent_mlx" / room) for room in ROOMS)
    command = [sys.executable, "-m", "pytest", "-p", "covering_tests", "--cover-into"]
    command += [str(COVERAGE), "--cover-rooms", rooms, "-n", "0", "-p", "no:cacheprovider"]
    paths = [str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    helpers = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for test in tests or [f"tests/{room}" for room in ROOMS]:
        subprocess.run([*command, test], cwd=ROOT, env={**os.environ, **helpers}, check=False)


def sample(count: int, seed: int, rooms: list[str]) -> list[Mutant]:
    """Mutants drawn at random from all lines of the rooms; a larger sample holds the smaller.

    To find them compiles every one, which takes a minute: they are kept while no file changes.
    """
    paths = [p for room in rooms for p in sorted((ROOT / "qagent_mlx" / room).rglob("*.py"))]
    names = [str(path.relative_to(ROOT)) for path in paths]
    state = hashlib.sha256(json.dumps(names).encode())
    for path in paths:
        state.update(path.read_bytes())
    kept = PLACE / f"all-{state.hexdigest()[:16]}.json"
    if kept.exists():
        everything = [Mutant(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    else:
        everything = [mutant for name in names for mutant in mutants_of(ROOT, name)]
        PLACE.mkdir(exist_ok=True)
        kept.write_text(json.dumps([astuple(m) for m in everything]), encoding="utf-8")
    random.Random(seed).shuffle(everything)
    return everything[:count]


class Tests:
    """Which tests to run for a line."""

    def __init__(self, budget: float, kept: Path) -> None:
        document = json.loads(COVERAGE.read_text(encoding="utf-8"))
        self.budget, self.kept = budget, kept
        self.tests, self.shared, self.lines = (document[k] for k in ("tests", "shared", "lines"))

    def of(self, mutant: Mutant, without: Collection[str] = ()) -> list[str]:
        """The tests that run a mutant's line, until they would take more than the budget."""
        names = self.changed(mutant)
        contexts = self._contexts(mutant)
        chosen = [
            test
            for test in self.tests
            if {test, f"file {test.partition('::')[0]}"} & contexts
            or names & set(self._shared(test))
        ]
        costs = {test: self._costs(test, mutant) for test in chosen if test not in without}
        spent, fixtures, taken = 0.0, set[str](), []
        for test in sorted(costs, key=lambda test: self._worth(test, mutant, costs[test])):
            new = {f: seconds for f, seconds in costs[test].items() if f not in fixtures}
            cost = sum(new.values())
            if spent + cost <= self.budget or not taken:
                spent, fixtures = spent + cost, fixtures | set(new)
                taken.append(test)
        return taken

    def changed(self, mutant: Mutant) -> set[str]:
        """The names of the shared fixtures that run a mutant's line."""
        return {c.split(" ")[1] for c in self._contexts(mutant) if c.startswith("fixture ")}

    def _contexts(self, mutant: Mutant) -> set[str]:
        """The tests, shared fixtures and files of tests that run its line."""
        lines = self.lines.get(mutant.path, {})
        if contexts := lines.get(str(mutant.line)):
            return set(contexts)
        # It runs at import, if at all: whoever runs anything of the file sees it.
        return {context for line in lines.values() for context in line}

    def _shared(self, test: str) -> dict[str, str]:
        """The shared fixtures that a test takes: the context of each by its name."""
        wanted, file = set(self.tests[test]["fixtures"]), test.partition("::")[0]
        contexts = ([*context.split(" ", 2), context] for context in self.shared)
        return {n: c for _, n, base, c in contexts if n in wanted and file.startswith(base)}

    def _costs(self, test: str, mutant: Mutant) -> dict[str, float]:
        """Seconds of a test and of each shared fixture that has to be made for it."""
        folders, changed = KeptFolders(self.kept, set()), self.changed(mutant)
        costs = {test: float(self.tests[test]["seconds"])}
        for name, context in self._shared(test).items():
            if name in changed or not folders.folder(name, context.split(" ", 2)[2]).exists():
                costs[context] = float(self.shared[context])
        return costs

    def _worth(self, test: str, mutant: Mutant, costs: dict[str, float]) -> float:
        """Seconds, fewer where a test's file is the mirror of the mutant's: small ones go first."""
        mirrored = f"test_{Path(mutant.path).stem}" in test
        return sum(costs.values()) / (4 if mirrored else 1)


def prepare(copy: Path) -> None:
    """Make the copy and import what does not change; from here on the copy is what is imported."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    (copy / "qagent_cli").symlink_to(copy / "cli")
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for processes that tests start
    sys.path[:0] = [str(copy), str(copy / "tests" / "helpers")]
    sys.pycache_prefix, sys.dont_write_bytecode = str(copy / "pycache"), False
    import qagent_mlx

    assert Path(qagent_mlx.__file__).is_relative_to(copy), "the copy is not what is imported"
    qagent_mlx.configure()
    for name in PRELOADED:
        try:
            __import__(name)
        except ImportError:
            continue
    for name in [n for n in sys.modules if n.partition(".")[0] in ("qagent_mlx", "qagent_cli")]:
        del sys.modules[name]


def run_tests(tests: list[str], log: Path, seconds: float, plugin: KeptFolders) -> str:
    """Run tests in a fork: ``passed``, ``failed``, ``timeout`` (of processor time) or ``stuck``.

    What is stuck may hang, or only wait for a busy machine: it does not count as caught.
    """
    pid = os.fork()
    if not pid:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        import pytest

        flags = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line"]
        code = 1
        try:
            code = int(pytest.main([*flags, *tests], plugins=[plugin]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    began, status = time.monotonic(), None
    while status is None and time.monotonic() - began < PATIENCE:
        done, value = os.waitpid(pid, os.WNOHANG)
        status = value if done else None
        time.sleep(0.05)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "stuck"
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGXCPU else "failed"
    return "passed" if os.WEXITSTATUS(status) == 0 else "failed"


def known() -> dict[str, dict[str, Any]]:
    """The records by mutant; a later one replaces an earlier."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {row["mutant"]: row for row in rows}


def run(options: argparse.Namespace) -> None:
    """Try the mutants of the sample that were not tried, and again those that nobody caught."""
    wanted = sample(options.count, options.seed, options.rooms)
    if options.match:
        wanted = [m for m in sample(10**9, 0, options.rooms) if options.match in m.name]
    done, copy, kept = known(), Path(options.copy), PLACE / "folders"
    tried = {m for m, row in done.items() if row["outcome"] in CAUGHT or not options.again}
    wanted = [m for m in wanted if m.name not in tried][: options.at_most]
    kept.mkdir(exist_ok=True)
    prepare(copy)
    tests = Tests(options.budget, kept)
    stamp = int(time.time())
    for number, mutant in enumerate(wanted):
        path, start = copy / mutant.path, time.monotonic()
        source = path.read_bytes()
        before = done.get(mutant.name, {})
        ran = list(before.get("ran", ()))
        chosen, outcome = tests.of(mutant, ran), before.get("outcome", "uncovered")
        reason = ""
        if chosen:
            path.write_bytes(mutant.apply(source))
            os.utime(path, (stamp + 2 * number + 1,) * 2)  # no compiled file is taken for another's
            plugin = KeptFolders(kept, tests.changed(mutant))
            outcome = run_tests(chosen, copy / "log", options.budget * 3 + 20, plugin)
            path.write_bytes(source)
            os.utime(path, (stamp + 2 * number + 2,) * 2)
            rows = (copy / "log").read_text("utf-8", "replace").splitlines()
            reason = next((r for r in rows if r.startswith(("FAILED", "ERROR", "E "))), "")
        row = {"mutant": mutant.name, "outcome": outcome, "tests": len(chosen), "by": reason[:300]}
        row["seconds"] = round(time.monotonic() - start, 1)
        row["ran"] = [] if outcome in CAUGHT else ran + chosen
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{outcome:9} {row['seconds']:6} s {mutant.name} {reason[:80]}", flush=True)


def show(options: argparse.Namespace) -> None:
    """Print the share caught of the sample, and the others with their lines."""
    records = known()
    rows = [m for m in sample(options.count, options.seed, options.rooms) if m.name in records]
    missed = [m for m in rows if records[m.name]["outcome"] not in CAUGHT]
    for mutant in sorted(missed, key=lambda m: (m.path, m.line)):
        line = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()[mutant.line - 1]
        print(f"{records[mutant.name]['outcome']:9} {mutant.name}\n            {line.strip()}")
    if rows:
        from scipy.stats import binomtest

        caught = len(rows) - len(missed)
        low, high = binomtest(caught, len(rows)).proportion_ci(method="wilson")
        share = f"{caught / len(rows):.1%} [{low:.1%}, {high:.1%}]"
        print(f"{caught} of {len(rows)} caught: {share}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cover").add_argument("tests", nargs="*")
    for name in ("run", "show"):
        command = commands.add_parser(name)
        command.add_argument("--count", type=int, default=400)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--rooms", nargs="+", default=list(ROOMS))
        if name == "run":
            command.add_argument("--at-most", type=int, default=10**9, help="mutants, this time")
            command.add_argument("--budget", type=float, default=45.0, help="seconds of tests")
            command.add_argument("--again", action="store_true", help="also those not caught")
            command.add_argument("--match", default="", help="instead: all that hold this text")
            command.add_argument("--copy", default="/tmp/qagent-mutants")
    options = parser.parse_args()
    if options.command == "cover":
        cover(options.tests)
    else:
        {"run": run, "show": show}[options.command](options)


if __name__ == "__main__":
    main()
