"""A simulated A/B test: fresh shoppers of the simulator see what two systems recommend.

The shoppers live in the shop's own simulated world with tastes of their own. Until a visit
they leave a log like everybody else's; at the visit both systems read it, each shows ``k``
queries, and the shopper answers both (`tapping`), as two copies of one person would. So the
test is paired, and common random numbers keep its variance small. Nothing that the systems
show changes what the shopper does later.

Rates are over all shoppers: CTR is taps over rows shown, guided CVR is purchases over taps
(as the paper's guided conversion, arXiv:2606.05671), revenue is per row shown. Shoppers, not
visits, are resampled; p comes from swapping the two systems within shoppers at random.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from ..agent.recommend import GROUP
from ..environment.environment import Environment
from ..errors import QAgentError
from ..ingest.ingest import append_events
from ..inventory.index import open_index
from ..shop.shop import Shop
from ..simulator.click_model import QueryInterpreter, SlateOutcome, Visit
from ..simulator.shopper import Shopper
from ..simulator.world import START, SimulatedShop, SimulatorConfig, moment
from ..types import Case
from .baselines.popularity import System
from .metrics import FLIPS
from .suite import SystemFactory, cases_of, parts_of

FRESH = 5  # part of a fresh shopper's seed; those of the sample's own shoppers have a 2
RESAMPLES = 2000
POWER = 0.8
ARMS = ("control", "treatment")
RATES = {  # name -> (what is counted, over what)
    "ctr": ("taps", "rows"),
    "cvr": ("purchases", "taps"),
    "orders": ("purchases", "rows"),
    "revenue": ("revenue", "rows"),
}


MakeSystem = Callable[[Shop, Environment], System]


@dataclass(frozen=True)
class AbConfig:
    """How a test is run."""

    users: int = 500
    visits: int = 3  # of one shopper at most, the first ones of the test's time
    k: int = 5
    draws: int = 10  # how often each visit is lived through, each time with other luck
    seed: int = 0
    detect: float = 0.03  # the lift that the sample sizes are for


@dataclass(frozen=True)
class Population:
    """Fresh shoppers: what they did before, and the visits at which they are asked."""

    log: list[dict[str, Any]]
    visits: list[Visit]
    cases: list[Case]  # one a visit; without an answer, as nobody knows one


def world_of(shop: Shop) -> SimulatedShop:
    """The world that a simulated shop was made from.

    Raises:
        QAgentError: the shop is not simulated, or its catalog is not that world's.
    """
    settings = shop.config.simulated
    if not settings:
        raise QAgentError(
            f"{shop.path} is not a simulated shop, and only simulated shoppers can be asked; "
            "make one with: qagent init --sample"
        )
    known = {f.name for f in fields(SimulatorConfig)}
    if set(settings) - known:
        raise QAgentError(
            f"{shop.path} was simulated by another version (setting "
            f"{sorted(set(settings) - known)[0]}); make it again with: qagent init --sample"
        )
    world = SimulatedShop(SimulatorConfig(**settings))
    titles = dict(shop.connection.execute("SELECT product_id, title FROM products").fetchall())
    if titles != {p.product_id: p.title for p in world.products}:
        raise QAgentError(
            f"the catalog of {shop.path} is not the one that its simulator makes, so its shoppers "
            "don't know the products; make the shop again with: qagent init --sample"
        )
    return world


def fresh_shoppers(world: SimulatedShop, config: AbConfig, since: datetime) -> Population:
    """New shoppers, each alive until their last visit of the test.

    Args:
        world: They know its products.
        config: How many, and how many visits of each.
        since: Visits from this moment on are part of the test.
    """
    first = (since - START) / timedelta(days=1)
    log: list[dict[str, Any]] = []
    visits: list[Visit] = []
    cases: list[Case] = []
    number = 0
    while len({c.user_id for c in cases}) < config.users:
        seed = (world.config.seed, FRESH, config.seed, number)
        shopper = Shopper(world, f"fresh-{config.seed}-{number:05d}", seed)
        number += 1
        if number > 10 * config.users + 100:
            raise QAgentError(
                f"only {len({c.user_id for c in cases})} of {number} simulated shoppers come "
                f"after {since:%Y-%m-%d %H:%M}; let the test begin earlier with --test-from"
            )
        mine: list[dict[str, Any]] = []
        asked = before = 0
        for day, events in shopper.visits():
            # Now and then a visit begins before the last one has ended: nobody is asked then.
            if day >= first and mine and moment(day) > max(e["time"] for e in mine):
                visits.append(Visit.of(shopper, day, (*seed, asked)))
                cases.append(
                    Case(
                        case_id=len(cases),
                        user_id=shopper.user_id,
                        as_of=moment(day),
                        query="",
                        query_key="",
                        products=(),
                        history=len(mine),
                        split="test",
                    )
                )
                asked, before = asked + 1, len(mine)
                if asked == config.visits:
                    break
            mine += list(events)
        log += mine[:before]
    return Population(sorted(log, key=lambda e: (e["time"], e["user_id"])), visits, cases)


def abtest(
    shop: Shop,
    control: str,
    treatment: str,
    config: AbConfig | None = None,
    *,
    since: datetime | None = None,
    group: int = GROUP,
    systems: Mapping[str, MakeSystem] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the test; the shop itself is not changed.

    Args:
        shop: A simulated one; read only is enough.
        control: A policy, a baseline, ``NAME (ablation)``, or one of ``systems``.
        treatment: The same.
        config: Size and seed.
        since: When the test begins; by default where the test cases do.
        group: Chains of a policy at a visit.
        systems: Recommenders of one's own by name, each made of a copy of the shop that knows
            the fresh shoppers' log, and of the visits.
        on_stage: Called with what begins.

    Returns:
        ``ctr``, ``cvr``, ``orders`` (purchases a row shown) and ``revenue`` (a row shown), each
        with ``control``, ``treatment``, ``lift`` (relative; None when control has none), its
        95 % interval ``lo`` and ``hi``, ``p``, and ``sample_size``: shoppers that an unpaired test
        needs in each arm to find a lift of ``config.detect`` (two-sided 5 %, power 80 %; None
        where nothing happened). Also ``arms``, ``users``, ``rows``, ``same`` (share of the
        visits at which both showed the same), ``settings``.

    Raises:
        QAgentError: the shop is not simulated, or a name is unknown.
    """
    config = config or AbConfig()
    say = on_stage or (lambda stage: None)
    if control == treatment:
        raise QAgentError("control and treatment are the same; name two different systems")
    own_systems = dict(systems or {})
    for name in (control, treatment):
        if name not in own_systems:
            parts_of(shop, name)  # before the shoppers, who take a while
    world = world_of(shop)
    if since is None:
        since = next(c.as_of for c in cases_of(shop) if c.split == "test")
    open_index(shop)
    say(f"simulating {config.users:,} fresh shoppers")
    people = fresh_shoppers(world, config, since)
    shop.connection.execute("SELECT 1")  # a shop that somebody writes to is not copied
    with (
        tempfile.TemporaryDirectory(prefix="qagent-ab-") as folder,
        _copy(shop, Path(folder) / "shop") as own,
    ):
        if append_events(own, people.log).rejected:
            raise QAgentError(f"the fresh shoppers' log does not fit {shop.path}")
        line = SystemFactory(
            own,
            lambda codec, agent: Environment.of_cases(own, people.cases, codec, agent),
            group=group,
            seed=config.seed,
            policies=shop,
        )
        arms = [
            own_systems[name](own, line.environment) if name in own_systems else line.named(name)
            for name in (control, treatment)
        ]
        answers = _answers(line.environment, world, people, arms, config, say)
    report = compare_arms(people.cases, answers, config)
    flat = [[a for visit in arm for a in visit] for arm in answers]
    return {
        "arms": {"control": control, "treatment": treatment},
        **report,
        "same": float(np.mean([a == b for a, b in zip(*flat, strict=True)])),
        "tapped": [_most([a.query for a in arm]) for arm in flat],
        "since": since.isoformat(),
        "settings": asdict(config),
    }


def _copy(shop: Shop, path: Path) -> Shop:
    """A shop with the same data and index and no policies."""
    path.mkdir(parents=True)
    for name in ("shop.json", "shop.duckdb", "shop.duckdb.wal"):
        if (shop.path / name).exists():
            shutil.copy2(shop.path / name, path / name)
    shutil.copytree(shop.path / "inventory", path / "inventory")
    return Shop.open(path, read_only=False)


def _answers(
    environment: Environment,
    world: SimulatedShop,
    people: Population,
    systems: Sequence[System],
    config: AbConfig,
    say: Callable[[str], None],
) -> list[list[list[SlateOutcome]]]:
    """For each system, what every visit led to, a draw at a time."""
    place = {p.product_id: i for i, p in enumerate(world.products)}
    meanings = QueryInterpreter(world)
    made = []
    for system in systems:
        say(f"{system.name} recommends at {len(people.visits):,} visits")
        rankings = system.rank(environment.examples, config.k)
        answers = []
        for visit, case, ranking in zip(people.visits, people.cases, rankings, strict=True):

            def retrieve(query: str, as_of: datetime = case.as_of) -> np.ndarray:
                return np.array([place[p] for p in environment.retrieve(query, as_of)], dtype=int)

            shown = ranking.queries[: config.k]
            answers.append(visit.answers(meanings, shown, retrieve, config.draws))
        made.append(answers)
    return made


def _most(queries: Sequence[str]) -> list[dict[str, Any]]:
    """The queries that were tapped most."""
    kept = [q for q in queries if q]
    order = sorted(set(kept), key=lambda q: (-kept.count(q), q))
    return [{"query": q, "taps": kept.count(q)} for q in order[:5]]


# ---------------------------------------------------------------- statistics


def compare_arms(
    cases: Sequence[Case], answers: Sequence[Sequence[Sequence[SlateOutcome]]], config: AbConfig
) -> dict[str, Any]:
    """Rates of both arms with lift, interval, p and the sample size for a lift.

    Args:
        cases: One a visit; their users are the clusters.
        answers: Of control and of treatment: for each visit, one answer a draw.
        config: Seed, and the lift to detect.
    """
    users = sorted({c.user_id for c in cases})
    number = {user: i for i, user in enumerate(users)}
    owner = np.array([number[c.user_id] for c in cases])

    def per_user(value: Callable[[SlateOutcome], float]) -> np.ndarray:
        """(draws, 2, users)"""
        values = np.array([[[value(a) for a in v] for v in arm] for arm in answers], dtype=float)
        made = np.zeros((values.shape[2], 2, len(users)))
        for draw in range(len(made)):
            for arm in (0, 1):
                made[draw, arm] = np.bincount(owner, values[arm, :, draw], len(users))
        return made

    counts = {
        "rows": per_user(lambda a: 1.0),
        "taps": per_user(lambda a: float(a.tapped)),
        "purchases": per_user(lambda a: float(a.bought)),
        "revenue": per_user(lambda a: a.revenue),
    }
    report: dict[str, Any] = {}
    for name, (top, bottom) in RATES.items():
        row = ratio_difference(counts[top].mean(axis=0), counts[bottom].mean(axis=0), config.seed)
        report[name] = {**row, "needed": sample_size(counts[top], counts[bottom], config.detect)}
    return {**report, "users": len(users), "rows": len(cases)}


def ratio_difference(top: np.ndarray, bottom: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """A ratio of sums in two paired arms.

    Args:
        top: What is counted, (2, users), control first.
        bottom: Over what, (2, users).
        seed: Of the resamples and the swaps.

    Returns:
        ``control``, ``treatment``, ``lift``, ``lo``, ``hi``, ``p``.
    """
    users = top.shape[1]
    control, treatment = (_ratio(top[i].sum(), bottom[i].sum()) for i in (0, 1))
    random = np.random.default_rng([seed, 11])
    lifts = []
    for _ in range(RESAMPLES):
        weight = np.bincount(random.integers(0, users, users), minlength=users)
        a, b = (_ratio(top[i] @ weight, bottom[i] @ weight) for i in (0, 1))
        if a > 0:
            lifts.append(b / a - 1)
    known = control > 0 and len(lifts) > RESAMPLES / 2
    lo, hi = np.quantile(lifts, (0.025, 0.975)) if known else (None, None)
    return {
        "control": control,
        "treatment": treatment,
        "lift": treatment / control - 1 if known else None,
        "lo": None if lo is None else float(lo),
        "hi": None if hi is None else float(hi),
        "p": permutation_p(top, bottom, seed),
    }


def permutation_p(top: np.ndarray, bottom: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of a permutation test that swaps the two arms within users at random."""
    differs = np.flatnonzero((top[0] != top[1]) | (bottom[0] != bottom[1]))
    fixed = np.ones(top.shape[1], dtype=bool)
    fixed[differs] = False
    base = np.array([top[:, fixed].sum(axis=1), bottom[:, fixed].sum(axis=1)])
    a, b = top[:, differs], bottom[:, differs]
    observed = abs(_ratio(top[1].sum(), bottom[1].sum()) - _ratio(top[0].sum(), bottom[0].sum()))
    if not len(differs) or not observed:
        return 1.0
    random = np.random.default_rng([seed, 12])
    extreme = 0
    for at in range(0, FLIPS, 1000):
        swap = random.integers(0, 2, (min(1000, FLIPS - at), len(differs))).astype(float)
        tops = [base[0, i] + (1 - swap) @ a[i] + swap @ a[1 - i] for i in (0, 1)]
        bottoms = [base[1, i] + (1 - swap) @ b[i] + swap @ b[1 - i] for i in (0, 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = [np.where(n > 0, t / n, 0.0) for t, n in zip(tops, bottoms, strict=True)]
        extreme += int((np.abs(rates[1] - rates[0]) >= observed - 1e-12).sum())
    return (1 + extreme) / (1 + FLIPS)


def sample_size(top: np.ndarray, bottom: np.ndarray, detect: float) -> int | None:
    """Users an arm of an unpaired test with a power of 80 % at a two-sided 5 %.

    The variance of the control's ratio between users, by the delta method, once a draw: in a
    real test everybody lives through a moment once.

    Args:
        top: What is counted, (draws, 2, users), control first.
        bottom: Over what, (draws, 2, users).
        detect: The relative lift to find.
    """
    control = _ratio(top[:, 0].sum(), bottom[:, 0].sum())
    if not control or detect <= 0:
        return None
    residual = (top[:, 0] - control * bottom[:, 0]) / bottom[:, 0].mean()
    variance = float(residual.var(axis=1).mean())
    z = norm.ppf((1 + 0.95) / 2) + norm.ppf(POWER)
    return int(np.ceil(2 * variance * (z / (detect * control)) ** 2)) if variance else None


def _ratio(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else 0.0
