"""Playing a user: read their memory, take recommendations, search, click, buy, look again.

What the user does is written to the shop's log, after its last event, so the next profile
and the next recommendation already know it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agent.recommend import GROUP, Recommender, RecommendRequest, UserRecommendations
from ..agent.types import Turn
from ..errors import QAgentError
from ..ingest.ingest import append_events
from ..inventory.product_search import ProductHit, search_products
from ..memory.inspect import MemoryView
from ..policy.policy import Policy
from ..policy.registry import open_policy, policy_names
from ..policy.shop_memory import inspect_memory
from ..shop.shop import Shop
from ..types import Profile

if TYPE_CHECKING:
    from ..environment.environment import Environment

PAUSE = timedelta(seconds=20)  # between what a user does
RECENT = {"train": 400, "validation": 40}  # cases that a short training here looks at
TRAINED = "session"  # what a policy is called that was trained here


@dataclass(frozen=True, slots=True)
class Shown:
    """Something on the screen that has a number: a query, or a product found by a query."""

    query: str
    product_id: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A turn of a chain as it happened: ``seconds`` since the user asked.

    ``chain`` numbers the chains of the answer; ``profile`` comes with the turn that fetched
    it, ``products`` (title, price, in_stock) with a search.
    """

    seconds: float
    chain: int
    turn: Turn
    profile: Profile | None = None
    products: tuple[dict[str, Any], ...] = ()


class Session:
    """One user after another, with a policy that recommends to them.

    Args:
        shop: Open for writing.
        policy: Recommends.
        user: Who comes first; the busiest recent user by default.
        group: Chains a recommendation.
        k: Queries a recommendation.
        seed: Of the sampling and of `random_user`.
        name: What the policy is called in the shop.
    """

    def __init__(
        self,
        shop: Shop,
        policy: Policy,
        user: str = "",
        *,
        group: int = GROUP,
        k: int = 5,
        seed: int = 0,
        name: str = "",
    ) -> None:
        self.shop, self.policy = shop, policy
        self.policy_name = name or getattr(getattr(policy, "info", None), "name", "")
        self._group, self._k, self._seed = group, k, seed
        self._random = random.Random(seed)
        self._recommender: Recommender | None = None
        self._environment: Environment | None = None
        self.users: Sequence[str] = [
            name
            for (name,) in shop.connection.execute(
                """SELECT user_id FROM events GROUP BY user_id HAVING count(*) >= 10
                ORDER BY max(ts) DESC, user_id LIMIT 500"""
            ).fetchall()
        ]
        self.user = user or (self.users[0] if self.users else "guest-1")
        self.moment: datetime | None = None  # a moment of the past; None: after the log
        self.shown: list[Shown] = []
        self.last: UserRecommendations | None = None

    # ------------------------------------------------------------ who and when

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

    def find_users(self, text: str = "", most: int = 12) -> list[dict[str, Any]]:
        """Users whose id, or one of whose queries, holds a text; the most recent first.

        Returns:
            user, events, last (the moment of the last event), query (the last one).
        """
        rows = self.shop.connection.execute(
            """SELECT user_id, count(*), max(ts), arg_max(query, ts) FILTER (query IS NOT NULL)
            FROM events WHERE $text = '' OR user_id IN (
                SELECT user_id FROM events
                WHERE contains(lower(user_id), $text) OR contains(lower(query), $text))
            GROUP BY user_id ORDER BY max(ts) DESC, user_id LIMIT $most""",
            {"text": text.lower(), "most": most},
        ).fetchall()
        return [
            {"user": user, "events": events, "last": last, "query": query or ""}
            for user, events, last, query in rows
        ]

    def travel(self, moment: datetime | None) -> None:
        """See memory, search and recommendations as they were at a moment; None comes back."""
        self.moment, self.shown, self.last = moment, [], None

    # ------------------------------------------------------------ looking

    @property
    def recommender(self) -> Recommender:
        """Knows the log as it is now."""
        if self._recommender is None:
            self._recommender = Recommender(self.shop, self.policy, group=self._group)
        return self._recommender

    def memory(self) -> MemoryView:
        """The user's profile and interest graph."""
        return inspect_memory(self.shop, self.user, self.moment, self.policy.codec.count)

    def recommend(self, watch: Callable[[Seen], None] | None = None) -> UserRecommendations:
        """Recommend to the user; the queries get the numbers on the screen.

        Args:
            watch: Called with each turn of each chain as soon as it has its answer.
        """
        self.last = self._ask(self.recommender, watch)
        self.shown = [Shown(r.query) for r in self.last.recommendations]
        return self.last

    def _ask(
        self, recommender: Recommender, watch: Callable[[Seen], None] | None = None
    ) -> UserRecommendations:
        moment = self.moment or self.shop.end_of_log()
        began = time.perf_counter()
        profile = recommender.profiles([self.user], moment)[0]

        def on_turn(chain: int, turn: Turn) -> None:
            if watch is not None:
                read = profile if turn.kind == "fetch" else None
                products = self.products(turn.products, moment)
                watch(Seen(time.perf_counter() - began, chain, turn, read, tuple(products)))

        found = recommender.answer(
            [RecommendRequest(profile, moment, self._k, self._group)],
            self._seed,
            watch=on_turn if watch is not None else None,
        )[0]
        return replace(found, latency_ms=(time.perf_counter() - began) * 1000)

    def products(self, ids: Sequence[str], moment: datetime | None) -> list[dict[str, Any]]:
        """Title, price (None when unknown) and in_stock of products at a moment."""
        catalog = self.recommender.search.catalog
        rows = catalog.row_of
        made = []
        for product in ids:
            price, in_stock = catalog.state_at(rows[product], moment)
            made.append(
                {
                    "title": catalog.titles[rows[product]],
                    "price": price if price == price else None,
                    "in_stock": in_stock,
                }
            )
        return made

    def search(self, query: str) -> list[ProductHit]:
        """The user searches; the products get the numbers on the screen.

        In the past nobody can act, so a search there leaves no trace.
        """
        moment = self.moment or self.shop.end_of_log()
        found = search_products(
            self.shop, query, self._k, as_of=moment, search=self.recommender.search
        )
        if self.moment is None:
            self._write([{"type": "search", "query": query}])
        self.shown = [Shown(query, p.product_id, p.title) for p in found]
        return found

    def compare(self, name: str) -> dict[str, UserRecommendations]:
        """What this and another policy of the shop recommend to the same user.

        Raises:
            QAgentError: there is no such policy.
        """
        other = Recommender(self.shop, open_policy(self.shop, name), group=self._group)
        title = name if name != self.policy_name else f"{name} (again)"
        return {self.policy_name: self._ask(self.recommender), title: self._ask(other)}

    @property
    def policies(self) -> list[str]:
        """The names that `compare` knows."""
        return policy_names(self.shop)

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
        """The user clicks or buys a product that a search has shown.

        Raises:
            QAgentError: it is a query, it is sold out, or the session looks at the past.
        """
        if not product.product_id:
            raise QAgentError(f"{product.query!r} is a query; click it to see its products")
        state = self.products([product.product_id], self.moment or self.shop.end_of_log())[0]
        if kind == "purchase" and not state["in_stock"]:
            raise QAgentError(f"{product.title} is sold out; it can be clicked, not bought")
        rows = [{"type": "click", "query": product.query, "product_id": product.product_id}]
        if kind != "click":
            rows.append({**rows[0], "type": kind})
        self._write(rows)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        if self.moment is not None:
            raise QAgentError("the past cannot be changed; come back with: as-of now")
        moment = self.shop.end_of_log()
        made = [
            {"user_id": self.user, "time": moment + PAUSE * (i + 1), **row}
            for i, row in enumerate(rows)
        ]
        report = append_events(self.shop, made)
        if report.rejected:
            raise QAgentError(report.examples[0])
        if self._recommender is not None:
            self._recommender.refresh()

    def train(
        self,
        steps: int,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Some steps of GRPO on this shop; the session goes on with what came of them.

        Args:
            steps: How many.
            on_step: As in `train_grpo`.
            on_stage: Called with what begins.

        Returns:
            report (of `train_grpo`), before and after (`UserRecommendations` of the user).
        """
        from ..environment.environment import Environment
        from ..runs.run import free_name
        from ..train.grpo_config import GrpoConfig
        from ..train.grpo_run import train_grpo
        from ..train.run_options import RunOptions

        say = on_stage or (lambda stage: None)
        before = self._ask(self.recommender)
        agent = self.policy.info.agent
        if self._environment is None:
            say("preparing the shop's cases")
            self._environment = Environment.of_shop(
                self.shop, self.policy.codec, agent, last=RECENT
            )
        name = free_name(TRAINED, self.policies)
        config = GrpoConfig(
            steps=steps,
            cases_per_step=8,
            group=self._group,
            measured=20,
            seed=self._seed,
            save_every=max(steps, 1),
        )
        try:
            report = train_grpo(
                self.shop,
                self.policy_name,
                name,
                config,
                options=RunOptions(environment=self._environment),
                on_step=on_step,
            )
        finally:
            self.recommender.refresh()  # training lets go of the database
        self.policy, self.policy_name = open_policy(self.shop, name), name
        self.recommender.use_policy(self.policy)
        return {"report": report, "before": before, "after": self.recommend()}

    def _events(self, user: str) -> int:
        row = self.shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id = ?", [user]
        ).fetchone()
        return row[0] if row else 0

    @property
    def now(self) -> datetime:
        """The moment after the log's last event."""
        return self.shop.end_of_log()


@contextmanager
def borrowed(path: Path) -> Iterator[Shop]:
    """A copy of a shop, without its runs, that may be played with; it is gone afterwards.

    Raises:
        QAgentError: there is no shop, or somebody writes to it.
    """
    with Shop.open(path) as shop, tempfile.TemporaryDirectory(prefix="qagent-") as folder:
        _ = shop.connection  # nobody writes while it is copied
        place = Path(folder) / path.resolve().name
        shutil.copytree(path, place, ignore=shutil.ignore_patterns("runs", ".*"))
        shop.close()
        with Shop.open(place, read_only=False) as copy:
            yield copy
