"""A pytest plugin that notes which lines every test runs, and what it costs.

    python -m pytest -p covering_tests --cover-into FILE --cover-rooms DIR,DIR tests/…

What a fixture of several tests runs is noted under the fixture, once, and belongs to every test
that uses it; what a file of tests runs when it is imported, under the file. FILE is JSON and is added to: see `CoverageByTest.write`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cover-into", type=Path)
    parser.addoption("--cover-rooms")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--cover-into")
    if path:
        rooms = [Path(room) for room in config.getoption("--cover-rooms").split(",")]
        config.pluginmanager.register(CoverageByTest(path, rooms))


class CoverageByTest:
    """Lines by context: a test, a shared fixture or a file of tests. Seconds are the process's."""

    def __init__(self, path: Path, rooms: list[Path]) -> None:
        self.path, self.rooms = path, rooms
        self.coverage = coverage.Coverage(
            data_file=None, include=[f"{room.resolve()}/*" for room in rooms]
        )
        self.fixtures: dict[str, list[str]] = {}  # of each test
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()
        self._contexts: list[tuple[str, float]] = []

    def _enter(self, context: str) -> None:
        self._charge()
        self._contexts.append((context, time.process_time()))
        self.coverage.switch_context(context)

    def _leave(self) -> None:
        self._charge()
        self._contexts.pop()
        self.coverage.switch_context(self._contexts[-1][0] if self._contexts else "")

    def _charge(self) -> None:
        """What passed goes to the innermost context."""
        now = time.process_time()
        if self._contexts:
            context, since = self._contexts[-1]
            self.seconds[context] += now - since
        self._contexts = [(context, now) for context, _ in self._contexts]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Begin, with all rooms imported: what a module runs at import is no test's."""
        for room in self.rooms:
            for path in sorted(room.rglob("*.py")):
                parts = path.with_suffix("").relative_to(room.parents[1]).parts
                with contextlib.suppress(ImportError):
                    importlib.import_module(".".join(parts).removesuffix(".__init__"))
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[Any]:
        if not isinstance(collector, pytest.Module):
            return (yield)
        self._enter(f"file {collector.nodeid}")
        try:
            return (yield)
        finally:
            self._leave()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.fixtures[item.nodeid] = list(getattr(item, "fixturenames", ()))
        self._enter(item.nodeid)
        result = yield
        self._leave()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        shared = fixturedef.scope != "function"
        if shared:
            self._enter(f"fixture {fixturedef.argname} {fixturedef.baseid}")
        try:
            return (yield)
        finally:
            if shared:
                self._leave()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.write()

    def write(self) -> None:
        """Add to the file: ``tests`` with fixtures and seconds, ``shared`` seconds, ``lines``."""
        document: dict[str, Any] = {"tests": {}, "shared": {}, "lines": {}}
        if self.path.exists():
            document = json.loads(self.path.read_text(encoding="utf-8"))
        for test, fixtures in self.fixtures.items():
            if test not in self.failed:
                document["tests"][test] = {"fixtures": fixtures, "seconds": self.seconds[test]}
        for context, seconds in self.seconds.items():
            if context.startswith("fixture "):
                document["shared"][context] = seconds
        data = self.coverage.get_data()
        for name in data.measured_files():
            relative = str(Path(name).relative_to(self.rooms[0].resolve().parents[1]))
            lines = document["lines"].setdefault(relative, {})
            for line, contexts in data.contexts_by_lineno(name).items():
                known = set(lines.get(str(line), ())) | (set(contexts) - {""} - self.failed)
                lines[str(line)] = sorted(known)
        self.path.write_text(json.dumps(document), encoding="utf-8")
