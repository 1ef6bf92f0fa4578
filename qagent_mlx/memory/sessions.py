"""Groups events into sessions, and ties engagements to the searches that led to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import duckdb

from ..utils.database import ROWS_AT_ONCE
from .sql import sql

if TYPE_CHECKING:
    from ..shop.config import MemoryConfig


def refresh_sessions(
    connection: duckdb.DuckDBPyConnection, config: MemoryConfig, users: str
) -> None:
    """Number the sessions of some users again and tie their events to searches.

    A session is a run of one user's events with no gap over ``session_gap_minutes``; its
    number is its first event's id. An event belongs to the last search of its session that
    has its query, or to the last search when the event names no query. ``users`` is SQL that
    selects the users' ids.
    """
    gap = f"INTERVAL '{config.session_gap_minutes * 60:.0f} seconds'"
    connection.execute(sql("refresh_sessions", gap=gap, users=users))


@dataclass(frozen=True, slots=True)
class SuccessfulSession:
    """A session in which a search led to an engagement.

    ``query`` is the first such search; ``products`` what was engaged with under it, the
    strongest first; ``history`` how many events the user had before the session.
    """

    user_id: str
    start: datetime
    query: str
    query_key: str
    products: tuple[str, ...]
    history: int


def successful_sessions(
    connection: duckdb.DuckDBPyConnection,
    after: datetime | None = None,
    before: datetime | None = None,
    *,
    any_outcome: bool = False,
    known: bool = False,
    last: int | None = None,
) -> list[SuccessfulSession]:
    """The sessions with success that began at ``after`` or later, in the log before ``before``.

    A session that goes on beyond ``before`` counts with its first part: what comes later
    changes nothing. With ``any_outcome``, a session stands for its first search, whatever came of
    it. With ``known``, those of users without an earlier event do not count, nor, of these, others
    than the ``last`` ones.
    """
    query = sql(
        "successful_sessions",
        join="LEFT JOIN" if any_outcome else "SEMI JOIN",
        order="" if last is None else "DESC",
        limit="" if last is None else f"LIMIT {last}",
    )
    return _read_sessions(connection, query, after, before, known=known)


def engaged_sessions(
    connection: duckdb.DuckDBPyConnection,
    after: datetime | None = None,
    before: datetime | None = None,
) -> list[SuccessfulSession]:
    """The sessions in which a product was engaged with, searched or not; their query is empty.

    They stand for `successful_sessions` where a log knows nothing of what was typed. ``products``
    are all that the session engaged with.
    """
    return _read_sessions(connection, sql("engaged_sessions"), after, before)


def _read_sessions(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    after: datetime | None,
    before: datetime | None,
    **limits: Any,
) -> list[SuccessfulSession]:
    limits |= {"after": after or datetime(1, 1, 1), "before": before or datetime(9999, 12, 31)}
    found = connection.execute(query, limits)
    batches = iter(lambda: found.fetchmany(ROWS_AT_ONCE), [])
    sessions = groupby(chain.from_iterable(batches), key=lambda row: row[0])
    return [_session(list(rows)) for _, rows in sessions]


def _session(rows: list[Any]) -> SuccessfulSession:
    """A session of its rows, one for each product."""
    _, user, start, query, key, history, _ = rows[0]
    products = tuple(row[-1] for row in rows if row[-1] is not None)
    return SuccessfulSession(user, start, query, key, products, history)
