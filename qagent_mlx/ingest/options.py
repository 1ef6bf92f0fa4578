"""How to read the files of an ingest.

The command line's help reads these settings, so this module imports nothing that takes long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

Kind = Literal["products", "events", "impressions", "recommendations"]
ClearField = Literal["brand", "category", "price", "stock", "attributes", "aliases"]
EventType = Literal["search", "view", "click", "cart", "purchase"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read files whose columns, encoding or times are not the usual ones.

    A file whose rows are all rejected is never stored, whatever ``max_rejects`` is.
    """

    mapping: Annotated[
        tuple[tuple[str, str], ...],
        Meta(description="Columns of fields, or paths into them, as (field, column)."),
    ] = ()
    encoding: Annotated[
        str,
        Meta(
            description="Character encoding of text files. UTF-16 and Windows-1252 are recognised."
        ),
    ] = "utf-8"
    time_format: Annotated[
        str | None, Meta(description="Format of times, as in strptime, e.g. %d.%m.%Y.")
    ] = None
    event_type: Annotated[
        EventType | None, Meta(description="Type of all events, for files without such a column.")
    ] = None
    allow_future: Annotated[
        bool, Meta(description="Store events more than a day ahead of the clock, too.")
    ] = False
    max_rejects: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of rows that may be bad, else nothing is stored."),
    ] = 0.5
    preset: Annotated[
        str | None,
        Meta(description="Preset that the rows come from, whose times are in UTC already."),
    ] = None
    has_user_zero: Annotated[
        bool, Meta(description="Users are numbered from 0 on: the user 0 is not nobody.")
    ] = False
    exact_ids: Annotated[
        bool,
        Meta(description="Ids are meant as they are: all of them as 1289.0 are no whole numbers."),
    ] = False
    dry_run: Annotated[
        bool, Meta(description="Say what would be understood and rejected; store nothing.")
    ] = False
    clear: Annotated[
        tuple[ClearField, ...],
        Meta(description="Field that a blank cell empties; else it stays as the shop has it."),
    ] = ()
    html: Annotated[
        bool, Meta(description="Remove entities and markup from titles, brands and categories.")
    ] = True
    values: Annotated[
        tuple[tuple[str, str, str], ...],
        Meta(description="Values that are called otherwise here, as (field, value, meaning)."),
    ] = ()
    join: Annotated[
        str | None,
        Meta(
            description="Second file; its rows take what they lack, such as user and query, from "
            "FILES."
        ),
    ] = None
    on: Annotated[
        str | None,
        Meta(description="Column by which the files are joined, such as query_id or id=query_id."),
    ] = None


@dataclass(frozen=True, slots=True)
class Load:
    """One file's way into the shop.

    Attributes:
        fields: Those that the file has a column for; the others of a product stay as they are.
        ingest_id: Its number in the shop's history, None for events that come from no file.
    """

    options: ReadOptions
    fields: frozenset[str]
    ingest_id: int | None = None
