"""Rewards: small functions of a finished chain and what the user then did.

Each component is in [0, 1] and is logged on its own. A component is a function
``(Outcome) -> float``; `COMPONENTS` is the table, and `load_component` adds one from a
user's file. The paper rewards format, tool use, and hits with a query and an item part,
each hard and soft (arXiv:2606.05671, reported).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..agent.types import Rollout
from ..errors import QAgentError
from ..types import Case
from ..utils.text import rouge_l
from .ir_metrics import ndcg


@dataclass(frozen=True, slots=True)
class Outcome:
    """A chain beside what the user then did.

    ``products`` is what the recommended query retrieves at the case's moment, whether the
    chain searched it or not; ``titles`` are the titles of the first retrieved product and
    of the products that the user engaged with.
    """

    rollout: Rollout
    case: Case
    products: tuple[str, ...]
    top_title: str
    engaged_titles: tuple[str, ...]

    @property
    def query_hit(self) -> bool:
        """The recommended query equals the user's next one."""
        return self.rollout.key == self.case.query_key and bool(self.rollout.key)

    @property
    def item_hit(self) -> bool:
        """The first product that it retrieves is one that the user engaged with."""
        return bool(self.products) and self.products[0] in self.case.products


Component = Callable[[Outcome], float]


def format_reward(outcome: Outcome) -> float:
    """1 for a chain that ends in a recommendation, 0 for one that breaks off."""
    return float(outcome.rollout.finish == "recommended")


def tool_reward(outcome: Outcome) -> float:
    """Thirds for: memory read, recommended query searched, nothing asked twice."""
    rollout = outcome.rollout
    clean = rollout.repeated == 0 and rollout.refused == 0
    return (rollout.fetched + rollout.validated + clean) / 3


def query_reward(outcome: Outcome) -> float:
    """0.8 for the very query, and up to 0.2 for shared words (ROUGE-L)."""
    soft = rouge_l(outcome.rollout.query, outcome.case.query)
    return 0.8 * outcome.query_hit + 0.2 * soft


def item_reward(outcome: Outcome) -> float:
    """0.6 for an engaged product on top, 0.3 x NDCG@10, 0.1 for a like title (ROUGE-L)."""
    soft = max((rouge_l(outcome.top_title, t) for t in outcome.engaged_titles), default=0.0)
    ranked = ndcg(outcome.products, outcome.case.products, 10)
    return 0.6 * outcome.item_hit + 0.3 * ranked + 0.1 * soft


def consistency_reward(outcome: Outcome) -> float:
    """Query and item, both or nothing: 1 when the wanted query retrieves the wanted product."""
    return float(outcome.query_hit and outcome.item_hit)


COMPONENTS: dict[str, Component] = {
    "format": format_reward,
    "tool": tool_reward,
    "query": query_reward,
    "item": item_reward,
    "consistency": consistency_reward,
}

WEIGHTS: dict[str, float] = {
    "format": 0.25,
    "tool": 0.25,
    "query": 1.0,
    "item": 1.0,
    "consistency": 2.0,
}


def component_rewards(
    outcome: Outcome, components: Mapping[str, Component] | None = None
) -> dict[str, float]:
    """Each component of one chain.

    Raises:
        QAgentError: a component returned something that is not a number in [0, 1].
    """
    made = {}
    for name, component in (components or COMPONENTS).items():
        try:
            value = float(component(outcome))
        except Exception as error:  # whatever a user's own reward raises is the answer
            raise QAgentError(
                f"the reward {name} failed: {type(error).__name__}: {error}"
            ) from error
        if not 0.0 <= value <= 1.0:
            raise QAgentError(f"the reward {name} returned {value}; rewards lie between 0 and 1")
        made[name] = value
    return made


def weighted_reward(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of the components, in [0, 1]."""
    weight = sum(weights.get(name, 0.0) for name in parts)
    return sum(weights.get(name, 0.0) * value for name, value in parts.items()) / max(weight, 1e-9)


WeightSchedule = tuple[tuple[float, float], ...]


def parse_weight(pair: str, known: Sequence[str]) -> tuple[str, float | WeightSchedule]:
    """``NAME=VALUE``, or ``NAME=VALUE@STEP,VALUE@STEP…`` for a weight that changes.

    Raises:
        QAgentError: the name is unknown or a value is no number from 0 on.
    """
    name, sign, text = pair.partition("=")
    if name not in known:
        raise QAgentError(
            f"--weight {pair}: there is no reward {name!r}; known are {', '.join(known)}"
        )
    try:
        if "@" not in text:
            weight = float(text)
            if sign and math.isfinite(weight) and weight >= 0:
                return name, weight
        else:
            points = [tuple(float(v) for v in part.split("@")) for part in text.split(",")]
            curve = tuple((step, weight) for weight, step in points)
            if all(math.isfinite(v) and v >= 0 for point in curve for v in point):
                return name, curve
    except ValueError:
        pass
    raise QAgentError(
        f"--weight {pair}: write it as {name}=0.5, with a number from 0 on, or as "
        f"{name}=0@1,2@30 for a weight that changes from step 1 to step 30"
    )
