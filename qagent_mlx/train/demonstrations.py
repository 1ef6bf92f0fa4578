"""Demonstration chains, made with hindsight from the log and from nothing else.

A chain reads the memory, searches lines that look likely, sees what they retrieve, and ends
with the line that the log proves relevant: the query that the user then typed or, failing that,
one whose first product the user then engaged with. On the way it searches lines that turn out
wrong, so the policy sees what a wrong result looks like and goes on.

A chain may also write its queries (`Writer`): the one that the user then typed or, where that is
unknown, one that leads to a product which the user then engaged with. Before it, a chain writes
queries that the same user could have had in mind and that lead nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .written_queries import QueryWriter, with_references


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
    written: float = 0.33  # share of the other cases that are demonstrated by writing, too
    detours: float = 0.5  # share of written chains that first write what leads nowhere


@dataclass(frozen=True, slots=True)
class Target:
    """A case to demonstrate, and the reference that its chain recommends.

    Without a reference the chain writes a query.
    """

    example: Example
    reference: int | None


Step = int | str  # what a chain searches: a reference, or words that it writes


def how_to_get_cases(agent: AgentConfig) -> str:
    """What to do where too few cases can be demonstrated to a policy."""
    remedy = "ingest a longer log"
    return remedy if agent.writes else f"{remedy}, or pretrain a policy with `writes`"


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

    @cached_property
    def _writer(self) -> QueryWriter:
        return QueryWriter(
            self.environment, self.policy, self.agent, self.config.detours, self._retrieve
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
            elif self._can_be_written(example):
                targets.append(Target(example, None))
        return targets

    def _can_be_written(self, example: Example) -> bool:
        if self.agent.writes:
            return self._writer.can_be_written(example)
        return self.config.words

    def can_write(self, query: str, example: Example) -> bool:
        """Whether a policy that writes can write a query once it has read an example's memory."""
        available = self._writer.available(example)
        return self.agent.writes and self._writer.can_write(query, available)

    def demonstrate(
        self, target: Target, random: np.random.Generator, group: int
    ) -> TrainingSequence:
        """One demonstration, varied at random."""
        whole, target = target.example, self._drop_lines(target, random)
        example, reference = target.example, target.reference
        if self.agent.writes and (reference is None or random.random() < self.config.written):
            for source in (example, whole):  # without a line, its words may be missing
                steps = self._writer.steps(source, random)
                if steps:
                    return self.write(source, steps, steps[-1], random, group)
        if reference is None:
            return self.write(example, [example.case.query], example.case.query, random, group)
        searches = self._search_order(example.profile, reference, random)
        return self.write(example, searches, reference, random, group)

    def write(
        self,
        example: Example,
        searches: Sequence[Step],
        recommended: Step,
        random: np.random.Generator,
        group: int,
    ) -> TrainingSequence:
        """The chain that searches references or words, in order, and recommends one of them.

        What the policy writes carries loss; of what it reads, a random share does.
        """
        codec, config = self.policy.codec, self.config
        delexicalized = random.random() < config.disguise
        # What is to be written cannot be learned from other words than the user's.
        delexicalized = delexicalized and not any(isinstance(step, str) for step in searches)
        reworded = self._delexicalizer.draw(random) if delexicalized else str
        tokens = list(self.policy.prompt)
        trained = [False] * len(tokens)
        acted = [False] * len(tokens)  # a new model learns to read, too

        def act(text: str) -> None:
            ids = codec.encode(text)
            tokens.extend(ids)
            trained.extend([True] * len(ids))
            acted.extend([True] * len(ids))

        def observe(text: str) -> None:
            ids = codec.observation(reworded(text))
            tokens.extend(ids)
            mask = (random.random(len(ids)) < config.read).tolist()
            # A chat model learns to end its answer after an action, so that it stops anywhere.
            trained.extend([True] * len(codec.ending) + mask[len(codec.ending) :])
            acted.extend([False] * len(ids))

        act(FETCH)
        observe(profile_text(example.profile))
        for number, step in enumerate(searches, 1):
            if isinstance(step, str):
                query = step
                act(f"{SEARCH}{self._written(query, example.profile)}{SEARCH_END}")
            else:
                query = example.profile.references[step]
                act(f"{SEARCH}<r{step}>{SEARCH_END}")
            observe(results_text(number, self._retrieve(example, query)))
        act(f"{RECOMMEND}<s{searches.index(recommended) + 1}>{RECOMMEND_END}")
        tokens.extend(codec.ending)
        trained.extend([True] * len(codec.ending))
        acted.extend([True] * len(codec.ending))
        return TrainingSequence(tokens, trained, group, self._allowed(example, tokens, acted))

    def _written(self, query: str, profile: Profile) -> str:
        """A query as the policy writes it: in words, and references to the lines it contains."""
        return with_references(query, profile.references) if self.agent.writes else safe(query)

    def _allowed(
        self, example: Example, tokens: Sequence[int], acted: Sequence[bool]
    ) -> Mapping[int, np.ndarray]:
        """What constrains the tokens of a chain where queries are written."""
        automaton = self._writer.automaton if self.agent.writes else None
        if automaton is None:
            return {}
        return automaton.masks(tokens, acted, len(example.profile.references))

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
        raise QAgentError(f"there is no training case to learn from; {how_to_get_cases(agent)}")
    return examples
