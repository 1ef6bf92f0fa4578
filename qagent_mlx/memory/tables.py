"""The SQL that turns events into memory, for many moments at once.

A *moment* is a user and a time, ``as_of``. Every table sees only what happened before it:
a user's own history up to the very second, what the whole shop did up to the start of the
day (neighbours, query facts) or of the hour (trends). One pass serves all the cases of a
training run; a single moment is served by the same SQL, so both give the same profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb
import numpy as np

from ..shop import MemoryConfig
from ..text import words

SOURCES = 8  # how many of a user's last engagements lead to neighbours
NEIGHBOURS = 120  # how many neighbours of one source are kept
TRENDS = 40  # how many trending queries are kept an hour
CANDIDATES = 32  # queries of each side (own, neighbours, trends) that are weighed
KNOWN = 200  # how many of a user's last products are looked up among what queries lead to
FURTHER = 12  # how many searches after one that led nowhere may show how its session went on

# ---------------------------------------------------------------- what the shop knows

# Price bands come from each product's first known price, so a sale moves a product into a
# lower band and a later price change moves no boundary.
_GOODS = """
WITH first AS (
    SELECT product_id, arg_min_null(price, ts) AS price FROM product_history GROUP BY 1),
priced AS (
    SELECT p.product_id, p.title, p.brand, p.category, p.attributes,
           trim(split_part(p.category, '>', 1)) AS top,
           trim(split_part(p.category, '>', -1)) AS leaf,
           CASE WHEN f.product_id IS NULL THEN p.price ELSE f.price END AS price
    FROM products p LEFT JOIN first f ON f.product_id = p.product_id)
SELECT * EXCLUDE price, price,
       quantile_cont(price, 1 / 3) OVER (PARTITION BY category) AS low,
       quantile_cont(price, 2 / 3) OVER (PARTITION BY category) AS high
FROM priced"""

# searches that led to an engagement
_OUTCOMES = """
SELECT s.event_id, s.user_id, s.session_id, s.ts, s.query_key,
       min(e.ts) AS known,
       arg_min(e.product_id, (e.ts, e.event_id)) AS first_product,  -- as soon as it is known
       arg_max(e.product_id, ({level}, -epoch(e.ts), -e.event_id)) AS product_id
FROM {events} s JOIN {events} e ON e.search_id = s.event_id
WHERE s.type = 'search' AND e.type IN ('click', 'cart', 'purchase')
GROUP BY ALL"""

# having done `source`, a user searched `query_key` with success, one to three searches later;
# `closeness` is in sixths, so that sums are exact in any order. Joins are on numbers and not
# on ranges, so that the work grows with a user's events and not with their square.
_STEPS = """
WITH numbered AS (
    SELECT o.*, g.leaf,
           row_number() OVER (PARTITION BY user_id ORDER BY known, ts, event_id) AS n
    FROM {outcomes} o LEFT JOIN goods g USING (product_id)),
pairs AS (
    SELECT a.user_id, a.query_key AS from_key, a.leaf, a.product_id, b.query_key, b.known,
           6 // a.apart AS closeness, epoch(b.ts - a.ts) / 86400 AS delay
    FROM (SELECT *, unnest([1, 2, 3]) AS apart FROM numbered) a
    JOIN numbered b ON b.user_id = a.user_id AND b.n = a.n + a.apart
    WHERE b.session_id <> a.session_id AND b.ts < a.ts + INTERVAL 45 DAYS),
asked AS (
    SELECT s.event_id, s.user_id, s.session_id, s.ts, s.query_key, x.known,
           row_number() OVER (PARTITION BY s.session_id ORDER BY s.ts, s.event_id) AS n
    FROM {events} s LEFT JOIN {outcomes} x ON x.event_id = s.event_id WHERE s.type = 'search')
SELECT user_id, 'c:' || leaf AS source, query_key, known, closeness, delay FROM pairs
WHERE leaf <> ''
UNION ALL
SELECT user_id, 'q:' || from_key, query_key, known, closeness, delay FROM pairs
WHERE from_key <> query_key
UNION ALL
SELECT user_id, 'p:' || product_id, query_key, known, closeness, delay FROM pairs
WHERE from_key <> query_key
UNION ALL      -- what led nowhere, and how the same session went on
SELECT a.user_id, 'r:' || a.query_key, o.query_key, o.known, 6, epoch(o.ts - a.ts) / 86400
FROM (SELECT *, unnest(range(1, {further})) AS apart FROM asked) a
JOIN asked o ON o.session_id = a.session_id AND o.n = a.n + a.apart
WHERE o.known IS NOT NULL AND o.query_key <> a.query_key
  AND (a.known IS NULL OR a.known > o.known)"""

# how long after a purchase a user bought something of the same category again
_CYCLES = """
WITH visits AS (
    SELECT e.user_id, e.session_id, g.leaf, min(e.ts) AS ts
    FROM {events} e JOIN goods g USING (product_id)
    WHERE e.type = 'purchase' AND g.leaf <> '' GROUP BY ALL)
SELECT user_id, leaf, ts AS known,
       epoch(ts - lag(ts) OVER (PARTITION BY user_id, leaf ORDER BY ts)) / 86400 AS gap
FROM visits"""

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
FROM {events} WHERE type = 'search' GROUP BY ALL"""

# the first way that a query was typed
_SPELLINGS = """
SELECT query_key, arg_min(query, (ts, event_id)) AS query, min((ts, event_id)) AS first
FROM {events} WHERE type = 'search' GROUP BY query_key"""

DERIVED = ("goods", "outcomes", "steps", "cycles", "hourly", "spellings")
SHOP_TABLES = (*DERIVED, "query_kinds", "query_terms")


def select(table: str, events: str = "events", outcomes: str = "outcomes") -> str:
    """The SQL of a table about the shop, or about those of its events that are in ``events``."""
    sql = {
        "goods": _GOODS, "outcomes": _OUTCOMES, "steps": _STEPS, "hourly": _HOURLY,
        "spellings": _SPELLINGS, "swing": _SWING, "cycles": _CYCLES,
    }[table]  # fmt: skip
    return sql.format(
        level=_LEVEL, events=events, outcomes=outcomes, further=FURTHER + 1,
        partners=PARTNERS + 1,
    )  # fmt: skip


_LEVEL = "CASE e.type WHEN 'click' THEN 1 WHEN 'cart' THEN 2 ELSE 3 END"

# ---------------------------------------------------------------- what a moment knows

# every touch of a node of the interest graph, by session
_TOUCHES = """
SELECT moment, session_id, 'category' AS kind, leaf AS node, weight FROM engaged WHERE leaf <> ''
UNION ALL SELECT moment, session_id, 'department', top, weight FROM engaged WHERE top <> ''
UNION ALL SELECT moment, session_id, 'brand', brand, weight FROM engaged WHERE brand IS NOT NULL
UNION ALL SELECT moment, session_id, 'price', repeat('$', band::INT), weight FROM engaged
    WHERE band IS NOT NULL
UNION ALL SELECT moment, session_id, 'product', product_id, weight FROM engaged
UNION ALL SELECT moment, session_id, 'attribute', pair.value, weight FROM (
    SELECT moment, session_id, weight,
           unnest(map_entries(from_json(attributes, '"MAP(VARCHAR, VARCHAR)"'))) AS pair
    FROM engaged WHERE attributes IS NOT NULL)
UNION ALL SELECT s.moment, s.session_id, 'term', t.term,
    {search} * (1 + s.outcome) * pow(2, -epoch(s.as_of - s.ts) / 86400 / {half_life})
    FROM searches s JOIN query_terms t USING (query_key)"""


def touches(config: MemoryConfig) -> str:
    """SQL of (moment, session_id, kind, node, weight) for the prepared moments."""
    return _TOUCHES.format(search=config.weight_search, half_life=config.half_life_days)


MOMENT_TABLES = """
CREATE OR REPLACE TEMP TABLE history AS
SELECT m.moment, m.as_of, e.event_id, e.ts, e.type, e.query, e.query_key, e.product_id,
       e.session_id, e.search_id
FROM moments m JOIN events e ON e.user_id = m.user_id AND e.ts < m.as_of;

CREATE OR REPLACE TEMP TABLE searches AS
WITH best AS (
    SELECT moment, search_id, max({level}) AS outcome,
           arg_max(product_id, ({level}, -epoch(ts), -event_id)) AS product_id
    FROM history e WHERE type IN ('click', 'cart', 'purchase') AND search_id IS NOT NULL
    GROUP BY moment, search_id)
SELECT h.moment, h.as_of, h.event_id, h.ts, h.session_id, h.query, h.query_key,
       coalesce(b.outcome, 0) AS outcome, b.product_id
FROM history h LEFT JOIN best b ON b.moment = h.moment AND b.search_id = h.event_id
WHERE h.type = 'search';

-- the user's own queries: the last outcome, the best one, how long ago, how often
CREATE OR REPLACE TEMP TABLE own AS
SELECT moment, query_key, arg_max(query, (ts, event_id)) AS query, count(*) AS times,
       max(outcome) AS best, arg_max(outcome, (ts, event_id)) AS last,
       min(epoch(as_of - ts)) / 86400 AS age,
       row_number() OVER (PARTITION BY moment ORDER BY max(ts) DESC, max(event_id) DESC) AS back
FROM searches GROUP BY moment, query_key;

-- engagements with their weight now, and the price band that was paid
CREATE OR REPLACE TEMP TABLE engaged AS
WITH weighed AS (
    SELECT h.moment, h.as_of, h.ts, h.event_id, h.type, h.session_id, h.product_id,
           CASE h.type WHEN 'view' THEN {view} WHEN 'click' THEN {click} WHEN 'cart' THEN {cart}
                ELSE {purchase} END * pow(2, -epoch(h.as_of - h.ts) / 86400 / {half_life}) AS weight
    FROM history h WHERE h.product_id IS NOT NULL AND h.type <> 'search')
SELECT w.*, g.title, g.brand, g.category, g.top, g.leaf, g.attributes,
       CASE WHEN coalesce(p.price, g.price) IS NULL THEN NULL
            WHEN coalesce(p.price, g.price) <= g.low THEN 1
            WHEN coalesce(p.price, g.price) <= g.high THEN 2 ELSE 3 END AS band
FROM weighed w JOIN goods g USING (product_id)
ASOF LEFT JOIN product_history p ON p.product_id = w.product_id AND w.ts >= p.ts;

CREATE OR REPLACE TEMP TABLE nodes AS
SELECT moment, kind, node, sum(weight) AS weight FROM ({touches})
WHERE node IS NOT NULL AND node <> '' GROUP BY moment, kind, node;

-- how long ago the user bought something of a category
CREATE OR REPLACE TEMP TABLE had AS
SELECT moment, leaf, min(epoch(as_of - ts)) / 86400 AS age
FROM engaged WHERE type = 'purchase' AND leaf <> '' GROUP BY moment, leaf;

-- what of the user's past leads to neighbours, the last engagement weighing most
CREATE OR REPLACE TEMP TABLE sources AS
WITH last AS (
    SELECT s.moment, s.as_of, s.query_key, s.product_id, s.outcome, g.leaf,
           epoch(s.as_of - s.ts) / 86400 AS age,
           row_number() OVER (PARTITION BY s.moment ORDER BY s.ts DESC, s.event_id DESC) AS n
    FROM searches s LEFT JOIN goods g USING (product_id) WHERE s.outcome > 0)
SELECT moment, date_trunc('day', as_of) AS day, source, max(weight) AS weight,
       min(age) AS age FROM (
    SELECT moment, as_of, 'c:' || leaf AS source,
           pow(0.8, n) * (CASE WHEN outcome = 3 THEN 1 ELSE 0.4 END) AS weight, age, n
    FROM last WHERE leaf <> ''
    UNION ALL SELECT moment, as_of, 'q:' || query_key, 0.5 * pow(0.8, n), age, n FROM last
    UNION ALL SELECT moment, as_of, 'p:' || product_id, 0.2 * pow(0.8, n), age, n FROM last)
WHERE n <= {sources} GROUP BY ALL
UNION ALL      -- and searches that led nowhere
SELECT moment, date_trunc('day', as_of), 'r:' || query_key, max(0.6 * pow(0.8, n)), min(age)
FROM (
    SELECT moment, as_of, query_key, epoch(as_of - ts) / 86400 AS age,
           row_number() OVER (PARTITION BY moment ORDER BY ts DESC, event_id DESC) AS n
    FROM searches WHERE outcome = 0) WHERE n <= {sources} GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE transitions AS {transitions};

CREATE OR REPLACE TEMP TABLE led AS            -- neighbours before personal taste
SELECT s.moment, t.query_key, round(0.3 * sum(s.weight * t.p), 12) AS score
FROM sources s JOIN transitions t USING (source, day) GROUP BY s.moment, t.query_key;

-- how the user words queries: shares of kinds, and the words used with success
CREATE OR REPLACE TEMP TABLE wording AS
SELECT moment, k.kind, sum(o.times) / sum(sum(o.times)) OVER (PARTITION BY moment) AS share
FROM own o JOIN query_kinds k USING (query_key) GROUP BY moment, k.kind;

CREATE OR REPLACE TEMP TABLE taste AS
SELECT moment, word, max(share) AS share FROM (
    SELECT moment, lower(node) AS word,
           sum(weight) / sum(sum(weight)) OVER (PARTITION BY moment, kind) AS share
    FROM nodes WHERE kind IN ('brand', 'attribute') GROUP BY moment, kind, lower(node))
GROUP BY moment, word;

CREATE OR REPLACE TEMP TABLE used AS
SELECT moment, k.modifier AS word, sum(o.times * (1 + o.best))
       / sum(sum(o.times * (1 + o.best))) OVER (PARTITION BY moment) AS share
FROM own o JOIN query_kinds k USING (query_key) WHERE k.modifier IS NOT NULL
GROUP BY moment, k.modifier;

CREATE OR REPLACE TEMP TABLE fitted AS
SELECT l.moment, l.query_key, l.score,
       (coalesce(w.share, 0) + 0.15) * CASE k.kind
           WHEN 'plain' THEN 0.4
           ELSE 0.07 + coalesce(t.share, 0) + coalesce(u.share, 0) END AS fit
FROM led l JOIN query_kinds k USING (query_key)
LEFT JOIN wording w ON w.moment = l.moment AND w.kind = k.kind
LEFT JOIN taste t ON t.moment = l.moment AND t.word = k.modifier
LEFT JOIN used u ON u.moment = l.moment AND u.word = k.modifier;

CREATE OR REPLACE TEMP TABLE neighbours AS
WITH placed AS (
    SELECT *, row_number() OVER (
        PARTITION BY moment ORDER BY round(score * fit, 12) DESC, query_key) AS place
    FROM fitted QUALIFY place <= {keep}),
totals AS (
    SELECT moment, sum(score) AS whole, sum(score * fit) AS fitting FROM fitted GROUP BY moment),
because AS (         -- the source that says most for a query
    SELECT s.moment, t.query_key,
           arg_max(s.source, (round(s.weight * t.p, 12), s.source)) AS source,
           arg_max(s.age, (round(s.weight * t.p, 12), s.source)) AS source_age,
           arg_max(t.delay, (round(s.weight * t.p, 12), s.source)) AS delay
    FROM sources s JOIN transitions t USING (source, day)
    JOIN placed p ON p.moment = s.moment AND p.query_key = t.query_key GROUP BY ALL)
SELECT p.moment, p.query_key, b.source, b.source_age,
       ln(greatest(b.source_age, 0.02) / b.delay) AS timing,
       p.score * p.fit * w.whole / w.fitting AS score, p.place
FROM placed p JOIN totals w USING (moment) JOIN because b USING (moment, query_key);

CREATE OR REPLACE TEMP TABLE identity AS
WITH bought AS (
    SELECT moment, session_id, min(ts) AS ts FROM history WHERE type = 'purchase'
    GROUP BY moment, session_id),
gaps AS (
    SELECT moment, epoch(ts - lag(ts) OVER (PARTITION BY moment ORDER BY ts)) / 86400 AS gap
    FROM bought),
rhythm AS (SELECT moment, median(gap) AS gap, count(gap) AS gaps FROM gaps GROUP BY moment),
totals AS (
    SELECT moment, count(*) AS events, count(DISTINCT session_id) AS sessions,
           count(*) FILTER (type = 'purchase') AS purchases,
           min(epoch(as_of - ts)) / 86400 AS away
    FROM history GROUP BY moment)
SELECT t.*, r.gap, coalesce(r.gaps, 0) AS gaps FROM totals t LEFT JOIN rhythm r USING (moment);

CREATE OR REPLACE TEMP TABLE trends AS         -- by hour; growth against the longer window
WITH hours AS (SELECT DISTINCT date_trunc('hour', as_of) AS hour FROM moments),
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
SELECT *, row_number() OVER (PARTITION BY hour ORDER BY recent DESC, longer_share DESC, query_key)
       AS place
FROM shared WHERE recent > 0 QUALIFY place <= {trends};
"""

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
"""


def transitions(
    swing: float = 0.0, wanted: str = "SELECT DISTINCT source, day FROM sources"
) -> str:
    """SQL of (source, day, query_key, p); ``wanted`` selects sources and days."""
    steps, total = "steps", "sum(s.closeness) / 6"
    if swing:
        steps = f"""(SELECT source, query_key, known, closeness / 6 AS says, delay FROM steps
            UNION ALL SELECT source, query_key, known, {swing} * vouched, NULL FROM swing)"""
        total = "round(sum(s.says), 9)"
    return _TRANSITIONS.format(wanted=wanted, neighbours=NEIGHBOURS, steps=steps, sum=total)


_KNOWN_OF = """
WITH candidates AS (
    SELECT moment, query_key FROM own WHERE back <= {keep}
    UNION SELECT moment, query_key FROM neighbours
    UNION SELECT m.moment, t.query_key FROM moments m
        JOIN trends t ON t.hour = date_trunc('hour', m.as_of) AND t.place <= {keep}),
-- what the shop knew of each candidate at the start of the day
days AS (SELECT DISTINCT c.query_key, date_trunc('day', m.as_of) AS day
         FROM candidates c JOIN moments m USING (moment)),
leafs AS (      -- also of what the user searched, whatever the other moments are
    SELECT d.query_key, d.day, mode(g.leaf ORDER BY o.event_id) AS leaf
    FROM (FROM days UNION SELECT query_key, date_trunc('day', as_of) FROM searches) d
    JOIN outcomes o ON o.query_key = d.query_key AND o.known < d.day
    JOIN goods g ON g.product_id = o.first_product WHERE g.leaf <> '' GROUP BY ALL),
asked AS (
    SELECT d.query_key, d.day, sum(h.n) AS n FROM days d JOIN hourly h
        ON h.query_key = d.query_key AND h.hour < d.day GROUP BY ALL),
kinds AS (SELECT DISTINCT leaf, day FROM leafs),
cycle AS (      -- how often a category is bought again, and after how long
    SELECT k.leaf, k.day, count(c.gap) / (count(*) + 3.0) AS again,
           CASE WHEN count(c.gap) >= 3 THEN median(c.gap) END AS gap
    FROM kinds k JOIN cycles c ON c.leaf = k.leaf AND c.known < k.day GROUP BY ALL),
touched AS (    -- when the user last searched in a category, and what came of it
    SELECT s.moment, l.leaf, arg_max(s.outcome, (s.ts, s.event_id)) AS last,
           min(epoch(s.as_of - s.ts)) / 86400 AS age, count(*) AS times
    FROM searches s JOIN leafs l ON l.query_key = s.query_key
        AND l.day = date_trunc('day', s.as_of) GROUP BY s.moment, l.leaf),
picked AS (     -- what earlier searchers engaged with
    SELECT d.query_key, d.day, o.product_id, count(*) AS n FROM days d JOIN outcomes o
        ON o.query_key = d.query_key AND o.known < d.day GROUP BY ALL),
met AS (
    SELECT query_key, day, sum(n) AS n, max(n) AS most,
           arg_max(product_id, (n, product_id)) AS main
    FROM picked GROUP BY ALL),
knows AS (      -- whether the user engaged with a product before, and how
    SELECT moment, product_id, bool_or(type = 'purchase') AS bought,
           min(epoch(as_of - ts)) / 86400 AS age
    FROM engaged WHERE type <> 'view' GROUP BY moment, product_id
    QUALIFY row_number() OVER (PARTITION BY moment ORDER BY age, product_id) <= {known})
"""

LINES = (
    _KNOWN_OF
    + """SELECT c.moment, c.query_key, coalesce(o.query, sp.query) AS query,
       o.times, o.best, o.last, o.age, o.back,
       n.score AS next_score, n.place AS next_place, n.source,
       t.share, t.longer_share, t.place AS trend_place, t.recent,
       h.age AS had_age, l.leaf,
       (coalesce(me.n, 0) + 1.0) / (coalesce(a.n, 0) + 2.0) AS success,
       n.timing, n.source_age, cy.again, cy.gap AS cycle_gap, h.age / cy.gap AS due,
       tc.last AS leaf_last, tc.age AS leaf_age,
       tc.times AS leaf_times, k.kind, coalesce(w.share, 0) AS wording,
       coalesce(ta.share, 0) AS taste, coalesce(u.share, 0) AS used,
       t.short_share, (coalesce(me.most, 0) + 0.3) / (coalesce(me.n, 0) + 1.0) AS focus,
       kn.bought AS main_bought, kn.age AS main_age, me.main, k.modifier
FROM candidates c JOIN moments m USING (moment) JOIN spellings sp USING (query_key)
LEFT JOIN own o ON o.moment = c.moment AND o.query_key = c.query_key
LEFT JOIN neighbours n ON n.moment = c.moment AND n.query_key = c.query_key
LEFT JOIN trends t ON t.hour = date_trunc('hour', m.as_of) AND t.query_key = c.query_key
LEFT JOIN leafs l ON l.query_key = c.query_key AND l.day = date_trunc('day', m.as_of)
LEFT JOIN had h ON h.moment = c.moment AND h.leaf = l.leaf
LEFT JOIN asked a ON a.query_key = c.query_key AND a.day = date_trunc('day', m.as_of)
LEFT JOIN met me ON me.query_key = c.query_key AND me.day = date_trunc('day', m.as_of)
LEFT JOIN knows kn ON kn.moment = c.moment AND kn.product_id = me.main
LEFT JOIN cycle cy ON cy.leaf = l.leaf AND cy.day = l.day
LEFT JOIN touched tc ON tc.moment = c.moment AND tc.leaf = l.leaf
LEFT JOIN query_kinds k ON k.query_key = c.query_key
LEFT JOIN wording w ON w.moment = c.moment AND w.kind = k.kind
LEFT JOIN taste ta ON ta.moment = c.moment AND ta.word = k.modifier
LEFT JOIN used u ON u.moment = c.moment AND u.word = k.modifier
ORDER BY c.moment, c.query_key
"""
)


def prepare_shop(connection: duckdb.DuckDBPyConnection, swing: bool = False) -> None:
    """Make the tables about the whole shop, for this connection only.

    A shop whose memory is stored has them already (see `store`).
    """
    make_shop_tables(connection, "TEMP TABLE", swing)


def drop_temporary(connection: duckdb.DuckDBPyConnection) -> None:
    """Forget what `prepare_shop` made, so that the names mean the stored tables again."""
    for name in (*SHOP_TABLES, "swing"):
        connection.execute(f"DROP TABLE IF EXISTS temp.{name}")


def has_temporary(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether this connection has the tables that `prepare_shop` makes."""
    return connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE temporary AND table_name = 'query_terms'"
    ).fetchone() is not None


def make_shop_tables(
    connection: duckdb.DuckDBPyConnection, kind: str, swing: bool = False
) -> None:
    """Make `SHOP_TABLES` from the log and the catalog; ``kind`` is TABLE or TEMP TABLE."""
    for name in DERIVED:
        connection.execute(f"CREATE OR REPLACE {kind} {name} AS {select(name)}")
    if swing:
        connection.execute(f"CREATE OR REPLACE {kind} swing AS {select('swing')}")
    make_wordings(connection, kind)


def make_wordings(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    """Make the tables of how queries are worded, from ``goods`` and ``spellings``."""
    connection.execute(
        f"""CREATE OR REPLACE {kind} query_kinds (
            query_key VARCHAR, kind VARCHAR, modifier VARCHAR);
        CREATE OR REPLACE {kind} query_terms (query_key VARCHAR, term VARCHAR)"""
    )
    add_wordings(connection, "SELECT query_key, query FROM spellings")


def add_wordings(connection: duckdb.DuckDBPyConnection, spellings: str) -> None:
    """Add how queries are worded, and their terms; ``spellings`` selects key and query."""
    found = connection.execute(spellings).fetchall()
    if not found:
        return
    vocabulary = {}
    for kind, query in (
        ("attribute", "SELECT DISTINCT attributes FROM goods WHERE attributes IS NOT NULL"),
        ("brand", "SELECT DISTINCT brand FROM goods WHERE brand IS NOT NULL"),
    ):
        for (value,) in connection.execute(query).fetchall():
            for text in _values(value) if kind == "attribute" else [value]:
                vocabulary[tuple(words(text))] = (kind, text.lower())
    vocabulary.pop((), None)
    with (
        connection.appender("query_kinds") as kinds,
        connection.appender("query_terms") as terms,
    ):
        for key, text in found:
            kinds.append_row(key, *query_kind(text, vocabulary))
            for term in dict.fromkeys(words(text)):
                terms.append_row(key, term)


def _values(attributes: str) -> list[str]:
    import json

    return [str(v) for v in json.loads(attributes).values()]


def query_kind(
    text: str, vocabulary: dict[tuple[str, ...], tuple[str, str]]
) -> tuple[str, str | None]:
    """``brand`` or ``attribute`` with the name it contains, or ``plain``: how it is worded."""
    found = words(text)
    best: tuple[str, str] | None = None
    for size in (3, 2, 1):
        for start in range(len(found) - size + 1):
            match = vocabulary.get(tuple(found[start : start + size]))
            if match and (best is None or (best[0] != "brand" and match[0] == "brand")):
                best = match
    return best if best else ("plain", None)


def name_moments(
    connection: duckdb.DuckDBPyConnection, moments: Iterable[tuple[int, str, datetime]]
) -> None:
    """Make the table ``moments``: (number, user, as_of)."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE moments (moment INTEGER, user_id VARCHAR, as_of TIMESTAMP)"
    )
    with connection.appender("moments") as appender:
        for row in moments:
            appender.append_row(*row)


def prepare_moments(
    connection: duckdb.DuckDBPyConnection,
    moments: Iterable[tuple[int, str, datetime]],
    config: MemoryConfig,
    known: str = "",
) -> None:
    """Make the tables about some moments: (number, user, as_of).

    ``known`` may select the transitions of their days, where they are known already.
    """
    name_moments(connection, moments)
    connection.execute(
        MOMENT_TABLES.format(
            level=_LEVEL,
            view=config.weight_view,
            click=config.weight_click,
            cart=config.weight_cart,
            purchase=config.weight_purchase,
            touches=touches(config),
            half_life=config.half_life_days,
            sources=SOURCES,
            transitions=known or transitions(config.swing),
            keep=CANDIDATES,
            trends=TRENDS,
            trend_hours=round(config.trend_days * 24),
            trend_short_hours=max(1, round(config.trend_days * 6)),
            trend_long_hours=round(config.trend_long_days * 24),
        )
    )


TEXTS = ("query_key", "query", "source", "leaf", "kind", "main", "modifier")  # the others: numbers


def lines() -> str:
    """SQL of the candidate queries of the prepared moments, with what is known of each."""
    return LINES.format(keep=CANDIDATES, known=KNOWN)


def known_of() -> dict[str, str]:
    """SQL of what a moment's user knows of categories and products, by name.

    A query that only trends brings up is judged by it, whenever it comes.
    """
    known = _KNOWN_OF.format(keep=CANDIDATES, known=KNOWN)
    return {
        "had": "SELECT moment, leaf, age FROM had ORDER BY moment, leaf",
        "touched": f"{known} SELECT moment, leaf, last, age, times FROM touched "
        "ORDER BY moment, leaf",
        "knows": f"{known} SELECT moment, product_id, bought, age FROM knows "
        "ORDER BY moment, product_id",
        "taste": "SELECT moment, word, share FROM taste ORDER BY moment, word",
        "used": "SELECT moment, word, share FROM used ORDER BY moment, word",
    }


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate queries of some moments, a row each, ordered by moment and query.

    ``columns`` maps the names that `LINES` selects to arrays: text is an object array with
    None where there is nothing, all else is float64 with NaN. Rows ``start[m]:start[m + 1]``
    belong to moment ``m``.
    """

    columns: dict[str, np.ndarray]
    start: np.ndarray

    def of(self, moment: int) -> slice:
        """The rows of one moment."""
        return slice(int(self.start[moment]), int(self.start[moment + 1]))


def candidate_rows(connection: duckdb.DuckDBPyConnection, moments: int) -> Candidates:
    """All candidate queries of the prepared moments, with what is known of each.

    Args:
        connection: After `prepare_moments`.
        moments: How many moments were prepared, numbered from 0.
    """
    fetched = connection.execute(lines()).fetchnumpy()
    owner = np.asarray(fetched.pop("moment"))
    columns = {}
    for name, values in fetched.items():
        if name in TEXTS:
            text = np.ma.getdata(values).astype(object)
            text[np.ma.getmaskarray(values)] = None
            columns[name] = text
        else:
            columns[name] = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    return Candidates(columns, np.searchsorted(owner, np.arange(moments + 1)))


def node_rows(connection: duckdb.DuckDBPyConnection, keep: int) -> Sequence[tuple]:
    """The heaviest nodes of each kind: (moment, kind, node, weight, share of the kind)."""
    return connection.execute(NODES.format(keep=keep)).fetchall()


# How profiles read the prepared tables; the first column is the moment's number.
NODES = """
WITH shared AS (
    SELECT moment, kind, node, weight,
           weight / sum(weight) OVER (PARTITION BY moment, kind) AS share FROM nodes)
SELECT moment, kind, node, weight, share FROM shared
QUALIFY row_number() OVER (PARTITION BY moment, kind ORDER BY round(share, 12) DESC, node) <= {keep}
ORDER BY moment, kind, round(share, 12) DESC, node"""

IDENTITY = "SELECT moment, events, sessions, purchases, away, gap, gaps FROM identity"

WORDING = "SELECT moment, kind, share FROM wording ORDER BY moment, share DESC, kind"

PRODUCTS = """
WITH last AS (SELECT moment, arg_max(session_id, (ts, event_id)) AS session_id
              FROM history GROUP BY moment)
SELECT e.moment, e.product_id, bool_or(e.type = 'purchase') AS bought,
       any_value(e.title) AS title, any_value(e.leaf) AS leaf,
       min(epoch(e.as_of - e.ts)) / 86400 AS age,
       bool_or(e.session_id = l.session_id) AS in_last, bool_or(e.type <> 'view') AS engaged
FROM engaged e JOIN last l USING (moment)
GROUP BY e.moment, e.product_id
QUALIFY row_number() OVER (
    PARTITION BY e.moment ORDER BY max(e.ts) DESC, e.product_id) <= 40
ORDER BY e.moment, age, e.product_id"""


def moment_queries() -> dict[str, str]:
    """SQL of what a profile is made of beside its candidates, by name: nodes, identity, …"""
    return {
        "nodes": NODES.format(keep=8),
        "identity": IDENTITY,
        "wording": WORDING,
        "products": PRODUCTS,
    }
