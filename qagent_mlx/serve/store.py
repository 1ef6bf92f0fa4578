"""The shop of a server: a snapshot that answers, a journal that keeps, and the database's file.

The worker thread reads and changes the snapshot. What clients post is appended to the journal
before it is acknowledged; a thread of the store moves it from there into the file, in short
transactions, and takes a new snapshot when another process has changed the file. So nobody waits
for the server for long, and the server waits for nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from ..errors import QAgentError
from ..ingest.journal import stored_positions
from ..live.shown import ShownAnswer, shown_entry
from ..shop import journal
from ..shop.database_file import DatabaseInUse
from ..shop.journal import CannotStore, JournalWriter, Position
from ..shop.shop import Shop
from .event_clock import EventClock
from .metrics import Metrics

log = logging.getLogger("qagent.serve")
T = TypeVar("T")

LOOK_SECONDS = 1.0  # between looks at the database's file
MOVE_SECONDS = 5.0  # between moves of the journal into it; readers move it themselves
SHOWN_SECONDS = 30.0  # the same, while there is only what users were shown
MOVE_SHARE = 0.05  # of the time, at most: programs that do not wait must find the file free
# The same of a shop that several machines share. What one has taken is in another's answers after
# the move that is under way, this pause, a move of its own, the other's look, and its snapshot.
SHARED_LOOK_SECONDS = 0.5
SHARED_MOVE_SECONDS = 1.0
SHARED_MOVE_SHARE = 0.5  # others wait meanwhile; what this one waits for them counts, too
WRITE_WAIT_SECONDS = 2.0  # for a process that holds the file, before the next look
STOP_WAIT_SECONDS = 10.0  # the same, when the server stops

READ_ONLY = "this server is read only; to store events start it without read_only"

_FileState = tuple[int, int, int]  # changes when the file does
NO_STATE: _FileState = (0, 0, 0)


class ShopStore:
    """Keeps a server's snapshot and the shop's file in line, in a thread of its own.

    Args:
        path: The shop's folder.
        read_only: Take nothing from clients.
        metrics: Counts what was done.

    Attributes:
        shop: The snapshot that answers. The worker puts the next one here (`use_snapshot`).
        journal: Takes what clients post; None where nothing is taken.
        shown: Takes what users were shown, which no answer waits for: a journal of its own, so
            that it never waits for the disk as a post does; None where nothing is recorded.
        clock: Says which times posted events may name.
        problem: Why nothing can be stored at the moment; empty where all is well.

    Raises:
        QAgentError: what `Shop.snapshot` has to say, or the journal cannot be written.
    """

    def __init__(self, path: Path, read_only: bool, metrics: Metrics) -> None:
        self.path, self._metrics = path, metrics
        self._file_state = _file_state(path)
        self.journal = None if read_only else JournalWriter(path)
        self.shown = None if read_only else JournalWriter(path)
        self._changes = journal.changes(path)
        try:
            self.shop = Shop.snapshot(path)
        except BaseException:
            for writer in self._writers:
                writer.close()
            raise
        self.clock = EventClock(self.shop)
        self.problem = ""
        self._stored = stored_positions(self.shop)
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._shown_failed = False  # said once, not for each answer
        self._wake, self._stopping = threading.Event(), False
        self._use_snapshot: Callable[[Shop], Future[Shop]]
        self._catalog_moved: Callable[[], object]
        self._move_at = self._woken_at = 0.0
        self._catalog_version = self.shop.catalog_version
        self._machines: Shop | None = None  # tells what other machines have changed
        self._thread = threading.Thread(target=self._run, name="qagent-store", daemon=True)

    @property
    def _writers(self) -> list[JournalWriter]:
        """The journals of this server."""
        return [writer for writer in (self.journal, self.shown) if writer is not None]

    def start(
        self, use_snapshot: Callable[[Shop], Future[Shop]], catalog_moved: Callable[[], object]
    ) -> None:
        """Begin to follow the file.

        Args:
            use_snapshot: Lets the worker take up a new snapshot; gives back the one before.
            catalog_moved: Called when products that clients posted are in the file.
        """
        self._use_snapshot, self._catalog_moved = use_snapshot, catalog_moved
        self._thread.start()

    def close(self) -> None:
        """Move what is left in the journal into the file, and end."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._move_journal(STOP_WAIT_SECONDS)
        except QAgentError as error:
            log.warning("%s; the journal keeps what clients posted for whoever opens it", error)
        for writer in self._writers:
            writer.close()
        self.shop.close()

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Keep entries of the journal; after it they can be acknowledged.

        Raises:
            CannotStore: the disk is full or broken.
            QAgentError: the server is read only.
        """
        if self.journal is None:
            raise QAgentError(READ_ONLY)
        try:
            self.journal.append(entries)
        except CannotStore as error:
            self._note_problem(error)
            raise
        now = time.monotonic()
        is_due = now >= max(self._move_at, self._woken_at + SHARED_MOVE_SECONDS)
        if is_due and self.shop.config.store is not None:  # other machines wait for it
            self._woken_at = now
            self._wake.set()

    def _note_problem(self, error: CannotStore) -> None:
        if not self.problem:  # else it was said
            log.error("%s; what clients post is refused until then", error)
        self.problem = str(error)

    def record_shown(self, answer: ShownAnswer) -> bool:
        """Record what a user was shown, in some microseconds and from any thread.

        It survives the end of this process; that of the machine, once a second has passed.
        Returns whether it was recorded: not by a server that is read only or whose disk is full.
        """
        if self.shown is None:
            return False
        try:
            self.shown.write([shown_entry([answer])])
        except QAgentError as error:
            if not self._shown_failed:
                log.warning("%s; what users are shown is not recorded", error)
            self._shown_failed = True
            return False
        self._shown_failed = False
        return True

    def move_soon(self) -> None:
        """Move the journal into the file without delay."""
        self._move_at = 0.0
        self._wake.set()

    def call(self, run: Callable[[Shop], T]) -> Future[T]:
        """Read from the shop's file, in the store's thread; it knows all of the journal."""

        def read() -> T:
            with self._open(STOP_WAIT_SECONDS) as shop:
                return run(shop)

        return self._submit(read)

    def change(self, run: Callable[[Shop], T]) -> Future[T]:
        """Change the shop's file, in the store's thread.

        The journal is stored before, and the worker takes up what was changed before the future
        has its result.

        Raises:
            QAgentError: the server is read only.
        """
        if self.journal is None:
            raise QAgentError(READ_ONLY)
        return self._submit(lambda: self._change_file(run))

    def _submit(self, run: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.append((run, future))
        self._wake.set()
        return future

    def _run(self) -> None:
        said = ""
        while not self._stopping:
            self._wake.wait(self._pause())
            self._wake.clear()
            while self._jobs:
                run, future = self._jobs.pop(0)
                if not future.set_running_or_notify_cancel():
                    continue  # nobody waits for it any more
                try:
                    future.set_result(run())
                except BaseException as error:  # it belongs to who asked
                    future.set_exception(error)
            try:
                if self.shown is not None:
                    self.shown.sync()
                if self.problem and self.journal is not None:
                    self.journal.check_disk()
                    log.info("the disk takes what clients post again")
                    self.problem = ""
                self._follow_file()
                self._let_go()  # soon: whoever stored them may have erased somebody
                if time.monotonic() >= self._move_at + self._patience():
                    self._move_journal(WRITE_WAIT_SECONDS)
            except CannotStore as error:
                self._note_problem(error)
            except DatabaseInUse as error:
                log.info("%s; trying again", error)
            except (QAgentError, duckdb.Error, OSError) as error:
                if str(error) != said:
                    log.warning("%s; trying again", error)
                said = str(error)

    def _pause(self) -> float:
        """Seconds until the store looks around again, unless it is woken."""
        if self.shop.config.store is None:
            return LOOK_SECONDS
        left = self._move_at - time.monotonic()
        is_soon = self._is_posted and 0 < left < SHARED_LOOK_SECONDS
        return left if is_soon else SHARED_LOOK_SECONDS

    @property
    def _is_posted(self) -> bool:
        """Whether the journal holds what clients have posted."""
        return self.journal is not None and self.journal.position.offset > 0

    def _move_journal(self, wait: float) -> None:
        """Store the journal's entries in the file."""
        self._let_go()  # somebody else may have stored them
        if not any(writer.position.offset for writer in self._writers):
            return
        start = time.perf_counter()
        with self._open(wait) as shop:
            shop.connection  # noqa: B018  (opening it stores the journal)
            # Since `_follow_file` looked, or just now by opening it: other servers' journals.
            was_changed = journal.changes(self.path) != self._changes or self._others(
                self._stored
            ) != self._others(stored_positions(shop))
            version = shop.catalog_version
            self._settle(shop)
        self._let_go()
        seconds = time.perf_counter() - start
        self._metrics.store.labels("move").observe(seconds)
        pause, share = MOVE_SECONDS, MOVE_SHARE
        if shop.store.is_shared:  # other machines wait for it
            pause, share = SHARED_MOVE_SECONDS, SHARED_MOVE_SHARE
        self._move_at = time.monotonic() + max(pause, seconds / share)
        if version != self._catalog_version:
            self._catalog_version = version
            self._catalog_moved()
        if was_changed and not self._stopping:
            self._take_snapshot()

    def _let_go(self) -> None:
        """Remove this server's entries from the journal where the file holds all of them."""
        for writer in self._writers:
            writer.start_again(self._stored.get(writer.server, Position()))

    def _patience(self) -> float:
        """Seconds that a move may wait longer than usual: nobody looks at what was shown soon."""
        return 0.0 if self._is_posted else SHOWN_SECONDS - MOVE_SECONDS

    def _change_file(self, run: Callable[[Shop], T]) -> T:
        with self._open(STOP_WAIT_SECONDS) as shop:
            shop.connection  # noqa: B018  (opening it stores the journal)
            result = run(shop)
        with self._open(STOP_WAIT_SECONDS) as shop:
            self._settle(shop)
        self._let_go()
        self._take_snapshot()
        return result

    def _open(self, wait: float) -> Shop:
        shop = Shop.open(self.path, read_only=False)
        shop.wait_seconds = wait
        return shop

    def _settle(self, shop: Shop) -> None:
        """Remember what the file holds, with nothing left to be written when it is closed."""
        self._stored = stored_positions(shop)
        shop.connection.execute("CHECKPOINT")
        self._file_state = _file_state(self.path)

    def _follow_file(self) -> None:
        """Take a new snapshot if another process or machine has changed the shop."""
        self._follow_machines()
        if _file_state(self.path) == self._file_state:
            return
        with Shop.open(self.path) as shop:
            shop.wait_seconds = WRITE_WAIT_SECONDS
            stored = stored_positions(shop)
            changes = journal.changes(self.path)
            # Now, while nobody writes: opening the shop may have stored the journal.
            state = _file_state(self.path)
        # Whoever reads the shop stores the journal first, of which the snapshot knows already.
        only_journal = (
            changes == self._changes
            and stored != self._stored
            and self._others(stored) == self._others(self._stored)
        )
        self._stored, self._file_state = stored, state
        if not only_journal:
            self._take_snapshot()

    def _follow_machines(self) -> None:
        """Bring into the file what other machines have changed, where they share the shop."""
        place = self.shop.config.store
        if place is None:
            return
        if self._machines is None or self._machines.config.store != place:
            self._machines = self._open(WRITE_WAIT_SECONDS)
        if self._machines.store.is_behind(self._machines):
            with self._open(WRITE_WAIT_SECONDS) as shop:
                shop.connection  # noqa: B018  (opening it takes over what they wrote)

    def _others(self, stored: Mapping[str, Position]) -> dict[str, Position]:
        """How far the journals of other servers are stored."""
        own = {writer.server for writer in self._writers}
        return {server: position for server, position in stored.items() if server not in own}

    def _take_snapshot(self) -> None:
        start = time.perf_counter()
        # Before the snapshot: what changes meanwhile is found at the next look.
        self._file_state, self._changes = _file_state(self.path), journal.changes(self.path)
        try:
            self._use(Shop.snapshot(self.path))
        except BaseException:
            self._file_state = NO_STATE  # so that the next look tries again
            raise
        self._metrics.store.labels("snapshot").observe(time.perf_counter() - start)

    def _use(self, shop: Shop) -> None:
        try:
            self._stored = stored_positions(shop)
            self._catalog_version = shop.catalog_version
            future = self._use_snapshot(shop)
            while not self._stopping:
                with suppress(FutureTimeout):
                    future.result(0.1).close()
                    break
        except BaseException:
            shop.close()
            raise


def _file_state(path: Path) -> _FileState:
    status = (path / "shop.duckdb").stat()
    return (status.st_mtime_ns, status.st_size, status.st_ino)
