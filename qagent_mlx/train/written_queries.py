"""What a demonstration writes: queries that lead to what the user wanted, in words that it read.

Every query consists of words that the chain has read by then, as the policy's own will. Where the
profile does not say enough, a chain first writes a wider query, or one that the user could have had
in mind, and composes the right one from what that retrieves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..agent.writing import query_automaton
from ..environment.environment import Environment, Example
from ..policy.policy import Policy
from ..protocol.config import AgentConfig
from ..protocol.query_automaton import ReadableWords
from ..utils.text import query_key, words
from .wordings import Wordings

PRODUCTS = 3  # of a case, or of a user's history, whose wordings are tried
TYPED = 2.0  # weight of the query that the user typed, beside wordings of what was engaged with
FIRST_TRIES = 4  # first searches that are looked into for words of the right one

ReadResults = Callable[[Example, str], Sequence[str]]
"""The lines of results that an agent reads for a query, in a case."""


class QueryWriter:
    """Chooses the queries that a demonstration writes, by hindsight.

    Args:
        environment: What queries retrieve, and what users then did.
        policy: Its tokens limit what can be written.
        agent: How its chains run.
        detours: Share of chains that first write another query, where the right one could be
            written at once.
        read_results: What an agent reads of a query's results.
    """

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        agent: AgentConfig,
        detours: float,
        read_results: ReadResults,
    ) -> None:
        self._environment, self._read_results = environment, read_results
        self._detours = detours if agent.max_searches > 1 else 0.0
        self._may_refine = agent.max_searches > 1
        self._catalog = environment.search.catalog
        self.automaton = query_automaton(policy, agent, self._catalog)
        self._readable = ReadableWords(self._catalog.words)
        self._wordings = Wordings(self._catalog)

    def steps(self, example: Example, random: np.random.Generator) -> list[str]:
        """The queries of a chain in order, the right one last; empty where none can be written."""
        right = self.right_queries(example)
        known = self.available(example)
        direct = {q: weight for q, weight in right.items() if self.can_write(q, known)}
        if direct and random.random() >= self._detours:
            return [_draw(direct, random)]
        if self._may_refine:
            others = self._first_searches(example, known)
            for i in random.permutation(len(others))[:FIRST_TRIES]:
                first = others[int(i)]
                more = self.available(example, first, *self._read_results(example, first))
                refined = {
                    q: weight
                    for q, weight in right.items()
                    if query_key(q) != query_key(first) and self.can_write(q, more)
                }
                if refined:
                    return [first, _draw(refined, random)]
        return [_draw(direct, random)] if direct else []

    def right_queries(self, example: Example) -> dict[str, float]:
        """Queries that lead to what the user then engaged with, each with a weight.

        That is what the user typed, where that is known, and wordings of the products, weighted by
        how far on top they retrieve them.
        """
        case = example.case
        weights: dict[str, float] = {case.query: TYPED} if case.query else {}
        for product in case.products[:PRODUCTS]:
            for query, retrieved in self._retrieved(self._wordings_of(product), example):
                if product in retrieved and query_key(query) != case.query_key:
                    gain = 1 / math.log2(retrieved.index(product) + 2)
                    weights[query] = max(weights.get(query, 0.0), gain)
        return weights

    def can_be_written(self, example: Example) -> bool:
        """Whether some chain could write what the example asks for, at once."""
        known = self.available(example)
        return any(self.can_write(query, known) for query in self.right_queries(example))

    def available(self, example: Example, *read: str) -> frozenset[str]:
        """The words that a query may consist of, behind the memory and other texts of a chain."""
        return self._readable.available(" ".join([example.profile.text, *read]))

    def can_write(self, query: str, available: frozenset[str]) -> bool:
        """Whether a query can be written with the words that were read."""
        if self.automaton is not None:
            return self.automaton.accepts(query, available)
        asked = words(query)
        return bool(asked) and set(asked) <= available

    def _first_searches(self, example: Example, known: frozenset[str]) -> list[str]:
        """Queries to begin with that do not retrieve on top what was wanted.

        They are wordings of what was wanted, where its shelf begins with something else, and of the
        user's latest products.
        """
        case, context = example.case, example.profile.context
        queries = []
        for product in [*case.products[:1], *(*context.seen, *context.bought)[:PRODUCTS]]:
            can_begin = [q for q in self._wordings_of(product) if self.can_write(q, known)]
            for query, retrieved in self._retrieved(can_begin, example):
                if retrieved and retrieved[0] not in case.products:
                    queries.append(query)
        return list(dict.fromkeys(queries))

    def _retrieved(
        self, queries: Sequence[str], example: Example
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each query with the products that it retrieves at the example's moment."""
        return zip(
            queries, self._environment.retrieve_all(queries, example.case.as_of), strict=True
        )

    def _wordings_of(self, product: str) -> Sequence[str]:
        row = self._catalog.row_of.get(product)
        return () if row is None else self._wordings.queries(row)


def with_references(query: str, references: Sequence[str]) -> str:
    """A query in plain words, with ``<rN>`` for the longest line of memory that it contains.

    A small model chooses a reference where it could not copy the words one by one.
    """
    asked = words(query)
    best, place, length = -1, 0, 0
    for number, reference in enumerate(references):
        line = words(reference)
        for start in range(len(asked) - len(line) + 1):
            if len(line) > length and asked[start : start + len(line)] == line:
                best, place, length = number, start, len(line)
    if best < 0:
        return " ".join(asked)
    return " ".join([*asked[:place], f"<r{best}>", *asked[place + length :]])


def _draw(weights: Mapping[str, float], random: np.random.Generator) -> str:
    """One of the queries, by their weights."""
    shares = np.array(list(weights.values()))
    return list(weights)[int(random.choice(len(shares), p=shares / shares.sum()))]
