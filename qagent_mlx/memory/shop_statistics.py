"""The SQL about the whole shop: what its users did, and what was known at some time.

The tables grow with the log. What is asked of them is asked of the start of a day (neighbours,
facts of queries, rhythms of categories) or of an hour (trends) and sees nothing later; a user's
own history, up to the very second, is in `state`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import duckdb

from ..shop.config import MemoryConfig
from ..shop.price_bands import price_limits_sql
from ..utils.text import tokens
from .event_log import Event, EventLog
from .transitions import WITHIN, Transitions, transitions_of

NEIGHBOURS = 120  # how many neighbours of one source are kept
SPREAD, LIKE = 0.6, 2.0  # the deviation of ln days before it is known, like that many returns
LONGEST_NAME = 8  # tokens of a brand that is looked for, where a token may be a character
TRENDS = 40  # how many trending queries are kept an hour

# ---------------------------------------------------------------- what the shop knows

_GOODS = f"""
SELECT p.product_id, p.title, p.brand, p.category, p.attributes,
       trim(split_part(p.category, '>', 1)) AS top, trim(split_part(p.category, '>', -1)) AS leaf,
       l.price, l.low, l.high
FROM products p JOIN ({price_limits_sql()}) l USING (product_id)"""

# What each user's events tell (see `traces`). outcomes: searches that led to an engagement, known
# since the first one; product_id is the strongest. steps: having done `source`, a user searched
# `query_key` with success. cycles: how long after a purchase a user bought of a category again.
# returns: having searched `query_key` with success and so engaged with `category` (see
# `category_of`), a user came back for something of `leaf`, with the `same` query or not.
TRACES = {
    "outcomes": """event_id BIGINT, user_id VARCHAR, session_id BIGINT, ts TIMESTAMP,
        query_key VARCHAR, known TIMESTAMP, first_product VARCHAR, product_id VARCHAR""",
    "steps": """user_id VARCHAR, source VARCHAR, query_key VARCHAR, known TIMESTAMP,
        closeness INTEGER, delay DOUBLE""",
    "cycles": "user_id VARCHAR, leaf VARCHAR, known TIMESTAMP, gap DOUBLE",
    "returns": """user_id VARCHAR, query_key VARCHAR, known TIMESTAMP, same BOOLEAN,
        category VARCHAR, leaf VARCHAR, delay DOUBLE""",
}
CHUNK = 4000  # users whose events are read in one pass: bounds memory

# Swing (arXiv:2010.05525): two users who both made a step from `source` to `query_key` vouch
# for it, the more the less they have in common otherwise. What a pair says is known when the
# later of the two made the step, and their overlap is counted as of then: point-in-time.
_SWING = """
WITH firsts AS (
    SELECT user_id, source, query_key, min(known) AS known FROM steps GROUP BY ALL),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY source, query_key ORDER BY known, user_id) AS n
    FROM firsts),
pairs AS (
    SELECT least(a.user_id, b.user_id) AS one, greatest(a.user_id, b.user_id) AS other,
           b.source, b.query_key, b.known
    FROM (SELECT *, unnest(range(1, {partners})) AS apart FROM ranked) a
    JOIN ranked b ON b.source = a.source AND b.query_key = a.query_key AND b.n = a.n + a.apart),
shared AS (
    SELECT *, count(*) FILTER (source[1] <> 'c') OVER (
        PARTITION BY one, other ORDER BY known
        RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS overlap FROM pairs)
SELECT source, query_key, known, 1.0 / (1 + overlap) AS vouched FROM shared"""
PARTNERS = 20  # how many earlier users a user is paired with for one step

_HOURLY = """
SELECT date_trunc('hour', ts) AS hour, query_key, count(*) AS n
FROM events WHERE type = 'search' GROUP BY ALL"""

# the first way that a query was typed
_SPELLINGS = """
SELECT query_key, arg_min(query, (ts, event_id)) AS query, min(ts) AS ts,
       arg_min(event_id, (ts, event_id)) AS event_id
FROM events WHERE type = 'search' GROUP BY query_key"""

DERIVED = ("goods", "hourly", "spellings")
SHOP_TABLES = (*DERIVED, *TRACES, "modifiers", "query_kinds")


def select(table: str) -> str:
    """The SQL of a table about the shop."""
    sql = {"goods": _GOODS, "hourly": _HOURLY, "spellings": _SPELLINGS, "swing": _SWING}[table]
    return sql.format(partners=PARTNERS + 1)


# ---------------------------------------------------------------- what is asked of it

# trends before the start of hours; growth against the longer window
_TRENDS = """
WITH hours AS (SELECT unnest($hours)::TIMESTAMP AS hour),
counted AS (
    SELECT h.hour, x.query_key,
           sum(x.n) FILTER (x.hour >= h.hour - INTERVAL '{trend_hours} hours') AS recent,
           coalesce(sum(x.n) FILTER (
               x.hour >= h.hour - INTERVAL '{trend_short_hours} hours'), 0) AS short,
           sum(x.n) AS longer
    FROM hours h JOIN hourly x ON x.hour < h.hour
        AND x.hour >= h.hour - INTERVAL '{trend_long_hours} hours'
    GROUP BY h.hour, x.query_key),
shared AS (
    SELECT hour, query_key, recent, recent / sum(recent) OVER (PARTITION BY hour) AS share,
           longer / sum(longer) OVER (PARTITION BY hour) AS longer_share,
           short / greatest(sum(short) OVER (PARTITION BY hour), 1) AS short_share
    FROM counted)
SELECT hour, query_key, share, longer_share, short_share, row_number() OVER (
    PARTITION BY hour ORDER BY recent DESC, longer_share DESC, query_key) AS place, recent
FROM shared WHERE recent > 0 QUALIFY place <= {trends} ORDER BY hour, place"""


def trends(config: MemoryConfig) -> str:
    """SQL of (hour, query_key, share, longer_share, short_share, place, recent) of ``$hours``."""
    return _TRENDS.format(
        trends=TRENDS,
        trend_hours=round(config.trend_days * 24),
        trend_short_hours=max(1, round(config.trend_days * 6)),
        trend_long_hours=round(config.trend_long_days * 24),
    )


# P(query | source) at the start of the day, for the sources and days in `wanted`
_TRANSITIONS = """
WITH wanted AS ({wanted}),
counted AS (
    SELECT w.source, w.day, s.query_key, {sum} AS n,
           round(exp(avg(ln(greatest(s.delay, 0.02)))), 9) AS delay
    FROM wanted w JOIN {steps} s ON s.source = w.source AND s.known < w.day GROUP BY ALL),
most AS (
    SELECT *, row_number() OVER (PARTITION BY source, day ORDER BY n DESC, query_key) AS place
    FROM counted QUALIFY place <= {neighbours}),
totals AS (SELECT source, day, sum(n) AS n FROM counted GROUP BY source, day)
SELECT source, day, m.query_key, m.n / (t.n + 5) AS p, m.delay
FROM most m JOIN totals t USING (source, day)
ORDER BY day, source, place"""


def transitions(swing: float, wanted: str) -> str:
    """SQL of (source, day, query_key, p, delay), the likeliest first; ``wanted`` selects sources
    and days."""
    steps, total = "steps", "sum(s.closeness) / 6"
    if swing:
        steps = f"""(SELECT source, query_key, known, closeness / 6 AS says, delay FROM steps
            UNION ALL SELECT source, query_key, known, {swing} * vouched, NULL FROM swing)"""
        total = "round(sum(s.says), 9)"
    return _TRANSITIONS.format(wanted=wanted, neighbours=NEIGHBOURS, steps=steps, sum=total)


# What was known of queries at the start of the day, for the queries and days in `wanted`: the
# category they lead to, how often they were searched, with what success and with which products,
# and how often who had searched them came back to them.
FACTS = """
WITH wanted AS ({wanted}),
led AS (
    SELECT w.query_key, w.day, o.event_id, o.product_id, o.first_product
    FROM wanted w JOIN outcomes o ON o.query_key = w.query_key AND o.known < w.day),
leafs AS (
    SELECT query_key, day, mode(g.leaf ORDER BY l.event_id) AS leaf
    FROM led l JOIN goods g ON g.product_id = l.first_product WHERE g.leaf <> '' GROUP BY ALL),
asked AS (
    SELECT w.query_key, w.day, sum(h.n) AS n
    FROM wanted w JOIN hourly h ON h.query_key = w.query_key AND h.hour < w.day GROUP BY ALL),
met AS (        -- what earlier searchers engaged with
    SELECT query_key, day, sum(n) AS n, max(n) AS most, list_sum(max(n, 10)) AS ten,
           arg_max(product_id, (n, product_id)) AS main
    FROM (SELECT query_key, day, product_id, count(*) AS n FROM led GROUP BY ALL) GROUP BY ALL),
back AS (
    SELECT w.query_key, w.day, count(*) AS n, count(*) FILTER (r.same) AS same
    FROM wanted w JOIN returns r ON r.query_key = w.query_key AND r.known < w.day GROUP BY ALL)
SELECT query_key, day, l.leaf, a.n::DOUBLE, coalesce(m.n, 0)::DOUBLE, coalesce(m.most, 0)::DOUBLE,
       coalesce(m.ten, 0)::DOUBLE, m.main, coalesce(b.n, 0)::DOUBLE, coalesce(b.same, 0)::DOUBLE
FROM asked a LEFT JOIN met m USING (query_key, day) LEFT JOIN leafs l USING (query_key, day)
LEFT JOIN back b USING (query_key, day)"""

# What people came back for after they had engaged with a category, for those and days in `wanted`:
# P(leaf), and mean and deviation of the logarithm of days until then, drawn towards `SPREAD`.
RETURNS = f"""
WITH wanted AS ({{wanted}}),
counted AS (
    SELECT w.category, w.day, r.leaf, count(*) AS n, avg(ln(greatest(r.delay, 0.02))) AS pace,
           var_pop(ln(greatest(r.delay, 0.02))) AS variance
    FROM wanted w JOIN returns r ON r.category = w.category AND r.known < w.day
    WHERE r.leaf IS NOT NULL AND r.delay < {WITHIN / 86400e6} GROUP BY ALL)
SELECT category, day, leaf, n / (sum(n) OVER (PARTITION BY category, day) + 3.0), round(pace, 9),
       round(sqrt((variance * n + {LIKE} * {SPREAD} ** 2) / (n + {LIKE})), 9)
FROM counted ORDER BY category, day, leaf"""

# How often a category is bought again, and after how long, for those and days in `wanted`.
RHYTHMS = """
WITH wanted AS ({wanted})
SELECT leaf, day, count(c.gap) / (count(*) + 3.0),
       CASE WHEN count(c.gap) >= 3 THEN median(c.gap) END
FROM wanted w JOIN cycles c USING (leaf) WHERE c.known < w.day GROUP BY ALL"""


def prepare_shop(connection: duckdb.DuckDBPyConnection, swing: bool = False) -> None:
    """Make the tables about the whole shop, for this connection only.

    A shop whose memory is stored has them already (see `store`).
    """
    make_shop_tables(connection, "TEMP TABLE", swing)


def drop_temporary(connection: duckdb.DuckDBPyConnection) -> None:
    """Forget what `prepare_shop` made, so that the names mean the stored tables again."""
    if not has_temporary(connection):
        return
    for name in (*SHOP_TABLES, "swing"):
        connection.execute(f"DROP TABLE IF EXISTS temp.{name}")


def has_temporary(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether this connection has the tables that `prepare_shop` makes."""
    return (
        connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE temporary AND table_name = 'query_kinds'"
        ).fetchone()
        is not None
    )


def make_shop_tables(connection: duckdb.DuckDBPyConnection, kind: str, swing: bool = False) -> None:
    """Make `SHOP_TABLES` from the log and the catalog; ``kind`` is TABLE or TEMP TABLE."""
    make_derived(connection, kind)
    make_traces(connection, kind)
    if swing:
        make_swing(connection, kind)


def make_derived(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make those of `SHOP_TABLES` that hang on no single user's events."""
    for name in DERIVED:
        connection.execute(f"CREATE OR REPLACE {kind} {name} AS {select(name)}")
    make_wordings(connection, kind)


def make_swing(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make what pairs of users say, from ``steps``."""
    connection.execute(f"CREATE OR REPLACE {kind} swing AS {select('swing')}")


def make_traces(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make the tables of what users' events tell, from ``events`` and ``goods``."""
    clear_traces(connection, kind)
    for log, histories in everybody(connection):
        add_traces(connection, (transitions_of(events, log.goods) for events in histories.values()))


def clear_traces(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make the tables of what users' events tell, with nothing in them."""
    for name, columns in TRACES.items():
        connection.execute(f"CREATE OR REPLACE {kind} {name} ({columns})")


def everybody(
    connection: duckdb.DuckDBPyConnection,
) -> Iterator[tuple[EventLog, dict[str, list[Event]]]]:
    """All users' events, those of `CHUNK` users at a time, and what is known of their products."""
    found = connection.execute("SELECT DISTINCT user_id FROM events ORDER BY user_id").fetchall()
    users = [user for (user,) in found]
    log = EventLog(connection, worded=False)
    for start in range(0, len(users), CHUNK):
        yield log, log.of(users[start : start + CHUNK])


def add_traces(connection: duckdb.DuckDBPyConnection, traces: Iterable[Transitions]) -> None:
    """Add what some users' events tell."""
    with ExitStack() as stack:
        appenders = {name: stack.enter_context(connection.appender(name)) for name in TRACES}
        for made in traces:
            for name, appender in appenders.items():
                for row in getattr(made, name):
                    appender.append_row(*row)


def make_wordings(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make the tables of how queries are worded, from ``goods`` and ``spellings``."""
    connection.execute(
        f"""CREATE OR REPLACE {kind} modifiers (kind VARCHAR, text VARCHAR);
        CREATE OR REPLACE {kind} query_kinds (
            query_key VARCHAR, query VARCHAR, kind VARCHAR, modifier VARCHAR)"""
    )
    found: dict[tuple[str, str], None] = {}
    for name, query in (
        ("attribute", "SELECT DISTINCT attributes FROM goods WHERE attributes IS NOT NULL"),
        ("brand", "SELECT DISTINCT brand FROM goods WHERE brand IS NOT NULL"),
    ):
        for (value,) in connection.execute(query).fetchall():
            for text in _values(value) if name == "attribute" else [value]:
                found[name, text.lower()] = None
    with connection.appender("modifiers") as appender:
        for row in sorted(found):
            appender.append_row(*row)
    add_wordings(
        connection, connection.execute("SELECT query_key, query FROM spellings").fetchall()
    )


def add_wordings(
    connection: duckdb.DuckDBPyConnection, spellings: Sequence[tuple[str, str]]
) -> None:
    """Add how queries are worded, in place of what was known of them.

    Args:
        connection: With the tables of `make_wordings`.
        spellings: The key and the text of each query.
    """
    if not spellings:
        return
    connection.execute(
        "DELETE FROM query_kinds WHERE query_key IN (SELECT unnest($1))",
        [[key for key, _ in spellings]],
    )
    # Brands come last: they win over attributes of the same words.
    known = connection.execute("SELECT kind, text FROM modifiers ORDER BY kind, text").fetchall()
    vocabulary = {tuple(tokens(text)): (kind, text) for kind, text in known}
    vocabulary.pop((), None)
    with connection.appender("query_kinds") as appender:
        for key, text in spellings:
            appender.append_row(key, text, *query_kind(text, vocabulary))


def _values(attributes: str) -> list[str]:
    import json

    return [str(v) for v in json.loads(attributes).values()]


def query_kind(
    text: str, vocabulary: dict[tuple[str, ...], tuple[str, str]]
) -> tuple[str, str | None]:
    """``brand`` or ``attribute`` with the name it contains, or ``plain``: how it is worded."""
    found = tokens(text)
    best: tuple[str, str] | None = None
    for size in (3, 2, 1) if text.isascii() else range(LONGEST_NAME, 0, -1):
        for start in range(len(found) - size + 1):
            match = vocabulary.get(tuple(found[start : start + size]))
            if match and (best is None or (best[0] != "brand" and match[0] == "brand")):
                best = match
    return best if best else ("plain", None)
