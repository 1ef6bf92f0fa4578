"""Answer requests from a policy and a shop: one decode for all that came together.

A `Responder` lives in the worker thread. It reads the users' memory, decides what can be
decoded before the deadlines, decodes, and keeps what it computed for as long as it is good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..agent.recommend import Recommender, RecommendRequest, default_group_size
from ..agent.suggest import Completer
from ..errors import QAgentError
from ..ingest.ingest import register_functions
from ..ingest.journal import apply_entries, apply_journal
from ..ingest.report import IngestReport
from ..inventory.encoders.registry import SUBWORD
from ..inventory.index import open_index, updated_index
from ..inventory.product_search import open_shop_search
from ..inventory.search import HybridSearch, hybrid_search
from ..inventory.types import ProductSearch
from ..live.experiments import AGENT, MEMORY
from ..live.limits import Limits, LimitsBook
from ..live.rules import Rule, ShopRules, rules_entry
from ..live.wishes import Wish, wishes_entry
from ..memory.profile import Memory
from ..memory.store import MemoryStore
from ..models.download import shipped_name
from ..policy.registry import resolve, serving_policy
from ..shop.journal import Entry
from ..shop.policy_folders import migrate_unversioned, parse_reference, reference_of
from ..shop.shop import Shop
from ..types import Profile
from ..utils.stamps import utc_now
from .arms import Arms
from .cache import UserCache
from .config import ServeConfig
from .metrics import Metrics
from .pace import DecodePace
from .policy_choice import PolicyChoice, SavedPolicy, load_saved, saved_at
from .requests import PendingRequest, RecommendResponse
from .store import ShopStore
from .thinking import ACTIVE_DAYS, Thinker
from .worker_processes import WorkerPool

log = logging.getLogger("qagent.serve")

TRENDING_SECONDS = 60.0  # how long the trending response is good
TRENDING_QUERIES = 20
RISK = 3.0  # times as long as expected a decode may well take


class _Abandoned(Exception):
    """No client waits for this decode any more."""


@dataclass(slots=True)
class _SharedRequest:
    """Requests of one user that ask the same at the same time: decoded once."""

    request: RecommendRequest
    waiting: list[PendingRequest] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NextShop:
    """Another snapshot of the shop, with what was opened of it so far."""

    shop: Shop
    search: ProductSearch | None
    memory: Memory
    completer: tuple[datetime, Completer] | None


@contextmanager
def open_responder(path: Path, config: ServeConfig, metrics: Metrics) -> Iterator[Responder]:
    """Open the shop, the policy and the worker processes of a server.

    Raises:
        QAgentError: what `Shop.open` or the policy has to say.
    """
    if not config.read_only:
        # Where policies lie does not change while they are served.
        migrate_unversioned(path / "policies")
    with Shop.open(path) as shop:
        folder = resolve(shop, config.policy or serving_policy(shop))
        if config.workers > 1:
            open_index(shop)
    with (
        WorkerPool(path, folder, config.workers - 1, config.dtype) as pool,
        closing(ShopStore(path, config.read_only, metrics)) as store,
    ):
        yield Responder(store, folder, pool, config, metrics)


class Responder:
    """A policy and a shop, ready to answer requests. For one thread.

    Args:
        store: Holds the shop's snapshot.
        policy: The folder of the policy that recommends first.
        pool: Processes that decode beside this one.
        config: Cache, seed, and what requests get by default.
        metrics: Counts what was done.

    Attributes:
        policy: The name of the policy that recommends.
        version: Its version; None for one that has none.
        problem: Why a policy was not taken up that should be; empty where none was refused.
        chains: What a request gets that names no number of chains.
        trending: The response for somebody of whom nothing is known.
        completer: Completes what users type; only replaced, never changed.
        shop_limits: What somebody unknown may be shown.
        moment: The end of the log, as it was last looked at.
        experiment: The one that runs, where the server records what it shows; else None.
        titles: Title of each product id.
    """

    def __init__(
        self,
        store: ShopStore,
        policy: Path,
        pool: WorkerPool,
        config: ServeConfig,
        metrics: Metrics,
    ) -> None:
        self.store, self.shop = store, store.shop
        self._pool, self._config, self._metrics = pool, config, metrics
        _store_memory(self.shop)
        self._choice = PolicyChoice(self.shop, config.policy)
        self._current: tuple[Path, int | None]
        self._refused: tuple[Path, int | None] | None = None
        first = load_saved(policy, config.dtype)
        self._name(first)
        self.recommender = Recommender(self.shop, first.policy, group=config.chains)
        self.chains = self.recommender.group
        self.titles = _titles(self.recommender)
        self.cache: UserCache[RecommendResponse] = UserCache(
            config.cache_seconds, config.cache_users
        )
        self.thinker = Thinker(config, metrics)
        self._profiles: UserCache[Profile] = UserCache(config.cache_seconds, config.cache_users)
        self.arms = Arms(config)
        self.experiment = self.arms.follow(self.recommender, self.shop)
        self._personal: UserCache[tuple[Profile, Limits]] = UserCache(
            config.cache_seconds, config.cache_users
        )
        self.completer: Completer
        self._completer_of: tuple[datetime, Shop, ProductSearch] | None = None
        self._pool_is_stale = False  # its processes do not know the newest products yet
        self.pace = DecodePace()
        self.trending: RecommendResponse | None = None
        self.moment = self.shop.end_of_log()
        self._trending_at = 0.0
        self._rules: ShopRules  # of the trending response, and of all that is known already
        self._rules_until: datetime
        self._trending_as_of: datetime | None = None
        self.refresh_trending()

    def respond(self, pending: Sequence[PendingRequest]) -> None:
        """Answer requests in one decode; the future of each is set as soon as it is known."""
        now, start = self.moment, time.monotonic()
        for waiting in pending:
            self._note_stages([waiting], {"queue": start - waiting.submitted})
        profiles = self._read_profiles(pending, now)
        self._note_stages(pending, {"memory": time.monotonic() - start})
        requests = [
            RecommendRequest(
                profile,
                request.as_of or now,
                request.k,
                request.chains,
                self.recommender.others(request.as_of or now),
                limits,
            )
            for request, profile, limits in zip(
                pending, profiles, self._limits(pending), strict=True
            )
        ]
        agents = []
        for waiting, request in zip(pending, requests, strict=True):
            systems = self.experiment.systems(waiting.user) if self.experiment else (AGENT,)
            if self._answer_arms(systems, waiting, request):
                agents.append((waiting, request))
        if agents:
            shared = self._shared(*zip(*agents, strict=True))
            if shared:
                self._decode(shared)

    def _answer_arms(
        self, systems: tuple[str, ...], waiting: PendingRequest, request: RecommendRequest
    ) -> bool:
        """Answer a request with the systems of an experiment; True where the agent has a part."""
        others = {s: self._arm_response(s, waiting, request) for s in systems if s != AGENT}
        if None in others.values():
            self._fall_back([(waiting, request)])
            return False

        def mix(agents: RecommendResponse | None) -> RecommendResponse:
            responses = [agents if s == AGENT else others[s] for s in systems]
            control, treatment = responses[0], responses[-1]
            assert control is not None and treatment is not None
            if len(systems) == 1:
                return control
            return self.arms.mixed(control, treatment, waiting.k)

        if AGENT in systems:
            waiting.mix = mix
            return True
        response = mix(None)
        self._remember(waiting, response)
        if not waiting.future.done():
            waiting.future.set_result(response)
        return False

    def _arm_response(
        self, system: str, waiting: PendingRequest, request: RecommendRequest
    ) -> RecommendResponse | None:
        """What another system than the agent answers; None where there is no time for it."""
        if system == MEMORY:
            self._read_fallbacks([(waiting, request)])
            assert waiting.fallback is not None
            return replace(waiting.fallback, reason="experiment")
        if waiting.deadline - time.monotonic() < self.pace.seconds(1):
            return None
        (result,) = self.arms.answer(system, [request], self._config.seed)
        name, version = parse_reference(self.arms.reference(system))
        return RecommendResponse(
            result.recommendations, "agent", result.as_of, name, version, request.group
        )

    def forget(self, users: Iterable[str]) -> None:
        """Drop what is cached of users who did something, and see the new events."""
        for user in users:
            self._forget(user)
            self._profiles.forget(user)
        self.recommender.refresh()
        self.moment = self.shop.end_of_log()

    def prepare(self, shop: Shop) -> NextShop:
        """Open search and memory of another snapshot, in any thread, beside the answers."""
        settings = shop.config.search
        # Models compute in the worker's thread only.
        is_plain = settings.encoder == SUBWORD and not (settings.reranker or settings.engine)
        search = open_shop_search(shop) if is_plain else None
        _store_memory(shop)
        memory = self.recommender.open_memory(shop)
        now = shop.end_of_log()
        memory.read_all(now)
        completer = (_hour(now), Completer.of_shop(memory, search, _hour(now))) if search else None
        return NextShop(shop, search, memory, completer)

    def use_shop(self, following: NextShop) -> Shop:
        """Answer from another snapshot of the shop, which another process has changed.

        Returns the one from before, for the caller to close: that takes as long as two answers.
        """
        old, shop = self.shop, following.shop
        store = MemoryStore(shop.connection, shop.config.memory)
        before = store.state()
        apply_journal(shop)
        store.keep(before)
        search = following.search or open_shop_search(shop)
        self.recommender.use_shop(shop, _current(shop, search), following.memory)
        self.recommender.refresh()  # the journal came after that memory was opened
        self.shop = self.store.shop = shop  # at once: posts are stored where answers look
        self.titles = _titles(self.recommender)
        if following.completer:
            hour, self.completer = following.completer
            self._completer_of = (hour, shop, search)
        self._pool_is_stale = True
        self.reload_processes()
        self.experiment = self.arms.follow(self.recommender, shop)
        self.start_afresh()
        return old

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
        self.recommender.use_search(_current(shop, self.recommender.search))
        self.experiment = self.arms.follow(self.recommender, shop)
        self.recommender.refresh()
        self.titles = _titles(self.recommender)
        self._pool_is_stale = True
        self.start_afresh()
        self.store.move_soon()
        return report

    def reload_processes(self) -> None:
        """Let the processes beside this one search the catalog that the file holds now."""
        if self._pool_is_stale:
            self._pool.reload()
        self._pool_is_stale = False

    def change_rules(self, rules: Sequence[Rule]) -> None:
        """Keep rules in the journal, and recommend by them from now on."""
        self._keep(rules_entry(rules))
        self.recommender.limits = LimitsBook(self.shop)
        self.start_afresh()

    def change_wishes(self, wishes: Sequence[Wish]) -> None:
        """Keep wishes of users in the journal, and honour them from now on."""
        self._keep(wishes_entry(wishes))
        self.recommender.limits.has_wishes = True
        for wish in wishes:
            self._forget(wish.user_id)

    def _forget(self, user: str) -> None:
        """Drop a user's answers."""
        self.cache.forget(user)
        self.thinker.forget(user)
        self._personal.forget(user)

    def _keep(self, entry: Entry) -> None:
        """Keep an entry in the journal, and apply it to the snapshot."""
        self.store.append([entry])
        with self.shop.transaction():
            apply_entries(self.shop, [entry])

    def rules_changed(self) -> bool:
        """Whether another rule holds now than when the trending response was computed."""
        return self.recommender.limits.rules_at(self._time()) is not self._rules

    def _time(self) -> datetime:
        """Now, as `shop_time` has it, without asking the database."""
        return self.moment if self.shop.config.simulated is not None else utc_now()

    def _limits(self, pending: Sequence[PendingRequest]) -> list[Limits]:
        """What each answer may hold."""
        book = self.recommender.limits
        now = book.limits([r.user for r in pending], self._time())
        return [
            limits if request.as_of is None else book.limits([request.user], request.as_of)[0]
            for request, limits in zip(pending, now, strict=True)
        ]

    def start_afresh(self) -> None:
        """Drop all that was computed, as what it follows from has changed."""
        self.cache.clear()
        self.thinker.clear()
        self._profiles.clear()
        self._personal.clear()
        self._trending_as_of = None  # until then the old one answers those who wait for no longer
        self.refresh_trending()

    def use_policy(self, name: str) -> str:
        """Recommend with another policy, or with the same one as it is saved now.

        Raises:
            QAgentError: there is none of that name, or it cannot be loaded; the old one stays.
        """
        self._load(resolve(self.shop, name))
        self._choice.choose(name)
        return name

    def reload_policy(self) -> None:
        """Load the policy that should recommend as it is saved now.

        Raises:
            QAgentError: it cannot be loaded; the old one stays.
        """
        self._load(self._choice.folder())

    def _load(self, folder: Path) -> None:
        try:
            loaded = load_saved(folder, self._config.dtype)
        except QAgentError as error:
            self.refuse(folder, error)
            raise
        self.take_up(loaded)

    def policy_to_load(self) -> Path | None:
        """The folder of a policy that should recommend and does not; None where there is none."""
        try:
            folder = self._choice.folder()
        except QAgentError as error:  # it was removed by hand
            self._note_problem(str(error))
            return None
        wanted = (folder, saved_at(folder))
        if wanted == self._current:
            self._refused, self.problem = None, ""
        is_known = wanted in (self._current, self._refused) or wanted[1] is None
        return None if is_known else folder

    def take_up(self, loaded: SavedPolicy) -> None:
        """Recommend with a policy from the next batch on."""
        self.recommender.use_policy(loaded.policy)
        self._pool.use(loaded.folder)
        self.chains = self._config.chains or default_group_size(loaded.policy)
        self._name(loaded)
        self.start_afresh()
        self._metrics.policies.labels("taken").inc()
        log.info("policy %s taken up", reference_of(loaded.folder))

    def refuse(self, folder: Path, error: BaseException) -> None:
        """Go on with the old policy; the other one is not tried again until it changes."""
        self._refused = (folder, saved_at(folder))
        self._note_problem(f"{reference_of(folder)} was not taken up: {error}")
        self._metrics.policies.labels("refused").inc()

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s; going on with %s", problem, reference_of(self._current[0]))
        self.problem = problem

    def _name(self, loaded: SavedPolicy) -> None:
        """Note which policy recommends."""
        name, self.version = parse_reference(reference_of(loaded.folder))
        self.policy = shipped_name(loaded.folder) or name
        self.problem = ""
        self._current = (loaded.folder, loaded.saved_at)
        self._refused = None
        self._metrics.name_policy(self.policy, self.version)

    def trending_expired(self) -> bool:
        """Whether it is time for `refresh_trending`."""
        return time.monotonic() - self._trending_at >= TRENDING_SECONDS

    def refresh_trending(self) -> None:
        """Compute the response for everybody: what a new user would get."""
        self._trending_at = time.monotonic()
        now = self.moment = self.shop.end_of_log()
        # Once a day this takes a while; here no request waits for it.
        self.recommender.memory.read_all(now)
        if self._trending_as_of == now:
            return
        profile = self.recommender.profiles([""], now)[0]
        self._rules = self.recommender.limits.rules_at(self._time())
        self._rules_until = self.recommender.limits.good_until
        self.shop_limits = Limits(self._rules)
        self._refresh_completer(now)
        request = RecommendRequest(profile, now, TRENDING_QUERIES, limits=self.shop_limits)
        queries = self.recommender.recommend_from_memory([request])[0]
        self.trending = RecommendResponse(queries, "trending", now, self.policy, self.version)
        self._trending_as_of = now

    def _refresh_completer(self, now: datetime) -> None:
        """Complete with what the shop searched until this hour, in the catalog of now."""
        search = self.recommender.search
        hour = _hour(now)
        if self._completer_of is None or not (
            self._completer_of[0] == hour
            and self._completer_of[1] is self.shop
            and self._completer_of[2] is search
        ):
            self._completer_of = (hour, self.shop, search)
            self.completer = Completer.of_shop(self.recommender.memory, search, hour)

    def personal(self, user: str) -> tuple[Profile, Limits] | None:
        """What is expected of a user and may be shown to them, where it was read lately.

        Any thread may ask.
        """
        return self._personal.get(user, None)

    def read_personal(self, user: str) -> tuple[Profile, Limits]:
        """The same, read now."""
        profile = self._current_profiles([user], self.moment)[user]
        (limits,) = self.recommender.limits.limits([user], self._time())
        self._personal.put(user, None, (profile, limits))
        return profile, limits

    def _read_profiles(self, pending: Sequence[PendingRequest], now: datetime) -> list[Profile]:
        """The users' profiles, each at the moment of its request."""
        current = self._current_profiles([r.user for r in pending if r.as_of is None], now)
        return [
            current[r.user] if r.as_of is None else self.recommender.profiles([r.user], r.as_of)[0]
            for r in pending
        ]

    def _current_profiles(self, users: Iterable[str], now: datetime) -> dict[str, Profile]:
        """The profiles of users; those of users who did nothing since are still good."""
        known = {user: self._profiles.get(user, None) for user in users}
        current = {user: profile for user, profile in known.items() if profile is not None}
        missing = [user for user in known if user not in current]
        if missing:
            profiles = self.recommender.profiles(missing, now)
            for user, profile in zip(missing, profiles, strict=True):
                current[user] = profile
                self._profiles.put(user, None, profile)
        return current

    def _shared(
        self, pending: Sequence[PendingRequest], requests: Sequence[RecommendRequest]
    ) -> list[_SharedRequest]:
        """What can be decoded before the deadlines; all other requests get their fallback."""
        now = time.monotonic()
        shortest = self.pace.seconds(len(pending))  # with a single chain for each
        in_time, late = [], []
        for waiting, request in zip(pending, requests, strict=True):
            if waiting.deadline - now >= shortest:
                in_time.append((waiting, request))
            else:
                late.append((waiting, request))
        self._fall_back(late)
        if not in_time:
            return []
        chains = self.pace.chains(min(w.deadline for w, _ in in_time) - time.monotonic())
        share = min(1.0, max(0.0, chains / sum(w.chains for w, _ in in_time)))
        shared: dict[tuple[Any, ...], _SharedRequest] = {}
        for waiting, request in in_time:
            request = replace(request, group=max(1, int(request.group * share)))
            key = (waiting.user, waiting.key)
            shared.setdefault(key, _SharedRequest(request)).waiting.append(waiting)
        return list(shared.values())

    def _decode(self, shared: Sequence[_SharedRequest]) -> None:
        """Run the chains and set the responses."""

        requests = [s.request for s in shared]
        asked = [(waiting, s.request) for s in shared for waiting in s.waiting]
        chains = sum(request.group for request in requests)
        start = time.monotonic()
        # Where the time may not be enough, somebody else can tell what memory knows.
        left = min(waiting.deadline for waiting, _ in asked) - start
        patience = 0.0 if left < RISK * self.pace.seconds(chains) else left / 2

        def progress(_done: int) -> None:
            if all(waiting.abandoned for waiting, _ in asked):
                raise _Abandoned
            if time.monotonic() >= start + patience:
                self._read_fallbacks(asked)

        spent = dict(self.recommender.spent)
        try:
            progress(0)
            if self._pool_is_stale:
                results = self.recommender.answer(requests, self._config.seed, progress)
            else:
                results = self._pool.answer(self.recommender, requests, self._config.seed, progress)
        except _Abandoned:
            if all(waiting.interrupted is None for waiting, _ in asked):
                self.pace.slow_down()
            return  # nobody looks at their futures
        except Exception:
            self._read_fallbacks(asked)
            raise
        seconds = time.monotonic() - start
        stages = {name: s - spent[name] for name, s in self.recommender.spent.items()}
        waited = max(0.0, seconds - sum(stages.values()))  # for the other processes, above all
        self._note_stages([waiting for waiting, _ in asked], {**stages, "others": waited})
        self.pace.observe(chains, seconds)
        self._metrics.batch.observe(len(requests))
        self._metrics.decode.observe(seconds)
        self._metrics.chains.inc(chains)
        for s, result in zip(shared, results, strict=True):
            response = RecommendResponse(
                result.recommendations,
                "agent",
                result.as_of,
                self.policy,
                self.version,
                s.request.group,
            )
            for waiting in s.waiting:
                final = waiting.mix(response) if waiting.mix else response
                if response.chains == waiting.chains:  # not one that had to be cut short
                    self._remember(waiting, final)
                if not waiting.future.done():
                    waiting.future.set_result(final)

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
        if self._rules_until <= self._time():
            return None  # other rules hold now
        response = self.cache.get(request.user, request.key)
        if response is not None:
            return replace(response, cached=True)
        response = self.thinker.ready(request)
        return response and replace(response, thought_before=True)

    def _read_fallbacks(self, asked: Sequence[tuple[PendingRequest, RecommendRequest]]) -> None:
        """What memory alone answers, for those who may not get more in time."""
        missing = [(waiting, r) for waiting, r in asked if waiting.fallback is None]
        if not missing:
            return
        start = time.monotonic()
        lines = self.recommender.recommend_from_memory([request for _, request in missing])
        for (waiting, request), line in zip(missing, lines, strict=True):
            waiting.fallback = RecommendResponse(
                line, "top-line", request.as_of, self.policy, self.version
            )
        self._note_stages([w for w, _ in missing], {"fallback": time.monotonic() - start})

    def _fall_back(self, late: Sequence[tuple[PendingRequest, RecommendRequest]]) -> None:
        """Answer from memory those for whose chains there is no time."""
        self._read_fallbacks(late)
        for waiting, _ in late:
            if waiting.fallback is not None and not waiting.future.done():
                waiting.future.set_result(replace(waiting.fallback, reason="deadline"))

    def _note_stages(self, pending: Sequence[PendingRequest], seconds: Mapping[str, float]) -> None:
        """Note what a batch spent, for each of those who waited for it."""
        for waiting in pending:
            if waiting.interrupted is None:
                for stage, spent in seconds.items():
                    self._metrics.stages.labels(stage).observe(spent)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _store_memory(shop: Shop) -> None:
    """Store the memory of a snapshot, where the file has none that is current."""
    store = MemoryStore(shop.connection, shop.config.memory)
    if not store.is_current():
        with shop.transaction():
            store.build()


def _current(shop: Shop, search: ProductSearch) -> ProductSearch:
    """A search in line with a snapshot's catalog."""
    if not isinstance(search, HybridSearch):
        return open_shop_search(shop)
    if search.index.manifest.catalog_version == shop.catalog_version:
        return search
    index = updated_index(shop, search.index)
    return hybrid_search(shop, index, search.reranker)


def _titles(recommender: Recommender) -> dict[str, str]:
    catalog = recommender.search.catalog
    return dict(zip(catalog.ids, catalog.titles, strict=True))
