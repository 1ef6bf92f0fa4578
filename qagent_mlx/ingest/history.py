"""The loads of files that a shop has had: which they were, and how to undo one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import duckdb

from ..errors import QAgentError
from ..memory import sessions
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from ..utils.database import fetch_dicts
from .options import Kind, Load, ReadOptions
from .report import IngestReport

UNDOABLE = 20  # loads of products whose former states are kept


@dataclass(frozen=True, slots=True)
class Ingest:
    """A load of one file, as the shop's history has it."""

    ingest_id: int
    file: str
    kind: str
    started: datetime  # UTC
    accepted: int
    rejected: int
    duplicates: int
    options: dict[str, Any]  # those that were given
    size: int | None  # of the file in bytes; None for what is no file
    undone: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class UndoReport:
    """What an undone load took away, and brought back."""

    ingest_id: int
    file: str
    kind: str
    events: int = 0  # removed
    impressions: int = 0  # removed, of products or recommendations
    products_removed: int = 0
    products_restored: int = 0
    rejects: int = 0  # removed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def next_ingest(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the load that begins."""
    ((last,),) = connection.execute("SELECT coalesce(max(ingest_id), 0) FROM ingests").fetchall()
    return int(last) + 1


def last_event(connection: duckdb.DuckDBPyConnection) -> int:
    """The greatest event id of the log, 0 where it is empty."""
    ((last,),) = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()
    return int(last)


def record_ingest(
    connection: duckdb.DuckDBPyConnection,
    load: Load,
    kind: Kind,
    file: str,
    started: datetime,
    report: IngestReport,
    size: int | None,
    last_event_id: int,
) -> None:
    """Enter a load into the history.

    Args:
        last_event_id: The greatest event id before it.
    """
    usual = asdict(ReadOptions())
    options = {name: v for name, v in asdict(load.options).items() if v != usual[name]}
    connection.execute(
        """INSERT INTO ingests
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, min(event_id), max(event_id), NULL
        FROM events WHERE event_id > $10""",
        [
            *(load.ingest_id, file, kind, started),
            *(report.accepted, report.rejected, report.duplicates, json.dumps(options), size),
            last_event_id,
        ],
    )
    connection.execute(
        "DELETE FROM replaced_products WHERE ingest_id <= ?", [(load.ingest_id or 0) - UNDOABLE]
    )


def ingest_history(shop: Shop) -> list[Ingest]:
    """The loads of files, the oldest first; empty for a shop of an older version."""
    if not shop.has_table("ingests"):
        return []
    rows = fetch_dicts(
        shop.connection.execute(
            "SELECT * EXCLUDE (first_event, last_event) FROM ingests ORDER BY ingest_id"
        )
    )
    return [Ingest(**row | {"options": json.loads(row["options"])}) for row in rows]


def undo_ingest(shop: Shop, ingest_id: int) -> UndoReport:
    """Take one load back: exactly its events, impressions and rejects, or its changes of products.

    Products become what they were before. Only the newest change of a product can be undone.

    Raises:
        QAgentError: there is no such load, it is undone already, or a later one stands in the way.
    """
    loads = {load.ingest_id: load for load in ingest_history(shop)}
    if ingest_id not in loads:
        raise QAgentError(
            f"{shop.path} has no ingest {ingest_id}; list them with: qagent ingest history"
        )
    load = loads[ingest_id]
    if load.undone is not None:
        raise QAgentError(
            f"ingest {ingest_id} ({load.file}) was undone at {load.undone:%Y-%m-%d %H:%M} already"
        )
    with shop.transaction() as connection:
        events = _undo_events(shop, ingest_id) if load.kind == "events" else 0
        restored = removed = 0
        if load.kind == "products":
            removed, restored = _undo_products(shop, load)
        counts = [
            len(connection.execute(statement, [ingest_id]).fetchall())
            for statement in (
                "DELETE FROM impressions WHERE ingest_id = ? RETURNING 1",
                "DELETE FROM recommendations WHERE ingest_id = ? RETURNING 1",
                "DELETE FROM rejects WHERE ingest_id = ? RETURNING 1",
            )
        ]
        connection.execute(
            """UPDATE ingests SET undone = (current_timestamp AT TIME ZONE 'UTC')
            WHERE ingest_id = ?""",
            [ingest_id],
        )
    products_shown, queries_shown, rejects = counts
    impressions = products_shown + queries_shown
    return UndoReport(
        ingest_id, load.file, load.kind, events, impressions, removed, restored, rejects
    )


def _undo_events(shop: Shop, ingest_id: int) -> int:
    """Delete a load's events, and let memory follow; returns their number."""
    connection = shop.connection
    ((first, last),) = connection.execute(
        "SELECT first_event, last_event FROM ingests WHERE ingest_id = ?", [ingest_id]
    ).fetchall()
    if first is None:
        return 0
    deleted = connection.execute(
        "DELETE FROM events WHERE event_id BETWEEN ? AND ? RETURNING user_id", [first, last]
    ).fetchall()
    users = sorted({user for (user,) in deleted})
    if not users:
        return 0
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE undone AS SELECT unnest(?) AS user_id", [users]
    )
    touched = "SELECT user_id FROM undone"
    sessions.refresh_sessions(connection, shop.config.memory, touched)
    if shop.config.derived_queries is not None:
        _drop_lone_searches(connection)
        sessions.refresh_sessions(connection, shop.config.memory, touched)
    MemoryStore(connection, shop.config.memory).update(users, None)
    connection.execute("DROP TABLE undone")
    return len(deleted)


def _drop_lone_searches(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete derived searches whose engagements are gone: nobody typed them."""
    connection.execute(
        """DELETE FROM events WHERE type = 'search' AND user_id IN (FROM undone)
        AND NOT EXISTS (FROM events e WHERE e.session_id = events.session_id
            AND e.type <> 'search' AND e.query_key = events.query_key)"""
    )


def _undo_products(shop: Shop, load: Ingest) -> tuple[int, int]:
    """Bring a load's products back to what they were; returns how many went and changed."""
    connection, version = shop.connection, shop.catalog_version + 1
    mine = f"(FROM replaced_products WHERE ingest_id = {load.ingest_id})"
    ((kept, new),) = connection.execute(
        f"SELECT count(*), count(*) FILTER (before IS NULL) FROM {mine}"
    ).fetchall()
    if not kept and load.accepted:
        raise QAgentError(
            f"ingest {load.ingest_id} ({load.file}) is too old to be undone: the states before "
            f"are kept for the last {UNDOABLE} loads; ingest the older file again"
        )
    _refuse_later_changes(connection, load, mine)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE restated AS
        SELECT product_id, ts FROM product_history SEMI JOIN {mine} USING (product_id);
        DELETE FROM product_history WHERE product_id IN (SELECT product_id FROM {mine});
        DELETE FROM product_aliases WHERE product_id IN (SELECT product_id FROM {mine});
        DELETE FROM products WHERE product_id IN (
            SELECT product_id FROM {mine} WHERE before IS NULL);
        INSERT OR REPLACE INTO products
        SELECT product_id, before.title, before.brand, before.category, before.price,
               before.in_stock, before.attributes, {version} FROM {mine} WHERE before IS NOT NULL;
        INSERT INTO product_history SELECT product_id, h.ts, h.price, h.in_stock FROM (
            SELECT product_id, unnest(history) AS h FROM {mine});
        INSERT OR IGNORE INTO product_aliases
        SELECT unnest(aliases), product_id FROM {mine};
        -- The load before this one is the last to have changed them again.
        UPDATE replaced_products SET changed = {version} FROM {mine} m
        WHERE replaced_products.product_id = m.product_id
            AND replaced_products.changed = m.before.changed;
        DELETE FROM replaced_products WHERE ingest_id = {load.ingest_id}"""
    )
    shop.set_meta("catalog_version", str(version))
    MemoryStore(connection, shop.config.memory).catalog_changed("FROM restated")
    connection.execute("DROP TABLE restated")
    return new, kept - new


def _refuse_later_changes(connection: duckdb.DuckDBPyConnection, load: Ingest, mine: str) -> None:
    """Refuse to undo what later loads changed again, or refer to.

    Raises:
        QAgentError: names the loads that are to be undone first.
    """
    later = connection.execute(
        f"""SELECT i.ingest_id, i.file, count(*) FROM {mine} m
        JOIN replaced_products r ON r.product_id = m.product_id AND r.ingest_id > m.ingest_id
        JOIN ingests i ON i.ingest_id = r.ingest_id GROUP BY ALL ORDER BY 1 DESC"""
    ).fetchall()
    _refuse(load, later, "changed {count:,} of its products again")
    users = connection.execute(
        f"""SELECT i.ingest_id, i.file, count(*) FROM ingests i
        JOIN events e ON e.event_id BETWEEN i.first_event AND i.last_event
        JOIN {mine} m ON m.product_id = e.product_id AND m.before IS NULL
        WHERE i.undone IS NULL GROUP BY ALL ORDER BY 1 DESC"""
    ).fetchall()
    _refuse(load, users, "has {count:,} events of products that it brought")
    changed = connection.execute(
        f"""SELECT m.product_id FROM {mine} m LEFT JOIN products p USING (product_id)
        WHERE p.changed IS DISTINCT FROM m.changed LIMIT 1"""
    ).fetchone()
    if changed:
        raise QAgentError(
            f"ingest {load.ingest_id} ({load.file}) cannot be undone: the product {changed[0]} "
            "was changed or removed since; ingest the older file again"
        )


def _refuse(load: Ingest, others: Sequence[tuple[int, str, int]], doing: str) -> None:
    if others:
        (number, file, count), *more = others
        rest = f" (and {len(more)} more)" if more else ""
        raise QAgentError(
            f"ingest {load.ingest_id} ({load.file}) cannot be undone: ingest {number} ({file})"
            f"{rest} {doing.format(count=count)}; undo that first: qagent ingest undo {number}"
        )
