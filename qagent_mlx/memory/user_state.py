"""A user's state: all of a profile that depends on the user's own events alone.

A state is computed once, at the moment of the user's last event, and advanced to any later
moment: ages grow and weights decay. So a stored state stays valid for as long as the user does
nothing, whatever day it is and whatever other users do.
"""

from __future__ import annotations

from msgspec import Struct

# The parts of a state; each is stored as a JSON array. Ages are in days.


class OwnQuery(Struct, array_like=True):
    """A query that the user has searched; outcomes index `protocol.marks.OUTCOMES`."""

    key: str
    text: str  # as the user last typed it
    searches: int
    best_outcome: int
    last_outcome: int
    age: float


class Source(Struct, array_like=True):
    """A part of the past that leads to neighbours; the key's prefix tells its kind.

    ``c:`` a category engaged with, ``p:`` a product, ``q:`` a query searched with success, and
    ``r:`` one searched without (retried).
    """

    key: str
    weight: float
    age: float


class EngagedProduct(Struct, array_like=True):
    """A product that the user clicked, put into the cart or bought."""

    product_id: str
    bought: bool
    age: float


class RecentProduct(Struct, array_like=True):
    """A product that the user looked at or engaged with."""

    product_id: str
    title: str
    age: float
    bought: bool = False
    engaged: bool = False
    in_last_session: bool = False


class Interest(Struct, array_like=True):
    """A node of the user's interest graph, with its share of the weight of its kind."""

    kind: str
    name: str
    weight: float
    share: float


class Activity(Struct, array_like=True):
    """How much the user does; the gap is the median of days between sessions with a purchase."""

    events: int
    sessions: int
    purchases: int
    days_away: float
    purchase_gap: float | None
    purchase_gaps: int


class UserState(Struct):
    """What a user's own events say of the user at a moment.

    Shares are of the user's searches (wording, typed) or of the weight of events (taste).
    """

    queries: list[OwnQuery] = []  # the last searched first
    sources: list[Source] = []
    bought: dict[str, float] = {}  # category -> days since the last purchase
    engaged: dict[str, float] = {}  # category key (`History.category_key`) -> days since
    engaged_products: list[EngagedProduct] = []  # the latest first
    recent_products: list[RecentProduct] = []  # the latest first
    wording: dict[str, float] = {}  # kind of wording -> share, the largest first
    taste: dict[str, float] = {}  # brand or attribute, in lower case -> share
    typed: dict[str, float] = {}  # brand or attribute named in queries -> share
    interests: list[Interest] = []
    activity: Activity | None = None  # None without events

    def advance(self, days: float, half_life: float) -> UserState:
        """Age this state by ``days``, in place, and return it."""
        for part in (self.queries, self.sources, self.engaged_products, self.recent_products):
            for item in part:
                item.age += days
        self.bought = {leaf: age + days for leaf, age in self.bought.items()}
        self.engaged = {key: age + days for key, age in self.engaged.items()}
        decay = 2.0 ** (-days / half_life)
        for interest in self.interests:
            interest.weight *= decay
        if self.activity:
            self.activity.days_away += days
        return self
