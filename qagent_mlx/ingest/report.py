"""The report of an ingest, and what its refusals say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from ..errors import QAgentError
from ..types import EVENT_TYPES
from ..utils.settings import SettingError
from .options import Load
from .parse_fields import MAX_ID, MAX_QUERY

REMEDIES = {
    "unknown event type": f"use one of {', '.join(EVENT_TYPES)}, or `values` type:NAME=view "
    "(type:NAME= leaves it out)",
    "no event type": "map the column that holds it (`mapping` type=COLUMN), or give all rows "
    "one type (`event_type` view)",
    "unparseable time": "use ISO 8601 or epoch seconds, or give the format of the file "
    "(`time_format` '%d.%m.%Y %H:%M')",
    "time out of range": "times must lie between 1990 and 2100; digits alone are epoch seconds, "
    "others such as 20260301 need a format (`time_format` %Y%m%d)",
    "time in the future": "an event that lies ahead of the clock would move the log's end for "
    "everybody; check the time's unit and zone, or store it anyway (`allow_future`)",
    "no time": "every event needs a time",
    "no user": "every event needs a user",
    "no title": "every product needs a title",
    "no product id": "every product needs an id",
    "bad position": "a position is a whole number from 1 on",
    "bad propensity": "a propensity is a probability above 0, at most 1",
    "no recommendation id": "every row needs the id of the answer that it was part of",
    "no product": "this type of event needs a product",
    "unknown product": "ingest its products first, then: qagent ingest retry",
    "search without a query": "a search needs a query",
    "query without letters or digits": "nothing to search for",
    "query too long": f"queries may have {MAX_QUERY} characters",
    "id too long": f"ids may have {MAX_ID} characters",
    "bad price": "a price is a number from 0 on, such as 1299.50, $1,299.50 or 1.299,50 EUR",
    "bad attributes": "attributes are a JSON object",
    "bad stock": "stock is a number, or a word such as yes, in stock, sold out, ja, oui",
    "malformed row": "the row does not have the file's columns",
    "malformed JSON": "each line must be one JSON object",
}


LACKING = {
    "no user": "user_id",
    "no time": "time",
    "no title": "title",
    "no product id": "product_id",
    "no product": "product_id",
    "no event type": "type",
    "search without a query": "query",
}  # the field that is empty, by reason; its text may stand for nothing, as NA does

_WITHOUT_COLUMN = {
    ("no title", "title"): "without a title a row can only change a product that the shop has: "
    "ingest the products first, or map the column of titles (`mapping` title=COLUMN)",
    ("no event type", "type"): REMEDIES["no event type"],
    ("search without a query", "query"): "no column of the file is a query: map it "
    "(`mapping` query=COLUMN), or leave searches out "
    "(`values` type:search=) and then: qagent ingest derive",
    ("no product", "product_id"): "this type of event needs a product: map the column of its id "
    "(`mapping` product_id=COLUMN)",
}  # by reason and field that the file has no column for


def remedy(reason: str, fields: Collection[str]) -> str:
    """What helps against a reason, in a file that has columns for these fields."""
    for (name, field_name), text in _WITHOUT_COLUMN.items():
        if reason == name and field_name not in fields:
            return text
    return REMEDIES.get(reason, "")


@dataclass(frozen=True, slots=True)
class RejectReason:
    """Why rows of a file are rejected, with the first of them."""

    name: str
    rows: int
    file: str
    place: str  # of the first in the file, such as "row 5"
    value: str  # that is at fault, empty where none is
    remedy: str

    def __str__(self) -> str:
        value = f" {self.value!r}" if self.value else ""
        rows = f" ({self.rows} rows)" if self.rows > 1 else ""
        helps = self.remedy
        if self.value and self.name in LACKING:
            field = LACKING[self.name]
            helps += (
                f"; {self.value!r} stands for none: if it is one, call it otherwise "
                f"(`values` '{field}:{self.value}=NAME')"
            )
        elif self.value and self.name == "bad stock":
            helps += f"; or say what it means: `values` 'stock:{self.value}=yes', or =no"
        return f"{self.file} {self.place}: {self.name}{value}{rows}; {helps}"


def refuse_rejects(
    file: str, rejected: Sequence[RejectReason], good: int, load: Load, notes: Sequence[str] = ()
) -> None:
    """Refuse a file that has no good row, or more bad ones than ``max_rejects`` allows.

    Args:
        notes: How the file was read, which may be why.

    Raises:
        QAgentError: with the most frequent reason and its remedy.
    """
    bad = sum(reason.rows for reason in rejected)
    if not bad:
        return
    worst = rejected[0]
    # Nothing of the file is stored, so that there is nothing to be tried again.
    helps = worst.remedy.replace(", then: qagent ingest retry", ", then this file again")
    cause = str(replace(worst, remedy=helps)).removeprefix(f"{file} ")
    cause = "; ".join((cause, *notes))
    if not good:
        rows = "the only row is" if bad == 1 else f"all {bad:,} rows are"
        raise QAgentError(f"{file}: {rows} rejected, and nothing of it is stored; {cause}")
    limit = load.options.max_rejects
    if bad > limit * (bad + good):
        raise SettingError(
            "max_rejects",
            f"{limit:g} is exceeded: {file}: {bad:,} of {bad + good:,} rows are rejected, and "
            f"nothing of it is stored; most of them: {cause}",
        )


def with_progress(
    error: QAgentError, stored: Sequence[str], unread: Sequence[str], *, dry_run: bool = False
) -> QAgentError:
    """The error of one of several files, with what became of the others.

    Args:
        error: Names the file that failed.
        stored: Files before it that are read and stored.
        unread: Files behind it.
    """
    if not stored and not unread:
        return error
    parts = [f"not read: {_listed(unread)}"] if unread else []
    if stored:
        done = "read" if dry_run else "stored before it"
        parts.insert(0, f"{done}: {_listed(stored)}")
    parts.append("to leave a file out, name only the others")
    text = "; ".join(parts)
    if isinstance(error, SettingError):
        return SettingError(error.setting, f"{error.reason}; {text}", error.where)
    return QAgentError(f"{error}; {text}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


@dataclass(frozen=True, slots=True)
class Understood:
    """Columns and contents of one file. Counts are of its good rows, known ones included."""

    file: str
    kind: str
    rows: int  # with those that were rejected
    columns: dict[str, str] = field(default_factory=dict)  # by field
    unused: tuple[str, ...] = ()  # columns
    choices: tuple[str, ...] = ()  # a line for each field that several columns could feed
    first: datetime | None = None  # moments in UTC
    last: datetime | None = None
    types: dict[str, int] = field(default_factory=dict)  # events by type
    users: int = 0
    products: int = 0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        moments = {
            name: moment.isoformat() if moment else None
            for name, moment in (("first", self.first), ("last", self.last))
        }
        return asdict(self) | moments


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
    understood: tuple[Understood, ...] = ()  # of each file

    def __add__(self, other: IngestReport) -> IngestReport:
        return IngestReport(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            dict(Counter(self.reasons) + Counter(other.reasons)),
            self.examples + other.examples,
            dict(Counter(self.ignored) + Counter(other.ignored)),
            tuple(dict.fromkeys(self.notes + other.notes)),
            self.understood + other.understood,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"understood": [file.to_dict() for file in self.understood]}
