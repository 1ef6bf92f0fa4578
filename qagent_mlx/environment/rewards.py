"""Rewards: how good a finished chain is, given what the user then did.

A component is a function ``(Outcome) -> float`` with values in [0, 1], and is logged on its own;
`Environment.outcome` fills the outcome. `COMPONENTS` lists them; add yours here, or in a file of
your own (`custom_rewards.load_component`). The logged reward is their weighted mean
(`weighted_reward`); the advantages of `train/advantages.py` use the weighted components. The paper
reports rewards of format, tool use, and hits of query and item, each hard and soft
(arXiv:2606.05671); `consistency`, both hits at once, and the weights are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..agent.types import Rollout
from ..errors import QAgentError
from ..inventory.ir_metrics import ndcg
from ..types import Case
from ..utils.settings import SettingError
from ..utils.text import rouge_l


@dataclass(frozen=True, slots=True)
class Outcome:
    """A chain beside what its user then did: all that a reward component sees.

    ``products`` are what the recommended query retrieves at the case's moment, best first,
    whether the chain searched it or not; ``wanted`` are those of the query that the user typed
    next. ``top_title`` is the title of the first of them, ``engaged_titles`` those of the products
    that the user engaged with.
    """

    rollout: Rollout
    case: Case
    products: tuple[str, ...]
    top_title: str
    engaged_titles: tuple[str, ...]
    wanted: tuple[str, ...] = ()

    @property
    def query_hit(self) -> bool:
        """Whether the recommended query is the case's, by their normalised words (`query_key`)."""
        return self.rollout.query_key == self.case.query_key and bool(self.rollout.query_key)

    @property
    def item_hit(self) -> bool:
        """Whether the user engaged with the first product that the query retrieves."""
        return bool(self.products) and self.products[0] in self.case.products


Component = Callable[[Outcome], float]


def format_reward(outcome: Outcome) -> float:
    """1 if the chain ends in a recommendation, 0 if it breaks off."""
    return float(outcome.rollout.finish == "recommended")


def tool_reward(outcome: Outcome) -> float:
    """A third each: memory read, recommended query searched, no action repeated or refused."""
    rollout = outcome.rollout
    is_clean = rollout.repeated == 0 and rollout.refused == 0
    return (rollout.fetched + rollout.validated + is_clean) / 3


def query_reward(outcome: Outcome) -> float:
    """0.8 for the query that the user typed next, plus 0.2 x ROUGE-L of the two."""
    overlap = rouge_l(outcome.rollout.query, outcome.case.query)
    return 0.8 * outcome.query_hit + 0.2 * overlap


def item_reward(outcome: Outcome) -> float:
    """0.6 for an engaged product on top, plus 0.3 x NDCG@10, plus 0.1 x ROUGE-L of the titles."""
    overlap = max((rouge_l(outcome.top_title, t) for t in outcome.engaged_titles), default=0.0)
    gain = ndcg(outcome.products, outcome.case.products, 10)
    return 0.6 * outcome.item_hit + 0.3 * gain + 0.1 * overlap


def reach_reward(outcome: Outcome) -> float:
    """1 if one of the query's first ten products was engaged with, otherwise 0."""
    return float(not set(outcome.products[:10]).isdisjoint(outcome.case.products))


def overlap_reward(outcome: Outcome) -> float:
    """The share of the first ten products of the user's next query that are retrieved as well.

    Another wording of the same need counts by what it leads to; 0 where nothing was typed.
    """
    if outcome.query_hit:
        return 1.0
    wanted = set(outcome.wanted[:10])
    return len(wanted & set(outcome.products[:10])) / len(wanted) if wanted else 0.0


def consistency_reward(outcome: Outcome) -> float:
    """1 if the query is the next one and its top product was engaged with, otherwise 0.

    Its mean over cases is the metric ``cons@1``.
    """
    return float(outcome.query_hit and outcome.item_hit)


COMPONENTS: dict[str, Component] = {
    "format": format_reward,
    "tool": tool_reward,
    "query": query_reward,
    "item": item_reward,
    "consistency": consistency_reward,
    "overlap": overlap_reward,
    "reach": reach_reward,
}

WEIGHTS: dict[str, float] = {
    "format": 0.25,
    "tool": 0.25,
    "query": 1.0,
    "item": 1.0,
    "consistency": 2.0,
    "overlap": 0.0,
    "reach": 0.0,
}


def component_rewards(
    outcome: Outcome, components: Mapping[str, Component] | None = None
) -> dict[str, float]:
    """The value of each component, in [0, 1], for one chain; `COMPONENTS` by default."""
    rewards = {}
    for name, component in (components or COMPONENTS).items():
        try:
            value = float(component(outcome))
        except Exception as error:  # whatever a user's own reward raises is shown
            raise QAgentError(
                f"the reward {name} failed: {type(error).__name__}: {error}"
            ) from error
        if not 0.0 <= value <= 1.0:
            raise QAgentError(f"the reward {name} returned {value}; rewards lie between 0 and 1")
        rewards[name] = value
    return rewards


def weighted_reward(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of the components, in [0, 1]; one without a weight does not count."""
    total = sum(weights.get(name, 0.0) for name in rewards)
    return sum(weights.get(name, 0.0) * v for name, v in rewards.items()) / max(total, 1e-9)


WeightSchedule = tuple[tuple[float, float], ...]  # (step, weight) points


def parse_weight(text: str, known: Sequence[str]) -> tuple[str, float | WeightSchedule]:
    """Read ``NAME=VALUE``, or ``NAME=VALUE@STEP,VALUE@STEP…`` for a weight that changes."""
    name, _, value = text.partition("=")
    if name not in known:
        raise SettingError(
            "weights", f"{text}: there is no reward {name!r}; known are {', '.join(known)}"
        )
    try:
        if "@" not in value:
            weight = float(value)
            if math.isfinite(weight) and weight >= 0:
                return name, weight
        else:
            points = [tuple(float(v) for v in part.split("@")) for part in value.split(",")]
            schedule = tuple((step, weight) for weight, step in points)
            if all(math.isfinite(v) and v >= 0 for point in schedule for v in point):
                return name, schedule
    except ValueError:
        pass
    raise SettingError(
        "weights",
        f"{text}: write it as {name}=0.5, with a number from 0 on, or as "
        f"{name}=0@1,2@30 for a weight that changes from step 1 to step 30",
    )
