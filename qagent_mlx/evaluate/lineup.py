"""Policies, their ablations and the baselines, made ready to be evaluated side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..agent.recommend import GROUP
from ..inspection import token_counter
from ..memory.profile import CountTokens
from ..policy.model import AgentConfig, load_policy, read_info
from ..policy.registry import resolve
from ..shop import Shop
from ..train.cases import SplitConfig
from ..train.environment import Environment, Example
from .baselines import System, baselines
from .metrics import Ranking
from .systems import PolicySystem

ABLATIONS: dict[str, dict[str, Any]] = {
    "no search": {"search": False},
    "no memory": {"memory": False},
}


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


def lineup(
    shop: Shop,
    policies: Sequence[str],
    *,
    ablations: Sequence[str] = (),
    with_baselines: bool = False,
    split: SplitConfig | None = None,
    group: int = GROUP,
    seed: int = 0,
    dtype: str = "",
) -> tuple[Environment, list[System]]:
    """The environment of an evaluation, and its systems in order.

    The cases and their profiles are made once for all policies that read profiles of one kind
    (the same tokenizer, budget and sections).

    Args:
        shop: Its index is built when it is missing or stale.
        policies: Names; a name given twice counts once.
        ablations: Of `ABLATIONS`; each adds one more system a policy, ``NAME (ablation)``.
        with_baselines: Add the recommenders without a language model.
        split: Which cases there are, and where they are cut.
        group: Chains a case.
        seed: Of the sampling.
        dtype: Of the policies' weights, see `policy.model.set_precision`.
    """
    environments: dict[Any, Environment] = {}
    systems: list[System] = []
    for name in dict.fromkeys(policies):
        folder = resolve(shop, name)
        policy = load_policy(folder, dtype)
        agent = policy.info.agent
        kind = (_tokenizer(folder), agent.profile_budget, agent.sections)
        if kind not in environments:
            environments[kind] = Environment.of_shop(shop, policy.codec, agent, split)
        mine = environments[kind]
        variants = {name: agent} | {
            f"{name} ({what})": replace(agent, **ABLATIONS[what]) for what in ablations
        }
        for title, config in variants.items():
            system: System = PolicySystem(title, policy, mine, config, group, seed)
            if len(environments) > 1:
                system = OwnMemory(system, mine)
            systems.append(system)
    if not environments:
        counter: Any = _Counter(token_counter(shop))
        environments[None] = Environment.of_shop(shop, counter, AgentConfig(), split)
    if with_baselines:
        systems += baselines(shop)
    return next(iter(environments.values())), systems


def _tokenizer(folder: Path) -> bytes:
    """The tokenizer file of the model below a policy's adapters."""
    while not (folder / "tokenizer.json").exists():
        info = read_info(folder)
        if info is None or not info.base:
            return b""
        base = Path(info.base)
        folder = base if base.is_absolute() else folder.parent / base
    return (folder / "tokenizer.json").read_bytes()
