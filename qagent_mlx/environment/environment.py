"""The environment of training and evaluation: cases with their profiles, and the search.

A run copies all of it into its own folder and lets go of the shop's database, so that the
shop can be written to while a policy trains, and a resumed run sees exactly what it saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import duckdb

from ..agent.tools import RETRIEVED, SearchProducts
from ..agent.types import Rollout, Task
from ..errors import QAgentError
from ..inventory.click_log import ClickLog
from ..inventory.search import HybridSearch, open_search
from ..inventory.stored_index import InventoryIndex, load_index
from ..memory.profile import Memory
from ..memory.ranker import MemoryRanker
from ..memory.types import CountTokens, Moment
from ..protocol.config import AgentConfig
from ..shop.shop import Shop
from ..types import Case, Profile
from ..utils.atomic_files import read_json, write_json
from .cases import of_split
from .config import SplitConfig
from .files import read_cases, read_columns, write_cases, write_columns
from .rewards import Component, Outcome, component_rewards, weighted_reward
from .scenario_shop import FILE as SCENARIO
from .scenario_shop import open_copy
from .scenarios import Scenario, open_scenario, with_launch

if TYPE_CHECKING:  # the environment is there without MLX
    from ..agent.rollout import RolloutRunner
    from ..policy.policy import Policy

CASES, CLICKS = "cases.parquet", "clicks.parquet"  # files in a run's folder
RESULTS = 200_000  # results of searches that are remembered


class Counts(Protocol):
    """What profiles need of a codec."""

    @property
    def count(self) -> CountTokens:
        """Counts the tokens of texts."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A case and the profile that the agent reads in it."""

    case: Case
    profile: Profile

    @property
    def task(self) -> Task:
        """What a chain is given. What the user then did is no part of it."""
        return Task(self.profile, self.case.as_of)


class Environment:
    """Examples, and the search as it was at the moment of each of them."""

    def __init__(
        self, examples: Sequence[Example], search: HybridSearch, scenario: str = ""
    ) -> None:
        """Examples with their search; ``scenario`` is the name of the shop's copy they are of."""
        self.examples = list(examples)
        self.search = search
        self.scenario = scenario
        catalog = search.catalog
        self._title = dict(zip(catalog.ids, catalog.titles, strict=True))
        self._results: dict[tuple[str, datetime], tuple[str, ...]] = {}

    @classmethod
    def of_shop(
        cls,
        shop: Shop,
        codec: Counts,
        agent: AgentConfig | None = None,
        split: SplitConfig | None = None,
        last: Mapping[str, int] | None = None,
    ) -> Environment:
        """All cases of a shop with their profiles, in one pass over its log.

        The shop's index is built when it is missing or out of date; ``agent`` has the sections and
        the token budget of the profiles. ``last`` keeps only the last so many cases of the splits
        that it names, as profiles take long where there are thousands.
        """
        scenario = open_scenario(shop, split)
        cases = scenario.cases
        if last is not None:
            cases = [c for name, count in last.items() for c in of_split(cases, name)[-count:]]
        return cls.of_scenario(scenario, cases, codec, agent or AgentConfig())

    @classmethod
    def of_scenario(
        cls, scenario: Scenario, cases: Sequence[Case], codec: Counts, agent: AgentConfig
    ) -> Environment:
        """Some cases of a scenario with their profiles; the database is not needed again."""
        examples = _examples(scenario.shop, cases, codec, agent)
        environment = cls(examples, scenario.open_search(), scenario.name)
        if scenario.name:
            scenario.shop.close()  # a copy; what is open of it is opened again
        return environment

    @classmethod
    def of_cases(
        cls,
        shop: Shop,
        cases: Sequence[Case],
        codec: Counts,
        agent: AgentConfig,
        index: InventoryIndex | None = None,
    ) -> Environment:
        """Given cases of a shop with their profiles; ``index`` is opened if it is not given."""
        return cls(_examples(shop, cases, codec, agent), open_search(shop, index))

    @classmethod
    def shared(cls, shop: Shop, build: Callable[[], Environment]) -> Environment:
        """Build an environment once for all workers of a machine: profiles take long.

        Workers on several machines build one each, and refuse to go on where they differ.
        """
        from ..distributed.world import current_world

        workers = current_world()
        if workers.size == 1:
            return build()
        if workers.folder is None:
            environment = build()
            workers.assert_equal("cases or profiles", environment.digest())
            return environment
        folder = workers.folder / "environment"
        if not workers.is_main_process:
            workers.wait_for(folder)
            return cls.restore(folder, shop)
        environment = build()
        unfinished = workers.folder / "unfinished"
        unfinished.mkdir()
        environment.save(unfinished)
        unfinished.rename(folder)
        return environment

    def digest(self) -> str:
        """A hash of the cases and of what the agent reads in each."""
        digest = hashlib.sha256()
        for example in self.examples:
            case = example.case
            digest.update(f"{case.case_id} {case.as_of} {case.split} {case.query}\0".encode())
            digest.update(f"{example.profile.text}\0".encode())
        return digest.hexdigest()

    def of_split(self, split: str) -> list[Example]:
        """The examples of one split, in order of time."""
        return [e for e in self.examples if e.case.split == split]

    def rollout_runner(
        self, policy: Policy, agent: AgentConfig, guided: bool = False
    ) -> RolloutRunner:
        """What runs a policy's chains here; ``guided`` as they are served."""
        from ..agent.rollout import RolloutRunner

        return RolloutRunner(policy, SearchProducts(self.search, agent), agent, guided=guided)

    def retrieve(self, query: str, as_of: datetime) -> tuple[str, ...]:
        """The products that a query retrieves at a moment, best first."""
        return self.retrieve_all([query], as_of)[0]

    def retrieve_all(self, queries: Sequence[str], as_of: datetime) -> list[tuple[str, ...]]:
        """The products that each of some queries retrieves at a moment, best first."""
        if len(self._results) > RESULTS:
            self._results.clear()
        fresh = [q for q in dict.fromkeys(queries) if (q, as_of) not in self._results]
        results = self.search.search(fresh, RETRIEVED, [as_of] * len(fresh))
        for query, hits in zip(fresh, results, strict=True):
            self._results[query, as_of] = tuple(hit.product_id for hit in hits)
        return [self._results[query, as_of] for query in queries]

    def outcome(self, rollout: Rollout, case: Case) -> Outcome:
        """Put a chain beside what its user then did, for the rewards.

        Where the chain did not search the query that it recommends, the query is searched
        now: an unvalidated recommendation is judged by what it would have shown.
        """
        products = rollout.products
        if not products and rollout.query_key:
            products = self.retrieve(rollout.query, case.as_of)
        return Outcome(
            rollout=rollout,
            case=case,
            products=products,
            top_title=self._title.get(products[0], "") if products else "",
            engaged_titles=tuple(self._title[p] for p in case.products if p in self._title),
            wanted=self.retrieve(case.query, case.as_of) if case.query else (),
        )

    def save(self, folder: Path) -> None:
        """Write ``cases.parquet`` (profiles included), ``clicks.parquet``, and the scenario."""
        write_cases(folder / CASES, ((e.case, e.profile) for e in self.examples))
        if self.search.click_log is not None:
            write_columns(folder / CLICKS, self.search.click_log.columns())
        if self.scenario:
            write_json(folder / SCENARIO, {"folder": self.scenario})

    @classmethod
    def restore(cls, folder: Path, shop: Shop) -> Environment:
        """Read what `save` wrote; the index is that of the shop, or of its copy."""
        scenario, launch = "", None
        if (folder / SCENARIO).exists():
            scenario = str(read_json(folder / SCENARIO, f"the run {folder.name}").get("folder"))
            shop, launch = open_copy(shop, scenario)
        try:
            examples = [Example(case, profile) for case, profile in read_cases(folder / CASES)]
            clicks = read_columns(folder / CLICKS)
        except duckdb.Error as error:
            raise QAgentError(
                f"the run {folder.name} is damaged ({str(error).splitlines()[0]}); start a new one"
            ) from error
        index, config = load_index(shop.path / "inventory"), shop.config
        log = ClickLog(clicks, index.catalog.row_of, config.search.click_half_life_days)
        tells_clicks = not config.memory.own_only
        search = HybridSearch(index, log, config.search, tells_clicks=tells_clicks)
        return cls(examples, with_launch(search, launch), scenario)

    @classmethod
    def resume(cls, shop: Shop, folder: Path, catalog_version: int) -> Environment:
        """Read what `save` wrote, for a run that goes on exactly, with the catalog as it was."""
        environment = cls.restore(folder, shop)
        if environment.search.index.manifest.catalog_version != catalog_version:
            raise QAgentError(
                f"the catalog has changed since the run {folder.name} began, so it cannot go on "
                "exactly; start a new run"
            )
        return environment


def _examples(
    shop: Shop, cases: Sequence[Case], codec: Counts, agent: AgentConfig
) -> list[Example]:
    """Cases of a shop with the profiles that are read in them."""
    ranker = MemoryRanker.of_shop(shop)
    memory = Memory(shop.connection, shop.config.memory, codec.count, ranker)
    profiles = memory.profiles(
        [Moment(c.user_id, c.as_of) for c in cases], agent.sections, agent.profile_budget
    )
    return [Example(c, p) for c, p in zip(cases, profiles, strict=True)]


def evaluate_policy(
    environment: Environment,
    policy: Policy,
    examples: Sequence[Example],
    weights: Mapping[str, float],
    components: Mapping[str, Component] | None = None,
) -> dict[str, float]:
    """Run one greedy chain for each example and compare it with what the user then did.

    Returns means over all examples of ``reward`` (weighted), ``q_em``, ``i_hit@1``, ``cons@1``.
    """
    from ..distributed.world import current_world

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
    sums = workers.all_reduce_scalars(*(float(sum(column)) for column in values.values()))
    count = len(examples) or float("nan")
    return {name: total / count for name, total in zip(values, sums, strict=True)}
