"""Demonstration chains, made with hindsight from the log and from nothing else.

A chain reads the memory, searches lines that look likely, sees what they retrieve, and ends
with the line that the log says was right: the query that the user then typed or, failing
that, one whose first product the user then engaged with. On the way it searches lines that
turn out wrong, so the policy sees what a wrong result looks like and goes on. Where no line
was right, a chain may search the query that the user then typed in words of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..agent.tools import SearchProducts, SearchRequest
from ..environment.environment import Environment, Example
from ..policy.policy import Policy
from ..policy.scoring import TrainingSequence
from ..protocol.actions import (
    FETCH,
    RECOMMEND,
    RECOMMEND_END,
    SEARCH,
    SEARCH_END,
    profile_text,
    results_text,
)
from ..protocol.config import AgentConfig
from ..protocol.escape import safe
from ..protocol.profile_text import render
from ..types import Line, Profile
from ..utils.text import query_key
from .delexicalize import Delexicalizer


@dataclass(frozen=True)
class DemoConfig:
    """How demonstrations are varied."""

    compare: float = 0.25  # share of chains that look on before they recommend
    drop_lines: float = 0.0  # chance of each other line to be left out
    read: float = 0.0  # share of observation tokens to learn too; only a new model needs it
    noise: float = 0.5  # how loosely the order of searches follows the lines' worth
    disguise: float = 0.0  # share of chains told in other words of the shop
    reachable: bool = False  # only cases whose right line a chain meets within its searches
    words: bool = False  # cases without such a line are told in the words of their own query


IN_WORDS = -1  # in place of a right line: the chain writes the query itself


class Demonstrator:
    """Writes demonstrations for one policy's codec in one environment."""

    def __init__(
        self, environment: Environment, policy: Policy, agent: AgentConfig, config: DemoConfig
    ) -> None:
        self.environment, self.policy, self.agent, self.config = environment, policy, agent, config
        self._tools = SearchProducts(environment.search, agent)
        self._answers: dict[tuple[int, str], tuple[str, ...]] = {}

    @cached_property
    def _disguise(self) -> Delexicalizer:
        """Of the shop's words; most demonstrators tell nothing in other words."""
        catalog = self.environment.search.catalog
        return Delexicalizer(
            (
                *catalog.titles,
                *(text for text in (*catalog.categories, *catalog.brands) if text),
                *(q for e in self.environment.of_split("train") for q in e.profile.references),
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
        """The examples that can be told, and the right line of each, or `IN_WORDS`."""
        # Jumping to a line further down is nothing that a policy could have known to do.
        reach = self.agent.max_searches if self.config.reachable else None
        usable = []
        for example in examples:
            right = self.right_lines(example)[:1]
            if right and (reach is None or right[0] < reach):
                usable.append((example, right[0]))
            elif self.config.words:
                usable.append((example, IN_WORDS))
        return usable

    def chain(
        self, example: Example, right: int, random: np.random.Generator, group: int
    ) -> TrainingSequence:
        """One demonstration for an example whose right line is ``right``, or `IN_WORDS`."""
        profile, right = self._varied(example.profile, right, random)
        searched = [right] if right == IN_WORDS else self._searches(profile, right, random)
        return self.tell(example, profile, searched, right, random, group)

    def tell(
        self,
        example: Example,
        profile: Profile,
        searched: Sequence[int],
        right: int,
        random: np.random.Generator,
        group: int,
    ) -> TrainingSequence:
        """The chain that searches some lines of a profile, in order, and recommends one of them.

        `IN_WORDS` among them stands for the case's own query, written out.

        What the policy says carries loss; of what it reads, a random share does.
        """
        codec = self.policy.codec
        disguised = random.random() < self.config.disguise
        # What is to be written cannot be learned from other words than the user's.
        disguised = disguised and IN_WORDS not in searched
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
            own = line == IN_WORDS
            query = example.case.query if own else profile.references[line]
            say(f"{SEARCH}{safe(query) if own else f'<r{line}>'}{SEARCH_END}", True)
            lines = self._results(example, query)
            say(worded(results_text(number, lines)), False)
        say(f"{RECOMMEND}<s{searched.index(right) + 1}>{RECOMMEND_END}", True)
        return TrainingSequence(tokens, trained, group)

    def _varied(
        self, profile: Profile, right: int, random: np.random.Generator
    ) -> tuple[Profile, int]:
        if not self.config.drop_lines:
            return profile, right
        kept: list[Line] = []
        place, number = (IN_WORDS if right == IN_WORDS else 0), 0
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

    def _searches(self, profile: Profile, right: int, random: np.random.Generator) -> list[int]:
        """Which lines a chain searches, in order; the right one is among them.

        Lines are searched the likeliest first. Most chains stop at the right line: what
        came before it was not what the user wanted. Others look on and compare.
        """
        worth = np.array([line.score for line in profile.lines if line.query is not None])
        noisy = np.log(worth + 1e-6) + self.config.noise * random.gumbel(size=len(worth))
        order = [int(i) for i in np.argsort(-noisy, kind="stable")]
        place = order.index(right)
        most = self.agent.max_searches
        if random.random() < self.config.compare:
            others = [i for i in order if i != right][: most - 1]
            return sorted([*others, right], key=order.index)
        return [*order[: min(place, most - 1)], right]

    def _results(self, example: Example, query: str) -> tuple[str, ...]:
        key = (example.case.case_id, query)
        if key not in self._answers:
            request = SearchRequest(query, example.case.as_of, example.profile.context)
            self._answers[key] = self._tools.run([request])[0].lines
        return self._answers[key]
