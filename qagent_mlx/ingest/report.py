"""Options and report of an ingest."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from ..types import EVENT_TYPES
from .parse_fields import MAX_ID, MAX_QUERY

Kind = Literal["products", "events"]
EventType = Literal["search", "view", "click", "cart", "purchase"]

REMEDIES = {
    "unknown event type": f"use one of {', '.join(EVENT_TYPES)}",
    "no event type": "map the column that holds it (type=COLUMN), or give all rows one type",
    "unparseable time": "use ISO 8601 or epoch seconds, or give the time format of the file",
    "time out of range": "times must lie between 1990 and 2100; digits alone are epoch seconds, "
    "others such as 20260301 need a time format (%Y%m%d)",
    "no time": "every event needs a time",
    "no user": "every event needs a user",
    "no title": "every product needs a title",
    "no product id": "every product needs an id",
    "no product": "this type of event needs a product",
    "unknown product": "ingest its products first, then: qagent ingest retry",
    "search without a query": "a search needs a query",
    "query without letters or digits": "nothing to search for",
    "query too long": f"queries may have {MAX_QUERY} characters",
    "id too long": f"ids may have {MAX_ID} characters",
    "bad price": "a price is a number from 0 on, such as 1299.50, $1,299.50 or 1.299,50 EUR",
    "bad attributes": "attributes are a JSON object",
    "bad stock": "stock is a number or true/false",
    "malformed row": "the row does not have the file's columns",
    "malformed JSON": "each line must be one JSON object",
}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read files whose columns, encoding or times are not the usual ones."""

    mapping: Annotated[
        tuple[tuple[str, str], ...],
        Meta(description="Columns of fields, or paths into them, as (field, column)."),
    ] = ()
    encoding: Annotated[str, Meta(description="Encoding of text files.")] = "utf-8"
    time_format: Annotated[
        str | None, Meta(description="Format of times, as in strptime, such as %d.%m.%Y.")
    ] = None
    event_type: Annotated[
        EventType | None, Meta(description="Type of all events, for files without such a column.")
    ] = None
    html: Annotated[
        bool, Meta(description="Remove entities and markup from titles, brands and categories.")
    ] = True
    values: Annotated[
        tuple[tuple[str, str, str], ...],
        Meta(description="Values that are called otherwise here, as (field, value, meaning)."),
    ] = ()
    join: Annotated[
        str | None, Meta(description="File whose rows belong to rows of the others by a key.")
    ] = None
    on: Annotated[
        str | None,
        Meta(description="Column of that key, or COLUMN=COLUMN if the joined file's is another."),
    ] = None


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Rows of one or more files that were stored, rejected, or known already."""

    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # rejected rows by reason
    examples: tuple[str, ...] = ()  # a line for each reason and file
    ignored: dict[str, int] = field(default_factory=dict)  # by name, what no field is made of
    notes: tuple[str, ...] = ()  # a line for each guess or decision

    def __add__(self, other: IngestReport) -> IngestReport:
        return IngestReport(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            dict(Counter(self.reasons) + Counter(other.reasons)),
            self.examples + other.examples,
            dict(Counter(self.ignored) + Counter(other.ignored)),
            tuple(dict.fromkeys(self.notes + other.notes)),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
