"""What a server answers whoever asks: what is trending, and completions of what is typed."""

from __future__ import annotations

import time
from datetime import datetime

from ..agent.recommend import Recommender, RecommendRequest
from ..agent.suggest import Completer
from ..inventory.types import ProductSearch
from ..live.limits import Limits
from ..live.rules import ShopRules
from ..memory.event_log import start_of_hour
from ..memory.profile import Memory
from ..shop.shop import Shop
from .requests import RecommendResponse
from .served_policy import ServedPolicy

TRENDING_SECONDS = 60.0  # how long the trending response is good
TRENDING_QUERIES = 20


class ShopAnswers:
    """The answers for somebody of whom nothing is known. For the worker's thread.

    Args:
        recommender: Has the shop, its memory and its rules.
        policy: The one that recommends.

    Attributes:
        trending: The response; None until the first `refresh`.
        completer: Completes what users type; only replaced, never changed.
        limits: What somebody unknown may be shown.
        good_until: When other rules will hold.
    """

    completer: Completer
    limits: Limits
    good_until: datetime
    _rules: ShopRules  # of the trending response, and of all that is known already

    def __init__(self, recommender: Recommender, policy: ServedPolicy) -> None:
        self._recommender, self._policy = recommender, policy
        self.trending: RecommendResponse | None = None
        self._completer_of: tuple[datetime, Shop, ProductSearch] | None = None
        self._at = 0.0
        self._as_of: datetime | None = None

    @property
    def expired(self) -> bool:
        """Whether it is time for `refresh`."""
        return time.monotonic() - self._at >= TRENDING_SECONDS

    def rules_changed(self, now: datetime) -> bool:
        """Whether another rule holds now than when the trending response was computed."""
        return self._recommender.limits.rules_at(now) is not self._rules

    def drop(self) -> None:
        """Compute it at the next `refresh`; until then the old one is good for who cannot wait."""
        self._as_of = None

    def refresh(self, end: datetime, now: datetime) -> None:
        """Compute what a new user would get at the end of the log, by the rules of now."""
        self._at = time.monotonic()
        recommender = self._recommender
        # Once a day this takes a while; here no request waits for it.
        recommender.memory.read_all(end)
        if self._as_of == end:
            return
        profile = recommender.profiles([""], end)[0]
        self._rules = recommender.limits.rules_at(now)
        self.good_until = recommender.limits.good_until
        self.limits = Limits(self._rules)
        self._refresh_completer(end)
        request = RecommendRequest(profile, end, TRENDING_QUERIES, limits=self.limits)
        queries = recommender.recommend_from_memory([request])[0]
        self.trending = RecommendResponse(
            queries, "trending", end, self._policy.name, self._policy.version
        )
        self._as_of = end

    def use_completer(self, completer: tuple[datetime, Completer], search: ProductSearch) -> None:
        """Complete with what was prepared for the recommender's shop and this search."""
        hour, self.completer = completer
        self._completer_of = (hour, self._recommender.shop, search)

    def _refresh_completer(self, now: datetime) -> None:
        """Complete with what the shop searched until this hour, in the catalog of now."""
        shop, search = self._recommender.shop, self._recommender.search
        hour = start_of_hour(now)
        if self._completer_of is None or not (
            self._completer_of[0] == hour
            and self._completer_of[1] is shop
            and self._completer_of[2] is search
        ):
            self._completer_of = (hour, shop, search)
            self.completer = Completer.of_shop(self._recommender.memory, search, hour)


def prepared_completer(
    memory: Memory, search: ProductSearch | None, end: datetime
) -> tuple[datetime, Completer] | None:
    """The completer of another snapshot, made beside the answers; None without its search."""
    hour = start_of_hour(end)
    return (hour, Completer.of_shop(memory, search, hour)) if search else None
