"""For whom a system is good: cases cut by history, by how common the wanted query is, or both
the user and the query being old acquaintances. All cuts are point-in-time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .baselines.search_log import SearchLog, moment_of

if TYPE_CHECKING:
    from ..environment.environment import Example

HISTORY = ((0, "new user"), (4, "1-4 events"), (19, "5-19 events"), (49, "20-49 events"))
TAIL = 5  # a query that was searched at most so often before is of the tail
HEAD = 0.5  # the most common queries that together make up so much of all searches


def by_history(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """How many events the user had before: cold start first."""
    return [
        next((name for most, name in HISTORY if e.case.history <= most), "50+ events")
        for e in examples
    ]


def by_tail(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """How common the wanted query was before the moment.

    ``head``: one of the most common, which make up half of all searches; ``tail``: searched
    at most 5 times; ``unseen``: never; ``middle``: the others.
    """
    made = [""] * len(examples)
    for i, _, counts in log.sweep(examples):
        number = log.numbers.get(examples[i].case.query_key)
        mine = int(counts[number]) if number is not None else 0
        if mine == 0:
            made[i] = "unseen"
        elif mine <= TAIL:
            made[i] = "tail"
        else:
            above = int(counts[counts > mine].sum())
            made[i] = "head" if above < HEAD * counts.sum() else "middle"
    return made


def by_own(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """Whether the user had searched the wanted query before."""
    made = []
    for example in examples:
        case = example.case
        number = log.numbers.get(case.query_key, -1)
        own = log.last_of(case.user_id, moment_of(case.as_of), len(log.times))
        made.append("searched before" if number in own else "new to the user")
    return made


CUTS: dict[str, Callable[[Sequence[Example], SearchLog], list[str]]] = {
    "history": by_history,
    "tail": by_tail,
    "own": by_own,
}
ORDER = (
    *(name for _, name in HISTORY),
    "50+ events",
    "head",
    "middle",
    "tail",
    "unseen",
    "searched before",
    "new to the user",
)


def groups(cut: str, examples: Sequence[Example], log: SearchLog) -> dict[str, np.ndarray]:
    """Name of a slice -> places of its cases, in the order in which reports show them."""
    names = np.array(CUTS[cut](examples, log))
    return {name: np.flatnonzero(names == name) for name in ORDER if (names == name).any()}
