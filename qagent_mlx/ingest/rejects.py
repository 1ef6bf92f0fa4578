"""The rejected rows that a shop keeps: count them, write them to a file, forget them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..shop.shop import Shop
from ..utils.table_files import write_table
from .report import REMEDIES


@dataclass(frozen=True, slots=True)
class RejectCount:
    """Rows of one file that were rejected for one reason, with the first of them."""

    file: str
    kind: str
    reason: str
    rows: int
    first: int  # number of the row in its file
    example: str | None  # its fields as JSON, or its beginning where it could not be read
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def count_rejects(shop: Shop) -> list[RejectCount]:
    """Rejected rows by file and reason, those of the latest file last."""
    rows = shop.connection.execute(
        """SELECT file, kind, reason, count(*), min(row), arg_min(raw, row) FROM rejects
        GROUP BY file, kind, reason ORDER BY min(rejected_at), file, count(*) DESC, reason"""
    ).fetchall()
    return [
        RejectCount(file, kind, reason, count, first, example, REMEDIES.get(reason, ""))
        for file, kind, reason, count, first, example in rows
    ]


def export_rejects(shop: Shop, path: Path) -> None:
    """Write all rejected rows to a .csv, .jsonl or .parquet file.

    Raises:
        QAgentError: the file has another ending, or cannot be written.
    """
    columns = "file, row, kind, reason, raw, rejected_at"
    query = f"SELECT {columns} FROM rejects ORDER BY rejected_at, file, row"
    write_table(shop.connection, query, path)


def clear_rejects(shop: Shop) -> int:
    """Forget all rejected rows; returns their number."""
    with shop.transaction() as connection:
        return len(connection.execute("DELETE FROM rejects RETURNING 1").fetchall())
