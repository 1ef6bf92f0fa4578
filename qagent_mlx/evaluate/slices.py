"""Slices of the cases: by the user's history, by how common the wanted query is, by whether the
user had searched it before, and by whether memory points at it. Each is decided by what came before
the case alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..environment.environment import Example
from ..utils.text import query_key
from .baselines.search_log import SearchLog, moment_of

HISTORY = ((0, "new user"), (4, "1-4 events"), (19, "5-19 events"), (49, "20-49 events"))
LONG_HISTORY = "50+ events"
TAIL = 5  # searches before the case, at most, of a tail query
HEAD = 0.5  # share of all searches that head queries make up together


def by_history(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """How many events the user had before the case."""
    return [
        next((name for most, name in HISTORY if e.case.history <= most), LONG_HISTORY)
        for e in examples
    ]


def by_tail(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """How common the wanted query was before the case.

    ``head``: one of the most common, which make up half of all searches; ``tail``: searched
    at most 5 times; ``unseen``: never; ``middle``: the others.
    """
    names = [""] * len(examples)
    for state in log.sweep(examples):
        number = log.numbers.get(examples[state.index].case.query_key)
        count = int(state.counts[number]) if number is not None else 0
        if count == 0:
            name = "unseen"
        elif count <= TAIL:
            name = "tail"
        else:
            above = int(state.counts[state.counts > count].sum())
            name = "head" if above < HEAD * state.counts.sum() else "middle"
        names[state.index] = name
    return names


def by_own(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """Whether the user had searched the wanted query before."""
    names = []
    for example in examples:
        case = example.case
        own = log.last_queries(case.user_id, moment_of(case.as_of), len(log.times))
        known = log.numbers.get(case.query_key, -1) in own
        names.append("searched before" if known else "new to the user")
    return names


def by_line(examples: Sequence[Example], log: SearchLog) -> list[str]:
    """Whether the wanted query is one of the profile's lines."""
    return ["a line of memory" if is_line(example) else "no line" for example in examples]


def is_line(example: Example) -> bool:
    """Whether the query that a case's user typed is one of the profile's lines."""
    lines = {query_key(query) for query in example.profile.references}
    return bool(example.case.query_key) and example.case.query_key in lines


CUTS: dict[str, Callable[[Sequence[Example], SearchLog], list[str]]] = {
    "history": by_history,
    "tail": by_tail,
    "own": by_own,
    "line": by_line,
}
ORDER = (
    *(name for _, name in HISTORY),
    LONG_HISTORY,
    *("head", "middle", "tail", "unseen"),
    *("searched before", "new to the user"),
    *("a line of memory", "no line"),
)


def slice_cases(cut: str, examples: Sequence[Example], log: SearchLog) -> dict[str, np.ndarray]:
    """The indices of each slice's cases, by the slice's name, in the order of reports."""
    names = np.array(CUTS[cut](examples, log))
    return {name: np.flatnonzero(names == name) for name in ORDER if (names == name).any()}
