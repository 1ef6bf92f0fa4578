"""What a policy is trained and measured in: cases with their profiles, and the inventory.

A run copies all of it into its own folder and lets go of the shop's database, so that the
shop can be written to while a policy trains, and a resumed run sees exactly what it saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from ..agent.rollout import RolloutRunner
from ..agent.tools import SearchProducts
from ..agent.types import Rollout, Task
from ..distributed.world import current_world
from ..errors import QAgentError
from ..inventory.click_log import ClickLog
from ..inventory.index import InventoryIndex, load_index, open_index
from ..inventory.search import HybridSearch, open_search
from ..memory.profile import Memory
from ..memory.ranker import MemoryRanker
from ..memory.types import Moment
from ..policy.policy import Policy
from ..protocol.codec import AnyCodec
from ..protocol.config import AgentConfig
from ..shop.config import SearchConfig
from ..shop.shop import Shop
from ..types import Case, Profile
from ..utils.text import query_key
from .cases import SplitConfig, build_cases, of_split
from .files import read_cases, read_columns, write_cases, write_columns
from .rewards import Component, Outcome, component_rewards, weighted_reward

CASES, CLICKS = "cases.parquet", "clicks.parquet"  # files in a run's folder


@dataclass(frozen=True, slots=True)
class Example:
    """A case and the memory that the agent will find."""

    case: Case
    profile: Profile

    @property
    def task(self) -> Task:
        """What a chain is told; the answer is no part of it."""
        return Task(self.profile, self.case.as_of)


class Environment:
    """Cases, and the inventory as it was at each of their moments."""

    def __init__(self, examples: Sequence[Example], search: HybridSearch) -> None:
        self.examples = list(examples)
        self.search = search
        catalog = search.catalog
        self._title = dict(zip(catalog.ids, catalog.titles, strict=True))
        self._found: dict[tuple[str, Any], tuple[str, ...]] = {}

    @classmethod
    def of_shop(
        cls,
        shop: Shop,
        codec: AnyCodec,
        agent: AgentConfig | None = None,
        split: SplitConfig | None = None,
        last: dict[str, int] | None = None,
    ) -> Environment:
        """All cases of a shop with their profiles, in one pass over its log.

        Args:
            shop: Its index is built when it is missing or stale.
            codec: Counts the tokens of the profiles.
            agent: Sections and budget of the profiles.
            split: Which cases there are, and where they are cut.
            last: Split -> only its last so many cases, and none of the other splits; profiles
                take long where there are thousands.
        """
        agent = agent or AgentConfig()
        index = open_index(shop)
        cases = build_cases(shop.connection, split, after=index.clicks_until)
        if last is not None:
            cases = [c for name, most in last.items() for c in of_split(cases, name)[-most:]]
        return cls.of_cases(shop, cases, codec, agent, index)

    @classmethod
    def of_cases(
        cls,
        shop: Shop,
        cases: Sequence[Case],
        codec: AnyCodec,
        agent: AgentConfig,
        index: InventoryIndex | None = None,
    ) -> Environment:
        """Given cases of a shop with their profiles, and the shop's search.

        ``index`` is the shop's where it is at hand; it is opened otherwise.
        """
        memory = Memory(
            shop.connection, shop.config.memory, codec.count, MemoryRanker.of_shop(shop)
        )
        profiles = memory.profiles(
            [Moment(c.user_id, c.as_of) for c in cases], agent.sections, agent.profile_budget
        )
        examples = [Example(c, p) for c, p in zip(cases, profiles, strict=True)]
        return cls(examples, open_search(shop, index))

    @classmethod
    def shared(cls, shop: Shop, make: Callable[[], Environment]) -> Environment:
        """What ``make`` gives, made once for all workers of a machine: profiles take longest.

        Workers on other machines make their own, and all of them compare.

        Raises:
            QAgentError: the machines' shops differ.
        """
        workers = current_world()
        if workers.size == 1:
            return make()
        if workers.folder is None:
            environment = make()
            workers.assert_equal("cases or profiles", environment.digest())
            return environment
        place = workers.folder / "environment"
        if workers.is_main_process:
            environment = make()
            making = workers.folder / "making"
            making.mkdir()
            environment.save(making)
            making.rename(place)
            return environment
        workers.wait_for(place)
        return cls.restore(place, shop.path / "inventory", shop.config.search)

    def digest(self) -> str:
        """Identifies the cases and what the agent reads of each."""
        made = hashlib.sha256()
        for example in self.examples:
            case = example.case
            made.update(f"{case.case_id} {case.as_of} {case.split} {case.query}\0".encode())
            made.update(f"{example.profile.text}\0".encode())
        return made.hexdigest()

    def of_split(self, split: str) -> list[Example]:
        """The examples of ``train``, ``validation`` or ``test``, in order of time."""
        return [e for e in self.examples if e.case.split == split]

    def rollout_runner(
        self, policy: Policy, agent: AgentConfig, guided: bool = False
    ) -> RolloutRunner:
        """Runs chains of a policy in this environment; ``guided`` as they are served."""
        return RolloutRunner(policy, SearchProducts(self.search, agent), agent, guided=guided)

    def retrieve(self, query: str, as_of: Any) -> tuple[str, ...]:
        """The ten products that a query retrieves at a moment."""
        key = (query, as_of)
        if key not in self._found:
            if len(self._found) > 200_000:
                self._found.clear()
            hits = self.search.search([query], 10, [as_of])[0]
            self._found[key] = tuple(h.product_id for h in hits)
        return self._found[key]

    def outcome(self, rollout: Rollout, case: Case) -> Outcome:
        """A chain beside what its user then did.

        The products are looked up again where the chain did not search its own query, so
        an unvalidated recommendation is judged by what it would have shown.
        """
        products = rollout.products
        if not products and rollout.query and query_key(rollout.query):
            products = self.retrieve(rollout.query, case.as_of)
        return Outcome(
            rollout=rollout,
            case=case,
            products=products,
            top_title=self._title.get(products[0], "") if products else "",
            engaged_titles=tuple(self._title[p] for p in case.products if p in self._title),
        )

    def save(self, folder: Path) -> None:
        """Write ``cases.parquet`` (profiles included) and ``clicks.parquet``."""
        write_cases(folder / CASES, ((e.case, e.profile) for e in self.examples))
        if self.search.clicks is not None:
            write_columns(folder / CLICKS, self.search.clicks.columns(self.search.catalog.ids))

    @classmethod
    def restore(cls, folder: Path, inventory: Path, config: SearchConfig) -> Environment:
        """Read what `save` wrote; the search index comes from the folder ``inventory``.

        Raises:
            QAgentError: a file is missing or damaged.
        """
        try:
            examples = [Example(case, profile) for case, profile in read_cases(folder / CASES)]
            clicks = read_columns(folder / CLICKS)
        except duckdb.Error as error:
            raise QAgentError(
                f"the run {folder.name} is damaged ({str(error).splitlines()[0]}); start a new one"
            ) from error
        index = load_index(inventory)
        log = ClickLog.from_rows(clicks, index.catalog.row_of, config.click_half_life_days)
        return cls(examples, HybridSearch(index, log, config))

    @classmethod
    def resume(cls, shop: Shop, folder: Path, catalog_version: int) -> Environment:
        """What `save` wrote, for a run that goes on exactly.

        Raises:
            QAgentError: a file is damaged, or the shop's catalog has changed since.
        """
        environment = cls.restore(folder, shop.path / "inventory", shop.config.search)
        if environment.search.index.manifest["catalog_version"] != catalog_version:
            raise QAgentError(
                f"the catalog has changed since the run {folder.name} began, so it cannot go on "
                "exactly; start a new run"
            )
        return environment


def evaluate_policy(
    environment: Environment,
    policy: Policy,
    examples: Sequence[Example],
    weights: Mapping[str, float],
    components: Mapping[str, Component] | None = None,
) -> dict[str, float]:
    """One greedy chain for each example, judged.

    Returns:
        Means of ``reward`` (weighted), ``q_em``, ``i_hit@1`` and ``cons@1``.
    """
    workers = current_world()
    own = [examples[i] for i in workers.local_indices(len(examples))]
    runner = environment.rollout_runner(policy, policy.info.agent)
    rollouts = runner.run([e.task for e in own], 1, None)
    outcomes = [environment.outcome(r, e.case) for r, e in zip(rollouts, own, strict=True)]
    values: dict[str, list[float]] = {
        "reward": [weighted_reward(component_rewards(o, components), weights) for o in outcomes],
        "q_em": [o.query_hit for o in outcomes],
        "i_hit@1": [o.item_hit for o in outcomes],
        "cons@1": [o.query_hit and o.item_hit for o in outcomes],
    }
    sums = workers.all_reduce_scalars(*(float(sum(row)) for row in values.values()))
    count = len(examples) or float("nan")
    return {name: value / count for name, value in zip(values, sums, strict=True)}


def without_sections(example: Example, sections: Sequence[str]) -> Example:
    """The example with some sections of its profile removed (for ablations)."""
    from ..protocol.profile_text import render

    lines = tuple(line for line in example.profile.lines if line.section not in sections)
    profile = replace(
        example.profile,
        lines=lines,
        text=render(lines),
        references=tuple(line.query for line in lines if line.query is not None),
    )
    return Example(example.case, profile)
