"""Whether the live reports say what they claim, on simulated shoppers, run many times.

    python tests/benchmarks/live_statistics.py SHOP [--users N] [--runs N]

Fresh shoppers of a simulated shop see what memory and a policy recommend at their visits. Each run
draws shoppers and their taps anew: how often an A/A test is significant, how often an A/B test and
team-draft interleaving find the better system, and how often off-policy estimates from answers of
memory, a fifth of them explored, cover what the other system earns.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import qagent_mlx

qagent_mlx.configure()

import numpy as np

from qagent_mlx.environment.environment import Environment
from qagent_mlx.evaluate.abtest import _copy, fresh_shoppers, simulated_world
from qagent_mlx.evaluate.config import AbConfig, EvaluationConfig
from qagent_mlx.evaluate.suite import SystemFactory
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.index import open_index
from qagent_mlx.live.experiment_report import compare
from qagent_mlx.live.interleaving import prefer, team_draft
from qagent_mlx.live.off_policy import LoggedAnswer, estimate, propensities, shuffled
from qagent_mlx.shop.shop import Shop
from qagent_mlx.simulator.click_model import EXAMINATION, QueryInterpreter
from qagent_mlx.simulator.world import START
from qagent_mlx.utils.text import query_key

K = 5
EXPLORED = 0.2
DAYS = 14  # of the log's end in which the visits lie


@dataclass(frozen=True)
class World:
    """Visits of shoppers with the slates of both systems, and how likely each query is tapped."""

    owners: np.ndarray  # the shopper of each visit, as a number
    slates: dict[str, list[tuple[str, ...]]]
    chances: list[dict[str, float]]  # of each visit: query -> P(tap | examined)

    def tapped(self, visit: int, slate: Sequence[str], rng: np.random.Generator) -> int:
        """The position that is tapped of a slate, or -1."""
        for position, query in enumerate(slate):
            if position and rng.random() > EXAMINATION:
                return -1
            if rng.random() < self.chances[visit][query]:
                return position
        return -1

    def rate(self, visit: int, slate: Sequence[str]) -> float:
        """P(a query of a slate is tapped)."""
        missed, total = 1.0, 0.0
        for position, query in enumerate(slate):
            missed *= EXAMINATION if position else 1.0
            total += missed * self.chances[visit][query]
            missed *= 1 - self.chances[visit][query]
        return total

    def sample(self, rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
        """Shoppers drawn with replacement: visits, and the number of each one's shopper."""
        drawn = rng.integers(0, int(self.owners.max()) + 1, users)
        visits = [np.flatnonzero(self.owners == owner) for owner in drawn.tolist()]
        return np.concatenate(visits), np.repeat(np.arange(users), [len(v) for v in visits])


def see(path: Path, treatment: str, users: int) -> World:
    """Let fresh shoppers come, and both systems recommend to them."""
    with Shop.open(path) as shop, tempfile.TemporaryDirectory() as folder:
        world = simulated_world(shop)
        open_index(shop)
        start = shop.end_of_log() - timedelta(days=DAYS)
        people = fresh_shoppers(world, AbConfig(users=users, visits=4), start)
        with _copy(shop, Path(folder) / "shop") as copy:
            append_events(copy, people.log)
            factory = SystemFactory(
                copy,
                lambda codec, agent: Environment.of_cases(copy, people.cases, codec, agent),
                EvaluationConfig(group=2),
                policies=shop,
            )
            slates = {}
            for arm, name in (("control", "top-line"), ("treatment", treatment)):
                rankings = factory.named(name).rank(factory.environment.examples, K)
                slates[arm] = [ranking.queries[:K] for ranking in rankings]
    interpreter = QueryInterpreter(world)
    chances = [
        {query: visit.tap_probability(interpreter, query) for query in {*control, *treated}}
        for visit, control, treated in zip(people.visits, *slates.values(), strict=True)
    ]
    numbers: dict[str, int] = {}
    owners = [numbers.setdefault(case.user_id, len(numbers)) for case in people.cases]
    return World(np.array(owners), slates, chances)


def two_arms(world: World, rng: np.random.Generator, users: int, arms: tuple[str, str]) -> float:
    """The p-value of one experiment in two arms."""
    visits, owner = world.sample(rng, users)
    is_treated = rng.random(users) < 0.5
    taps = np.zeros(users)
    for visit, user in zip(visits.tolist(), owner.tolist(), strict=True):
        slate = world.slates[arms[int(is_treated[user])]][visit]
        taps[user] += world.tapped(visit, slate, rng) >= 0
    found = compare(taps, np.bincount(owner, minlength=users).astype(float), is_treated)
    return 1.0 if found.p is None else found.p


def interleaved(world: World, rng: np.random.Generator, users: int) -> float:
    """The p-value of one interleaved experiment."""
    visits, owner = world.sample(rng, users)
    coin = random.Random(int(rng.integers(1 << 30)))
    won = {"control": np.zeros(users), "treatment": np.zeros(users)}
    for visit, user in zip(visits.tolist(), owner.tolist(), strict=True):
        both = (world.slates[arm][visit] for arm in ("control", "treatment"))
        slate, teams = team_draft(*both, K, query_key, coin)
        position = world.tapped(visit, slate, rng)
        if position >= 0:
            won[teams[position]][user] += 1
    answers = np.bincount(owner, minlength=users).astype(float)
    p = prefer(won["control"], won["treatment"], answers).p
    return 1.0 if p is None else p


def covered(
    world: World, rng: np.random.Generator, users: int, targets: dict[str, list[tuple[str, ...]]]
) -> dict[str, list[bool]]:
    """Whether estimates of what other slates earn cover it, by target: IPS, SNIPS and DR."""
    visits, owner = world.sample(rng, users)
    logged = []
    for visit, user in zip(visits.tolist(), owner.tolist(), strict=True):
        slate = world.slates["control"][visit]
        order = shuffled(len(slate), rng) if rng.random() < EXPLORED else list(range(len(slate)))
        shown = [slate[rank] for rank in order]
        rewards = np.zeros(len(shown))
        if (position := world.tapped(visit, shown, rng)) >= 0:
            rewards[position] = 1.0
        logged.append(
            LoggedAnswer(
                f"u{user}",
                START,
                tuple(map(query_key, shown)),
                propensities(order, EXPLORED),
                tuple(rewards.tolist()),
            )
        )
    result = {}
    everyone = np.bincount(world.owners).astype(float)
    for name, slates in targets.items():
        rates = np.array([world.rate(v, slates[v]) for v in range(len(world.owners))])
        truth = np.bincount(world.owners, rates).sum() / everyone.sum()
        report = estimate(logged, [slates[visit] for visit in visits.tolist()])
        found = (report.ips, report.snips, report.dr)
        result[name] = [e.lo is not None and e.lo <= truth <= e.hi for e in found]  # type: ignore
    return result


def main(path: Path, treatment: str, shoppers: int, runs: int) -> None:
    """Print a line for each claim."""
    world = see(path, treatment, shoppers)
    visits = range(len(world.owners))
    rates = {a: np.mean([world.rate(v, s[v]) for v in visits]) for a, s in world.slates.items()}
    print(f"{shoppers} shoppers, {len(visits)} visits; taps a visit: ", rates, flush=True)
    rng = np.random.default_rng(0)
    same = [two_arms(world, rng, 300, ("control", "control")) < 0.05 for _ in range(runs)]
    print(f"A/A, 300 users: significant in {np.mean(same):.1%} of {runs} runs", flush=True)
    for users in (100, 300, 1000):
        arms = [two_arms(world, rng, users, ("control", "treatment")) < 0.05 for _ in range(runs)]
        mixed = [interleaved(world, rng, users) < 0.05 for _ in range(runs)]
        print(
            f"{users} users: found by two arms in {np.mean(arms):.1%} of {runs} runs, by "
            f"interleaving in {np.mean(mixed):.1%}",
            flush=True,
        )
    reordered = [slate[1:2] + slate[:1] + slate[2:] for slate in world.slates["control"]]
    targets = {"first two swapped": reordered, treatment: world.slates["treatment"]}
    hits = [covered(world, rng, 600, targets) for _ in range(runs)]
    for name in targets:
        shares = np.mean([hit[name] for hit in hits], axis=0)
        said = ", ".join(
            f"{estimator} {share:.1%}"
            for estimator, share in zip(("IPS", "SNIPS", "DR"), shares, strict=True)
        )
        print(f"off-policy, {name}, 600 users: the truth is covered by {said}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shop", type=Path)
    parser.add_argument("--treatment", default="sample")
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    main(given.shop, given.treatment, given.users, given.runs)
