"""Slates as they are served, of cases: what evaluation measures and calibration learns from."""

from __future__ import annotations

from collections.abc import Sequence

from ..agent.recommend import GROUP, GRPO_GROUP
from ..agent.slate import SlateFiller, SlateRequest, aggregate_group
from ..agent.types import Group, split_groups
from ..policy.calibration import Calibration, Observation, fit
from ..policy.policy import Policy
from ..protocol.codec import ShopCodec
from ..protocol.config import AgentConfig
from ..types import Slate, UserContext
from ..utils.text import query_key
from .cases import evenly_spaced
from .environment import Environment, Example

CASES_AT_ONCE = 16  # 128 chains; larger batches copy more cache than they save
ROW = 5  # queries of a row that chances are learned from
MOST_CASES = 400  # that chances are learned from
FEWEST_CASES = 40  # of fewer, chances would be noise
# A chain of a pretrained chat model takes a second or so on a CPU.
CHAT_CASES, CHAT_GROUP = 100, GRPO_GROUP


def served_slates(
    environment: Environment,
    filler: SlateFiller,
    agent: AgentConfig,
    examples: Sequence[Example],
    groups: Sequence[Group],
    k: int,
) -> list[Slate]:
    """What is served in each of some cases; of an agent whose search is off, its own ranking."""
    aggregated = [aggregate_group(agent, group) for group in groups]
    if not agent.search:
        return [tuple(recommendations[:k]) for recommendations in aggregated]
    catalog = environment.search.catalog
    requests = [
        SlateRequest(
            items,
            example.case.as_of,
            k,
            example.profile.context if agent.memory else UserContext(),
            # Of a time before stock was recorded nobody can say what was sold out.
            catalog.knows_stock_at(example.case.as_of),
        )
        for items, example in zip(aggregated, examples, strict=True)
    ]
    return filler.fill(requests)


def calibrate(environment: Environment, policy: Policy, seed: int = 0) -> Calibration | None:
    """Learn on validation cases how often what a policy recommends is right.

    Rows of all chains, of a few of them, and of memory alone are learned from, so that a chance
    holds for each number of chains.

    Returns:
        None where there are too few validation cases.
    """
    examples = environment.of_split("validation")
    is_fast = isinstance(policy.codec, ShopCodec)
    most, chains = (MOST_CASES, GROUP) if is_fast else (CHAT_CASES, CHAT_GROUP)
    if len(examples) < FEWEST_CASES:
        return None
    examples = evenly_spaced(examples, most)
    policy.model.eval()
    agent, filler = policy.info.agent, SlateFiller(environment.search)
    runner = environment.rollout_runner(policy, agent, guided=True)
    sizes = sorted({GRPO_GROUP, chains})
    observations: list[Observation] = []
    for start in range(0, len(examples), CASES_AT_ONCE):
        batch = examples[start : start + CASES_AT_ONCE]
        tasks = [e.task for e in batch]
        rollouts = runner.run(tasks, chains, (seed, start))
        groups = split_groups(rollouts, tasks, [chains] * len(batch))
        for size in (0, *sizes):
            parts = [Group(group.task, group.rollouts[:size]) for group in groups]
            slates = served_slates(environment, filler, agent, batch, parts, ROW)
            for example, slate in zip(batch, slates, strict=True):
                weight = 1 / len(sizes) if size else 1.0
                observations += _observations(example, slate, weight)
    return fit(observations)


def _observations(example: Example, slate: Slate, weight: float) -> list[Observation]:
    case, wanted = example.case.case_id, example.case.query_key
    return [
        Observation(case, item.evidence, query_key(item.query) == wanted, place == 0, weight)
        for place, item in enumerate(slate)
        if item.evidence is not None
    ]
