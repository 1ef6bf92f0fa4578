"""Stage files whose rows belong to rows of another file by a key.

A click log that has only the id of its search takes the user and the query from the search log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import duckdb

from ...utils.settings import SettingError
from ..columns import FIELDS, REQUIRED
from ..mapping import parse_key
from ..options import Kind, ReadOptions
from .locations import Location
from .staging import KEY, Staged, stage_table

_OWN = {"type", "click_time", "position", "attributes"}  # what no row takes from another's
_EVENT = {"time", "type", "product_id"}  # a file with one of these tells of events of its own
_OF_SEARCH = ("user_id", "query")  # taken where a row has none, even if the file has the column


def stage_location(
    connection: duckdb.DuckDBPyConnection, kind: Kind, location: Location, options: ReadOptions
) -> Staged | None:
    """Create the temporary table ``stage`` of a location: row, a text column per field, broken.

    Returns None where the rows of the location only serve those of the file that it is joined to.

    Raises:
        QAgentError: the location cannot be read; the message names the remedy.
    """
    if not location.partners:
        return stage_table(connection, kind, location, options)
    if options.on is None:
        raise SettingError("on", "must name the column by which the files are joined")
    key = parse_key(options.on)
    keys = (key.joined, key.file) if location.is_joined else (key.file, key.joined)
    staged = stage_table(connection, kind, location, options, "own", keys[0])
    given, columns = _stage_partners(connection, kind, location, options, keys[1])
    own = set(staged.chosen)
    _check_complete(kind, location, options, own | given, columns | set(staged.columns))
    pair = _Pair(kind, own, given, location.is_joined)
    try:
        if not pair.has_rows:
            return None
        notes = _join(connection, pair, location, options)
    finally:
        connection.execute("DROP TABLE IF EXISTS own; DROP TABLE IF EXISTS lender")
    taken = {field: f"{field} of {location.partners[0].short}" for field in pair.taken}
    return replace(staged, chosen={**taken, **staged.chosen}, notes=(*staged.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two files of a join, seen from one of them."""

    kind: Kind
    own: set[str]  # fields of this file
    given: set[str]  # fields of the other one
    is_joined: bool  # whether this one is the second

    @property
    def has_rows(self) -> bool:
        """Whether the rows of this file are products or events themselves."""
        return self._has_rows(self.own, self.is_joined)

    @property
    def taken(self) -> list[str]:
        """The fields that rows of this file take from the other's."""
        if not self.is_joined and self._has_rows(self.given, True):
            return []
        lent = [f for f in FIELDS[self.kind] if f in self.given and f not in _OWN]
        if self.is_joined:
            return [f for f in lent if f not in self.own or f in _OF_SEARCH]
        return lent

    def _has_rows(self, fields: set[str], is_joined: bool) -> bool:
        if self.kind == "products":
            return not is_joined
        return bool(fields & _EVENT) if is_joined else "time" in fields


def _stage_partners(
    connection: duckdb.DuckDBPyConnection,
    kind: Kind,
    location: Location,
    options: ReadOptions,
    key: str,
) -> tuple[set[str], set[str]]:
    """Create ``lender``, a row per key with what the other files say of it.

    Returns the fields and the columns of those files.
    """
    given: set[str] = set()
    columns: set[str] = set()
    for number, partner in enumerate(location.partners):
        staged = stage_table(connection, kind, partner, options, "partner", key)
        given |= set(staged.chosen)
        columns |= set(staged.columns)
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE partners AS FROM partner"
            if number == 0
            else "INSERT INTO partners FROM partner"
        )
    first = ", ".join(f"arg_min({field}, row) AS {field}" for field in FIELDS[kind])
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE lender AS SELECT {KEY}, {first} FROM partners
        WHERE {KEY} IS NOT NULL GROUP BY {KEY};
        DROP TABLE partner; DROP TABLE partners"""
    )
    return given, columns


def _check_complete(
    kind: Kind, location: Location, options: ReadOptions, fields: set[str], columns: set[str]
) -> None:
    """Refuse a pair of files that lack a required field or a mapped column."""
    names = f"{location.shown} and {location.partners[0].shown}"
    for field in REQUIRED[kind]:
        if field not in fields:
            problem = f"{names} have no column for {field}"
            raise SettingError("mapping", f"{field}=COLUMN is missing: {problem}")
    for field, column in options.mapping:
        if column not in columns:
            raise SettingError("mapping", f"{field}={column}: {names} have no column {column!r}")


def _join(
    connection: duckdb.DuckDBPyConnection, pair: _Pair, location: Location, options: ReadOptions
) -> list[str]:
    """Create ``stage`` from ``own`` and ``lender``; returns notes."""
    taken, notes = pair.taken, []
    values = {field: f"o.{field}" for field in FIELDS[pair.kind]}
    values |= {f: f"coalesce(nullif(trim(o.{f}), ''), l.{f})" for f in taken}
    if pair.kind == "events" and "type" not in pair.own:
        if pair.is_joined and options.event_type is None and "product_id" in pair.own:
            values["type"] = "CASE WHEN o.product_id IS NOT NULL THEN 'click' END"
            notes.append(f"{location.short} has no column for the type: its products are clicked")
        elif not pair.is_joined and options.event_type and "query" in pair.own:
            values["type"] = "CASE WHEN o.product_id IS NULL THEN 'search' END"
    fields = ", ".join(f"{value} AS {field}" for field, value in values.items())
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS SELECT o.row, {fields}, o.broken
        FROM own o LEFT JOIN lender l USING ({KEY})"""
    )
    if taken:
        ((rows, alone),) = connection.execute(
            f"""SELECT count(*), count(*) FILTER (NOT EXISTS (
                SELECT 1 FROM lender l WHERE l.{KEY} = o.{KEY})) FROM own o"""
        ).fetchall()
        partners = ", ".join(partner.short for partner in location.partners)
        found = f"{alone:,} of {rows:,} rows lack" if alone else f"all {rows:,} rows have"
        notes.append(f"{found} a partner in {partners} by {options.on}")
    return notes
