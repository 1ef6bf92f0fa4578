"""Demonstration chains, made with hindsight from the log and from nothing else.

A chain reads the memory, searches its first lines, the likeliest first, sees what they
retrieve, and ends with the one that the log says was right: the query that the user then typed
or, failing that, one whose first product the user then engaged with.

How many lines a chain searches does not depend on which one is right. So a policy that learns
these chains does not learn when to stop (nothing that it reads could tell it), but learns to
choose once among all that it has seen, and its likeliest choice is its best guess. Chains that
stop at the right line teach a hazard instead: that none of the first lines is likelier than
"go on", so that the likeliest chain ends at the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..agent.protocol import (
    FETCH,
    RECOMMEND,
    RECOMMEND_END,
    SEARCH,
    SEARCH_END,
    profile_text,
    results_text,
)
from ..agent.tools import Request, SearchProducts
from ..memory.profile import render
from ..policy.model import AgentConfig, Policy
from ..text import query_key
from ..types import Line, Profile
from .batches import Chain
from .disguise import Disguise
from .environment import Environment, Example


@dataclass(frozen=True)
class DemoConfig:
    """How demonstrations are varied."""

    looks: tuple[int, ...] = (1, 3, 3, 3)  # how often chains search one line, two, three, four
    drop_lines: float = 0.0  # chance of each other line to be left out
    read: float = 0.0  # share of observation tokens to learn too; only a new model needs it
    disguise: float = 0.0  # share of chains told in other words of the shop


@dataclass(frozen=True, slots=True)
class Lesson:
    """A case to demonstrate: its right line, and how many lines the chain searches."""

    example: Example
    right: int
    looks: int


class Demonstrator:
    """Writes demonstrations for one policy's codec in one environment."""

    def __init__(
        self, environment: Environment, policy: Policy, agent: AgentConfig, config: DemoConfig
    ) -> None:
        self.environment, self.policy, self.agent, self.config = environment, policy, agent, config
        self._tools = SearchProducts(environment.search, agent)
        self._answers: dict[tuple[int, str], tuple[str, ...]] = {}
        catalog = environment.search.catalog
        self._disguise = Disguise(
            (
                *catalog.titles,
                *(text for text in (*catalog.categories, *catalog.brands) if text),
                *(q for e in environment.of_split("train") for q in e.profile.references),
            )
        )

    def right_lines(self, example: Example) -> list[int]:
        """References that hindsight calls right, the best first; empty when there is none."""
        case = example.case
        exact, near = [], []
        for i, query in enumerate(example.profile.references):
            if query_key(query) == case.query_key:
                exact.append(i)
            elif self.environment.retrieve(query, case.as_of)[:1] and (
                self.environment.retrieve(query, case.as_of)[0] in case.products
            ):
                near.append(i)
        return exact or near

    def usable(self, examples: Sequence[Example]) -> list[tuple[Example, int]]:
        """The examples with a right line, and which it is."""
        found = ((e, self.right_lines(e)) for e in examples)
        return [(e, right[0]) for e, right in found if right]

    def lessons(self, examples: Sequence[Example]) -> list[Lesson]:
        """All that can be demonstrated, each as often as ``looks`` says.

        A right line beyond those that a chain searches is nothing that a policy could have
        known to jump to, so there is no such lesson.
        """
        made = []
        for example, right in self.usable(examples):
            most = min(self.agent.max_searches, len(example.profile.references))
            for number, often in enumerate(self.config.looks, 1):
                looks = min(number, most)
                made += [Lesson(example, right, looks)] * (often if right < looks else 0)
        return made

    def chain(self, lesson: Lesson, random: np.random.Generator, group: int) -> Chain:
        """One demonstration of a lesson."""
        profile, right = self._varied(lesson.example.profile, lesson.right, random)
        looks = range(min(lesson.looks, len(profile.references)))
        return self.tell(lesson.example, profile, looks, right, random, group)

    def tell(
        self,
        example: Example,
        profile: Profile,
        searched: Sequence[int],
        right: int,
        random: np.random.Generator,
        group: int,
    ) -> Chain:
        """The chain that searches some lines of a profile, in order, and recommends one of them.

        What the policy says carries loss; of what it reads, a random share does.
        """
        codec = self.policy.codec
        disguised = random.random() < self.config.disguise
        worded = self._disguise.draw(random) if disguised else str
        tokens = list(self.policy.prompt)
        trained = [False] * len(tokens)

        def say(text: str, own: bool) -> None:
            ids = codec.encode(text) if own else codec.observation(text)
            tokens.extend(ids)
            trained.extend(
                [True] * len(ids) if own else (random.random(len(ids)) < self.config.read).tolist()
            )

        say(FETCH, True)
        say(worded(profile_text(profile)), False)
        for number, line in enumerate(searched, 1):
            say(f"{SEARCH}<r{line}>{SEARCH_END}", True)
            lines = self._results(example, profile.references[line])
            say(worded(results_text(number, lines)), False)
        say(f"{RECOMMEND}<s{searched.index(right) + 1}>{RECOMMEND_END}", True)
        return Chain(tokens, trained, group)

    def _varied(
        self, profile: Profile, right: int, random: np.random.Generator
    ) -> tuple[Profile, int]:
        if not self.config.drop_lines:
            return profile, right
        kept: list[Line] = []
        place = number = 0
        for line in profile.lines:
            is_right = line.query is not None and number == right
            number += line.query is not None
            if is_right:
                place = sum(k.query is not None for k in kept)
            elif random.random() < self.config.drop_lines:
                continue
            kept.append(line)
        references = tuple(line.query for line in kept if line.query is not None)
        varied = replace(profile, lines=tuple(kept), references=references, text=render(kept))
        return varied, place

    def _results(self, example: Example, query: str) -> tuple[str, ...]:
        key = (example.case.case_id, query)
        if key not in self._answers:
            request = Request(query, example.case.as_of, example.profile.context)
            self._answers[key] = self._tools.run([request])[0].lines
        return self._answers[key]
