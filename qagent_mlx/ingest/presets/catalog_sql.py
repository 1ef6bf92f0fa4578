"""SQL over the catalogs of shop systems: attributes and other ids of products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..products import price_or_nan
from .raw_files import RawFile, RawFiles


def load_tables(raw: RawFiles, table: str, role: str, columns: Mapping[str, Sequence[str]]) -> None:
    """One table of text of all files with a role, with a column ``line``.

    Args:
        raw: The files.
        table: Its name.
        role: Which files.
        columns: Names of its columns, each with the names that it may have in the files.
    """
    selects = []
    for number, file in enumerate(raw.of(role)):
        part = f"{table}_{number}"
        raw.load_csv(part, file)
        texts = ", ".join(f"{blank(file, *names)} AS {name}" for name, names in columns.items())
        selects.append(f"SELECT {number}::BIGINT << 32 | rowid AS line, {texts} FROM {part}")
    nothing = ", ".join(f"NULL::VARCHAR AS {name}" for name in columns)
    raw.load(table, " UNION ALL ".join([f"SELECT 0 AS line, {nothing} WHERE false", *selects]))


def blank(file: RawFile, *names: str) -> str:
    """SQL: a column's trimmed text, NULL where it is empty or not there."""
    return f"nullif(trim({file.column(*names)}), '')"


def bare(column: str) -> str:
    """SQL: a code without the apostrophe by which spreadsheets take it for text."""
    return f"nullif(trim(ltrim({column}, '''')), '')"


def load_amounts(raw: RawFiles, table: str, *columns: str) -> list[str]:
    """Make numbers of a table's columns of prices; returns notes on those that are none.

    Prices are read as `parse_fields.price` reads them: in a column that has commas before the
    cents, and no points there, points separate thousands.
    """
    if not raw.rows("SELECT 1 FROM duckdb_functions() WHERE function_name = 'amount'"):
        raw.connection.create_function("amount", price_or_nan, ["VARCHAR", "BOOLEAN"], "DOUBLE")
    notes = []
    for column in columns:
        cents = f"count(*) FILTER (regexp_matches({column}, '\\d[{{}}]\\d{{{{1,2}}}}\\D*$'))"
        ((has_commas,),) = raw.rows(
            f"SELECT {cents.format(',')} > 0 AND {cents.format('.')} = 0 FROM {table}"
        )
        number = f"""CASE WHEN try_cast({column} AS DOUBLE) IS NULL OR {has_commas}
            THEN amount({column}, {has_commas}) ELSE try_cast({column} AS DOUBLE) END"""
        number = f"CASE WHEN isfinite({number}) THEN {number} END"
        ((unread, example),) = raw.rows(
            f"""SELECT count(*), min({column}) FROM {table}
            WHERE {column} IS NOT NULL AND {number} IS NULL"""
        )
        if unread:
            notes.append(f"{unread:,} prices cannot be read, such as {example!r}: left empty")
        raw.load(table, f"SELECT * REPLACE ({number} AS {column}) FROM {table}")
    return notes


def line_time(order: str, text: str) -> str:
    """SQL: the time of a line of an order, of the table ``lines``.

    Lines of one product in one order are several purchases: a millisecond keeps them apart.
    """
    return f"""coalesce((time + to_milliseconds(row_number() OVER (
        PARTITION BY {order}, product ORDER BY line) - 1))::VARCHAR, {text})"""


def take_out(raw: RawFiles, condition: str, order: str, text: str) -> None:
    """Move ``lines`` of orders that are none any more to ``returned``, as purchases."""
    raw.load(
        "returned",
        f"""SELECT person AS user_id, {line_time(order, text)} AS time, product AS product_id
        FROM lines WHERE {condition}""",
    )
    raw.connection.execute(f"DELETE FROM lines WHERE {condition}")


def first_of(column: str, condition: str = "true") -> str:
    """SQL: the first value in the order of lines, of an aggregation."""
    return f"arg_min({column}, line) FILTER (WHERE {column} IS NOT NULL AND {condition})"


def load_aliases(raw: RawFiles, query: str) -> str:
    """Load ``alias_of`` from a query for (product_id, alias); returns SQL for the field.

    ``id_of`` has these and those that the shop knows from earlier files. An id that two products
    share names neither, and neither does one that is a product's own.
    """
    raw.load(
        "alias_of",
        f"""WITH pairs AS (SELECT DISTINCT product_id, {bare("alias")} AS alias FROM ({query}) q
            WHERE {bare("q.alias")} IS NOT NULL AND NOT contains(q.alias, '|'))
        SELECT alias, min(product_id) AS product_id FROM pairs
        WHERE alias NOT IN (SELECT product_id FROM pairs WHERE product_id IS NOT NULL)
        GROUP BY alias HAVING count(*) = 1""",
    )
    raw.load(
        "id_of",
        """SELECT alias, product_id FROM alias_of UNION ALL
        SELECT alias, product_id FROM known_aliases WHERE alias NOT IN (SELECT alias FROM alias_of)
        """,
    )
    return (
        "(SELECT string_agg(alias, '|' ORDER BY alias) FROM alias_of "
        "WHERE alias_of.product_id = p.product_id)"
    )


def load_attributes(raw: RawFiles, query: str) -> str:
    """Load ``attribute_of`` from a query for (product_id, name, value); returns SQL for the field.

    Values of one name are joined, in the order of ``line``.
    """
    raw.load(
        "attribute_of",
        f"""WITH pairs AS (SELECT product_id, trim(name) AS name, trim(value) AS value,
                min(line) AS line
            FROM ({query}) WHERE coalesce(trim(name), '') <> '' AND coalesce(trim(value), '') <> ''
            GROUP BY ALL),
        named AS (SELECT product_id, name, string_agg(value, ', ' ORDER BY line) AS value
            FROM pairs GROUP BY ALL)
        SELECT product_id, json_group_object(name, value)::VARCHAR AS attributes
        FROM (FROM named ORDER BY product_id, name) GROUP BY product_id""",
    )
    return "(SELECT attributes FROM attribute_of WHERE attribute_of.product_id = p.product_id)"
