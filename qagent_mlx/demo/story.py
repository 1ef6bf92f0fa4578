"""The whole story on the sample shop, scene by scene; whoever shows it does the drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..build import create_sample_shop
from ..environment.cases import build_cases, of_split
from ..environment.environment import Environment, Example
from ..errors import QAgentError
from ..evaluate.baselines.registry import BASELINES, BaselineData
from ..evaluate.comparisons import FIRST_LINE
from ..evaluate.config import EvaluationConfig
from ..evaluate.metrics import Ranking, System
from ..evaluate.policy_system import PolicySystem
from ..evaluate.report import EvaluationReport, evaluate
from ..inventory.index import open_index
from ..inventory.product_search import search_products
from ..memory.profile import Memory
from ..memory.ranker import MemoryRanker
from ..memory.types import Moment
from ..policy.registry import SAMPLE, open_policy, resolve
from ..policy.shop_memory import inspect_memory
from ..shop.sample import remove_sample_shop
from ..shop.shop import Shop
from ..train.grpo_config import GrpoConfig
from ..train.grpo_run import train_grpo
from ..train.run_options import RunOptions
from ..train.sft import SftConfig, train_sft
from ..types import Case
from ..utils.settings import check
from ..utils.text import query_key
from .config import DemoConfig
from .writing import WritingScene, writing_scene

SHOP_NAME = "demo"  # only a sample shop that has this name in its settings is ever removed
BASELINES_SHOWN = ("popular", "repeat-last", "co-occurrence")


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of the story: it is yielded without data when it begins, and with data at its end."""

    name: str
    title: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A case before and after training, and in how many cases the answer changed for the better.

    Attributes:
        case: The case.
        queries: What was recommended, by system, the one before first.
        gained: Cases whose first query is the user's next one only after training.
        lost: Those in which it was so only before.
        cases: Cases that were compared.
    """

    case: Case
    queries: dict[str, tuple[str, ...]]
    gained: int
    lost: int
    cases: int


def story(
    path: str | Path,
    config: DemoConfig | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Scene]:
    """Create the demo shop anew in the folder ``path``, and yield each scene twice (see `Scene`).

    ``on_stage`` is called with what begins inside a scene, ``on_step`` after each training step
    with its metrics.
    """
    config = config or DemoConfig()
    check(config)
    parent = SAMPLE if config.parent == SAMPLE else str(resolve(None, config.parent))
    resolve(None, parent)
    remove_sample_shop(path, SHOP_NAME)

    yield Scene("ingest", "A shop: products and events from files, and the index")
    yield Scene("ingest", "", create_sample_shop(path, on_stage, SHOP_NAME).to_dict())
    with Shop.open(path) as shop:
        for name, title, action in _Story(shop, parent, config, on_step).scenes():
            yield Scene(name, title)
            yield Scene(name, "", action())


class _Story:
    """The scenes that need the shop, and what later ones take from earlier ones."""

    def __init__(
        self,
        shop: Shop,
        parent: str,
        config: DemoConfig,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._shop, self._parent, self._config, self._on_step = shop, parent, config, on_step
        self._policy = open_policy(None, parent)
        cases = build_cases(shop.connection, after=open_index(shop).clicks_until)
        self._case = example_case(of_split(cases, "test"))

    def scenes(self) -> list[tuple[str, str, Callable[[], Any]]]:
        """The name and title of each scene, and what happens in it, in order."""
        sft = f"SFT: the {Path(self._parent).name} policy practises chains of retrieval"
        after = "Evaluation after: against SFT and recommenders without a model"
        return [
            ("memory", "Memory: what the agent may know of one user at one moment", self._memory),
            ("search", "Search: what a query retrieves at that moment", self._search),
            ("sft", sft, self._sft),
            ("before", "Evaluation before reinforcement learning", self._before),
            ("grpo", "GRPO: the policy learns from what its own queries retrieve", self._grpo),
            ("after", after, self._after),
            ("user", "A user whose answer changed", self._user),
            ("writing", "Without anybody's queries: a policy that writes its own", self._writing),
        ]

    def _memory(self) -> Any:
        case = self._case
        return inspect_memory(self._shop, case.user_id, case.as_of, self._policy.codec.count)

    def _search(self) -> dict[str, Any]:
        """The query that memory ranks first; the true one only where memory has none."""
        shop, case = self._shop, self._case
        ranker = MemoryRanker.of_shop(shop)
        memory = Memory(shop.connection, shop.config.memory, self._policy.codec.count, ranker)
        profile = memory.profiles([Moment(case.user_id, case.as_of)])[0]
        query = profile.references[0] if profile.references else case.query
        return {"query": query, "results": search_products(shop, query, 5, as_of=case.as_of)}

    def _sft(self) -> dict[str, Any]:
        config, policy = self._config, self._policy
        self._environment = Environment.of_shop(self._shop, policy.codec, policy.info.agent)
        return train_sft(
            self._shop,
            self._parent,
            "sft",
            SftConfig(steps=config.sft_steps, measured=config.measured, seed=config.seed),
            options=RunOptions(environment=self._environment),
            on_step=self._on_step,
        ).to_dict()

    def _before(self) -> EvaluationReport:
        self._data = BaselineData(self._shop)
        first_line = BASELINES[FIRST_LINE](self._data)
        self._evaluated = [_Cached(self._system("sft")), _Cached(first_line)]
        self._first = self._evaluate(self._evaluated)
        return self._first

    def _grpo(self) -> dict[str, Any]:
        config = self._config
        return train_grpo(
            self._shop,
            "sft",
            "grpo",
            GrpoConfig(
                steps=config.grpo_steps,
                group=config.group,
                measured=config.measured,
                seed=config.seed,
            ),
            options=RunOptions(environment=self._environment),
            on_step=self._on_step,
        ).to_dict()

    def _after(self) -> EvaluationReport:
        systems: list[System] = [
            self._system("grpo"),
            *self._evaluated,
            *(BASELINES[name](self._data) for name in BASELINES_SHOWN),
        ]
        report = self._evaluate(systems, compare=(("grpo", "sft"),))
        # What was ranked in the first evaluation took its time there.
        latency = {result.name: result.latency_ms for result in self._first.systems}
        self._last = replace(
            report,
            systems=tuple(
                replace(result, latency_ms=latency.get(result.name, result.latency_ms))
                for result in report.systems
            ),
        )
        return self._last

    def _user(self) -> ChangedAnswer:
        return changed_answer(self._last, "sft", "grpo")

    def _writing(self) -> WritingScene:
        return writing_scene(self._shop, self._config.written, self._config.seed)

    def _load(self, name: str) -> Any:
        return open_policy(self._shop, name)

    def _system(self, name: str) -> PolicySystem:
        config = self._config
        return PolicySystem(
            name, self._load(name), self._environment, group=config.chains, seed=config.seed
        )

    def _evaluate(
        self, systems: Sequence[System], compare: tuple[tuple[str, str], ...] = ()
    ) -> EvaluationReport:
        config = EvaluationConfig(limit=self._config.cases, seed=self._config.seed, compare=compare)
        return evaluate(self._environment, systems, config)


class _Cached:
    """A system that ranks the same cases once: both evaluations ask for SFT's rankings."""

    def __init__(self, system: System) -> None:
        self.name = system.name
        self._system = system
        self._rankings: dict[tuple[int, ...], list[Ranking]] = {}

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """The system's rankings of the examples, computed at the first call."""
        key = (k, *(e.case.case_id for e in examples))
        if key not in self._rankings:
            self._rankings[key] = self._system.rank(examples, k)
        return self._rankings[key]


def changed_answer(report: EvaluationReport, before: str, after: str) -> ChangedAnswer:
    """A case that only the second of two systems answers with the user's next query.

    Where there is none, it is one in which their first queries differ, else the first case.
    """
    cases = [example.case for example in report.examples]
    answers = list(zip(report.rankings[before], report.rankings[after], strict=True))
    first = [[query_key(r.queries[0]) if r.queries else "" for r in pair] for pair in answers]
    right = [
        [key == case.query_key for key in keys] for case, keys in zip(cases, first, strict=True)
    ]
    gained = [i for i, (then, now) in enumerate(right) if now and not then]
    lost = [i for i, (then, now) in enumerate(right) if then and not now]
    differing = [i for i, (then, now) in enumerate(first) if then != now]
    chosen = next(iter([*gained, *differing, 0]))
    then, now = answers[chosen]
    queries = {before: then.queries, after: now.queries}
    return ChangedAnswer(cases[chosen], queries, len(gained), len(lost), len(cases))


def example_case(cases: Sequence[Case]) -> Case:
    """The case that the story follows: a user with some history, from the middle of the split."""
    if not cases:
        raise QAgentError("the shop has no test case; its log is too short for the demo")
    with_history = [c for c in cases if 20 <= c.history <= 60] or list(cases)
    return with_history[len(with_history) // 2]
