"""A log of any size, made up in SQL: users, products and queries follow power laws.

Its files follow each other in time, as a shop's exports do.
"""

from pathlib import Path

from qagent_mlx.utils.database import open_duckdb

EVENTS_A_USER = 40
AT_ONCE = 2_000_000  # events in a file
PRODUCTS, LEAVES, BRANDS, DAYS = 20_000, 200, 300, 90
NOUNS = [
    "tent",
    "stove",
    "lamp",
    "shoe",
    "cable",
    "case",
    "chair",
    "desk",
    "bag",
    "jacket",
    "filter",
    "pan",
    "drill",
    "rope",
    "helmet",
]
EVENTS_A_SESSION = 3.29  # on average, see below

_CHANCE = "(hash(i * 16 + {0}) % 1000003) / 1000003.0"  # 0 to 1, one number for each session
_QUERY = "nouns[leaf % 15 + 1] || ' kind' || leaf || CASE style WHEN 1 THEN ' brand' || brand ELSE '' END"


def make_log(folder: Path, events: int, users: int) -> None:
    """``products.parquet`` and ``events-N.parquet`` of about so many events, in a new folder."""
    folder.mkdir(parents=True)
    nouns = "[" + ", ".join(f"'{noun}'" for noun in NOUNS) + "]"
    brand = f"hash(item + 7) % {BRANDS}"
    with open_duckdb() as connection:
        connection.execute(
            f"""COPY (
                SELECT 'p' || item AS product_id, item % {LEAVES} AS leaf, {brand} AS brand_number,
                    'Brand' || brand_number || ' ' || {nouns}[leaf % 15 + 1] || ' kind' || leaf
                        || ' size' || item % 40 AS title,
                    'Brand' || brand_number AS brand,
                    'Dept' || leaf // 20 || ' > Kind' || leaf AS category,
                    round(5 + (hash(item) % 20000) / 100.0, 2) AS price,
                    '{{"size": "size' || item % 40 || '"}}' AS attributes
                FROM (SELECT range AS item FROM range({PRODUCTS})))
            TO '{folder}/products.parquet' (FORMAT parquet)"""
        )
        sessions = int(events / EVENTS_A_SESSION)
        step = int(AT_ONCE / EVENTS_A_SESSION)
        for number, first in enumerate(range(0, sessions, step)):
            last = min(first + step, sessions)
            begin, end = (f"{DAYS * 86400.0 * i / sessions:.0f}" for i in (first, last))
            start = f"{begin} + floor({_CHANCE.format(2)} * ({end} - {begin}))::BIGINT"
            connection.execute(
                f"COPY ({_events(first, last, users, nouns, brand, start)}) "
                f"TO '{folder}/events-{number:04}.parquet' (FORMAT parquet)"
            )


def _events(first: int, last: int, users: int, nouns: str, brand: str, start: str) -> str:
    """SQL: the events of some sessions, which start at a second and have one or two searches."""
    chance = _CHANCE.format
    return f"""WITH sessions AS (
            SELECT range AS i, CASE WHEN i < {users} THEN i
                ELSE floor({users} * pow({chance(1)}, 3))::BIGINT END AS who,
                {start} AS start
            FROM range({first}, {last})),
        turns AS (
            SELECT i * 2 + turn AS i, who, start + turn * 120 AS second
            FROM sessions, (SELECT unnest([0, 1]) AS turn)
            WHERE turn = 0 OR {chance(3)} < 0.4),
        wanted AS (
            SELECT i, who, second, (CASE WHEN {chance(4)} < 0.6 THEN hash(who) % {LEAVES}
                ELSE hash(i) % {LEAVES} END)::INTEGER AS leaf,
                (leaf + {LEAVES} * floor(pow({chance(5)}, 3) * {PRODUCTS // LEAVES}))::INTEGER AS item,
                {brand} AS brand, hash(i + 3) % 2 AS style, {chance(6)} AS luck, {nouns} AS nouns
            FROM turns),
        steps AS (
            SELECT who, second, item, {_QUERY} AS query, unnest([
                {{'type': 'search', 'after': 0, 'luck': 1.0}},
                {{'type': 'click', 'after': 20, 'luck': 0.75}},
                {{'type': 'cart', 'after': 40, 'luck': 0.375}},
                {{'type': 'purchase', 'after': 60, 'luck': 0.225}}]) AS step, luck
            FROM wanted)
        SELECT 'u' || who AS user_id, TIMESTAMP '2026-01-01' + to_seconds(second + step.after) AS time,
            step.type AS type, CASE WHEN step.type IN ('search', 'click') THEN query END AS query,
            CASE WHEN step.type <> 'search' THEN 'p' || item END AS product_id
        FROM steps WHERE luck <= step.luck ORDER BY time"""
