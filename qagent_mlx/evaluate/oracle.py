"""Recommenders that know the simulated shoppers' minds: how high a row of queries can come.

An oracle knows what a shopper needs, likes and would type, and what each query finds in the
shop; it does not know the luck of the visit. ``oracle`` fills the row for the most purchases,
``oracle-taps`` for the most taps, ``oracle-lines`` for the most purchases with the lines of the
shopper's memory alone: what an agent could reach that only points at them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from ..environment.environment import Environment, Example
from ..simulator.click_model import EXAMINATION, QueryInterpreter, Retrieve, Visit
from ..simulator.world import SimulatedShop
from .metrics import Ranking

ORACLES = ("oracle", "oracle-taps", "oracle-lines")


def tapped_search(world: SimulatedShop, environment: Environment) -> Callable[[datetime], Retrieve]:
    """The search at a moment to which a simulated shopper's tap sends a query."""
    index = {product.product_id: i for i, product in enumerate(world.products)}

    def search_at(as_of: datetime) -> Retrieve:
        def retrieve(query: str) -> np.ndarray:
            return np.array([index[p] for p in environment.retrieve(query, as_of)], dtype=int)

        return retrieve

    return search_at


@dataclass(frozen=True)
class ShopperOracle:
    """Recommends at visits of simulated shoppers, whose minds it knows.

    Attributes:
        name: One of `ORACLES`.
        visits: One for each example that it is asked about, in order.
        world: The shoppers' world.
        environment: Its search is the one that a tapped query is sent to.
    """

    name: str
    visits: Sequence[Visit]
    world: SimulatedShop
    environment: Environment

    def rank(self, examples: Sequence[Example], k: int) -> list[Ranking]:
        """The row of at most ``k`` queries with the most purchases, or taps, to be expected."""
        interpreter = QueryInterpreter(self.world)
        search_at = tapped_search(self.world, self.environment)
        rankings = []
        for visit, example in zip(self.visits, examples, strict=True):
            retrieve = search_at(example.case.as_of)
            queries = self._candidates(visit, example)
            values = [self._value(visit, interpreter, query, retrieve) for query in queries]
            order = sorted(range(len(queries)), key=lambda i: (-values[i], queries[i]))
            chosen = [queries[i] for i in order if values[i] > 0][:k]
            rankings.append(Ranking(tuple(chosen)))
        return rankings

    def _candidates(self, visit: Visit, example: Example) -> list[str]:
        lines = [line.query for line in example.profile.lines if line.query]
        if self.name == "oracle-lines":
            return list(dict.fromkeys(lines))
        phrases = [
            phrase.text
            for type_index in sorted({need.type_index for need in visit.shopper.needs})
            for phrase in self.world.phrases[type_index]
        ]
        earlier = [need.phrase.text for need in visit.shopper.needs if need.phrase]
        return list(dict.fromkeys([*lines, *phrases, *earlier]))

    def _value(
        self, visit: Visit, interpreter: QueryInterpreter, query: str, retrieve: Retrieve
    ) -> float:
        """What decides the order of a row: the query with the higher value stands before.

        A tap ends the visit and a further query is examined with a certain probability, so of
        two neighbours the one with the higher gain over the loss of attention comes first.
        """
        tap, bought = visit.expected(interpreter, query, retrieve)
        gain = tap if self.name == "oracle-taps" else tap * bought
        return gain / (1 - EXAMINATION * (1 - tap))
