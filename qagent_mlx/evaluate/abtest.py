"""A simulated A/B test: fresh shoppers of the simulator see what two systems recommend.

The shoppers live in the shop's own simulated world with tastes of their own. Until a visit
they leave a log like everybody else's; at the visit both systems read it, each shows ``k``
queries, and the shopper responds to both (`simulator.click_model`), as two copies of one
person would. So the test is paired, and common random numbers keep its variance small.
Nothing that the systems show changes what the shopper does later.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ..environment.environment import Environment
from ..errors import QAgentError
from ..ingest.ingest import append_events
from ..inventory.index import open_index
from ..shop.shop import Shop
from ..simulator.click_model import QueryInterpreter, SlateOutcome, Visit
from ..simulator.shopper import Shopper
from ..simulator.world import START, SimulatedShop, SimulatorConfig, moment
from ..types import Case
from ..utils.settings import SettingError, check, merge
from .config import AbConfig, EvaluationConfig
from .metrics import System
from .oracle import ORACLES, ShopperOracle, tapped_search
from .significance import RateComparison, compare_rates, sample_size
from .suite import SystemFactory, cases_of, split_name

ANEW = "make the simulated shop anew: qagent init --sample"
FRESH = 5  # part of a fresh shopper's seed; those of the sample's own shoppers have a 2
RATES = {  # name -> (what is counted, over what)
    "ctr": ("taps", "visits"),
    "cvr": ("purchases", "taps"),
    "orders": ("purchases", "visits"),
    "revenue": ("revenue", "visits"),
}

MakeSystem = Callable[[Shop, Environment], System]


@dataclass(frozen=True, slots=True)
class AbTestReport:
    """Both arms of a simulated A/B test.

    Rates are over all shoppers: CTR is taps over slates shown, guided CVR is purchases over
    taps (as the paper's guided conversion, arXiv:2606.05671), orders and revenue are per slate.
    Shoppers, not visits, are resampled and swapped.
    """

    control: str
    treatment: str
    rates: dict[str, RateComparison]  # by the names of `RATES`
    users: int
    visits: int  # slates that each arm showed
    identical: float  # share of the outcomes that were the same in both arms
    most_tapped: tuple[list[tuple[str, int]], ...]  # of each arm: queries and their taps
    since: datetime
    config: AbConfig

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "arms": {"control": self.control, "treatment": self.treatment},
            **{name: asdict(rate) for name, rate in self.rates.items()},
            "users": self.users,
            "rows": self.visits,
            "same": self.identical,
            "tapped": [
                [{"query": query, "taps": taps} for query, taps in arm] for arm in self.most_tapped
            ],
            "since": self.since.isoformat(),
            "settings": asdict(self.config),
        }


@dataclass(frozen=True)
class Population:
    """Fresh shoppers: their log before the test, and their visits during it.

    Each visit has a case, which has no wanted query: nobody knows one.
    """

    log: list[dict[str, Any]]
    visits: list[Visit]
    cases: list[Case]


def abtest(
    shop: Shop,
    control: str,
    treatment: str,
    config: AbConfig | None = None,
    *,
    test_from: datetime | None = None,
    group: int = EvaluationConfig.group,
    systems: Mapping[str, MakeSystem] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> AbTestReport:
    """Run a simulated A/B test; the shop itself is not changed.

    Args:
        shop: A simulated one; read only is enough.
        control: A policy, a baseline, ``NAME (ablation)``, one of `oracle.ORACLES`, or one of
            ``systems``.
        treatment: The same.
        config: Size and seed.
        test_from: When the test begins; by default where the test cases do.
        group: Chains of a policy at a visit.
        systems: Recommenders of one's own by name, each built from a copy of the shop that
            knows the fresh shoppers' log, and from the visits.
        on_stage: Called with what begins.
    """
    config = config or AbConfig()
    check(config)
    report_stage = on_stage or (lambda stage: None)
    if control == treatment:
        raise QAgentError("control and treatment are the same; name two different systems")
    systems = systems or {}
    for name in (control, treatment):
        if name not in systems and name not in ORACLES:
            split_name(shop, name)  # unknown names are refused before shoppers are simulated
    world = simulated_world(shop)
    if test_from is None:
        test_from = next(c.as_of for c in cases_of(shop) if c.split == "test")
    open_index(shop)
    report_stage(f"simulating {config.users:,} fresh shoppers")
    population = fresh_shoppers(world, config, test_from)
    shop.connection.execute("SELECT 1")  # a shop that somebody writes to is not copied
    with (
        tempfile.TemporaryDirectory(prefix="qagent-ab-") as folder,
        _copy(shop, Path(folder) / "shop") as copy,
    ):
        if append_events(copy, population.log).rejected:
            raise QAgentError(f"the fresh shoppers' log does not fit {shop.path}: {ANEW}")
        factory = SystemFactory(
            copy,
            lambda codec, agent: Environment.of_cases(copy, population.cases, codec, agent),
            EvaluationConfig(group=group, seed=config.seed),
            policies=shop,
        )
        outcomes = []
        for name in (control, treatment):
            build = systems.get(name) or _maker(name, factory, world, population)
            system = build(copy, factory.environment)
            report_stage(f"{system.name} recommends at {len(population.visits):,} visits")
            outcomes.append(_respond(factory.environment, world, population, system, config))
    return compare_arms((control, treatment), population.cases, outcomes, config, test_from)


def _maker(
    name: str, factory: SystemFactory, world: SimulatedShop, population: Population
) -> MakeSystem:
    """What builds a system that is known by its name."""

    def make(_copy: Shop, environment: Environment) -> System:
        if name in ORACLES:
            return ShopperOracle(name, population.visits, world, environment)
        return factory.named(name)

    return make


def simulated_world(shop: Shop) -> SimulatedShop:
    """The world that a simulated shop was made from; checks that the catalog is that world's."""
    settings = shop.config.simulated
    if not settings:
        raise QAgentError(
            f"{shop.path} is not a simulated shop, and only simulated shoppers can be asked; "
            "make one with: qagent init --sample"
        )
    try:
        world = SimulatedShop(merge(SimulatorConfig(), settings))
    except QAgentError as error:
        raise QAgentError(
            f"{shop.path} was simulated by another version ({error}); make it again with: "
            "qagent init --sample"
        ) from error
    titles = dict(shop.connection.execute("SELECT product_id, title FROM products").fetchall())
    if titles != {p.product_id: p.title for p in world.products}:
        raise QAgentError(
            f"the catalog of {shop.path} is not the one that its simulator makes, so its shoppers "
            "don't know the products; make the shop again with: qagent init --sample"
        )
    return world


def fresh_shoppers(world: SimulatedShop, config: AbConfig, test_from: datetime) -> Population:
    """Simulate new shoppers, each up to their last visit of the test.

    Visits from ``test_from`` on are part of the test; a `SettingError` if too few come after it.
    """
    log: list[dict[str, Any]] = []
    visits: list[Visit] = []
    cases: list[Case] = []
    users = number = 0
    while users < config.users:
        seed = (world.config.seed, FRESH, config.seed, number)
        shopper = Shopper(world, f"fresh-{config.seed}-{number:05d}", seed)
        number += 1
        if number > 10 * config.users + 100:
            raise SettingError(
                "test_from",
                f"is too late: only {users} of {number} simulated shoppers come after "
                f"{test_from:%Y-%m-%d %H:%M}; let the test begin earlier",
            )
        events, shopper_visits = _shopper_visits(shopper, seed, config.visits, test_from)
        for visit, history in shopper_visits:
            visits.append(visit)
            as_of = moment(visit.day)
            case = Case(len(cases), shopper.user_id, as_of, "", "", (), history, "test")
            cases.append(case)
        users += bool(shopper_visits)
        log += events[: shopper_visits[-1][1]] if shopper_visits else []
    return Population(sorted(log, key=lambda e: (e["time"], e["user_id"])), visits, cases)


def _shopper_visits(
    shopper: Shopper, seed: tuple[int, ...], count: int, test_from: datetime
) -> tuple[list[dict[str, Any]], list[tuple[Visit, int]]]:
    """A shopper's events, and their first visits of the test, each with the events before it."""
    first_day = (test_from - START) / timedelta(days=1)
    events: list[dict[str, Any]] = []
    visits: list[tuple[Visit, int]] = []
    for day, session in shopper.visits():
        # Now and then a visit begins before the last one has ended: nothing is shown then.
        if day >= first_day and events and moment(day) > max(e["time"] for e in events):
            visits.append((Visit.of(shopper, day, (*seed, len(visits))), len(events)))
            if len(visits) == count:
                break
        events += session
    return events, visits


def _copy(shop: Shop, path: Path) -> Shop:
    """A shop with the same data and index and no policies."""
    path.mkdir(parents=True)
    for name in ("shop.json", "shop.duckdb", "shop.duckdb.wal"):
        if (shop.path / name).exists():
            shutil.copy2(shop.path / name, path / name)
    shutil.copytree(shop.path / "inventory", path / "inventory")
    return Shop.open_copy(path)


def _respond(
    environment: Environment,
    world: SimulatedShop,
    population: Population,
    system: System,
    config: AbConfig,
) -> list[list[SlateOutcome]]:
    """The outcomes of each visit with a system's slates, one for each draw."""
    interpreter, search_at = QueryInterpreter(world), tapped_search(world, environment)
    rankings = system.rank(environment.examples, config.k)
    outcomes = []
    for visit, case, ranking in zip(population.visits, population.cases, rankings, strict=True):
        slate, retrieve = ranking.queries[: config.k], search_at(case.as_of)
        outcomes.append(visit.outcomes(interpreter, slate, retrieve, config.draws))
    return outcomes


def compare_arms(
    arms: tuple[str, str],
    cases: Sequence[Case],
    outcomes: Sequence[Sequence[Sequence[SlateOutcome]]],
    config: AbConfig,
    test_from: datetime = START,
) -> AbTestReport:
    """Compare the rates of the control's and the treatment's ``outcomes``, (visits, draws) each.

    There is a case for each visit, and the cases' users are the clusters.
    """
    users = sorted({c.user_id for c in cases})
    number = {user: i for i, user in enumerate(users)}
    owner = np.array([number[c.user_id] for c in cases])

    def per_user(value: Callable[[SlateOutcome], float]) -> np.ndarray:
        """Sums over each user's visits, (draws, 2, users)."""
        values = np.array(
            [[[value(o) for o in visit] for visit in arm] for arm in outcomes], dtype=float
        )
        sums = [
            [np.bincount(owner, arm[:, draw], len(users)) for arm in values]
            for draw in range(values.shape[2])
        ]
        return np.array(sums)

    counts = {
        "visits": per_user(lambda outcome: 1.0),
        "taps": per_user(lambda outcome: float(outcome.tapped)),
        "purchases": per_user(lambda outcome: float(outcome.bought)),
        "revenue": per_user(lambda outcome: outcome.revenue),
    }
    rates = {}
    for name, (numerator, denominator) in RATES.items():
        n, d = counts[numerator], counts[denominator]
        rate = compare_rates(n.mean(axis=0), d.mean(axis=0), config.seed)
        rates[name] = replace(rate, needed=sample_size(n, d, config.detect))
    control, treatment = ([o for visit in arm for o in visit] for arm in outcomes)
    return AbTestReport(
        control=arms[0],
        treatment=arms[1],
        rates=rates,
        users=len(users),
        visits=len(cases),
        identical=float(np.mean([a == b for a, b in zip(control, treatment, strict=True)])),
        most_tapped=(_most_tapped(control), _most_tapped(treatment)),
        since=test_from,
        config=config,
    )


def _most_tapped(outcomes: Sequence[SlateOutcome]) -> list[tuple[str, int]]:
    taps = Counter(outcome.query for outcome in outcomes if outcome.query)
    return sorted(taps.items(), key=lambda item: (-item[1], item[0]))[:5]
