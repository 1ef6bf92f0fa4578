"""The one thread that computes: it owns the policy (MLX) and a snapshot of the shop (DuckDB).

Everything that needs either is put into its queue. It takes the jobs that have come
together, stores events first, then answers all requests in one decode. So an event that was
acknowledged is in every later response, and nothing needs a lock.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import QAgentError
from ..ingest.report import IngestReport
from ..shop.shop import Shop
from ..utils.blas import one_blas_thread
from ..utils.text import clean_id
from .config import ServeConfig
from .event_store import store_events
from .metrics import Metrics
from .policy_choice import SavedPolicy, load_saved
from .requests import Job, PendingCall, PendingEvents, PendingRequest
from .responder import Responder, open_responder

log = logging.getLogger("qagent.serve")
T = TypeVar("T")

WATCH_SECONDS = 1.0  # between looks at the policy's folder


class Worker:
    """Computes for a server, in a thread of its own.

    Args:
        path: The shop's folder.
        config: Policy, batch, cache and clock.

    Attributes:
        responder: The shop and the policy, once the worker has started. Only its ``cache``
            and plain values may be used from other threads.
    """

    responder: Responder

    def __init__(self, path: Path, config: ServeConfig) -> None:
        self.path, self.config = path, config
        self.metrics = Metrics()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._watched_at = 0.0
        self._last_batch = 0  # requests that were answered together
        self._loader: threading.Thread | None = None
        self._is_loading = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="qagent-worker", daemon=True)

    def start(self) -> None:
        """Open the shop and the policy; returns when requests can be answered.

        Raises:
            QAgentError: what `Shop.open` or the policy has to say.
        """
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._ready.result()
        except BaseException:  # its own, or a signal's while it starts
            self._queue.put(None)
            self._thread.join()  # a thread that still runs at the process's end aborts it
            raise

    def stop(self) -> None:
        """Answer what is waiting, then close the shop."""
        if self._thread.ident is not None:
            self._queue.put(None)
            self._thread.join()
            if self._loader is not None:
                self._loader.join()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._queue.qsize() + self.responder.decoder.waiting

    def submit(self, request: PendingRequest) -> None:
        """Put a request into the queue; its future gets the response."""
        self._queue.put(request)

    def call(self, run: Callable[[], T]) -> Future[T]:
        """Run something that needs the shop or the policy, in the worker's thread."""
        job = PendingCall(run)
        self._queue.put(job)
        return job.future

    def post(self, events: Sequence[Mapping[str, Any]]) -> Future[IngestReport]:
        """Store events (`event_store.store_events`); their users' next responses know them.

        Args:
            events: Fields as in `ingest.columns.ALIASES`; ``time`` is a naive UTC datetime or
                None.

        Returns:
            The report; or a `QAgentError`: the shop is served read only, or a time lies in
            the future.
        """
        job = PendingEvents(events)
        self._queue.put(job)
        return job.future

    def use_policy(self, name: str) -> Future[str]:
        """Recommend with another policy, or with the same one as it is saved now."""
        return self.call(lambda: self.responder.use_policy(name))

    def _run(self) -> None:
        try:
            # Its products are thin: a second thread of BLAS would mostly wait, and take the core
            # that the responses need.
            with (
                open_responder(self.path, self.config, self.metrics, self.call) as self.responder,
                one_blas_thread(),
            ):
                responder = self.responder
                responder.store.start(
                    self._use_snapshot, lambda: self.call(responder.reload_processes)
                )
                self._ready.set_result(None)
                while (jobs := self._collect()) is not None:
                    self._serve(jobs)
                responder.decoder.finish()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # it belongs to the caller of `start`

    def _use_snapshot(self, shop: Shop) -> Future[Shop]:
        """Answer from another snapshot as soon as it is prepared; the result is the one before."""
        return self.call(partial(self.responder.use_shop, self.responder.prepare(shop)))

    def _collect(self) -> list[Job] | None:
        """The jobs that have come together; None when the server stops."""
        try:
            decoder, thinker = self.responder.decoder, self.responder.thinker
            pause = decoder.pause() if decoder.busy else thinker.pause()
            first = self._queue.get(timeout=min(WATCH_SECONDS, pause))
        except queue.Empty:
            return []
        if first is None:
            return None
        jobs = [first]
        # Others may come at the same time where they did before; nobody else waits for them.
        is_shared = isinstance(first, PendingRequest) and self._last_batch > 1
        until = time.monotonic() + (self.config.collect_ms / 1000 if is_shared else 0.0)
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
        responder = self.responder
        # Whom nobody waits for any more was told so: it is left out, and can be asked again.
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        posts = [job for job in jobs if isinstance(job, PendingEvents)]
        if posts:
            _settle([post.future for post in posts], lambda: self._store(posts))
        for job in jobs:
            if isinstance(job, PendingCall):
                _settle([job.future], job.run)
        requests = [job for job in jobs if isinstance(job, PendingRequest) and not job.given_up]
        if requests:
            self._last_batch = len(requests)
            _settle([], lambda: responder.respond(requests))
        now = time.monotonic()
        if self.config.watch and now - self._watched_at >= WATCH_SECONDS:
            self._watched_at = now
            _settle([], self._look_for_policy)
        if responder.rules_changed():
            _settle([], responder.start_afresh)
        if responder.common.expired:
            _settle([], responder.refresh_trending)
        if responder.decoder.busy:
            _settle([], responder.decoder.go_on)
        elif not jobs:
            _settle([], lambda: responder.think(lambda: not self._queue.empty()))

    def _look_for_policy(self) -> None:
        """Load the policy that should recommend, where that is another one, beside the answers."""
        if self._is_loading:
            return
        folder = self.responder.served.to_load()
        if folder is not None:
            self._is_loading = True
            self._loader = threading.Thread(target=self._load, args=(folder,), name="qagent-loader")
            self._loader.start()

    def _load(self, folder: Path) -> None:
        loaded: Future[SavedPolicy] = Future()
        _settle([loaded], lambda: load_saved(folder, self.config.dtype))
        self.call(partial(self._take_up, folder, loaded))

    def _take_up(self, folder: Path, loaded: Future[SavedPolicy]) -> None:
        """Recommend with the policy that was loaded, or go on with the one from before."""
        self._is_loading = False
        error = loaded.exception()
        if error is not None:
            self.responder.served.refuse(folder, error)
        else:
            self.responder.take_up(loaded.result())

    def _store(self, posts: Sequence[PendingEvents]) -> None:
        try:
            reports = store_events(self.responder.store, posts, self.metrics)
        finally:
            users = {str(event.get("user_id", "")) for post in posts for event in post.events}
            self.responder.forget(map(clean_id, users))
        # Whoever is told asks again at once: no answer from before may be found then.
        for post, report in reports:
            post.future.set_result(report)


def _settle(futures: Sequence[Future[Any]], run: Callable[[], Any]) -> None:
    """Run a job; its result or its error goes to the futures that have none yet.

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
