"""Lets stored memory follow rows that another machine has changed (`shop.lake`)."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from ..shop.config import MemoryConfig
from ..shop.row_changes import Rows
from ..utils.database import literal
from .store import MemoryStore

_CATALOG = ("products", "product_history")
# What an event is; its session and search are derived.
_TOLD = "event_id, user_id, ts, type, query, query_key, product_id"


class Follower:
    """Made before the rows are changed, in the same transaction."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection = connection
        self._store = MemoryStore(connection, config)
        ((self._last,),) = connection.execute(
            "SELECT coalesce(max(event_id), 0) FROM events"
        ).fetchall()

    def follow(self, changes: Mapping[str, Rows], *, is_whole: bool) -> None:
        """Follow rows that were changed, by table; ``is_whole``: all rows were read anew."""
        if is_whole:
            self._store.discard()
            return
        if any(table in changes for table in _CATALOG):
            history = changes.get("product_history")
            states = history and " UNION ".join(
                f"SELECT product_id, ts FROM read_parquet({literal(path)})"
                for path in (history.removed, history.added)
                if path.exists()
            )
            self._store.catalog_changed(
                states or "SELECT product_id, ts FROM product_history WHERE false"
            )
        if events := changes.get("events"):
            added, removed = (
                f"SELECT {{}} FROM read_parquet({literal(path)})" if path.exists() else None
                for path in (events.added, events.removed)
            )
            both = " UNION ".join(q.format("user_id") for q in (added, removed) if q)
            users = [user for (user,) in self._connection.execute(both).fetchall()]
            self._store.update(users, None if self._is_rewritten(added, removed) else self._last)

    def _is_rewritten(self, added: str | None, removed: str | None) -> bool:
        """Whether events of before are gone, say something else, or got company."""
        told = (added or removed or "").format(_TOLD)
        old = f"SELECT * FROM ({told}) WHERE event_id <= {self._last}"
        if not (added and removed):
            query = f"SELECT count(*) FROM ({old})"
        else:
            other = removed.format(_TOLD)
            query = f"""SELECT (SELECT count(*) FROM ({old} EXCEPT {other}))
                + (SELECT count(*) FROM ({other} EXCEPT {added.format(_TOLD)}))"""
        ((count,),) = self._connection.execute(query).fetchall()
        return bool(count)
