"""Playing a user: read their memory, take recommendations, search, click, buy, look again.

What the user does is written to the shop's log, after its last event, so the next profile
and the next recommendation already know it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .agent.recommend import GROUP, Recommender, UserRecommendations, after_log
from .errors import QAgentError
from .ingest import append_events
from .inspection import inspect_memory, search_products
from .policy.model import Policy
from .shop import Shop

PAUSE = timedelta(seconds=20)  # between what a user does


@dataclass(frozen=True, slots=True)
class Shown:
    """Something on the screen that has a number: a query, or a product found by a query."""

    query: str
    product_id: str = ""
    title: str = ""


class Session:
    """One user after another, with a policy that recommends to them.

    Args:
        shop: Open for writing.
        policy: Recommends.
        user: Who comes first; the busiest recent user by default.
        group: Chains a recommendation.
        k: Queries a recommendation.
        seed: Of the sampling and of `random_user`.
    """

    def __init__(
        self, shop: Shop, policy: Policy, user: str = "", *, group: int = GROUP, k: int = 5,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.shop, self.policy = shop, policy
        self._group, self._k, self._seed = group, k, seed
        self._random = random.Random(seed)
        self._recommender: Recommender | None = None
        self.users: Sequence[str] = [
            name
            for (name,) in shop.connection.execute(
                """SELECT user_id FROM events GROUP BY user_id HAVING count(*) >= 10
                ORDER BY max(ts) DESC, user_id LIMIT 500"""
            ).fetchall()
        ]
        self.user = user or (self.users[0] if self.users else "guest-1")
        self.shown: list[Shown] = []
        self.last: UserRecommendations | None = None

    # ------------------------------------------------------------ who

    def use(self, user: str) -> str:
        """Be this user from now on; somebody unknown is a new user."""
        self.user, self.shown, self.last = user, [], None
        return user

    def next_user(self) -> str:
        """Be the next user of the list."""
        at = self.users.index(self.user) + 1 if self.user in self.users else 0
        return self.use(self.users[at % len(self.users)] if self.users else self.user)

    def random_user(self) -> str:
        """Be any user of the list."""
        return self.use(self._random.choice(self.users) if self.users else self.user)

    def new_user(self) -> str:
        """Be somebody of whom nothing is known."""
        number = 1
        while self._events(f"guest-{number}"):
            number += 1
        return self.use(f"guest-{number}")

    # ------------------------------------------------------------ looking

    @property
    def recommender(self) -> Recommender:
        """Knows the log as it is now."""
        if self._recommender is None:
            self._recommender = Recommender(self.shop, self.policy, group=self._group)
        return self._recommender

    def memory(self) -> dict[str, Any]:
        """See `inspection.inspect_memory`."""
        return inspect_memory(self.shop, self.user, count=self.policy.codec.count)

    def recommend(self) -> UserRecommendations:
        """Recommend to the user now; the queries get the numbers on the screen."""
        self.last = self.recommender.recommend([self.user], self._k, seed=self._seed)[0]
        self.shown = [Shown(r.query) for r in self.last.recommendations]
        return self.last

    def search(self, query: str) -> list[dict[str, Any]]:
        """The user searches; the products get the numbers on the screen."""
        moment = after_log(self.shop)
        found = search_products(
            self.shop, query, self._k, as_of=moment, search=self.recommender.search
        )
        self._write([{"type": "search", "query": query}])
        self.shown = [Shown(query, p["product_id"], p["title"]) for p in found]
        return found

    # ------------------------------------------------------------ acting

    def choose(self, number: int) -> Shown:
        """What has this number on the screen.

        Raises:
            QAgentError: nothing has.
        """
        if not self.shown:
            raise QAgentError("nothing is on the screen; try recommend, or search TEXT")
        if not 1 <= number <= len(self.shown):
            raise QAgentError(f"choose a number from 1 to {len(self.shown)}")
        return self.shown[number - 1]

    def engage(self, product: Shown, kind: str) -> None:
        """The user clicks or buys a product that a search has shown."""
        if not product.product_id:
            raise QAgentError(f"{product.query!r} is a query; click it to see its products")
        rows = [{"type": "click", "query": product.query, "product_id": product.product_id}]
        if kind != "click":
            rows.append({**rows[0], "type": kind})
        self._write(rows)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        moment = after_log(self.shop)
        made = [
            {"user_id": self.user, "time": moment + PAUSE * (i + 1), **row}
            for i, row in enumerate(rows)
        ]
        report = append_events(self.shop, made)
        if report.rejected:
            raise QAgentError(report.examples[0])
        self._recommender = None

    def _events(self, user: str) -> int:
        row = self.shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id = ?", [user]
        ).fetchone()
        return row[0] if row else 0

    @property
    def now(self) -> datetime:
        """The moment after the log's last event."""
        return after_log(self.shop)
