"""Lets stored memory follow rows that another machine has changed (`shop.lake`)."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from ..shop.config import MemoryConfig
from ..shop.row_changes import Rows
from ..shop.schema import EVENT_COLUMNS
from ..utils.database import literal
from .store import MemoryStore

_CATALOG = ("products", "product_history")


class Follower:
    """Made before the rows are changed, in the same transaction."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection = connection
        self._store = MemoryStore(connection, config)
        ((self._last,),) = connection.execute(
            "SELECT coalesce(max(event_id), 0) FROM events"
        ).fetchall()

    def follow(self, changes: Mapping[str, Rows]) -> None:
        """Follow rows that were changed, by table."""
        if any(table in changes for table in _CATALOG):
            history = changes.get("product_history")
            states = "SELECT product_id, ts FROM product_history WHERE false"
            if history:
                states = " UNION ".join(f"SELECT product_id, ts FROM {f}" for f in _files(history))
            self._store.catalog_changed(states)
        if events := changes.get("events"):
            both = " UNION ".join(f"SELECT user_id FROM {file}" for file in _files(events))
            users = [user for (user,) in self._connection.execute(both).fetchall()]
            self._store.update(users, None if self._is_rewritten(events) else self._last)

    def _is_rewritten(self, events: Rows) -> bool:
        """Whether events of before are gone, say something else, or got company."""
        removed, added = (f"SELECT {EVENT_COLUMNS} FROM {file}" for file in _files(events))
        ((count,),) = self._connection.execute(
            f"""SELECT (SELECT count(*) FROM ({removed} EXCEPT {added})) + (
                SELECT count(*) FROM ({added} EXCEPT {removed}) WHERE event_id <= {self._last})"""
        ).fetchall()
        return bool(count)


def _files(rows: Rows) -> tuple[str, str]:
    """SQL: what was removed and what was added, of which either may be nothing."""
    added = f"read_parquet({literal(rows.added)})"
    removed = f"read_parquet({literal(rows.removed)})"
    return removed, added
