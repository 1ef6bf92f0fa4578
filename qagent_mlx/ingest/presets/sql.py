"""SQL that several presets share."""

from __future__ import annotations

from .raw_files import RawFiles


def fields(table: str, names: str) -> str:
    """SQL: JSON documents ``d`` of a relation as columns, from ``name type`` pairs.

    A pair is ``name:TYPE``, VARCHAR by default; values of another type become NULL.
    """
    pairs = [name.partition(":") for name in names.split()]
    structure = ", ".join(f'"{name}": "{sql_type or "VARCHAR"}"' for name, _, sql_type in pairs)
    return f"SELECT unnest(json_transform(d, '{{{structure}}}')) FROM {table}"


def text_at(document: str, *paths: str) -> str:
    """SQL: the first of these paths of a JSON value that holds something, as text."""
    values = [f"nullif(trim(json_extract_string({document}, '$.{path}')), '')" for path in paths]
    return values[0] if len(values) == 1 else f"coalesce({', '.join(values)})"


def name_persons(raw: RawFiles, table: str) -> None:
    """Give each row of a table the person behind it, as the new column ``person``.

    The table has ``user_id`` (known after login), ``device`` (a cookie) and ``time``. A device
    with one known user is that user's throughout. On a device of several, a row without a user
    belongs to the last one seen before, else to the next. A device of nobody is its own person.
    Who logged in on a device, and when, goes to the table ``logins``.
    """
    raw.connection.execute(
        f"""CREATE OR REPLACE TABLE devices AS SELECT device, min(user_id) AS owner,
            count(DISTINCT user_id) AS users
        FROM {table} WHERE user_id IS NOT NULL AND device IS NOT NULL GROUP BY device;
        CREATE OR REPLACE TABLE {table} AS
        SELECT t.*, coalesce(t.user_id, CASE WHEN users = 1 THEN owner END, t.device) AS person
        FROM {table} t LEFT JOIN devices d ON d.device = t.device;
        CREATE OR REPLACE TABLE logins AS SELECT device, user_id, time FROM {table}
        WHERE device <> user_id AND time IS NOT NULL
        QUALIFY user_id IS DISTINCT FROM lag(user_id) OVER (PARTITION BY device ORDER BY time)"""
    )
    ((shared,),) = raw.rows("SELECT count(*) FROM devices WHERE users > 1")
    if shared:
        raw.connection.execute(
            f"""CREATE OR REPLACE TABLE {table} AS
            SELECT * EXCLUDE person, person FROM {table} WHERE device IS NULL
                OR device NOT IN (SELECT device FROM devices WHERE users > 1)
            UNION ALL
            SELECT * EXCLUDE person, coalesce(
                last_value(user_id IGNORE NULLS) OVER before,
                first_value(user_id IGNORE NULLS) OVER (
                    PARTITION BY device ORDER BY time
                    ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)) AS person
            FROM {table} WHERE device IN (SELECT device FROM devices WHERE users > 1)
            WINDOW before AS (PARTITION BY device ORDER BY time
                ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"""
        )


def merge_searches(raw: RawFiles, table: str, *, is_typing_logged: bool = False) -> dict[str, int]:
    """Delete searches that a log holds more than once; returns their numbers by reason.

    The table has ``user_id``, ``time`` and ``query``. The same query of a user within 30
    seconds is one search: engines and pages log it again for filters and reloads. With
    ``is_typing_logged``, a query that the user went on typing within 3 seconds is none, unless
    something was clicked under it (column ``is_used``).
    """
    typing = (
        """WHEN following <> text AND starts_with(following, text) AND NOT is_used
                AND following_time - time <= INTERVAL 3 SECOND THEN 'search while typing'"""
        if is_typing_logged
        else ""
    )
    raw.connection.execute(
        f"""CREATE OR REPLACE TABLE {table} AS
        WITH texts AS (SELECT *, trim(regexp_replace(lower(query), '\\s+', ' ', 'g')) AS text
            FROM {table}),
        neighbours AS (SELECT *, lag(text) OVER around AS previous,
                lag(time) OVER around AS previous_time, lead(text) OVER around AS following,
                lead(time) OVER around AS following_time
            FROM texts WINDOW around AS (PARTITION BY user_id ORDER BY time, text))
        SELECT * EXCLUDE (text, previous, previous_time, following, following_time),
            CASE WHEN user_id IS NULL OR time IS NULL THEN NULL
                WHEN previous = text AND time - previous_time <= INTERVAL 30 SECOND
                THEN 'repeated search' {typing} END AS merged
        FROM neighbours"""
    )
    merged = raw.counts(
        f"SELECT merged, count(*) FROM {table} WHERE merged IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    raw.connection.execute(f"DELETE FROM {table} WHERE merged IS NOT NULL")
    return merged


def ignored_names(raw: RawFiles, query: str) -> dict[str, int]:
    """Numbers of ignored rows by name, the most frequent first; a query yields the ``name``s."""
    return raw.counts(
        f"""SELECT coalesce(name, '(no name)'), count(*) FROM ({query})
        GROUP BY 1 ORDER BY 2 DESC, 1"""
    )


def event_types(types: dict[str, str]) -> str:
    """SQL: a relation (name, type) of event types with their names, divided by blanks."""
    pairs = [f"('{name}', '{kind}')" for kind, names in types.items() for name in names.split()]
    return f"(VALUES {', '.join(pairs)}) names(name, type)"
