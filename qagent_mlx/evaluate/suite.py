"""Evaluation suites: policies, their ablations and baselines on the same cases of a shop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..agent.types import Rollout
from ..environment.cases import build_cases, of_split
from ..environment.config import SplitConfig
from ..environment.environment import Environment, Example
from ..environment.scenarios import open_scenario
from ..errors import QAgentError
from ..inventory.index import open_index
from ..memory.profile import Memory, count_words
from ..memory.types import CountTokens, Moment
from ..policy.files import base_of, load_policy, read_info
from ..policy.policy import Policy
from ..policy.registry import policy_names, resolve
from ..policy.shop_memory import token_counter
from ..protocol.config import SECTIONS, AgentConfig
from ..shop.config import ShopConfig
from ..shop.shop import Shop
from ..types import Case
from .baselines.prompted_llm import PromptedModel
from .baselines.registry import BASELINES, BaselineData, open_baseline, untrained
from .baselines.search_log import SearchLog
from .config import EvaluationConfig
from .metrics import Ranking, System
from .policy_system import PolicySystem
from .report import EvaluationReport, Progress, evaluate, evaluated_cases

ABLATIONS: dict[str, dict[str, Any]] = {  # name -> settings of the agent that it changes
    "no search": {"search": False},
    "no memory": {"memory": False},
    "no refinement": {"max_searches": 1},
    "no marks": {"marks": False},
    **{
        f"no {section}": {"sections": tuple(s for s in SECTIONS if s != section)}
        for section in SECTIONS
    },
}
MakeEnvironment = Callable[[Any, AgentConfig], Environment]


@dataclass(frozen=True)
class EvaluationSuite:
    """Systems and the cases they are evaluated on; the shop's database is not needed again."""

    environment: Environment
    systems: Sequence[System]
    config: EvaluationConfig
    log: SearchLog
    shop: ShopConfig
    snapshot: int | None = None  # see `Shop.lake_snapshot`
    scenario: str = "full"
    found: Mapping[int, bool] | None = None  # case id -> whether memory had its query

    def evaluate(self, on_progress: Progress | None = None) -> EvaluationReport:
        """Let every system rank every case, and score the rankings (see `report.evaluate`)."""
        report = evaluate(
            self.environment,
            self.systems,
            self.config,
            log=self.log,
            found=self.found,
            on_progress=on_progress,
        )
        report = report.with_shop(self.shop)
        return replace(report, scenario=self.scenario, snapshot=self.snapshot)

    def rollouts(self) -> dict[str, dict[int, list[Rollout]]]:
        """The chains that each policy kept, by case id."""
        policies = (s for s in self.systems if isinstance(s, PolicySystem))
        return {policy.name: policy.rollouts for policy in policies if policy.rollouts}


def evaluation_suite(
    shop: Shop,
    policies: Sequence[str],
    config: EvaluationConfig | None = None,
    split: SplitConfig | None = None,
) -> EvaluationSuite:
    """Prepare policies, ablations and baselines for an evaluation.

    The shop's index is built when it is missing or stale; a policy named twice counts once.
    """
    config = config or EvaluationConfig()
    _check_known("ablation", config.ablations, ABLATIONS)
    _check_known("baseline", config.baselines, BASELINES)
    scenario = open_scenario(shop, split)
    cases = of_split(scenario.cases, config.split)
    factory = SystemFactory(
        scenario.shop,
        lambda codec, agent: Environment.of_scenario(scenario, cases, codec, agent),
        config,
        policies=shop,
    )
    systems = [
        factory.policy(name, ablation)
        for name in dict.fromkeys(policies)
        for ablation in ("", *config.ablations)
    ]
    data = BaselineData(scenario.shop, factory.environment)
    names = untrained(data) if config.with_baselines else []
    names += [n for n in config.baselines if n not in {*names, *(s.name for s in systems)}]
    systems += [open_baseline(name, data) for name in dict.fromkeys(names)]
    systems += [PromptedModel(folder) for folder in dict.fromkeys(config.prompted)]
    log = data.log  # what was known in the scenario
    found = _found(scenario.shop, evaluated_cases(cases, config))
    if scenario.name:
        scenario.shop.close()
    return EvaluationSuite(
        factory.environment,
        systems,
        config,
        log,
        shop.config,
        shop.lake_snapshot,
        split.scenario if split else "full",
        found,
    )


def _found(shop: Shop, cases: Sequence[Case]) -> dict[int, bool]:
    """Whether the query that each case's user typed next was among memory's candidates."""
    memory = Memory(shop.connection, shop.config.memory, count_words)
    candidates = memory.candidate_keys([Moment(case.user_id, case.as_of) for case in cases])
    return {c.case_id: c.query_key in keys for c, keys in zip(cases, candidates, strict=True)}


def evaluate_policies(
    shop: Shop,
    policies: Sequence[str],
    config: EvaluationConfig | None = None,
    *,
    split: SplitConfig | None = None,
    on_progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate policies of a shop, and baselines, on what its users did next.

    The arguments are those of `evaluation_suite`; ``on_progress`` is called when a system begins
    and when it has ended. `tables.table` draws the report.
    """
    return evaluation_suite(shop, policies, config, split).evaluate(on_progress)


class SystemFactory:
    """Builds systems by name on one set of cases.

    Cases get their profiles once for all systems that read profiles of one kind (the same
    tokenizer, budget and sections). The first system's profiles are those that the baselines
    and the report see. ``policies`` is the shop that has the policies, where it is another one.
    """

    def __init__(
        self,
        shop: Shop,
        make_environment: MakeEnvironment,
        config: EvaluationConfig | None = None,
        policies: Shop | None = None,
    ) -> None:
        self._shop, self._make_environment = shop, make_environment
        self._config = config or EvaluationConfig()
        self._policies = policies or shop
        self._environments: dict[Any, Environment] = {}
        self._loaded: dict[str, Policy] = {}

    @property
    def environment(self) -> Environment:
        """The cases with the profiles of the first system; default ones where there is none."""
        if not self._environments:
            counter: Any = _TokenCounter(token_counter(self._policies))
            self._environments[None] = self._make_environment(counter, AgentConfig())
        return next(iter(self._environments.values()))

    def policy(self, name: str, ablation: str = "") -> System:
        """The system of a policy, or ``NAME (ablation)``."""
        folder = resolve(self._policies, name)
        if name not in self._loaded:
            self._loaded[name] = load_policy(folder, self._config.dtype)
        policy = self._loaded[name]
        agent = replace(policy.info.agent, **ABLATIONS[ablation] if ablation else {})
        profiles = (_tokenizer_of(folder), agent.profile_budget, agent.sections)
        if profiles not in self._environments:
            self._environments[profiles] = self._make_environment(policy.codec, agent)
        environment = self._environments[profiles]
        title = f"{name} ({ablation})" if ablation else name
        config = self._config
        system = PolicySystem(
            title, policy, environment, agent, config.group, config.seed, config.details
        )
        if environment is self.environment:
            return system
        return _OwnProfiles(system, environment)

    def named(self, name: str) -> System:
        """The system that reports call so: a baseline, a policy, or ``POLICY (ablation)``."""
        base, ablation = split_name(self._policies, name)
        if base in BASELINES and base not in policy_names(self._policies):
            return open_baseline(base, BaselineData(self._shop, self.environment))
        return self.policy(base, ablation)


def split_name(policies: Shop, name: str) -> tuple[str, str]:
    """A system's name as a baseline or policy, and an ablation or nothing."""
    base, sign, ablation = name.rpartition(" (")
    if sign and ablation.endswith(")") and ablation[:-1] in ABLATIONS:
        resolve(policies, base)
        return base, ablation[:-1]
    if name not in BASELINES:
        try:
            resolve(policies, name)
        except QAgentError as error:
            if "there is no policy" not in str(error):
                raise
            raise QAgentError(
                f"{error}; or a baseline: {', '.join(BASELINES)}; or an ablation: "
                f'"NAME (no search)"'
            ) from error
    return name, ""


def cases_of(shop: Shop, split: SplitConfig | None = None) -> list[Case]:
    """The cases of a shop, as an evaluation takes them."""
    return build_cases(shop.connection, split, after=open_index(shop).clicks_until)


@dataclass(frozen=True)
class _TokenCounter:
    """Stands in for a codec where only profiles are made."""

    count: CountTokens


class _OwnProfiles:
    """A policy beside others that read other profiles: it gets its own for the same cases."""

    def __init__(self, system: System, environment: Environment) -> None:
        self.name = system.name
        self._system = system
        self._examples = {e.case.case_id: e for e in environment.examples}

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """Rank the cases of some examples, each with the profile that this policy reads."""
        own = [self._examples[e.case.case_id] for e in examples]
        return [
            replace(ranking, lines=example.profile.references)
            for ranking, example in zip(self._system.rank(own, k), own, strict=True)
        ]


def _tokenizer_of(folder: Path) -> bytes:
    """The tokenizer file of the model below a policy's adapters."""
    while not (folder / "tokenizer.json").exists():
        info = read_info(folder)
        if info is None or not info.base:
            return b""
        folder = base_of(folder, info)
    return (folder / "tokenizer.json").read_bytes()


def _check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise QAgentError(f"there is no {kind} {name!r}; known are {', '.join(known)}")
