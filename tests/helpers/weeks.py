"""Weeks of a shop that is in use, played by its commands while a server answers all the time.

By day clients ask and post events. By night come the day's files and the index; on Sundays
training and promotions, on Tuesdays a rollback, once somebody is forgotten. Nothing may fail, and
at the end the shop must hold what was accepted, once. With kills every process is hit at random.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from almanac import Almanac
from killer import Command, Killer
from live_shop import QAGENT, Clients, Load, Server

SUNDAY, TUESDAY = 6, 1
TAKE_UP_SECONDS = 60.0  # in which a server must take up a promotion


@dataclass(frozen=True)
class Plan:
    """How to play."""

    days: int = 21
    kills: int = 0
    seed: int = 0
    workers: int = 1
    load: Load = field(default_factory=Load)
    day_seconds: float = 8.0  # of load alone; longer if the day's events are not posted by then
    steps: int = 3  # of each training
    new_products: int = 5  # a night
    end: date | None = None  # the last day; that of the log by default


def qagent(shop: Path, *words: object) -> Any:
    """Run a command that nobody kills; its JSON document."""
    done = subprocess.run(
        [*QAGENT, *map(str, words), "--json", "--shop", str(shop)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (words, done.stderr)
    return json.loads(done.stdout)


def begin_shop(almanac: Almanac, shop: Path) -> None:
    """The shop as it was before the first day."""
    qagent(shop, "init")
    products, events = almanac.before()
    qagent(shop, "ingest", "products", products)
    qagent(shop, "ingest", "events", events)
    qagent(shop, "index")


class Play:
    """One play.

    Args:
        plan: What happens.
        source: The folder of ``products.parquet`` and ``events.parquet``.
        place: An empty folder.
    """

    def __init__(self, plan: Plan, source: Path, place: Path) -> None:
        self.plan, self.place, self.shop = plan, place, place / "shop"
        self.almanac = Almanac(source, place, plan.days, plan.new_products, plan.end)
        begin_shop(self.almanac, self.shop)
        self.users = self.almanac.users()
        self.server = Server(self.shop, plan.workers)
        # Not the one who is forgotten: whoever is shown something is known again.
        self.clients = Clients(self.server, self.users[1:], plan.load, plan.seed)
        self.killer = Killer(self.server, plan.kills, plan.seed)
        self.seconds: dict[str, list[float]] = {}
        self.trained: Counter[str] = Counter()
        self.taken_up: list[float] = []
        self._kills: Counter[str] = Counter()  # of the day, by step

    def run(self) -> dict[str, Any]:
        """Play all days, check the shop, and report."""
        began = time.monotonic()
        self.server.begin()
        self.clients.begin()
        try:
            for number in range(self.plan.days):
                self._day(number)
                print(
                    f"day {number + 1}: {len(self.clients.answers):,} requests, "
                    f"{len(self.clients.failures)} failures, {self.killer.hits.total()} kills, "
                    f"{time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            while self.killer.left:  # those that came too late for their step
                with self._phase("day"):
                    time.sleep(1)
            self.server.wait_until_up()
        except BaseException:
            self.server.abandon()
            raise
        finally:
            self.clients.end()
        return {
            "days": self.plan.days,
            "seconds": round(time.monotonic() - began),
            "kills": dict(self.killer.hits),
            "starts_of_the_server": self.server.starts,
            "phases": self._phases(),
            "commands_s": {n: [round(s, 1) for s in times] for n, times in self.seconds.items()},
            "promotions_taken_up_s": [round(s, 1) for s in self.taken_up],
            "policies": dict(self.clients.policies),
            "posts": len(self.clients.acknowledged),
            "posts_repeated": self.clients.again,
            "events": sum(map(len, self.clients.acknowledged)),
            "failures": self.clients.failures[:10],
            **self._check(),
        }

    def steps(self, number: int) -> list[str]:
        """What happens on a day, in order."""
        weekday = self.almanac.day(number).weekday()
        steps = ["day", "ingest events", "ingest prices", "ingest new products", "index"]
        if weekday == SUNDAY and self.plan.steps:
            steps += ["train sft", "promote sft", "train grpo", "promote grpo"]
        if weekday == TUESDAY and self.trained:
            steps.append("rollback")
        if number == self.plan.days // 2:
            steps.append("memory forget")
        return [*steps, "second reader", "export"]

    def _day(self, number: int) -> None:
        steps, night = self.steps(number), self.almanac.night(number)
        self._kills = self.killer.plan_day(steps, self.plan.days - number)
        for step in steps:
            verb, _, rest = step.partition(" ")
            if verb == "ingest":
                kind = "events" if rest == "events" else "products"
                self._command(step, "ingest", kind, night[rest])
            elif verb in ("train", "promote"):
                getattr(self, f"_{verb}")(rest)
            else:
                getattr(self, f"_{step.replace(' ', '_').replace('day', 'by_day')}")(number)

    def _by_day(self, number: int) -> None:
        self.clients.post(self.almanac.posts(number))
        with self._phase("day"):
            until = time.monotonic() + self.plan.day_seconds
            while self.clients.is_posting or time.monotonic() < until:
                time.sleep(0.05)

    def _index(self, _number: int) -> None:
        self._command("index", "index")

    def _second_reader(self, number: int) -> None:
        found = self._command("second reader", "search", f"kite number {number} 0", "--json")
        ids = [product["product_id"] for product in json.loads(found)["results"]]
        assert f"new{number}x0" in ids, f"last night's product is not found: {ids}"
        self._command("second reader", "recommend", self.users[number], "--json")

    def _export(self, number: int) -> None:
        acknowledged = list(self.clients.acknowledged)  # before: a reader knows all of them
        path = self.place / "events.parquet"
        self._command("export", "export", "events", path)
        missing = self.almanac.missing(path, acknowledged)
        assert not missing, f"{missing} acknowledged events are not in the export"
        differing = self.almanac.differences(path, number + 1)
        assert not any(differing.values()), differing

    def _memory_forget(self, _number: int) -> None:
        user = self.users[0]

        def is_done() -> bool:
            return bool(qagent(self.shop, "memory", user)["events"] == 0)

        self._command("memory forget", "memory", "forget", user, "--yes", is_done=is_done)
        self.almanac.forgotten = user

    def _train(self, kind: str) -> None:
        self.trained[kind] += 1
        run, wanted = f"{kind}-{self.trained[kind]}", self.trained[kind]
        small = ["--cases-per-step", "4", "--group", "4"] if kind == "grpo" else []
        words = ["train", kind, "--run", run, "--steps", self.plan.steps, "--measured", "10"]
        again = ("train", kind, "--resume", "--run", run)

        def is_done() -> bool:
            return len(self._versions(kind)) == wanted

        self._command(f"train {kind}", *words, *small, is_done=is_done, again=again)
        assert is_done(), f"{self._versions(kind)} after {wanted} trainings"

    def _versions(self, kind: str) -> list[str]:
        listed = qagent(self.shop, "policies", "list")["policies"]
        broken = [version for version in listed if version["problem"]]
        assert not broken, broken
        return [v["policy"] for v in listed if v["policy"].startswith(f"{kind}@")]

    def _promote(self, kind: str) -> None:
        self._command(f"promote {kind}", "policies", "promote", kind)
        self._taken_up(f"{kind}@{self.trained[kind]}")

    def _rollback(self, _number: int) -> None:
        def promoted() -> str:
            return str(qagent(self.shop, "policies", "list")["promoted"])

        before = promoted()
        self._command("rollback", "policies", "rollback", is_done=lambda: promoted() != before)
        now = promoted()
        assert now != before
        self._taken_up(now)

    def _taken_up(self, policy: str) -> None:
        """Wait until the server recommends with a policy."""
        began = time.monotonic()
        while time.monotonic() < began + TAKE_UP_SECONDS:
            with suppress(OSError, http.client.HTTPException, ValueError):
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
                connection.request("GET", "/healthz")
                health = json.loads(connection.getresponse().read())
                if f"{health['policy']}@{health['version']}" == policy:
                    self.taken_up.append(time.monotonic() - began)
                    return
            time.sleep(0.1)
        raise AssertionError(f"{policy} was not taken up: {health}")

    def _command(
        self,
        step: str,
        *words: object,
        is_done: Callable[[], bool] = lambda: False,
        again: tuple[str, ...] = (),
    ) -> str:
        command = Command([str(word) for word in words], self.shop, step)
        with self._phase(step, command):
            return command.run(is_done, again)

    @contextmanager
    def _phase(self, name: str, command: Command | None = None) -> Iterator[None]:
        began, before, self.clients.phase = time.monotonic(), self.clients.phase, name
        try:
            with self.killer.during(name, self._kills.pop(name, 0), command):
                yield
        finally:
            self.clients.phase = before
        self.seconds.setdefault(name, []).append(time.monotonic() - began)

    def _phases(self) -> dict[str, dict[str, Any]]:
        """What clients saw in each phase, and in all together."""
        names = list(dict.fromkeys(answer.phase for answer in self.clients.answers))
        rows = {}
        for name in [*names, "all"]:
            answers = [a for a in self.clients.answers if name in (a.phase, "all")]
            times = [1000 * answer.seconds for answer in answers]
            cuts = statistics.quantiles(times, n=20) if len(times) > 1 else [0.0] * 19
            rows[name] = {
                "requests": len(answers),
                "failures": sum(bool(answer.failure) for answer in answers),
                "fallbacks": sum(answer.is_fallback for answer in answers),
                "p50_ms": round(cuts[9]),
                "p95_ms": round(cuts[18]),
                "max_ms": round(max(times, default=0.0)),
            }
        return rows

    def _check(self) -> dict[str, Any]:
        """Look at the shop after the server has ended."""
        code = self.server.stop()
        events, products = self.place / "all.parquet", self.place / "products.parquet"
        qagent(self.shop, "export", "events", events)
        qagent(self.shop, "export", "products", products)
        log = self.server.log.read_text()
        copy = shutil.copytree(self.shop, self.place / "copy")
        for version in qagent(copy, "policies", "list")["policies"]:
            assert not version["problem"], version
            answer = qagent(copy, "recommend", self.users[1], "--policy", version["policy"])
            assert answer["recommendations"], version
        forgotten = self.almanac.forgotten
        return {
            "exit_code": 0 if code == -signal.SIGTERM else code,
            "differences": self.almanac.differences(events, self.plan.days),
            "wrong_products": self.almanac.wrong_products(products, self.plan.days),
            "versions": {kind: len(self._versions(kind)) for kind in self.trained},
            "journal_left": sum(
                path.stat().st_size > 0 for path in (self.shop / "journal").glob("*.log")
            ),
            "leftovers": [
                str(path.relative_to(self.shop))
                for path in self.shop.rglob(".*")
                if re.search(r"^\.[0-9a-f]{12}-|writing-", path.name)
            ],
            "files_that_know_the_forgotten": [
                str(path.relative_to(self.shop))
                for path in self.shop.rglob("*")
                if forgotten and path.is_file() and forgotten.encode() in path.read_bytes()
            ],
            # Each with what stands before it and what follows, to see what it came from.
            "tracebacks_of_the_server": [
                log[max(0, found.start() - 500) : found.start() + 4000]
                for found in re.finditer("Traceback", log)
            ],
        }


def problems(report: dict[str, Any]) -> list[str]:
    """What a report says that must not be."""
    wrong = [f"a request failed: {failure}" for failure in report["failures"]]
    wrong += [
        f"{count} events are {name}" for name, count in report["differences"].items() if count
    ]
    for name in ("wrong_products", "journal_left", "exit_code"):
        if report[name]:
            wrong.append(f"{name.replace('_', ' ')}: {report[name]}")
    for name in ("leftovers", "files_that_know_the_forgotten", "tracebacks_of_the_server"):
        wrong += [f"{name.replace('_', ' ')}: {path}" for path in report[name]]
    return wrong
