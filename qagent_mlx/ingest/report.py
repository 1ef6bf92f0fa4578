"""What an ingest read, stored and rejected."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..types import EVENT_TYPES
from .parse_fields import MAX_ID, MAX_QUERY

REMEDIES = {
    "unknown event type": f"use one of {', '.join(EVENT_TYPES)}",
    "no event type": "map the column with --map type=COLUMN, or give all rows one with --type",
    "unparseable time": "use ISO 8601 or epoch seconds, or give the format with --time-format",
    "time out of range": "times must lie between 1990 and 2100; digits alone are epoch seconds, "
    "others such as 20260301 need --time-format %Y%m%d",
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


@dataclass
class IngestReport:
    """What became of the rows of one or more files."""

    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, other: IngestReport) -> None:
        """Add another file's numbers to these."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.duplicates += other.duplicates
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples += other.examples


@dataclass(frozen=True)
class ReadOptions:
    """How to read files whose columns, encoding or times are not the usual ones."""

    mapping: tuple[tuple[str, str], ...] = ()
    encoding: str = "utf-8"
    time_format: str | None = None
    event_type: str | None = None  # the type of all rows, for files without such a column
    html: bool = True  # take entities and markup out of titles, brands and categories
