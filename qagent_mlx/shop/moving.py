"""Takes a shop from its file into a lake and back, and lets further machines join a lake."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from ..errors import QAgentError
from ..utils.database import copy_parquet, literal
from .config import outside_lakes
from .copied import KEY, Copied, copied_snapshot, keep_copied, keep_made_of
from .lake import LakeStore
from .lake_address import name_lake, normal_address
from .lake_catalog import NAME, LakeCatalog
from .lake_changes import continue_numbers, next_number, read_changes, shared_tables
from .lake_files import scratch
from .lake_state import (
    FORMAT,
    STATE,
    head_of_lake,
    known_snapshots,
    shared_settings,
    state_of_lake,
    take_settings,
    write_state,
)
from .row_changes import Rows, Table, apply_rows, fingerprint
from .shop import Shop

FILE = "file"  # as a store: the shop's own


@dataclass(frozen=True, slots=True)
class MovedTable:
    """A table that is the same in the file and in the lake.

    Attributes:
        rows: Their number.
        checksum: Of all values, in no order.
    """

    table: str
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class MoveReport:
    """Where a shop is kept from now on, and what was compared."""

    store: str
    joined: bool  # the lake held the shop already
    tables: list[MovedTable]


def move(shop: Shop, store: str, data: str | None = None) -> MoveReport:
    """Keep a shop's rows somewhere else from now on; done again, it changes nothing.

    Args:
        shop: Open for writing.
        store: `FILE`, or a lake's address (see `lake_catalog`). A lake that holds a shop is
            joined: by a shop without rows, or by one with the same.
        data: Folder for the rows of a lake that is new, where all machines see it; of one that
            is there, the folder where they must be.

    Raises:
        QAgentError: the place cannot be used, or holds something else; nothing has changed.
    """
    if store == FILE:
        return _leave(shop)
    address = normal_address(store)
    if shop.config.store not in (None, address):
        raise QAgentError(f"{shop.path} is in {shop.config.store}; move it to its file first")
    name_lake(address)
    if data is not None and shop.config.store is not None:
        _follow_data(shop, data)
    catalog = LakeCatalog(address, f"the shop {shop.path}", shop.config.data)
    return enter(shop, catalog, data)


def _follow_data(shop: Shop, data: str) -> None:
    """Use a lake's files at another place, which its user has just named."""
    catalog = LakeCatalog(str(shop.config.store), f"the shop {shop.path}")
    catalog.require_data(data)
    shop.config = replace(shop.config, data=catalog.data)
    shop.write_config()
    shop.forget_store()


def create_in(path: Path, store: str, data: str | None) -> tuple[MoveReport, dict[str, int]]:
    """Make a shop in a new folder whose rows are in a lake (see `move`); also `Shop.counts`.

    Raises:
        QAgentError: as `Shop.create` and `move`; nothing is left of the folder.
    """
    address = normal_address(store)  # before a folder is made
    shop = Shop.create(path)
    try:
        report = move(shop, address, data)
        return report, shop.counts()
    except BaseException:
        shop.delete()
        raise
    finally:
        shop.close()


def create_at(path: Path, store: str, snapshot: int) -> dict[str, int]:
    """Make a shop of its own in a new folder, with the rows of a lake as of a snapshot.

    What was trained or measured on that snapshot can be repeated in it. Returns `Shop.counts`.

    Raises:
        QAgentError: as `create_in`, or the lake holds no such snapshot; nothing is left of the
            folder.
    """
    address = normal_address(store)
    name_lake(address)
    catalog = LakeCatalog(address, f"the shop {path}")
    shop = Shop.create(path)
    try:
        with scratch() as folder:
            _take_rows(shop, catalog, snapshot, folder)
        return shop.counts()
    except BaseException:
        shop.delete()
        raise
    finally:
        shop.close()


def _take_rows(shop: Shop, catalog: LakeCatalog, snapshot: int, folder: Path) -> None:
    """Put the rows of a snapshot, and the settings of then, into a new shop."""
    connection, tables = shop.connection, shared_tables(shop.connection)

    def read(lake: duckdb.DuckDBPyConnection) -> tuple[dict[str, str], list[Rows]]:
        if not known_snapshots(lake, [snapshot]):
            newest = head_of_lake(lake).snapshot
            raise QAgentError(
                f"the lake {catalog.address} has no snapshot {snapshot}: its newest is {newest}, "
                "and those from before somebody was forgotten are gone"
            )
        state = state_of_lake(lake, snapshot)
        head = Copied(snapshot, state["writer"])
        return state, list(read_changes(lake, tables, Copied(), head, folder, connection))

    state, changes = catalog.call(read, shop.wait_seconds)
    with shop.transaction():
        for rows in changes:
            apply_rows(connection, rows.table.name, rows)
        continue_numbers(connection, int(state.get("next_event", "1")))
        keep_made_of(connection, snapshot)
    take_settings(shop, state, catalog.address)


def enter(shop: Shop, catalog: LakeCatalog, data: str | None) -> MoveReport:
    """Fill an empty lake with a shop, or join the one that is there."""
    shop.connection  # noqa: B018  (stores the journal, in the store of before)
    if not catalog.exists():
        if data is None:
            raise QAgentError(f"there is no lake at {catalog.address}; name a folder for its data")
        catalog.create(data)
    elif data is not None:
        catalog.require_data(data)
    with catalog.lock(shop.wait_seconds):
        joined = bool(catalog.call(_tables_of_lake, shop.wait_seconds))
        if not joined:
            _fill(shop, catalog)
        if any(fingerprint(shop.connection, t.name, t)[0] for t in _of_rows(shop)):
            # Just filled, or by a move that was interrupted or is done again.
            head = catalog.call(head_of_lake, shop.wait_seconds)
            if _compare(shop, catalog, head) is None:
                raise QAgentError(
                    f"{catalog.address} holds other rows than {shop.path}; choose another "
                    "address, or join it with a new folder"
                )
            keep_copied(shop.connection, head)
    shop.config = replace(shop.config, store=catalog.address, data=catalog.data)
    shop.write_config()
    shop.close()
    shop.forget_store()
    copied = copied_snapshot(shop.connection)  # opening it takes over what the lake holds
    return MoveReport(catalog.address, joined, _compared(shop, catalog, copied))


_REPORT = "please report it with the output of qagent doctor"


def _leave(shop: Shop) -> MoveReport:
    if shop.config.store is None:
        return MoveReport(FILE, False, [])
    store = shop.store
    assert isinstance(store, LakeStore)
    with store.alone(shop):
        tables = _compared(shop, store.catalog, copied_snapshot(shop.connection))
        shop.config = outside_lakes(shop.config)
        shop.write_config()
        shop.connection.execute("DELETE FROM meta WHERE key = ?", [KEY])
    shop.close()
    shop.forget_store()
    return MoveReport(FILE, False, tables)


def _of_rows(shop: Shop) -> list[Table]:
    """The shared tables that are empty in a new shop."""
    return [table for table in shared_tables(shop.connection) if table.name != "meta"]


def _tables_of_lake(lake: duckdb.DuckDBPyConnection) -> list[str]:
    rows = lake.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [NAME]
    ).fetchall()
    names = [name for (name,) in rows]
    if names and "lake_state" not in names:
        raise QAgentError(
            f"the lake holds tables of something else, such as {names[0]}; name an empty database"
        )
    return names


def _fill(shop: Shop, catalog: LakeCatalog) -> None:
    """Write all rows of a shop's file into an empty lake, in one transaction."""
    state = {
        "format": str(FORMAT),
        "writer": secrets.token_hex(8),
        "settings": shared_settings(shop.config),
        "next_event": str(next_number(shop.connection)),
    }
    tables = shared_tables(shop.connection)
    with scratch() as folder:
        for table in tables:
            rows = f"SELECT {table.plain} FROM {table.name} WHERE {table.where}"
            copy_parquet(shop.connection, rows, folder / table.name)

        def write(lake: duckdb.DuckDBPyConnection) -> None:
            lake.execute(f"CREATE TABLE {STATE} (key VARCHAR, value VARCHAR)")
            for table in tables:
                columns = ", ".join(
                    f"{name} {'VARCHAR' if kind.startswith('ENUM') else kind}"
                    for name, (_, kind) in zip(table.names, table.columns, strict=True)
                )
                target = f"{NAME}.main.{table.name}"
                lake.execute(f"CREATE TABLE {target} ({columns})")
                lake.execute(
                    f"INSERT INTO {target} FROM read_parquet({literal(folder / table.name)})"
                )
            write_state(lake, state)

        catalog.call(write, shop.wait_seconds)


def _compared(shop: Shop, catalog: LakeCatalog, copied: Copied) -> list[MovedTable]:
    tables = _compare(shop, catalog, copied)
    if tables is None:
        raise QAgentError(f"{shop.path} is no true copy of {catalog.address}; {_REPORT}")
    return tables


def _compare(shop: Shop, catalog: LakeCatalog, copied: Copied) -> list[MovedTable] | None:
    """The shared tables, where the file holds the same rows as the lake's snapshot; else None."""
    tables = shared_tables(shop.connection)
    moment = f"AT (VERSION => {copied.snapshot})"

    def read(lake: duckdb.DuckDBPyConnection) -> list[tuple[int, int]]:
        return [fingerprint(lake, f"{NAME}.main.{table.name} {moment}", table) for table in tables]

    theirs = catalog.call(read, shop.wait_seconds)
    ours = [fingerprint(shop.connection, table.name, table) for table in tables]
    if ours != theirs:
        return None
    return [
        MovedTable(table.name, rows, f"{checksum % 2**64:016x}")
        for table, (rows, checksum) in zip(tables, ours, strict=True)
    ]
