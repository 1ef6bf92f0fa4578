"""Values that every part of the package passes on: cases, profiles, queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

Split = Literal["train", "validation", "test"]

EVENT_TYPES = ("search", "view", "click", "cart", "purchase")


@dataclass(frozen=True, slots=True)
class Case:
    """A moment at which a query could have been recommended, and what the user then did.

    ``as_of`` is the start of a session; nothing at or after it may reach the agent. ``query``
    is the session's first search that led to an engagement, ``products`` are those engaged
    with under it, the strongest engagement first. (Training cases made with
    ``SplitConfig.learn_from = "searches"`` hold the session's first search, and may have no
    products. Where nobody knows what was typed, ``query`` and ``query_key`` are empty, and
    ``products`` are all that the session engaged with.)
    """

    case_id: int
    user_id: str
    as_of: datetime
    query: str
    query_key: str
    products: tuple[str, ...]
    history: int  # events of this user before as_of
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class Hit:
    """A product that a search returned."""

    product_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a profile. The agent can point at the ``query`` of a line that has one."""

    section: str
    text: str
    score: float
    query: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UserContext:
    """What must be known of a user to mark the products that fit them, and to fill their slate.

    ``brands`` (lower case), ``prices`` (price bands) and ``attributes`` map a value to its
    share of the user's engagements, from 0 to 1; ``bought`` and ``seen`` are product ids.
    ``just_bought`` are narrowest categories that it is too soon to offer again, and
    ``just_bought_products`` the products, for those that have no category.
    """

    brands: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, float] = field(default_factory=dict)
    bought: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    just_bought: tuple[str, ...] = ()
    just_bought_products: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's memory at a moment, abstracted to lines that fit a token budget.

    ``text`` is what the agent reads; ``references[i]`` is the query that its mark ``<ri>``
    stands for, and ``tokens`` its length.
    """

    user_id: str
    as_of: datetime | None
    text: str
    lines: tuple[Line, ...]
    references: tuple[str, ...]
    tokens: int = 0
    context: UserContext = UserContext()

    def without_memory(self) -> Profile:
        """The profile of the same user if nothing were known of them."""
        return Profile(self.user_id, self.as_of, "", (), ())


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a query.

    Attributes:
        chains: How many were run for the user; 0 for memory alone.
        votes: How many of them recommend it.
        logprob: Log-probability of the surest of these recommendations.
        line: The probability of its line in the user's profile; None where it has none.
    """

    chains: int = 0
    votes: int = 0
    logprob: float = 0.0
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A query to show, the products that it retrieves, and why it is recommended.

    Attributes:
        query: What to type.
        score: The share of the chains that recommended it.
        products: Ids, the best first.
        reason: For people.
        votes: The number of chains that recommended it.
        chance: That the next search of the user that leads to something is this query, as learned
            on validation cases (`policy.calibration`); None where the policy has not learned it.
        evidence: What the chance is computed from; None for what the shop pins.
    """

    query: str
    score: float
    products: tuple[str, ...]
    reason: str
    votes: int = 0
    chance: float | None = None
    evidence: Evidence | None = None

    def to_dict(self, titles: Mapping[str, str]) -> dict[str, Any]:
        """Plain values for JSON; ``titles`` maps product ids to titles."""
        return {
            "query": self.query,
            "score": self.score,
            "chance": None if self.chance is None else round(self.chance, 4),
            "products": [{"product_id": p, "title": titles.get(p, "")} for p in self.products],
            "reason": self.reason,
            "votes": self.votes,
        }


Slate: TypeAlias = tuple[Recommendation, ...]  # what one user is shown, best first
