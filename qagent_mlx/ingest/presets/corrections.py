"""What later exports say of events that the shop has: whose they are, and what was taken back."""

from __future__ import annotations

from pathlib import Path

import duckdb

from ...memory import sessions
from ...memory.store import MemoryStore
from ...shop.shop import Shop
from ...utils.database import literal

# The product of a row ``r`` as the shop calls it.
_PRODUCT = """coalesce((SELECT product_id FROM product_aliases a WHERE a.alias = r.product_id),
    r.product_id)"""


def correct_events(shop: Shop, logins: Path | None, returned: Path | None) -> tuple[str, ...]:
    """Move events of a device to its user, and delete purchases that were taken back.

    Args:
        logins: Parquet of (device, user_id, time): who used a device from a moment on. Events of
            the device belong to the last user before them, else to the first one.
        returned: Parquet of purchases (user_id, time, product_id).

    Returns:
        Notes with the numbers of events.
    """
    notes = []
    with shop.transaction() as connection:
        connection.execute("CREATE OR REPLACE TEMP TABLE touched (user_id VARCHAR)")
        if logins is not None and (moved := _move_events(connection, logins)):
            notes.append(f"{moved:,} events of the shop, anonymous until now, are moved to users")
        if returned is not None and (deleted := _delete_returned(connection, returned)):
            notes.append(f"{deleted:,} purchases of the shop were taken back since: deleted")
        users = [
            user for (user,) in connection.execute("SELECT DISTINCT * FROM touched").fetchall()
        ]
        if users:
            sessions.refresh_sessions(connection, shop.config.memory, "FROM touched")
            MemoryStore(connection, shop.config.memory).update(users, None)
        connection.execute("DROP TABLE touched")
    return tuple(notes)


def _move_events(connection: duckdb.DuckDBPyConnection, logins: Path) -> int:
    """Give events and impressions of devices to users; returns the number of events.

    An event that the user has already, from an export that knew them, is deleted.
    """
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE logins AS
        SELECT device, user_id, time FROM read_parquet({literal(logins)});
        CREATE OR REPLACE TEMP TABLE owners AS
        WITH firsts AS (SELECT device, arg_min(user_id, time) AS first FROM logins GROUP BY 1),
        of_devices AS (
            SELECT device, ts, first FROM events JOIN firsts ON device = events.user_id
            UNION SELECT device, ts, first FROM impressions JOIN firsts
                ON device = impressions.user_id)
        SELECT d.device, d.ts, coalesce(l.user_id, d.first) AS user_id
        FROM of_devices d ASOF LEFT JOIN logins l ON l.device = d.device AND d.ts >= l.time;
        DROP TABLE logins"""
    )
    moved = connection.execute(
        """UPDATE events SET user_id = o.user_id FROM owners o
        WHERE events.user_id = o.device AND events.ts = o.ts RETURNING 1"""
    ).fetchall()
    connection.execute(
        """UPDATE impressions SET user_id = o.user_id FROM owners o
        WHERE impressions.user_id = o.device AND impressions.ts = o.ts;
        DELETE FROM events WHERE event_id IN (
            SELECT event_id FROM events SEMI JOIN owners USING (user_id, ts)
            QUALIFY row_number() OVER (PARTITION BY user_id, ts, type, query_key, product_id
                ORDER BY event_id) > 1);
        DELETE FROM impressions WHERE rowid IN (
            SELECT rowid FROM impressions SEMI JOIN owners USING (user_id, ts)
            QUALIFY row_number() OVER (PARTITION BY user_id, ts, query_key, product_id, position
                ORDER BY rowid) > 1);
        INSERT INTO touched SELECT device FROM owners UNION SELECT user_id FROM owners;
        DROP TABLE owners"""
    )
    return len(moved)


def _delete_returned(connection: duckdb.DuckDBPyConnection, returned: Path) -> int:
    """Delete purchases, returns their number."""
    users = connection.execute(
        f"""DELETE FROM events WHERE type = 'purchase' AND (user_id, ts, product_id) IN (
            SELECT user_id, try_cast(time AS TIMESTAMP), {_PRODUCT}
            FROM read_parquet({literal(returned)}) r) RETURNING user_id"""
    ).fetchall()
    connection.execute("INSERT INTO touched SELECT unnest(?::VARCHAR[])", [[u for (u,) in users]])
    return len(users)
