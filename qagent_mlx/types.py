"""The values that the parts of the package pass to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

EVENT_TYPES = ("search", "view", "click", "cart", "purchase")
ENGAGEMENTS = ("click", "cart", "purchase")  # what makes a search a success


@dataclass(frozen=True, slots=True)
class Product:
    """One product of the catalog."""

    product_id: str
    title: str
    brand: str | None = None
    category: str | None = None  # a path, " > " between levels
    price: float | None = None
    in_stock: bool = True
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """A moment at which a query could have been recommended, and what then happened.

    ``as_of`` is the start of a session; ``query`` is the first search of that session
    that led to an engagement, ``products`` what the user engaged with under it, the
    strongest first. Nothing at or after ``as_of`` may reach the agent. Of a training case that
    asks for what people type (`SplitConfig.learn_from`), ``query`` is the session's first
    search and ``products`` may be empty.
    """

    case_id: int
    user_id: str
    as_of: datetime
    query: str
    query_key: str
    products: tuple[str, ...]
    history: int  # events of this user before as_of
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Hit:
    """A product that a search returned."""

    product_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a profile. A line with a ``query`` can be named by a reference token."""

    section: str
    text: str
    score: float
    query: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's abstracted memory at a moment, rendered within a token budget.

    ``references[i]`` is the query that reference ``i`` stands for. ``context`` holds what
    the search tool needs to mark results for this user (see `agent.tools`).
    """

    user_id: str
    as_of: datetime | None
    text: str
    lines: tuple[Line, ...]
    references: tuple[str, ...]
    tokens: int
    raw_tokens: int
    context: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A query worth showing, with the products it retrieves and why."""

    query: str
    score: float
    products: tuple[str, ...]
    reason: str
    votes: int = 0
