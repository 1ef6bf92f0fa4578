"""Systems compared case by case: pairs that are asked for, and those that a reader asks first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import QAgentError
from .significance import holm, paired_difference

COMPARED = ("cons@1", "i_hit@1", "i_hit@10", "q_em", "q_hit@5", "row_hit@10")
SIGNIFICANCE_LEVEL = 0.05
FIRST_LINE = "top-line"  # the baseline that recommends memory's lines in their order
OF_MEMORY = {  # baselines that are made of those lines
    FIRST_LINE: "memory's first line",
    "in-stock": "memory's lines without what is sold out",
    "mixed": "memory's lines and names of products by turns",
}

Scores = Mapping[str, Mapping[str, np.ndarray]]  # by system and metric, (cases,)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference a - b of a metric on the same cases, with its 95 % interval."""

    a: str
    b: str
    metric: str
    diff: float
    lo: float
    hi: float
    p: float
    p_holm: float  # corrected for all comparisons beside it

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the corrected p-value is below the level of significance."""
        return self.p_holm < SIGNIFICANCE_LEVEL


def compare(
    scores: Scores, pairs: Sequence[tuple[str, str]], metrics: Sequence[str], seed: int
) -> tuple[Comparison, ...]:
    """Each pair in each metric; p-values are corrected for all of them together (Holm)."""
    compared = [(a, b, metric) for a, b in pairs for metric in metrics]
    differences = [
        paired_difference(scores[a][metric], scores[b][metric], seed) for a, b, metric in compared
    ]
    corrected = holm([difference.p for difference in differences])
    return tuple(
        Comparison(*names, **asdict(difference), p_holm=p)
        for names, difference, p in zip(compared, differences, corrected, strict=True)
    )


def main_metric(scores: Scores) -> str:
    """What systems are ranked by: ``cons@1``, or ``i_hit@1`` where no query can be right."""
    return "cons@1" if any(values["cons@1"].any() for values in scores.values()) else "i_hit@1"


def verdict(scores: Scores, agents: Collection[str], seed: int) -> tuple[Comparison, ...]:
    """The comparisons that a reader asks for first, in the main metric.

    Each agent with memory's first line, the best agent with the next one, with the best of the
    other baselines that read memory, and with the best of those that do not. Without an agent:
    the two best systems. What was not evaluated is left out.
    """
    metric = main_metric(scores)
    ranked = sorted(scores, key=lambda name: -scores[name][metric].mean())  # stable
    own = [name for name in ranked if name in agents]
    if not own:
        pairs = [(ranked[0], ranked[1])] if len(ranked) > 1 else []
        return compare(scores, pairs, (metric,), seed)
    pairs = [(name, FIRST_LINE) for name in own if FIRST_LINE in scores]
    others = [name for name in ranked if name not in agents and name != FIRST_LINE]
    rivals = (
        own[1:2],
        [name for name in others if name in OF_MEMORY][:1],
        [name for name in others if name not in OF_MEMORY][:1],
    )
    pairs += [(own[0], name) for names in rivals for name in names]
    return compare(scores, pairs, (metric,), seed)


def chosen_pairs(asked: Sequence[tuple[str, str]], names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs to compare; ``*`` in the second place stands for every other system.

    Raises:
        QAgentError: a system is not among ``names``.
    """
    pairs = [
        (a, b)
        for a, second in asked
        for b in (names if second == "*" else [second])
        if second != "*" or a != b
    ]
    if unknown := sorted({name for pair in pairs for name in pair} - set(names)):
        raise QAgentError(f"cannot compare {', '.join(unknown)}; evaluated are {', '.join(names)}")
    return pairs
