"""What a preset is, and what it takes from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...shop.shop import Shop
from ..derived_queries import Origin
from ..report import IngestReport
from .descriptions import DESCRIPTIONS
from .folder import Folder
from .raw_files import RawFile, RawFiles


@dataclass(frozen=True, slots=True)
class Extract:
    """What a preset takes from its files: SQL over the database of `RawFiles`.

    The columns of the queries are called as the fields of `..columns.FIELDS`; those that a
    query lacks are empty. ``mentioned`` is what events tell of products (product_id, title,
    brand, category, price), for shops that have no catalog.
    """

    products: str | None = None
    events: str | None = None
    impressions: str | None = None
    recommendations: str | None = None
    mentioned: str | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    logins: str | None = None  # (device, user_id, time): who used a device from then on
    returned: str | None = None  # purchases (user_id, time, product_id) that were taken back
    derive: Origin | None = None  # what queries are made of, where the set has none
    awaits_queries: bool = False  # their log is a file that was not given
    has_text: bool = True  # that queries could be derived of


@dataclass(frozen=True, slots=True)
class PresetReport:
    """Reports of a preset's files, and how queries were derived (None where people typed them).

    ``ignored`` and ``notes`` are those of all kinds together, and of the files as a whole.
    """

    preset: str
    derived: str | None
    products: IngestReport = field(default_factory=IngestReport)
    events: IngestReport = field(default_factory=IngestReport)
    impressions: IngestReport = field(default_factory=IngestReport)
    recommendations: IngestReport = field(default_factory=IngestReport)
    whole: IngestReport = field(default_factory=IngestReport)  # only ignored and notes

    @property
    def parts(self) -> dict[str, IngestReport]:
        """The reports by kind."""
        return {
            "products": self.products,
            "events": self.events,
            "impressions": self.impressions,
            "recommendations": self.recommendations,
        }

    @property
    def total(self) -> IngestReport:
        """All of them together."""
        return sum(self.parts.values(), self.whole)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without examples of rejected rows."""
        total, parts = self.total.to_dict(), {k: r.to_dict() for k, r in self.parts.items()}
        for report in (total, *parts.values()):
            del report["examples"]
        return {**total, "preset": self.preset, "derived": self.derived, **parts}


Fill = Callable[[Shop, Folder], tuple[IngestReport, IngestReport]]


@dataclass(frozen=True, slots=True)
class Preset:
    """A format with a name.

    Attributes:
        name: What ``--preset`` takes.
        recognise: The role of a file in this format, None where it has none.
        read: Takes the `Extract` out of the files; None where ``fill`` does all.
        fill: Fills a new shop from a folder whose files are told by their names.
        has_parts: Rows are parts of products and orders, such as variants; read as products or
            events each, they would fill a shop with junk.
        needs_new_shop: For data sets that do not mix with other data.
    """

    name: str
    recognise: Callable[[RawFile], str | None]
    read: Callable[[RawFiles], Extract] | None = None
    fill: Fill | None = None
    needs_new_shop: bool = False
    has_parts: bool = False

    @classmethod
    def of_folder(cls, name: str, fill: Fill) -> Preset:
        """A data set that is told by the names of its files, not by their columns."""
        return cls(name, lambda _file: None, fill=fill, needs_new_shop=True)

    @property
    def title(self) -> str:
        """Whose format it is."""
        return DESCRIPTIONS[self.name].title

    @property
    def files(self) -> str:
        """What its files are, with the fields that tell them."""
        return DESCRIPTIONS[self.name].files
