"""The whole story on the sample shop, scene by scene; whoever shows it does the drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agent.recommend import Recommender
from ..build import create_sample_shop
from ..environment.cases import build_cases, of_split
from ..environment.environment import Environment, Example
from ..errors import QAgentError
from ..evaluate.baselines.popularity import System, baselines
from ..evaluate.metrics import Ranking
from ..evaluate.policy_system import PolicySystem
from ..evaluate.report import evaluate
from ..inventory.index import open_index
from ..inventory.product_search import search_products
from ..memory.inspect import MemoryView
from ..policy.files import load_policy
from ..policy.registry import SAMPLE, open_policy, resolve
from ..policy.shop_memory import inspect_memory
from ..shop.sample import remove_sample_shop
from ..shop.shop import Shop
from ..train.grpo import train_grpo
from ..train.grpo_config import GrpoConfig
from ..train.sft import SftConfig, train_sft
from ..types import Case

NAME = "demo"  # the shop's name in its settings: only a shop of this name is ever removed
SHOWN_BASELINES = ("popular", "repeat-last", "co-occurrence")


@dataclass(frozen=True)
class DemoConfig:
    """How long the story takes."""

    parent: str = SAMPLE
    sft_steps: int = 20
    grpo_steps: int = 25
    cases: int = 500  # test cases of the evaluations
    chains: int = 1  # a case in the evaluations: what one chain learns is not hidden by a vote
    group: int = 8
    measured: int = 50  # validation cases of the rewards that training reports
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of the story: its data when it has ended, None when it begins."""

    name: str
    title: str
    data: dict[str, Any] | MemoryView | None = None


class _Remembered:
    """A system whose answers are kept, as the second evaluation asks what the first did."""

    def __init__(self, system: System) -> None:
        self.name = system.name
        self._system = system
        self._known: dict[tuple[int, ...], list[Ranking]] = {}

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """At most ``k`` queries for each example, the best first."""
        key = (k, *(e.case.case_id for e in examples))
        if key not in self._known:
            self._known[key] = self._system.rank(examples, k)
        return self._known[key]


def story(
    path: str | Path,
    config: DemoConfig | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Scene]:
    """Make the demo shop and tell the story; each scene is yielded as it begins and ends.

    Args:
        path: The shop's folder; a demo shop that is there is made anew.
        config: How long it takes.
        on_stage: Called with what begins inside a scene.
        on_step: Called after each step of training with its metrics.

    Raises:
        QAgentError: the folder holds something else, or the parent policy is missing.
    """
    config = config or DemoConfig()
    parent = str(resolve(None, config.parent)) if config.parent != SAMPLE else SAMPLE
    resolve(None, parent)
    remove_sample_shop(path, NAME)

    yield Scene("ingest", "A shop: products and events from files, and the index")
    counts = create_sample_shop(path, on_stage, NAME)
    yield Scene("ingest", "", counts)

    with Shop.open(path) as shop:
        index = open_index(shop)
        case = hero(of_split(build_cases(shop.connection, after=index.clicks_until), "test"))
        policy = open_policy(None, parent)

        yield Scene("memory", "Memory: what the agent may know of one user at one moment")
        view = inspect_memory(shop, case.user_id, case.as_of, policy.codec.count)
        yield Scene("memory", "", view)

        yield Scene("search", "Search: what a query retrieves at that moment")
        query = _first_query(shop, policy.codec.count, case)
        found = search_products(shop, query, 5, as_of=case.as_of)
        yield Scene("search", "", {"query": query, "results": found})

        yield Scene("sft", f"SFT: the {_short(parent)} policy practises chains of retrieval")
        environment = Environment.of_shop(shop, policy.codec, policy.info.agent)
        report = train_sft(
            shop,
            parent,
            "sft",
            SftConfig(steps=config.sft_steps, measured=config.measured, seed=config.seed),
            environment=environment,
            on_step=on_step,
        )
        yield Scene("sft", "", report)

        yield Scene("before", "Evaluation before reinforcement learning")
        sft = load_policy(shop.path / "policies" / "sft")
        before = _Remembered(
            PolicySystem("sft", sft, environment, group=config.chains, seed=config.seed)
        )
        first = evaluate(environment, [before], "test", 5, config.cases, seed=config.seed)
        yield Scene("before", "", first)

        yield Scene("grpo", "GRPO: the policy learns from what its own queries retrieve")
        report = train_grpo(
            shop,
            "sft",
            "grpo",
            GrpoConfig(
                steps=config.grpo_steps,
                group=config.group,
                measured=config.measured,
                seed=config.seed,
            ),
            environment=environment,
            on_step=on_step,
        )
        yield Scene("grpo", "", report)

        yield Scene("after", "Evaluation after: against SFT and recommenders without a model")
        grpo = load_policy(shop.path / "policies" / "grpo")
        systems: list[System] = [
            PolicySystem("grpo", grpo, environment, group=config.chains, seed=config.seed),
            before,
            *(b for b in baselines(shop) if b.name in SHOWN_BASELINES),
        ]
        second = evaluate(
            environment,
            systems,
            "test",
            5,
            config.cases,
            seed=config.seed,
            compare=[("grpo", "sft")],
        )
        for system in second["systems"]:
            if system["name"] == "sft":  # its answers were remembered, which took no time
                system["latency_ms"] = first["systems"][0]["latency_ms"]
        yield Scene("after", "", second)

        yield Scene("user", "The same user, before and after")
        answers = {
            name: Recommender(shop, one, group=config.group).recommend(
                [case.user_id], 5, case.as_of, config.seed
            )[0]
            for name, one in (("sft", sft), ("grpo", grpo))
        }
        yield Scene("user", "", {"case": case, "answers": answers})


def hero(cases: Sequence[Case]) -> Case:
    """The case that the story follows: a user with some history, from the middle of the split."""
    if not cases:
        raise QAgentError("the shop has no test case; its log is too short for the demo")
    known = [c for c in cases if 20 <= c.history <= 60] or list(cases)
    return known[len(known) // 2]


def _first_query(shop: Shop, count: Any, case: Case) -> str:
    """The query that memory thinks likeliest; never the true one unless memory names it."""
    from ..memory.profile import Memory
    from ..memory.ranker import MemoryRanker
    from ..memory.types import Moment

    memory = Memory(shop.connection, shop.config.memory, count, MemoryRanker.of_shop(shop))
    profile = memory.profiles([Moment(case.user_id, case.as_of)])[0]
    return profile.references[0] if profile.references else case.query


def _short(name: str) -> str:
    return Path(name).name
