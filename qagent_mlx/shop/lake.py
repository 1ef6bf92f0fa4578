"""A shop in a lake: its rows in a DuckLake, and each machine's file a copy as of a snapshot.

    lake.main.<table>       the rows of the tables in `SHARED`
    lake.main.lake_state    who wrote last, settings, the next event's number (`lake_state`)

A machine's ``shop.duckdb`` holds the same rows and, beside them, what only it needs: stored memory,
and which snapshot the rows are of. Whoever opens it takes over what has changed in the lake since
(`LakeStore.pull`); a change is made in the file, and the rows that it touched are written to the
lake, in a transaction of the lake, before the file's own is committed (`LakeStore.push`). A
process that dies between the two has changed the lake, and the file follows when it is opened. One
machine writes at a time, under the lake's lock; the row ``writer`` refuses whoever lost the lock.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import duckdb

from ..errors import QAgentError
from . import journal
from .copied import Copied, copied_snapshot, keep_copied
from .handed_over import refuse_times
from .hooks import hooks
from .lake_catalog import NAME, LakeCatalog
from .lake_changes import continue_numbers, next_number, read_changes, shared_tables
from .lake_data import open_lake_data
from .lake_files import scratch
from .lake_state import (
    head_of_lake,
    newest_snapshot,
    shared_settings,
    state_of_lake,
    take_settings,
    write_state,
)
from .row_changes import Before, Rows, apply_rows
from .store import OpenShop, Store

log = logging.getLogger("qagent.shop")

PUBLISHED = "memory"  # folder below the lake's data
_PUBLISHED = re.compile(r"\.?\d+-[0-9a-f]{8}(\.writing-\w+)?")


class LakeStore(Store):
    """The store of a shop whose settings name a lake.

    Raises:
        QAgentError: the user has not named that lake, see `utils.trust`.
    """

    is_shared = True

    def __init__(self, shop: OpenShop) -> None:
        config = shop.config
        assert config.store is not None
        self.catalog = LakeCatalog(config.store, f"the shop {shop.path}", config.data)
        self._wait = shop.wait_seconds
        self._before: Before | None = None
        self._held: int | None = None  # the newest snapshot that the file is known to hold
        self._said = ""

    def is_behind(self, shop: OpenShop) -> bool:
        """As in `Store`; False, and said once, where the lake cannot be reached."""
        try:
            newest = self._held and self.catalog.call(newest_snapshot, shop.wait_seconds)
            if newest is not None and newest == self._held:
                return False
            with shop.reading_file() as connection:
                copied = copied_snapshot(connection)
            head = self.catalog.call(head_of_lake, shop.wait_seconds)
        except QAgentError as error:
            if str(error) != self._said:
                log.warning("%s; the shop is read as this machine knows it", error)
            self._said = str(error)
            return False
        self._said = ""
        self._held = head.snapshot if head.writer == copied.writer else None
        return self._held is None

    def pull(self, shop: OpenShop) -> bool:
        """As in `Store`."""
        connection = shop.connection
        copied = copied_snapshot(connection)
        tables = shared_tables(connection)
        with scratch() as folder:

            def read(lake: duckdb.DuckDBPyConnection) -> tuple[Copied, dict[str, str], list[Rows]]:
                head = head_of_lake(lake)
                state = state_of_lake(lake)
                if head.writer == copied.writer:
                    return head, state, []
                changes = read_changes(lake, tables, copied, head, folder, connection)
                return head, state, list(changes)

            head, state, changes = self.catalog.call(read, shop.wait_seconds)
            if shop.config.data is None:  # joined before it was remembered
                shop.config = replace(shop.config, data=self.catalog.data)
                shop.write_config()
            if head == copied:
                return False
            self._take_over(shop, copied, head, state, changes)
        return head.writer != copied.writer

    def _take_over(
        self,
        shop: OpenShop,
        copied: Copied,
        head: Copied,
        state: dict[str, str],
        changes: list[Rows],
    ) -> None:
        """Put what has changed into the file, and let stored memory follow."""
        connection = shop.connection
        connection.execute("BEGIN")
        try:
            follower = hooks().make_follower(connection, shop.config.memory)
            for rows in changes:
                if not apply_rows(connection, rows.table.name, rows):
                    raise QAgentError(
                        f"{shop.path}/shop.duckdb differs from snapshot {copied.snapshot} of "
                        f"{self.catalog.address}, whose copy it is; remove the folder and join "
                        f"the lake again: qagent init --store {self.catalog.address}"
                    )
            if changes:
                continue_numbers(connection, int(state.get("next_event", "1")))
                follower.follow({rows.table.name: rows for rows in changes})
                refuse_times(shop.path, connection)
            keep_copied(connection, head)
            connection.execute("COMMIT")
        except BaseException:
            shop.roll_back(connection)
            raise
        if head.writer != copied.writer:
            take_settings(shop, state, self.catalog.address)
            journal.note_change(shop.path)

    @contextmanager
    def alone(self, shop: OpenShop) -> Iterator[None]:
        """As in `Store`."""
        with self.catalog.lock(shop.wait_seconds):
            self.pull(shop)
            yield

    def watch(self, connection: duckdb.DuckDBPyConnection) -> None:
        """As in `Store`."""
        if self._before is not None:  # of a transaction that was rolled back
            self._before.close()
        self._before = Before(connection, shared_tables(connection))

    def push(self, shop: OpenShop) -> bool:
        """As in `Store`."""
        before, self._before = self._before, None
        assert before is not None
        try:
            with scratch() as folder:
                changes = before.changes(shop.connection, folder)
                if changes:
                    self._write(shop, changes)
        finally:
            before.close()
        return bool(changes)

    def _write(self, shop: OpenShop, changes: list[Rows]) -> None:
        """Write changed rows to the lake, on top of the snapshot that the file is a copy of."""
        copied = copied_snapshot(shop.connection)
        state = {"writer": secrets.token_hex(8), "next_event": str(next_number(shop.connection))}

        def write(lake: duckdb.DuckDBPyConnection) -> bool:
            writer = head_of_lake(lake).writer
            if writer == state["writer"]:
                return True  # a commit that was said to have failed
            if writer != copied.writer:
                raise QAgentError(
                    f"the lake {self.catalog.address} was changed by another machine meanwhile; "
                    "nothing was kept, do it again"
                )
            for rows in changes:
                if not apply_rows(lake, f"{NAME}.main.{rows.table.name}", rows):
                    raise QAgentError(
                        f"the lake {self.catalog.address} lacks rows of {rows.table.name} that "
                        f"{shop.path}/shop.duckdb holds; nothing was kept. Remove the folder and "
                        f"join the lake again: qagent init --store {self.catalog.address}"
                    )
            write_state(lake, state)
            return True

        self.catalog.call(write, shop.wait_seconds)
        head = self.catalog.call(head_of_lake, shop.wait_seconds)
        if head.writer == state["writer"]:  # else somebody else came next: the file follows later
            keep_copied(shop.connection, head)

    def settings_saved(self, shop: OpenShop) -> None:
        """As in `Store`."""
        shop.connection  # noqa: B018  (stores the journal, before others are kept out)
        with self.alone(shop):
            state = {"writer": secrets.token_hex(8), "settings": shared_settings(shop.config)}
            self.catalog.call(lambda lake: write_state(lake, state), shop.wait_seconds)

    def forget_old(self) -> None:
        """As in `Store`: rows that were deleted leave the lake's files, and old snapshots go.

        So does what machines published of memory (`memory.published`), for the next who builds it.
        """
        with self.catalog.lock(self._wait):
            cursor = self.catalog.cursor()
            try:
                for step in (
                    f"CALL ducklake_flush_inlined_data('{NAME}')",
                    f"CALL ducklake_rewrite_data_files('{NAME}', delete_threshold => 0)",
                    f"CALL ducklake_expire_snapshots('{NAME}', older_than => now())",
                    f"CALL ducklake_cleanup_old_files('{NAME}', cleanup_all => true)",
                ):
                    cursor.execute(step)
            except duckdb.Error as error:
                raise self.catalog.unreachable(error) from error
            finally:
                cursor.close()
            if folder := self.catalog.data_folder():
                _clear_published(folder / PUBLISHED)
            else:
                data = open_lake_data(self.catalog, PUBLISHED)
                for name in data.sizes():
                    data.remove(name)
            self.catalog.compact(self._wait)


def _clear_published(folder: Path) -> None:
    """Delete what `memory.published` writes, and nothing else: a catalog may name any folder."""
    for place in folder.glob("of-*"):
        for path in place.iterdir() if place.is_dir() and not place.is_symlink() else ():
            if _PUBLISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".json" and path.stem.isdecimal():
                path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            place.rmdir()
            folder.rmdir()
