"""The last days of a shop's log, as files for the nights and posts for the days.

A tenth of the users post all their events, another tenth post them and are in the night's files
too, as shops' exports know what was posted. At the end the shop must hold the whole log, once.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

LIVE = "hash(user_id) % 10 = 0"  # users whose events are posted, and in no file
BOTH = "hash(user_id) % 10 = 1"  # users whose events are posted, and in the night's file again


class Almanac:
    """The last days of a log, in files for the nights and posts for the days."""

    def __init__(
        self, source: Path, place: Path, days: int, new_products: int, end: date | None = None
    ) -> None:
        self._connection = duckdb.connect()
        self._place, self._new_products = place, new_products
        for kind in ("events", "products"):
            self._connection.execute(
                f"CREATE TABLE {kind} AS FROM read_parquet('{source / f'{kind}.parquet'}')"
            )
        ((last,),) = self._connection.execute(
            "SELECT coalesce($1, max(time)::DATE) FROM events", [end]
        ).fetchall()
        self.start = datetime(last.year, last.month, last.day) - timedelta(days=days - 1)
        self.forgotten = ""

    def day(self, number: int) -> datetime:
        """The beginning of a day, the first being 0."""
        return self.start + timedelta(days=number)

    def before(self) -> tuple[Path, Path]:
        """Files of the products and the events from before the first day."""
        until = f"time < TIMESTAMP '{self.start}'"
        return (
            self._write("products-before", f"FROM products WHERE {until}"),
            self._write("events-before", f"FROM events WHERE {until}"),
        )

    def night(self, number: int) -> dict[str, Path]:
        """What the shop's other systems export at the end of a day."""
        new = ", ".join(
            f"('new{number}x{n}', 'Kite number {number} {n}', {number + n + 1}.5, true)"
            for n in range(self._new_products)
        )
        return {
            "events": self._write(
                f"events-{number}",
                f"FROM events WHERE {self._on(number)} AND NOT {LIVE} "
                f"AND user_id <> '{self.forgotten}'",
            ),
            "prices": self._write(
                f"prices-{number}",
                f"SELECT product_id, time, price, stock FROM products WHERE {self._on(number)}",
            ),
            "new products": self._write(
                f"new-{number}", f"FROM (VALUES {new}) t(product_id, title, price, stock)"
            ),
        }

    def posts(self, number: int) -> list[list[dict[str, Any]]]:
        """What clients post on a day, in order; a few events of one user at a time."""
        rows = self._connection.execute(
            f"SELECT * FROM events WHERE {self._on(number)} AND ({LIVE} OR {BOTH}) ORDER BY time"
        ).fetchall()
        batches: list[list[dict[str, Any]]] = []
        for user, moment, kind, query, product in rows:
            event = {"user_id": user, "time": moment.isoformat(), "type": kind}
            event |= {"query": query} if query else {}
            event |= {"product_id": product} if product else {}
            if batches and batches[-1][0]["user_id"] == user and len(batches[-1]) < 5:
                batches[-1].append(event)
            else:
                batches.append([event])
        return batches

    def users(self) -> list[str]:
        """Everybody, and whom it is as good to forget as anybody first: not one who posts."""
        rows = self._connection.execute(
            f"SELECT user_id FROM events GROUP BY 1 ORDER BY {LIVE} OR {BOTH}, count(*) DESC, 1"
        ).fetchall()
        return [user for (user,) in rows]

    def differences(self, export: Path, days: int) -> dict[str, int]:
        """How an export of the shop's events differs from what must be in it after some days."""
        until = f"time < TIMESTAMP '{self.day(days)}' AND user_id <> '{self.forgotten}'"
        columns = "user_id, time, type::VARCHAR AS type, query, product_id"
        given = f"SELECT {columns} FROM read_parquet('{export}')"
        wanted = f"SELECT DISTINCT {columns} FROM events WHERE {until}"
        queries = {
            "lost": f"{wanted} EXCEPT {given}",
            "unknown": f"{given} EXCEPT {wanted}",
            "doubled": f"FROM ({given}) GROUP BY ALL HAVING count(*) > 1",
        }
        return {
            name: len(self._connection.execute(query).fetchall()) for name, query in queries.items()
        }

    def missing(self, export: Path, acknowledged: list[list[dict[str, Any]]]) -> int:
        """How many acknowledged events an export lacks."""
        wanted = {
            (e["user_id"], datetime.fromisoformat(e["time"]), e["type"])
            for batch in acknowledged
            for e in batch
        }
        there = self._connection.execute(
            f"SELECT DISTINCT user_id, time, type::VARCHAR FROM read_parquet('{export}')"
        ).fetchall()
        return len(wanted - set(there))

    def wrong_products(self, export: Path, days: int) -> int:
        """How many products of an export have another price or stock than they must have."""
        until = f"time < TIMESTAMP '{self.day(days)}'"
        latest = f"""SELECT product_id, arg_max(price, time) AS price, arg_max(stock, time) AS stock
            FROM products WHERE {until} GROUP BY 1"""
        ((wrong,),) = self._connection.execute(
            f"""SELECT count(*) FROM ({latest}) w LEFT JOIN read_parquet('{export}') p
            USING (product_id) WHERE p.price IS DISTINCT FROM w.price
                OR p.stock IS DISTINCT FROM w.stock"""
        ).fetchall()
        ((new,),) = self._connection.execute(
            f"SELECT count(*) FROM read_parquet('{export}') WHERE product_id LIKE 'new%x%'"
        ).fetchall()
        return int(wrong) + abs(int(new) - days * self._new_products)

    def _on(self, number: int) -> str:
        start, end = self.day(number), self.day(number + 1)
        return f"time >= TIMESTAMP '{start}' AND time < TIMESTAMP '{end}'"

    def _write(self, name: str, query: str) -> Path:
        path = self._place / f"{name}.csv"
        self._connection.execute(f"COPY ({query}) TO '{path}' (FORMAT csv, header)")
        return path
