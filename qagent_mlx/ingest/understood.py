"""What a file was understood to hold, so that a wrong guess shows before it does harm."""

from __future__ import annotations

import duckdb

from .options import Kind, Load
from .report import Understood
from .sources.staging import Staged

MIN_EVENTS = 100  # fewer say nothing about shares and distances
MAX_SHARE, MAX_RATIO = 0.2, 10  # of one user's events: of all, and against the next user
MAX_DISTANCE = 3  # from the middle 98 % of a file's events, in lengths of their time span


def understand(
    connection: duckdb.DuckDBPyConnection, kind: Kind, file: str, staged: Staged, last_event_id: int
) -> Understood:
    """Describe the rows of ``checked``.

    Args:
        last_event_id: Of the log before these rows were stored.
    """
    used = set(staged.chosen.values())
    # A path such as items[].sku uses the column that it begins with.
    used |= {column for path in used for column in staged.columns if _leads_into(path, column)}
    has_users = kind != "products"
    users = "count(DISTINCT user_)" if has_users else "0"
    product = "product_" if has_users else "id"
    ((rows, first, last, users_count, products),) = connection.execute(
        f"""SELECT (SELECT count(*) FROM checked), min(ts), max(ts), {users},
                   count(DISTINCT {product}) FROM checked WHERE reason IS NULL"""
    ).fetchall()
    return Understood(
        file,
        kind,
        rows,
        dict(staged.chosen),
        tuple(column for column in staged.columns if column not in used),
        staged.choices,
        first,
        last,
        _count_types(connection) if kind == "events" else {},
        users_count,
        products,
        tuple(_warnings(connection, last_event_id)) if has_users else (),
    )


def notes(connection: duckdb.DuckDBPyConnection, kind: Kind, load: Load) -> tuple[str, ...]:
    """What was decided about the values of ``checked``."""
    lines = []
    zoned = r"(?i)(.*(z|utc|gmt|:\d{2}.*[+-]\d{2}(:?\d{2})?)|-?[0-9.]+(e[+]?\d+)?)"
    if "time" in load.fields and load.options.preset is None:
        without_zone = connection.execute(
            f"""SELECT 1 FROM checked WHERE ts IS NOT NULL
            AND NOT regexp_full_match(time_text, '{zoned}') LIMIT 1"""
        ).fetchone()
        if without_zone:
            lines.append("times without a zone are taken as UTC")
    if kind == "events":
        ((filled,),) = connection.execute("SELECT count(*) FROM filled").fetchall()
        if filled:
            lines.append(f"{filled:,} events of the shop got the query that they lacked")
    ids = {"product_id": "id"} if kind == "products" else _EVENT_IDS
    for name, parsed in ids.items():
        number = connection.execute(
            f"""SELECT {name}, {parsed} FROM checked
            WHERE {name} = {parsed} || '.0' AND reason IS NULL LIMIT 1"""
        ).fetchone()
        if number:
            lines.append(f"{name} {number[0]} is read as {number[1]}, and so are all others")
    return tuple(lines)


def _leads_into(path: str, column: str) -> bool:
    return path.startswith((f"{column}.", f"{column}["))


_EVENT_IDS = {"user_id": "user_", "product_id": "product_"}


def _count_types(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    return dict(
        connection.execute(
            """SELECT type, sum(n)::BIGINT FROM (
                SELECT unnest(string_split(kind, '+')) AS type, n FROM (
                    SELECT kind, count(*) AS n FROM checked WHERE reason IS NULL GROUP BY kind))
            GROUP BY type ORDER BY type::event_type"""
        ).fetchall()
    )


def _warnings(connection: duckdb.DuckDBPyConnection, last_event_id: int) -> list[str]:
    """Users and moments that no log of people has."""
    warnings = []
    counts = connection.execute(
        """SELECT user_, count(*) AS n, sum(count(*)) OVER () AS total FROM checked
        WHERE reason IS NULL GROUP BY user_ ORDER BY n DESC, user_ LIMIT 2"""
    ).fetchall()
    if not counts:
        return []
    (user, most, total), second = counts[0], counts[1][1] if len(counts) > 1 else 0
    if most >= MIN_EVENTS and most > MAX_SHARE * total and most >= MAX_RATIO * second:
        warnings.append(
            f"the user {user!r} has {most:,} of {total:,} events; if that is nobody, leave the id "
            "of these rows empty"
        )
    tail = min(0.5, max(0.01, 1.5 / total))  # leaves out one event at least
    ((far, example, row),) = connection.execute(
        f"""WITH good AS (SELECT row, ts FROM checked WHERE reason IS NULL),
        middle AS (SELECT quantile_disc(ts, {tail}) AS low, quantile_disc(ts, {1 - tail}) AS high,
                          count(*) AS n FROM good),
        limits AS (SELECT *, greatest(high - low, INTERVAL 1 DAY) * {MAX_DISTANCE} AS span
                   FROM middle)
        SELECT count(*), arg_min(ts, row), min(row) FROM good, limits
        WHERE n >= 10 AND (ts < low - span OR ts > high + span)"""
    ).fetchall()
    if far:
        warnings.append(
            f"{far:,} of {total:,} events lie far from the others, such as row {row}: "
            f"{example:%Y-%m-%d %H:%M}; is their time right?"
        )
    ((gap, earlier),) = connection.execute(
        f"""WITH good AS (SELECT min(ts) AS low, max(ts) AS high FROM checked
                          WHERE reason IS NULL),
        log AS (SELECT min(ts) AS low, max(ts) AS high, count(*) AS n FROM events
                WHERE event_id <= {last_event_id})
        SELECT greatest(g.low - l.high, l.low - g.high), g.high < l.low FROM good g, log l
        WHERE n >= 10 AND greatest(g.low - l.high, l.low - g.high)
            > greatest(l.high - l.low, INTERVAL 30 DAY) * {MAX_DISTANCE}"""
    ).fetchall() or ((None, None),)
    if gap:
        side = "before the log begins" if earlier else "after the log ends"
        warnings.append(f"all events lie {gap.days:,} days or more {side}; is their time right?")
    return warnings
