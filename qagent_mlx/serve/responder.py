"""Answer requests from a policy and a shop.

A `Responder` lives in the worker thread. It holds the parts that answer, changes what all of them
follow from, and keeps what was computed for as long as it is good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..agent.recommend import Recommender, default_group_size
from ..errors import QAgentError
from ..ingest.ingest import register_functions
from ..ingest.journal import apply_entries, apply_journal
from ..ingest.report import IngestReport
from ..inventory.index import open_index
from ..live.limits import Limits, LimitsBook
from ..live.rules import Rule, rules_entry
from ..live.wishes import Wish, wishes_entry
from ..memory.store import MemoryStore
from ..policy.registry import resolve, serving_policy
from ..shop.journal import Entry
from ..shop.policy_folders import migrate_unversioned
from ..shop.shop import Shop
from ..types import Profile
from ..utils.stamps import utc_now
from .arm_answers import ArmAnswers
from .arms import Arms
from .cache import UserCache
from .config import ServeConfig
from .decode_units import Asked
from .metrics import Metrics
from .next_shop import NextShop, current_search, next_search, open_next, store_memory, titles_of
from .policy_choice import PolicyChoice, SavedPolicy, load_saved
from .requests import PendingRequest, RecommendResponse
from .served_policy import ServedPolicy
from .shop_answers import ShopAnswers
from .store import ShopStore
from .thinking import ACTIVE_DAYS, Thinker
from .timed_decoder import TimedDecoder
from .user_readings import UserReadings
from .worker_processes import WorkerPool

log = logging.getLogger("qagent.serve")


@contextmanager
def open_responder(
    path: Path, config: ServeConfig, metrics: Metrics, later: Callable[[Callable[[], Any]], object]
) -> Iterator[Responder]:
    """Open the shop, the policy and the worker processes of a server.

    With several workers all of them are processes beside this one, which then has the time to read
    memory and to write replies; until they are ready, it decodes itself.

    Args:
        path: The shop's folder.
        config: Settings of the server.
        metrics: Counts what is done.
        later: Runs something in the thread that uses the responder; any thread may call it.

    Raises:
        QAgentError: what `Shop.open` or the policy has to say.
    """
    if not config.read_only:
        # Where policies lie does not change while they are served.
        migrate_unversioned(path / "policies")
    with Shop.open(path) as shop:
        folder = resolve(shop, config.policy or serving_policy(shop))
        processes = config.workers if config.workers > 1 else 0
        if processes:
            open_index(shop)
    with (
        WorkerPool(path, folder, processes, config.dtype, wait=False) as pool,
        closing(ShopStore(path, config.read_only, metrics)) as store,
    ):
        yield Responder(store, folder, pool, config, metrics, later)


class Responder:
    """A policy and a shop, ready to answer requests. For one thread.

    Args:
        store: Holds the shop's snapshot.
        policy: The folder of the policy that recommends first.
        pool: Processes that decode beside this one.
        config: Cache, seed, and what requests get by default.
        metrics: Counts what was done.
        later: Runs something in this thread; any thread may call it.

    Attributes:
        served: The policy that recommends.
        chains: What a request gets that names no number of chains.
        readings: What was read of users.
        common: What is answered whoever asks.
        decoder: Runs the chains.
        moment: The end of the log, as it was last looked at.
        experiment: The one that runs, where the server records what it shows; else None.
        titles: Title of each product id.
        search_problem: Why the shop's search is the one from before; empty where it is the newest.
    """

    def __init__(
        self,
        store: ShopStore,
        policy: Path,
        pool: WorkerPool,
        config: ServeConfig,
        metrics: Metrics,
        later: Callable[[Callable[[], Any]], object],
    ) -> None:
        self.store, self.shop = store, store.shop
        self._pool, self._config = pool, config
        store_memory(self.shop)
        first = load_saved(policy, config.dtype)
        self.served = ServedPolicy(PolicyChoice(self.shop, config.policy), first, metrics)
        self.recommender = Recommender(self.shop, first.policy, group=config.chains)
        self.chains = self.recommender.group
        self.titles = titles_of(self.recommender)
        self.cache: UserCache[RecommendResponse] = UserCache(
            config.cache_seconds, config.cache_users
        )
        self.thinker = Thinker(config, metrics)
        self.readings = UserReadings(self.recommender, config, self._time)
        self.common = ShopAnswers(self.recommender, self.served)
        self.decoder = TimedDecoder(self.recommender, pool, config, metrics, self.served, later)
        self.decoder.prepare, self.decoder.remember = self._prepare, self._remember
        self.arms = Arms(config)
        self._arm_answers = ArmAnswers(self.arms, self.decoder, config.seed)
        self.experiment = self.arms.follow(self.recommender, self.shop)
        self.moment = self.shop.end_of_log()
        self.search_problem = ""
        self.refresh_trending()

    def respond(self, pending: Sequence[PendingRequest]) -> None:
        """Answer requests; the future of each is set as soon as its answer is known."""
        self.decoder.decode(pending)

    def _prepare(self, pending: Sequence[PendingRequest]) -> Asked:
        """What to ask for those who wait; who takes part in an experiment may be answered here."""
        requests = self.readings.requests(pending, self.moment)
        if self.experiment is None:
            return list(zip(pending, requests, strict=True))
        return self._arm_answers.answer(self.experiment, pending, requests)

    def forget(self, users: Iterable[str]) -> None:
        """Drop what is cached of users who did something, and see the new events."""
        self._forget(users)
        self.recommender.refresh()
        self.moment = self.shop.end_of_log()

    def prepare(self, shop: Shop) -> NextShop:
        """Open search and memory of another snapshot, in any thread, beside the answers."""
        return open_next(self.recommender, shop)

    def use_shop(self, following: NextShop) -> Shop:
        """Answer from another snapshot of the shop, which another process has changed.

        Returns the one from before, for the caller to close: that takes as long as two answers.
        """
        old, shop = self.shop, following.shop
        store = MemoryStore(shop.connection, shop.config.memory)
        before = store.state()
        apply_journal(shop)
        store.keep(before)
        search, problem = next_search(following, self.recommender.search)
        self._note_search_problem(problem)
        # The journal may change products of the snapshot.
        self.recommender.use_shop(shop, current_search(shop, search), following.memory)
        self.shop = self.store.shop = shop  # at once: posts are stored where answers look
        if following.completer and following.search is not None:
            self.common.use_completer(following.completer, following.search)
        self._know_catalog()  # and the journal, which came after that memory was opened
        self.reload_processes()
        return old

    def _note_search_problem(self, problem: str) -> None:
        if problem and problem != self.search_problem:
            log.warning("%s; until then this server searches as before", problem)
        self.search_problem = problem

    def change_catalog(self, entry: Entry) -> IngestReport:
        """Keep a change of products in the journal, and know it from now on."""
        shop = self.shop
        self.store.append([entry])
        store = MemoryStore(shop.connection, shop.config.memory)
        before = store.state()
        register_functions(shop.connection)
        with shop.transaction():
            (report,) = apply_entries(shop, [entry])
            store.keep(before)
        self.recommender.use_search(current_search(shop, self.recommender.search))
        self._know_catalog()
        self.store.move_soon()
        return report

    def _know_catalog(self) -> None:
        """See other products and events from now on; the recommender searches them already."""
        self.recommender.refresh()
        self.titles = titles_of(self.recommender)
        self.experiment = self.arms.follow(self.recommender, self.shop)
        self.decoder.is_pool_stale = True
        self.start_afresh()

    def reload_processes(self) -> None:
        """Let the processes beside this one search the catalog that the file holds now."""
        if self.decoder.is_pool_stale:
            self._pool.reload()
        self.decoder.is_pool_stale = False

    def change_rules(self, rules: Sequence[Rule]) -> None:
        """Keep rules in the journal, and recommend by them from now on."""
        self._keep(rules_entry(rules))
        self.recommender.limits = LimitsBook(self.shop)
        self.start_afresh()

    def change_wishes(self, wishes: Sequence[Wish]) -> None:
        """Keep wishes of users in the journal, and honour them from now on."""
        self._keep(wishes_entry(wishes))
        self.recommender.limits.has_wishes = True
        self._forget([wish.user_id for wish in wishes])

    def _forget(self, users: Iterable[str]) -> None:
        """Drop users' answers, and what they follow from."""
        users = list(users)

        def drop() -> None:
            for user in users:
                self.cache.forget(user)
                self.thinker.forget(user)
                self.readings.forget(user)

        self.decoder.forget(users, drop)

    def _keep(self, entry: Entry) -> None:
        """Keep an entry in the journal, and apply it to the snapshot."""
        self.store.append([entry])
        with self.shop.transaction():
            apply_entries(self.shop, [entry])

    def rules_changed(self) -> bool:
        """Whether another rule holds now than when the trending response was computed."""
        return self.common.rules_changed(self._time())

    def _time(self) -> datetime:
        """Now, as `shop_time` has it, without asking the database."""
        return self.moment if self.shop.config.simulated is not None else utc_now()

    def start_afresh(self) -> None:
        """Drop all that was computed, as what it follows from has changed."""

        def drop() -> None:
            self.cache.clear()
            self.thinker.clear()
            self.readings.clear()

        self.decoder.forget(None, drop)
        self.common.drop()
        self.refresh_trending()

    def refresh_trending(self) -> None:
        """Look at the log's end, and compute what a new user would get there."""
        self.moment = self.shop.end_of_log()
        self.common.refresh(self.moment, self._time())

    def read_personal(self, user: str) -> tuple[Profile, Limits]:
        """What is expected of a user and may be shown to them, read now."""
        return self.readings.read_personal(user, self.moment)

    def use_policy(self, name: str) -> str:
        """Recommend with another policy, or with the same one as it is saved now.

        Raises:
            QAgentError: there is none of that name, or it cannot be loaded; the old one stays.
        """
        self._load(resolve(self.shop, name))
        self.served.choice.choose(name)
        return name

    def reload_policy(self) -> None:
        """Load the policy that should recommend as it is saved now.

        Raises:
            QAgentError: it cannot be loaded; the old one stays.
        """
        self._load(self.served.choice.folder())

    def _load(self, folder: Path) -> None:
        try:
            loaded = load_saved(folder, self._config.dtype)
        except QAgentError as error:
            self.served.refuse(folder, error)
            raise
        self.take_up(loaded)

    def take_up(self, loaded: SavedPolicy) -> None:
        """Recommend with a policy from the next batch on."""
        self.recommender.use_policy(loaded.policy)
        self._pool.use(loaded.folder)
        self.chains = self._config.chains or default_group_size(loaded.policy)
        self.served.take_up(loaded)
        self.start_afresh()

    def _remember(self, waiting: PendingRequest, response: RecommendResponse) -> None:
        """Keep an answer: for a while, or until it is asked for."""
        if waiting.interrupted is None:
            self.cache.put(waiting.user, waiting.key, response)
        else:
            self.thinker.keep(waiting, response)

    def think(self, busy: Callable[[], bool]) -> None:
        """Think about a user who may ask next, while nobody waits (`thinking`)."""
        if self.thinker.looks:
            self.thinker.consider(self.active_users)
        self.thinker.think(self._think_about, self.chains, busy)

    def _think_about(self, request: PendingRequest) -> None:
        if self.shop.has_events(request.user):  # else nothing is known, or it was erased
            self.respond([request])

    def active_users(self) -> list[str]:
        """Who did something in the last days of the log, the last one first."""
        rows = self.shop.connection.execute(
            """SELECT user_id FROM events WHERE ts >= ? GROUP BY user_id
            ORDER BY max(ts) DESC, user_id LIMIT ?""",
            [self.moment - timedelta(days=ACTIVE_DAYS), self._config.think_users],
        ).fetchall()
        return [user for (user,) in rows]

    def ready(self, request: PendingRequest) -> RecommendResponse | None:
        """An answer that is known already, and still right. Any thread may ask."""
        if self.common.good_until <= self._time():
            return None  # other rules hold now
        response = self.cache.get(request.user, request.key)
        if response is not None:
            return replace(response, cached=True)
        response = self.thinker.ready(request)
        return response and replace(response, thought_before=True)
