"""Policies, their ablations and the baselines, made ready to be evaluated side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..agent.recommend import GROUP
from ..environment.cases import SplitConfig, build_cases
from ..environment.environment import Environment, Example
from ..errors import QAgentError
from ..inventory.index import open_index
from ..memory.profile import SECTIONS
from ..memory.types import CountTokens
from ..policy.files import base_of, load_policy, read_info
from ..policy.policy import Policy
from ..policy.registry import policy_names, resolve
from ..policy.shop_memory import token_counter
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..types import Case
from .baselines.popularity import BASELINES, System, baseline, baselines
from .baselines.prompted_llm import PromptedModel
from .baselines.search_log import SearchLog
from .metrics import Ranking
from .policy_system import PolicySystem
from .report import Report, evaluate

ABLATIONS: dict[str, dict[str, Any]] = {
    "no search": {"search": False},
    "no memory": {"memory": False},
    "no refinement": {"max_searches": 1},
    "no marks": {"marks": False},
    **{
        f"no {section}": {"sections": tuple(s for s in SECTIONS if s != section)}
        for section in SECTIONS
    },
}
Make = Callable[[Any, AgentConfig], Environment]


class _Counter:
    """A codec as far as profiles need one."""

    def __init__(self, count: CountTokens) -> None:
        self.count = count


class OwnMemory:
    """A policy beside others that were trained with other profiles: it reads its own kind."""

    def __init__(self, system: System, environment: Environment) -> None:
        self.name = system.name
        self._system = system
        self._examples = {e.case.case_id: e for e in environment.examples}

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """What the policy recommends for the same cases."""
        return self._system.rank([self._examples[e.case.case_id] for e in examples], k)


class SystemFactory:
    """Makes systems by name on one set of cases.

    The cases and their profiles are made once for all systems that read profiles of one kind
    (the same tokenizer, budget and sections). The first system's profiles are those that the
    baselines and the report see.

    Args:
        shop: Its index is built when it is missing or stale.
        make: The environment of a kind of profile: (codec, agent) -> `Environment`.
        group: Chains a case.
        seed: Of the sampling.
        policies: Where policies are looked up; the shop by default.
        keep: Policies keep the chains of so many cases.
        dtype: Of the policies' weights.
    """

    def __init__(
        self,
        shop: Shop,
        make: Make,
        *,
        group: int = GROUP,
        seed: int = 0,
        policies: Shop | None = None,
        keep: int = 0,
        dtype: str = "",
    ) -> None:
        self._shop, self._make, self._group, self._seed = shop, make, group, seed
        self._keep, self._dtype = keep, dtype
        self._policies = policies or shop
        self._environments: dict[Any, Environment] = {}
        self._loaded: dict[str, Policy] = {}

    @property
    def environment(self) -> Environment:
        """The cases with the profiles of the first system; plain ones when there is no policy."""
        if not self._environments:
            counter: Any = _Counter(token_counter(self._policies))
            self._environments[None] = self._make(counter, AgentConfig())
        return next(iter(self._environments.values()))

    def policy(self, name: str, ablation: str = "") -> System:
        """A policy, or with an ablation the system ``NAME (ablation)``."""
        folder = resolve(self._policies, name)
        if name not in self._loaded:
            self._loaded[name] = load_policy(folder, self._dtype)
        policy = self._loaded[name]
        agent = policy.info.agent
        if ablation:
            agent = replace(agent, **ABLATIONS[ablation])
        kind = (_tokenizer(folder), agent.profile_budget, agent.sections)
        if kind not in self._environments:
            self._environments[kind] = self._make(policy.codec, agent)
        mine = self._environments[kind]
        title = f"{name} ({ablation})" if ablation else name
        system: System = PolicySystem(
            title, policy, mine, agent, self._group, self._seed, self._keep
        )
        return OwnMemory(system, mine) if mine is not self.environment else system

    def named(self, name: str) -> System:
        """A system by the name that reports give it: a baseline, a policy, or its ablation.

        Raises:
            QAgentError: nothing is called so; says what there is.
        """
        base, ablation = parts_of(self._policies, name)
        if base in BASELINES and base not in policy_names(self._policies):
            return baseline(self._shop, base, self.environment)
        return self.policy(base, ablation)


def parts_of(policies: Shop, name: str) -> tuple[str, str]:
    """What a system's name says: a baseline or policy, and an ablation or nothing.

    Raises:
        QAgentError: nothing is called so; says what there is.
    """
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


def evaluation_suite(
    shop: Shop,
    policies: Sequence[str],
    *,
    ablations: Sequence[str] = (),
    with_baselines: bool = False,
    extra: Sequence[str] = (),
    split: SplitConfig | None = None,
    only: str = "",
    prompted: Sequence[str] = (),
    group: int = GROUP,
    seed: int = 0,
    keep: int = 0,
    dtype: str = "",
) -> tuple[Environment, list[System]]:
    """The environment of an evaluation, and its systems in order.

    Args:
        shop: Its index is built when it is missing or stale.
        policies: Names; a name given twice counts once.
        ablations: Of `ABLATIONS`; each adds one more system a policy, ``NAME (ablation)``.
        with_baselines: Add the recommenders without a language model.
        extra: Baselines by name, beside or instead of all.
        split: Which cases there are, and where they are cut.
        only: Of one split, ``train``, ``validation`` or ``test``; all by default.
        prompted: Folders of chat models that are asked in a single prompt.
        group: Chains a case.
        seed: Of the sampling.
        keep: Policies keep the chains of so many cases (``PolicySystem.kept``).
        dtype: Of the policies' weights, see `models.load.set_precision`.

    Raises:
        QAgentError: there is no policy, baseline or ablation of a name.
    """
    unknown = [name for name in ablations if name not in ABLATIONS]
    unknown_baselines = [name for name in extra if name not in BASELINES]
    if unknown:
        raise QAgentError(f"there is no ablation {unknown[0]!r}; known are {_list(ABLATIONS)}")
    if unknown_baselines:
        raise QAgentError(
            f"there is no baseline {unknown_baselines[0]!r}; known are {_list(BASELINES)}"
        )

    cases = [c for c in cases_of(shop, split) if only in ("", c.split)]

    def make(codec: Any, agent: AgentConfig) -> Environment:
        return Environment.of_cases(shop, cases, codec, agent)

    line = SystemFactory(shop, make, group=group, seed=seed, keep=keep, dtype=dtype)
    systems = [
        line.policy(name, ablation)
        for name in dict.fromkeys(policies)
        for ablation in ("", *ablations)
    ]
    environment = line.environment
    if with_baselines:
        systems += baselines(shop, environment)
    here = {system.name for system in systems}
    systems += [baseline(shop, name, environment) for name in extra if name not in here]
    systems += [PromptedModel(folder) for folder in dict.fromkeys(prompted)]
    return environment, systems


def evaluate_policies(
    shop: Shop,
    policies: Sequence[str],
    *,
    with_baselines: bool = False,
    on: str = "test",
    limit: int | None = None,
    compare: Sequence[tuple[str, str]] = (),
    by: Sequence[str] = (),
    on_progress: Callable[[str, int], None] | None = None,
    **options: Any,
) -> Report:
    """Measure policies of a shop, and baselines, on what its users did next.

    Args:
        shop: Its index is built when it is missing or stale.
        policies: Names, as for `evaluation_suite`.
        with_baselines: Also the recommenders without a language model.
        on: The split.
        limit: So many cases, evenly spaced over the split.
        compare: Names of systems (a, b) to compare, case by case.
        by: Also slices, of `slices.CUTS`.
        on_progress: As for `report.evaluate`.
        options: Others of `evaluation_suite`: ablations, extra, group, seed, …

    Returns:
        See `report.evaluate`; `report.table` draws it.
    """
    environment, systems = evaluation_suite(
        shop, policies, with_baselines=with_baselines, only=on, **options
    )
    return evaluate(
        environment,
        systems,
        on,
        5,
        limit,
        seed=options.get("seed", 0),
        on_progress=on_progress,
        compare=compare,
        by=by,
        log=SearchLog.of_shop(shop),
    )


def cases_of(shop: Shop, split: SplitConfig | None = None) -> list[Case]:
    """The cases of a shop, as an evaluation of it takes them."""
    return build_cases(shop.connection, split, after=open_index(shop).clicks_until)


def _list(names: Any) -> str:
    return ", ".join(names)


def _tokenizer(folder: Path) -> bytes:
    """The tokenizer file of the model below a policy's adapters."""
    while not (folder / "tokenizer.json").exists():
        info = read_info(folder)
        if info is None or not info.base:
            return b""
        folder = base_of(folder, info)
    return (folder / "tokenizer.json").read_bytes()
