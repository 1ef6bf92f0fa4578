"""The one thread that computes: it owns the policy (MLX) and the shop's database (DuckDB).

Everything that needs either is put into its queue. It takes what has come together, stores
events first, then answers all recommendations in one decode. So an event that was
acknowledged is in every later answer, and nothing needs a lock.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from ..agent.recommend import Recommender, RecommendRequest, UserRecommendations, default_group_size
from ..errors import QAgentError
from ..ingest.ingest import append_event_batches
from ..ingest.report import IngestReport
from ..inventory.index import open_index
from ..policy.files import load_policy
from ..policy.registry import default_policy, resolve
from ..shop.shop import Shop
from ..types import Profile, Recommendation
from ..utils.blas import one_blas_thread
from .cache import UserCache
from .config import ServeConfig
from .metrics import Metrics
from .worker_processes import Pool

log = logging.getLogger("qagent.serve")
T = TypeVar("T")

LOOK_EVERY = 1.0  # seconds between looks at the policy's folder
TRENDING_EVERY = 60.0  # seconds that the answer for everybody is good
TRENDING = 20  # queries of that answer
OVERHEAD_ROWS = 16  # a decode of n chains takes about as long as n + so many cost each
AHEAD = timedelta(minutes=5)  # how far a client's clock may be ahead
TICK = timedelta(milliseconds=1)  # between events that came without a time


@dataclass(frozen=True, slots=True)
class RecommendResponse:
    """What a request gets.

    ``source`` is ``agent``, ``top-line`` (the user's memory without a chain) or ``trending``
    (what the shop searches for now); the last two are fallbacks and ``reason`` says why.
    """

    recommendations: tuple[Recommendation, ...]
    source: str
    as_of: datetime | None
    policy: str
    chains: int = 0
    reason: str = ""
    cached: bool = False


@dataclass(slots=True, eq=False)
class PendingRequest:
    """Somebody who waits for recommendations.

    ``deadline`` is a time of `time.monotonic`. ``fallback`` is there as soon as the user's
    memory was read; ``given_up`` is set by a client who took it.
    """

    user: str
    k: int
    chains: int
    deadline: float
    as_of: datetime | None = None
    future: Future[RecommendResponse] = field(default_factory=Future)
    fallback: RecommendResponse | None = None
    given_up: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What the answer depends on, apart from the user."""
        return (self.k, self.chains, self.as_of)


@dataclass(slots=True, eq=False)
class _Call:
    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Post:
    rows: Sequence[dict[str, Any]]
    future: Future[IngestReport] = field(default_factory=Future)


Job = PendingRequest | _Post | _Call


class _Abandoned(Exception):
    """Nobody waits for this decode any more."""


class Worker:
    """Computes for a server, in a thread of its own.

    Args:
        path: The shop's folder.
        config: Policy, batch, cache and clock.
        metrics: Where it counts.
    """

    def __init__(self, path: Path, config: ServeConfig, metrics: Metrics | None = None) -> None:
        self.path, self.config = path, config
        self.metrics = metrics or Metrics()
        self.cache: UserCache[RecommendResponse] = UserCache(
            config.cache_seconds, config.cache_users
        )
        self.policy = ""  # the name of the one that answers
        self.chains = 1  # what a request gets that names no number
        self.trending: RecommendResponse | None = None
        self.titles: dict[str, str] = {}
        self._profiles: UserCache[Profile] = UserCache(config.cache_seconds, config.cache_users)
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pace = 0.02  # seconds a chain of a decode, learned
        self._looked = self._trended = 0.0
        self._stamp: int | None = None
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="qagent-worker", daemon=True)

    # ------------------------------------------------------------ from any thread

    def start(self) -> None:
        """Open the shop and the policy; returns when requests can be answered.

        Raises:
            QAgentError: what `Shop.open` or the policy has to say.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Answer what is waiting, then close the shop."""
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many requests and calls are in the queue."""
        return self._queue.qsize()

    def submit(self, request: PendingRequest) -> None:
        """Put a request into the queue; its future gets the answer."""
        self._queue.put(request)

    def call(self, run: Callable[[], T]) -> Future[T]:
        """Run something that needs the shop or the policy, in the worker's thread."""
        made = _Call(run)
        self._queue.put(made)
        return made.future

    def post(self, rows: Sequence[dict[str, Any]]) -> Future[IngestReport]:
        """Store events; their users' next answers know them.

        An event without a time happened now; in a simulated shop, whose log lives in a time
        of its own, just after the log's last event.

        Args:
            rows: Fields as in `ingest.columns.ALIASES`; ``time`` is a naive UTC datetime or None.

        Returns:
            The report; or a `QAgentError`: the shop is served read only, or a time lies in
            the future.
        """
        made = _Post(rows)
        self._queue.put(made)
        return made.future

    # ------------------------------------------------------------ in the worker's thread

    def _run(self) -> None:
        try:
            with Shop.open(self.path) as shop:
                self._choose(shop)
                if self.config.workers > 1:
                    open_index(shop)
            # The others read the shop before this one holds it for writing.
            self._pool = Pool(self.path, self._folder, self.config.workers - 1, self.config.dtype)
            self.shop = Shop.open(self.path, read_only=self.config.read_only)
            self._open()
        except BaseException as error:  # it belongs to whoever starts the worker
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        # Its products are thin: a second thread of BLAS would mostly wait, and take the core
        # that the answers need.
        with self.shop, self._pool, one_blas_thread():
            while (jobs := self._collect()) is not None:
                self._serve(jobs)

    def _choose(self, shop: Shop) -> None:
        self.policy = self.config.policy or default_policy(shop, "grpo")
        self._folder = resolve(shop, self.policy)
        self._stamp = _stamp(self._folder)

    def _open(self) -> None:
        self.recommender = Recommender(
            self.shop, load_policy(self._folder, self.config.dtype), group=self.config.chains
        )
        self.chains = self.recommender.group
        catalog = self.recommender.search.catalog
        self.titles = dict(zip(catalog.ids, catalog.titles, strict=True))
        self._look_at_trends()

    def _collect(self) -> list[Job] | None:
        """What has come together; None when the server stops."""
        try:
            first = self._queue.get(timeout=LOOK_EVERY)
        except queue.Empty:
            return []
        if first is None:
            return None
        jobs = [first]
        until = time.monotonic() + self.config.collect_ms / 1000
        while len(jobs) < self.config.batch:
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
        self.metrics.queue.set(self._queue.qsize())
        return jobs

    def _serve(self, jobs: Sequence[Job]) -> None:
        posts = [job for job in jobs if isinstance(job, _Post)]
        if posts:
            _settle([post.future for post in posts], lambda: self._store(posts))
        for job in jobs:
            if isinstance(job, _Call):
                _settle([job.future], job.run)
        requests = [job for job in jobs if isinstance(job, PendingRequest) and not job.given_up]
        if requests:
            _settle([r.future for r in requests], lambda: self._answer(requests))
        now = time.monotonic()
        if self.config.watch and now - self._looked >= LOOK_EVERY:
            self._looked = now
            if _stamp(self._folder) not in (None, self._stamp):
                _settle([], lambda: self.use_policy(self.policy))
        if now - self._trended >= TRENDING_EVERY:
            _settle([], self._look_at_trends)

    def _answer(self, requests: Sequence[PendingRequest]) -> None:
        """All of them in one decode, each set as soon as it is known."""
        moment = self.shop.end_of_log()
        profiles = self._read(requests, moment)
        asks = [
            RecommendRequest(profile, r.as_of or moment, r.k, r.chains)
            for r, profile in zip(requests, profiles, strict=True)
        ]
        lines = self.recommender.top_lines(asks)
        for request, ask, line in zip(requests, asks, lines, strict=True):
            request.fallback = RecommendResponse(line, "top-line", ask.as_of, self.policy)
        kept = [
            (r, a)
            for r, a in zip(self._within_deadline(requests, asks), asks, strict=True)
            if r is not None
        ]
        if not kept:
            return
        # Who asks the same at the same time gets the same: it is computed once.
        once: dict[tuple[Any, ...], tuple[RecommendRequest, list[PendingRequest]]] = {}
        share = self._share([r for r, _ in kept])
        for request, ask in kept:
            ask = replace(ask, group=max(1, int(ask.group * share)))
            once.setdefault((request.user, request.key), (ask, []))[1].append(request)
        waiting = [r for _, rs in once.values() for r in rs]

        def progress(_done: int) -> None:
            if all(r.given_up for r in waiting):
                raise _Abandoned

        started = time.monotonic()
        asked = [ask for ask, _ in once.values()]
        try:
            answers = self._pool.answer(self.recommender, asked, self.config.seed, progress)
        except _Abandoned:
            self._pace *= 1.2  # it was slower than was thought
            for request in waiting:
                self._fall_back(request)
            return
        rows = sum(ask.group for ask in asked)
        seconds = time.monotonic() - started
        self._pace += 0.2 * (seconds / (rows + OVERHEAD_ROWS) - self._pace)
        self.metrics.batch.observe(len(asked))
        self.metrics.decode.observe(seconds)
        self.metrics.chains.inc(rows)
        for answer, (ask, rs) in zip(answers, once.values(), strict=True):
            self._give(answer, ask, rs)

    def _give(
        self, found: UserRecommendations, ask: RecommendRequest, requests: Sequence[PendingRequest]
    ) -> None:
        answer = RecommendResponse(
            found.recommendations, "agent", found.as_of, self.policy, chains=ask.group
        )
        for request in requests:
            if ask.group == request.chains:
                self.cache.put(request.user, request.key, answer)
            if not request.future.done():
                request.future.set_result(answer)

    def _read(self, requests: Sequence[PendingRequest], moment: datetime) -> list[Profile]:
        """The users' profiles; those of users who did nothing since are still good."""
        found = {r.user: self._profiles.get(r.user, None) for r in requests if r.as_of is None}
        missing = [user for user, profile in found.items() if profile is None]
        if missing:
            for user, profile in zip(
                missing, self.recommender.profiles(missing, moment), strict=True
            ):
                found[user] = profile
                self._profiles.put(user, None, profile)
        made = []
        for r in requests:
            mine = found.get(r.user) if r.as_of is None else None
            made.append(mine or self.recommender.profiles([r.user], r.as_of)[0])
        return made

    def _within_deadline(
        self, requests: Sequence[PendingRequest], asks: Sequence[RecommendRequest]
    ) -> list[PendingRequest | None]:
        """None for those who cannot get an answer in time, even with one chain each."""
        left = self._pace * (OVERHEAD_ROWS + len(requests))
        now = time.monotonic()
        kept: list[PendingRequest | None] = []
        for request in requests:
            if request.deadline - now >= left:
                kept.append(request)
                continue
            kept.append(None)
            self._fall_back(request)
        return kept

    def _fall_back(self, request: PendingRequest) -> None:
        assert request.fallback is not None
        if not request.future.done():
            request.future.set_result(replace(request.fallback, reason="deadline"))

    def _share(self, requests: Sequence[PendingRequest]) -> float:
        """The share of the chains asked for that can be run before the first deadline."""
        left = min(r.deadline for r in requests) - time.monotonic()
        rows = left / self._pace - OVERHEAD_ROWS
        return min(1.0, max(0.0, rows / sum(r.chains for r in requests)))

    def _look_at_trends(self) -> None:
        """The answer for everybody: what a user of whom nothing is known would get."""
        self._trended = time.monotonic()
        moment = self.shop.end_of_log()
        # Once a day this takes a while; here nobody waits for it.
        self.recommender.memory.read_all(moment)
        if self.trending is not None and self.trending.as_of == moment:
            return
        profile = self.recommender.profiles([""], moment)[0]
        lines = self.recommender.top_lines([RecommendRequest(profile, moment, TRENDING)])[0]
        self.trending = RecommendResponse(lines, "trending", moment, self.policy)

    def _store(self, posts: Sequence[_Post]) -> None:
        """Store what several clients posted, in one pass."""
        if self.config.read_only:
            raise QAgentError("this server is read only; start it without --read-only")
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        last = self.shop.end_of_log()
        limit = max(now, last) + AHEAD
        clock = last if self.shop.config.simulated is not None else now
        kept: list[tuple[_Post, list[dict[str, Any]]]] = []
        for post in posts:
            late = [n for n, row in enumerate(post.rows, 1) if (row.get("time") or now) > limit]
            if late:
                text = f"event {late[0]}: its time lies in the future; send UTC times"
                post.future.set_exception(QAgentError(text))
                continue
            timed = []
            for row in post.rows:
                timed.append({**row, "time": row.get("time") or clock})
                clock += TICK
            kept.append((post, timed))
        if not kept:
            return
        try:
            reports = append_event_batches(self.shop, [rows for _, rows in kept])
        finally:
            for user in {str(row.get("user_id", "")) for _, rows in kept for row in rows}:
                self.cache.forget(user)
                self._profiles.forget(user)
            self.recommender.refresh()
        for (post, _), report in zip(kept, reports, strict=True):
            for outcome in ("accepted", "rejected", "duplicates"):
                if count := getattr(report, outcome):
                    self.metrics.events.labels(outcome).inc(count)
            if not post.future.done():  # whoever waited too long is gone
                post.future.set_result(report)

    # ------------------------------------------------------------ calls

    def use_policy(self, name: str) -> str:
        """Answer with another policy, or with the same one as it is now. To be used in `call`.

        Raises:
            QAgentError: there is none of that name, or it cannot be loaded; the old one stays.
        """
        folder = resolve(self.shop, name)
        stamp = _stamp(folder)
        try:
            policy = load_policy(folder, self.config.dtype)
        except QAgentError:
            self._stamp = stamp  # it is not tried again until it changes
            self.metrics.policies.labels("refused").inc()
            raise
        self.recommender.use(policy)
        self._pool.use(folder)
        self.chains = self.config.chains or default_group_size(policy)
        self.policy, self._folder, self._stamp = name, folder, stamp
        self.cache.clear()
        self._profiles.clear()
        self.trending = None
        self._look_at_trends()
        self.metrics.policies.labels("taken").inc()
        log.info("policy %s taken up", name)
        return name


def _settle(futures: Sequence[Future[Any]], run: Callable[[], Any]) -> None:
    """Run something; its result or its error belongs to those who wait for it.

    As an executor's thread, the worker outlives whatever goes wrong in a job.
    """
    try:
        result = run()
    except BaseException as error:
        if not isinstance(error, QAgentError):
            log.error("the worker met an error", exc_info=error)
        elif not futures:
            log.warning("%s", error)
        for future in futures:
            if not future.done():
                future.set_exception(error)
        return
    for future in futures:
        if not future.done():
            future.set_result(result)


def _stamp(folder: Path) -> int | None:
    """Changes when a policy is saved: ``policy.json`` is written last."""
    for name in ("policy.json", "config.json"):
        try:
            return (folder / name).stat().st_mtime_ns
        except OSError:
            continue
    return None
