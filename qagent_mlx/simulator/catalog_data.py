"""What the simulated shop sells, who makes it, and what people need next: ``catalog.json``.

Everything in that file is invented; brand names are made up and any likeness is an accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A product type that people look for some days after another, with a probability."""

    type: str
    probability: float
    days: float


@dataclass(frozen=True, slots=True)
class ProductType:
    """A kind of product."""

    name: str
    other_name: str  # as some people call it
    department: str
    price: float  # the middle one
    specs: tuple[str, ...]  # such as sizes, from small to large
    styles: tuple[str, ...]  # such as colours
    lasts_days: int = 0  # until it is used up; 0 where it is not
    follow_ups: tuple[FollowUp, ...] = ()  # what people need after they bought it


@dataclass(frozen=True, slots=True)
class Brand:
    """A brand: its price tier (0 cheap, 1 middle, 2 expensive), fame, and departments."""

    name: str
    tier: int
    fame: float
    departments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CatalogData:
    """The whole file; the order matters, as random draws follow it."""

    types: tuple[ProductType, ...]
    brands: tuple[Brand, ...]


def load_catalog() -> CatalogData:
    """Read ``catalog.json``."""
    content = Path(__file__).with_name("catalog.json").read_bytes()
    return msgspec.json.decode(content, type=CatalogData)
