"""Play a user of a shop: read their memory, take recommendations, search, click, buy, look again.

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

from ..agent.recommend import GROUP, Recommender, UserRecommendations
from ..agent.types import Turn
from ..errors import QAgentError
from ..ingest.ingest import append_events
from ..inventory.product_search import ProductHit, search_products
from ..memory.inspect import MemoryView
from ..policy.policy import Policy
from ..policy.promotions import PROMOTIONS
from ..policy.registry import open_policy, policy_names
from ..policy.shop_memory import inspect_memory
from ..shop.shop import Shop
from ..types import Profile
from ..utils.process_folder import process_folder
from ..utils.text import clean_id

if TYPE_CHECKING:
    from ..environment.environment import Environment

PAUSE = timedelta(seconds=20)  # between two events of the user
LAST_CASES = {"train": 400, "validation": 40}  # that a short training here learns from
TRAINED_NAME = "session"  # of a policy that was trained here


@dataclass(frozen=True, slots=True)
class ScreenItem:
    """Something on the screen that has a number: a query, or a product with its query."""

    query: str
    product_id: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class ProductState:
    """A product as it is shown at a moment; the price is None where it is unknown."""

    title: str
    price: float | None
    in_stock: bool


@dataclass(frozen=True, slots=True)
class ObservedTurn:
    """A turn of a chain, as it happened, so many seconds after the user asked."""

    seconds: float
    chain: int  # index of the chain in its group
    turn: Turn
    profile: Profile | None  # what a turn that fetched the memory read
    products: tuple[ProductState, ...]  # what a search found


@dataclass(frozen=True, slots=True)
class UserSummary:
    """A user of the log: number of events, moment of the last one, and the last query."""

    user: str
    events: int
    last: datetime
    query: str


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """The report of a training, and what the user was recommended before and after it."""

    report: Any
    before: UserRecommendations
    after: UserRecommendations


class PlaygroundSession:
    """One user after another, with a policy that recommends ``k`` queries to them.

    The first ``user`` is the most recent of the busy ones by default; ``group`` is the number of
    chains of a recommendation, ``name`` the policy's name in the shop.
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
        self.policy_name = name or policy.info.name
        self._group, self._k, self._seed = group, k, seed
        self._random = random.Random(seed)
        self._recommender: Recommender | None = None
        self._environment: Environment | None = None
        rows = shop.connection.execute(
            """SELECT user_id FROM events GROUP BY user_id HAVING count(*) >= 10
            ORDER BY max(ts) DESC, user_id LIMIT 500"""
        ).fetchall()
        self.users: Sequence[str] = [name for (name,) in rows]
        self.user = clean_id(user) or (self.users[0] if self.users else "guest-1")
        self.moment: datetime | None = None  # a moment of the past, or None: after the log
        self.screen: list[ScreenItem] = []
        self.last: UserRecommendations | None = None

    def switch_user(self, user: str) -> str:
        """Be this user from now on; an unknown one is a new user."""
        self.user, self.screen, self.last = clean_id(user), [], None
        return self.user

    def next_user(self) -> str:
        """Be the next user of the list."""
        at = self.users.index(self.user) + 1 if self.user in self.users else 0
        return self.switch_user(self.users[at % len(self.users)] if self.users else self.user)

    def random_user(self) -> str:
        """Be a random user of the list."""
        return self.switch_user(self._random.choice(self.users) if self.users else self.user)

    def new_user(self) -> str:
        """Be a user of whom nothing is known."""
        number = 1
        while self.shop.has_events(f"guest-{number}"):
            number += 1
        return self.switch_user(f"guest-{number}")

    def find_users(self, text: str = "", limit: int = 12) -> list[UserSummary]:
        """Users whose id or one of whose queries contains a text; the most recent first."""
        rows = self.shop.connection.execute(
            """SELECT user_id, count(*), max(ts),
                coalesce(arg_max(query, ts) FILTER (query IS NOT NULL), '')
            FROM events WHERE $text = '' OR user_id IN (
                SELECT user_id FROM events
                WHERE contains(lower(user_id), $text) OR contains(lower(query), $text))
            GROUP BY user_id ORDER BY max(ts) DESC, user_id LIMIT $limit""",
            {"text": text.lower(), "limit": limit},
        ).fetchall()
        return [UserSummary(*row) for row in rows]

    def travel(self, moment: datetime | None) -> None:
        """See memory, search and recommendations as of a moment; None returns to now."""
        self.moment, self.screen, self.last = moment, [], None

    @property
    def now(self) -> datetime:
        """The moment that is looked at: that of `travel`, or the one after the log's last event."""
        return self.moment or self.shop.end_of_log()

    @property
    def recommender(self) -> Recommender:
        """Recommends with the policy, from the log as it is now."""
        if self._recommender is None:
            self._recommender = Recommender(self.shop, self.policy, group=self._group)
        return self._recommender

    @property
    def policies(self) -> list[str]:
        """The names of the shop's policies."""
        return policy_names(self.shop)

    def memory(self) -> MemoryView:
        """The user's profile and interest graph."""
        return inspect_memory(self.shop, self.user, self.moment, self.policy.codec.count)

    def recommend(self, watch: Callable[[ObservedTurn], None] | None = None) -> UserRecommendations:
        """Recommend to the user; the queries get the numbers on the screen.

        ``watch`` is called with each turn of each chain as soon as it has its answer.
        """
        self.last = self._recommend_with(self.recommender, watch)
        self.screen = [ScreenItem(r.query) for r in self.last.recommendations]
        return self.last

    def compare(self, name: str) -> dict[str, UserRecommendations]:
        """What this and another policy of the shop recommend to the same user."""
        other = Recommender(self.shop, open_policy(self.shop, name), group=self._group)
        title = name if name != self.policy_name else f"{name} (again)"
        return {
            self.policy_name: self._recommend_with(self.recommender),
            title: self._recommend_with(other),
        }

    def _recommend_with(
        self, recommender: Recommender, watch: Callable[[ObservedTurn], None] | None = None
    ) -> UserRecommendations:
        moment = self.now
        start = time.perf_counter()
        profile = recommender.profiles([self.user], moment)[0]

        def on_turn(chain: int, turn: Turn) -> None:
            assert watch is not None
            fetched = profile if turn.kind == "fetch" else None
            products = tuple(self.products(turn.products, moment))
            watch(ObservedTurn(time.perf_counter() - start, chain, turn, fetched, products))

        (request,) = recommender.requests([profile], moment, self._k)
        answer = recommender.answer([request], self._seed, watch=on_turn if watch else None)[0]
        return replace(answer, latency_ms=(time.perf_counter() - start) * 1000)

    def products(self, ids: Sequence[str], moment: datetime | None) -> list[ProductState]:
        """Products as they are shown at a moment."""
        catalog = self.recommender.search.catalog
        states = []
        for row in (catalog.row_of[product] for product in ids):
            price, in_stock = catalog.state_at(row, moment)
            states.append(
                ProductState(catalog.titles[row], price if price == price else None, in_stock)
            )
        return states

    def search(self, query: str) -> list[ProductHit]:
        """Search as the user; the products get the numbers on the screen.

        A search in the past is not logged, as the past cannot be changed.
        """
        search = self.recommender.search
        hits = search_products(self.shop, query, self._k, as_of=self.now, search=search)
        if self.moment is None:
            self._append([{"type": "search", "query": query}])
        self.screen = [ScreenItem(query, hit.product_id, hit.title) for hit in hits]
        return hits

    def choose(self, number: int) -> ScreenItem:
        """What has this number on the screen; a `QAgentError` if nothing has."""
        if not self.screen:
            raise QAgentError("nothing is on the screen; try recommend, or search TEXT")
        if not 1 <= number <= len(self.screen):
            raise QAgentError(f"choose a number from 1 to {len(self.screen)}")
        return self.screen[number - 1]

    def engage(self, item: ScreenItem, kind: str) -> None:
        """Click or buy, as the user, a product that a search has shown.

        A `QAgentError` if it is a query or sold out, or if the session looks at the past.
        """
        if not item.product_id:
            raise QAgentError(f"{item.query!r} is a query; click it to see its products")
        if kind == "purchase" and not self.products([item.product_id], self.now)[0].in_stock:
            raise QAgentError(f"{item.title} is sold out; it can be clicked, not bought")
        kinds = ["click"] if kind == "click" else ["click", kind]
        self._append(
            [{"type": k, "query": item.query, "product_id": item.product_id} for k in kinds]
        )

    def _append(self, events: Sequence[dict[str, Any]]) -> None:
        if self.moment is not None:
            raise QAgentError("the past cannot be changed; come back with: as-of now")
        report = append_events(
            self.shop,
            [
                {"user_id": self.user, "time": self.now + PAUSE * (i + 1), **event}
                for i, event in enumerate(events)
            ],
        )
        if report.rejected:
            raise QAgentError(report.examples[0])
        if self._recommender is not None:
            self._recommender.refresh()

    def train(
        self,
        steps: int,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> TrainingOutcome:
        """Train with GRPO on this shop, and go on with the trained policy."""
        from ..environment.environment import Environment
        from ..runs.run import free_name
        from ..train.grpo_config import GrpoConfig
        from ..train.grpo_run import train_grpo
        from ..train.run_options import RunOptions

        before = self._recommend_with(self.recommender)
        if self._environment is None:
            if on_stage is not None:
                on_stage("preparing the shop's cases")
            self._environment = Environment.of_shop(
                self.shop, self.policy.codec, self.policy.info.agent, last=LAST_CASES
            )
        name = free_name(TRAINED_NAME, self.policies)
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
        return TrainingOutcome(report, before, self.recommend())


def _left_out(_folder: str, names: list[str]) -> set[str]:
    """Runs, locks and what killed writers left are not copied; promotions are."""
    hidden = {name for name in names if name.startswith(".")} - {PROMOTIONS}
    return {*hidden, *({"runs"} & {*names})}


@contextmanager
def temporary_copy(path: Path) -> Iterator[Shop]:
    """A copy of a shop without its runs, open for writing; it is removed afterwards."""
    with Shop.open(path) as shop, tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        _ = shop.connection  # nobody writes while it is copied
        place = Path(folder) / path.resolve().name
        shutil.copytree(path, place, ignore=_left_out)
        shop.close()
        with Shop.open_copy(place) as copy:
            yield copy
