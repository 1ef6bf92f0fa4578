"""Demonstration chains, made with hindsight from the log and from nothing else.

A chain reads the memory, searches lines that look likely, sees what they retrieve, and ends
with the line that the log proves relevant: the query that the user then typed or, failing that,
one whose first product the user then engaged with. On the way it searches lines that turn out
wrong, so the policy sees what a wrong result looks like and goes on. Where no line is relevant,
a chain may write the query that the user then typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..agent.tools import SearchProducts, SearchRequest
from ..environment.environment import Environment, Example
from ..errors import QAgentError
from ..policy.batches import TrainingSequence
from ..policy.policy import Policy
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

    compare: float = 0.25  # share of chains that search on after the relevant line
    drop_lines: float = 0.0  # probability of every other line to be left out
    read: float = 0.0  # share of observed tokens to learn too; only a new model needs it
    noise: float = 0.5  # how loosely the order of searches follows the lines' scores
    disguise: float = 0.0  # share of chains that are delexicalised
    reachable: bool = False  # only cases whose relevant line a chain meets within its searches
    words: bool = False  # cases without a relevant line are demonstrated by writing the query


@dataclass(frozen=True, slots=True)
class Target:
    """A case to demonstrate, and the reference that its chain recommends.

    Without a reference the chain writes the case's own query.
    """

    example: Example
    reference: int | None


class Demonstrator:
    """Writes demonstrations for one policy's codec in one environment."""

    def __init__(
        self, environment: Environment, policy: Policy, agent: AgentConfig, config: DemoConfig
    ) -> None:
        self.environment, self.policy, self.agent, self.config = environment, policy, agent, config
        self._tools = SearchProducts(environment.search, agent)
        self._results: dict[tuple[int, str], tuple[str, ...]] = {}

    @cached_property
    def _delexicalizer(self) -> Delexicalizer:
        """Replaces words by the shop's; made at the first use, as most chains need none."""
        catalog = self.environment.search.catalog
        train = self.environment.of_split("train")
        return Delexicalizer(
            (
                *catalog.titles,
                *(text for text in (*catalog.categories, *catalog.brands) if text),
                *(query for e in train for query in e.profile.references),
            )
        )

    def relevant_references(self, example: Example) -> list[int]:
        """References that hindsight proves relevant, the best first.

        Those that equal the user's next query or, if there are none, those whose first product
        the user then engaged with.
        """
        case = example.case
        exact, engaged = [], []
        for i, query in enumerate(example.profile.references):
            if query_key(query) == case.query_key:
                exact.append(i)
            else:
                products = self.environment.retrieve(query, case.as_of)
                if products and products[0] in case.products:
                    engaged.append(i)
        return exact or engaged

    def targets(self, examples: Sequence[Example]) -> list[Target]:
        """The examples that can be demonstrated."""
        # Jumping to a line further down is nothing that a policy could have known to do.
        reach = self.agent.max_searches if self.config.reachable else None
        targets = []
        for example in examples:
            relevant = self.relevant_references(example)[:1]
            if relevant and (reach is None or relevant[0] < reach):
                targets.append(Target(example, relevant[0]))
            elif self.config.words:
                targets.append(Target(example, None))
        return targets

    def demonstrate(
        self, target: Target, random: np.random.Generator, group: int
    ) -> TrainingSequence:
        """One demonstration, varied at random."""
        target = self._drop_lines(target, random)
        example, reference = target.example, target.reference
        searches: list[int | None] = [None]
        if reference is not None:
            searches = [*self._search_order(example.profile, reference, random)]
        return self.write(example, searches, reference, random, group)

    def write(
        self,
        example: Example,
        searches: Sequence[int | None],
        recommended: int | None,
        random: np.random.Generator,
        group: int,
    ) -> TrainingSequence:
        """The chain that searches some references, in order, and recommends one of them.

        None among them stands for the case's own query, written out. What the policy writes
        carries loss; of what it reads, a random share does.
        """
        codec, config = self.policy.codec, self.config
        delexicalized = random.random() < config.disguise
        # What is to be written cannot be learned from other words than the user's.
        delexicalized = delexicalized and None not in searches
        reworded = self._delexicalizer.draw(random) if delexicalized else str
        tokens = list(self.policy.prompt)
        trained = [False] * len(tokens)

        def act(text: str) -> None:
            ids = codec.encode(text)
            tokens.extend(ids)
            trained.extend([True] * len(ids))

        def observe(text: str) -> None:
            ids = codec.observation(reworded(text))
            tokens.extend(ids)
            mask = (random.random(len(ids)) < config.read).tolist()
            # A chat model learns to end its answer after an action, so that it stops anywhere.
            trained.extend([True] * len(codec.ending) + mask[len(codec.ending) :])

        act(FETCH)
        observe(profile_text(example.profile))
        for number, reference in enumerate(searches, 1):
            if reference is None:
                query = example.case.query
                act(f"{SEARCH}{safe(query)}{SEARCH_END}")
            else:
                query = example.profile.references[reference]
                act(f"{SEARCH}<r{reference}>{SEARCH_END}")
            observe(results_text(number, self._retrieve(example, query)))
        act(f"{RECOMMEND}<s{searches.index(recommended) + 1}>{RECOMMEND_END}")
        tokens.extend(codec.ending)
        trained.extend([True] * len(codec.ending))
        return TrainingSequence(tokens, trained, group)

    def _drop_lines(self, target: Target, random: np.random.Generator) -> Target:
        """The target without some lines of its profile; the relevant one always stays."""
        if not self.config.drop_lines:
            return target
        lines: list[Line] = []
        reference, number = target.reference, 0
        for line in target.example.profile.lines:
            is_relevant = line.query is not None and number == target.reference
            number += line.query is not None
            if is_relevant:
                reference = sum(kept.query is not None for kept in lines)
            elif random.random() < self.config.drop_lines:
                continue
            lines.append(line)
        profile = replace(
            target.example.profile,
            lines=tuple(lines),
            references=tuple(line.query for line in lines if line.query is not None),
            text=render(lines),
        )
        return Target(replace(target.example, profile=profile), reference)

    def _search_order(
        self, profile: Profile, relevant: int, random: np.random.Generator
    ) -> list[int]:
        """The references that a chain searches, in order; the relevant one is among them.

        Lines are searched the likeliest first. Most chains stop at the relevant line: what
        came before it was not what the user wanted. Others search on and compare.
        """
        scores = np.array([line.score for line in profile.lines if line.query is not None])
        noisy = np.log(scores + 1e-6) + self.config.noise * random.gumbel(size=len(scores))
        order = [int(i) for i in np.argsort(-noisy, kind="stable")]
        most = self.agent.max_searches
        if random.random() < self.config.compare:
            others = [i for i in order if i != relevant][: most - 1]
            return sorted([*others, relevant], key=order.index)
        return [*order[: min(order.index(relevant), most - 1)], relevant]

    def _retrieve(self, example: Example, query: str) -> tuple[str, ...]:
        """The lines of a search's results."""
        key = (example.case.case_id, query)
        if key not in self._results:
            request = SearchRequest(query, example.case.as_of, example.profile.context)
            self._results[key] = self._tools.run([request])[0].lines
        return self._results[key]


def training_examples(environment: Environment, policy: Policy, solvable: bool) -> list[Example]:
    """The cases that a policy learns from by reinforcement.

    ``solvable`` leaves out those in which no line within a chain's reach is relevant: all chains
    would score the same.
    """
    examples = environment.of_split("train")
    agent = policy.info.agent
    if solvable:
        demonstrator = Demonstrator(environment, policy, agent, DemoConfig(reachable=agent.search))
        examples = [target.example for target in demonstrator.targets(examples)]
    if not examples:
        raise QAgentError("there is no training case to learn from; ingest a longer log")
    return examples
