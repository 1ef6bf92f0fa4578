"""A shop in a lake: its rows in a DuckLake, and each machine's file a copy as of a snapshot.

    lake.main.<table>       the rows of the tables in `SHARED`
    lake.main.lake_state    who wrote last, the shop's settings, the next event's number

A machine's ``shop.duckdb`` holds the same rows and, beside them, what only it needs: stored memory,
and which snapshot the rows are of. Whoever opens it takes over what has changed in the lake since
(`LakeStore.pull`); a change is made in the file, and the rows that it touched are written to the
lake, in a transaction of the lake, before the file's own is committed (`LakeStore.push`). A
process that dies between the two has changed the lake, and the file follows when it is opened. One
machine writes at a time, under the lake's lock; the row ``writer`` refuses whoever lost the lock.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb

from ..errors import QAgentError
from ..utils.database import copy_parquet, literal
from ..utils.settings import merge
from . import journal
from .config import PLACES, ShopConfig
from .copied import Copied, copied_snapshot, keep_copied
from .handed_over import refuse_times
from .hooks import hooks
from .lake_catalog import NAME, LakeCatalog
from .lake_data import open_lake_data
from .lake_files import refuse_views, scratch
from .row_changes import Before, Rows, Table, apply_rows, net_changes, read_table
from .schema import OF_THIS_MACHINE, SHARED
from .store import OpenShop, Store

log = logging.getLogger("qagent.shop")

FORMAT = 1  # of what a lake holds
STATE = f"{NAME}.main.lake_state"
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


def shared_tables(connection: duckdb.DuckDBPyConnection) -> list[Table]:
    """The tables of a shop's file whose rows all machines share."""
    own = ", ".join(map(literal, OF_THIS_MACHINE))
    where = {"meta": f"key NOT IN ({own})"}
    return [read_table(connection, name, where.get(name, "true")) for name in SHARED]


def shared_settings(config: ShopConfig) -> str:
    """A shop's settings as the lake keeps them: where it is, each machine knows itself."""
    values: dict[str, Any] = asdict(config)
    return json.dumps({name: value for name, value in values.items() if name not in PLACES})


def take_settings(shop: OpenShop, state: dict[str, str], address: str) -> None:
    """Give a shop the settings that a lake's state holds."""
    values = json.loads(state["settings"])
    if isinstance(values, dict):  # else `merge` says so
        values = {name: value for name, value in values.items() if name not in PLACES}
    own = ShopConfig(store=shop.config.store, data=shop.config.data)
    config = merge(own, values, f"the lake {address}")
    if config != shop.config:
        shop.config = config
        shop.write_config()


def write_state(lake: duckdb.DuckDBPyConnection, values: dict[str, str]) -> None:
    """Set values of the table ``lake_state``, inside a transaction."""
    for key, value in values.items():
        lake.execute(f"DELETE FROM {STATE} WHERE key = ?", [key])
        lake.execute(f"INSERT INTO {STATE} VALUES (?, ?)", [key, value])


def state_of_lake(lake: duckdb.DuckDBPyConnection, snapshot: int | None = None) -> dict[str, str]:
    """The table ``lake_state``, as it is or as it was.

    Raises:
        QAgentError: the lake is of another format.
    """
    moment = "" if snapshot is None else f" AT (VERSION => {snapshot})"
    refuse_views(lake, NAME)
    values = dict(lake.execute(f"FROM {STATE}{moment}").fetchall())
    if values.get("format") != str(FORMAT):
        raise QAgentError(
            f"the lake is of format {values.get('format')}, this program reads {FORMAT}; "
            "use the same qagent-mlx on all machines"
        )
    return values


def newest_snapshot(lake: duckdb.DuckDBPyConnection) -> int:
    """The number of the lake's newest snapshot."""
    ((snapshot,),) = lake.execute(f"FROM ducklake_current_snapshot('{NAME}')").fetchall()
    return int(snapshot)


def head_of_lake(lake: duckdb.DuckDBPyConnection) -> Copied:
    """The lake's newest snapshot, and who wrote it last."""
    snapshot = newest_snapshot(lake)
    rows = lake.execute(f"SELECT value FROM {STATE} WHERE key = 'writer'").fetchall()
    return Copied(snapshot, rows[0][0] if rows else "")


def known_snapshots(lake: duckdb.DuckDBPyConnection, numbers: list[int]) -> int:
    """How many of these snapshots the lake still has."""
    ((count,),) = lake.execute(
        f"""SELECT count(DISTINCT snapshot_id) FROM ducklake_snapshots('{NAME}')
        WHERE list_contains(?, snapshot_id)""",
        [numbers],
    ).fetchall()
    return int(count)


def read_changes(
    lake: duckdb.DuckDBPyConnection,
    tables: list[Table],
    copied: Copied,
    head: Copied,
    folder: Path,
    file: duckdb.DuckDBPyConnection,
) -> Iterator[Rows]:
    """What has changed in the lake since the snapshot that a shop's file is a copy of.

    Where the lake no longer knows that snapshot, all rows are compared.
    """
    ((oldest,),) = lake.execute(
        f"SELECT min(snapshot_id) FROM ducklake_snapshots('{NAME}')"
    ).fetchall()
    is_known = copied.snapshot >= 0 and copied.snapshot + 1 >= oldest
    touched = _touched_tables(lake, copied.snapshot + 1, head.snapshot) if is_known else None
    for table in tables:
        if touched is not None and table.name not in touched:
            continue
        _refuse_other_columns(lake, table)
        names = ", ".join(table.names)
        old, new = (folder / f"{table.name}-{kind}.parquet" for kind in ("old", "new"))
        if not is_known:
            ours = f"SELECT {table.plain} FROM {table.name} WHERE {table.where}"
            theirs = f"SELECT {names} FROM {NAME}.main.{table.name} AT (VERSION => {head.snapshot})"
        else:
            changed = f"""SELECT {names} FROM {NAME}.table_changes({literal(table.name)},
                {copied.snapshot + 1}, {head.snapshot}) WHERE change_type IN"""
            ours = f"{changed} ('delete', 'update_preimage')"
            theirs = f"{changed} ('insert', 'update_postimage')"
        removed = copy_parquet(lake if is_known else file, ours, old)
        added = copy_parquet(lake, theirs, new)
        rows = Rows(table, old, new, removed, added)
        if removed:
            rows = net_changes(table, old, new, lake)
        if rows.removed_rows or rows.added_rows:
            yield rows


def _touched_tables(lake: duckdb.DuckDBPyConnection, first: int, last: int) -> set[str] | None:
    """The tables that snapshots have done anything to; None where one does not say.

    Asking each table for its changes takes long beside that.
    """
    ((is_silent, named),) = lake.execute(
        f"""SELECT bool_or(changes IS NULL), flatten(list(flatten(map_values(changes))))
        FROM ducklake_snapshots('{NAME}') WHERE snapshot_id BETWEEN {first} AND {last}"""
    ).fetchall()
    if is_silent is not False:
        return None
    tables = lake.execute(f"SELECT table_name, table_id FROM ducklake_table_info('{NAME}')")
    # By its number, or by its name where it was made.
    return {
        name
        for name, number in tables.fetchall()
        if str(number) in named or f"main.{name}" in named
    }


def _refuse_other_columns(lake: duckdb.DuckDBPyConnection, table: Table) -> None:
    rows = lake.execute(f"SELECT column_name FROM (DESCRIBE {NAME}.main.{table.name})").fetchall()
    if sorted(name for (name,) in rows) != sorted(name for name, _ in table.columns):
        raise QAgentError(
            f"the lake's table {table.name} has other columns than this program's; use the same "
            "qagent-mlx on all machines"
        )


def next_number(connection: duckdb.DuckDBPyConnection) -> int:
    """The number that the next event would get."""
    ((last,),) = connection.execute(
        "SELECT max(last_value) FROM duckdb_sequences() WHERE sequence_name = 'event_ids'"
    ).fetchall()
    ((largest,),) = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()
    return max(int(last or 0), int(largest)) + 1


def continue_numbers(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Give events numbers from ``number`` on, if not larger ones already."""
    start = max(number, next_number(connection))
    connection.execute(f"CREATE OR REPLACE SEQUENCE event_ids START {start}")
