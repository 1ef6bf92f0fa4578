"""How a simulated shopper responds to a slate of recommended queries: tap one, look, buy or not.

A visit goes like this:

1. The shopper examines the queries from the first one on, and gives up before each further
   one with probability ``1 - EXAMINATION``, as in the cascade model (Craswell et al., 2008).
2. An examined query is tapped with probability ``demand x familiarity``. *Demand* says how much
   such a thing is wanted now: 1 for what the visit is for, less for what comes later, almost
   nothing otherwise. *Familiarity* is how close the query is to the shopper's own wording, fame
   of brands included: ``sqrt(weight / best weight)``, as people recognise more than they type.
3. A tapped query is searched in the shop's real inventory, and the shopper goes through the
   products as after any search (`Shopper.browse_results`): taste, price now and stock decide,
   by preferences that stand in no file and that no policy saw.

So a famous brand that a shopper can't afford is tapped and not bought. All draws of a visit
come from its own seed and the query's text: two systems that show the same query in the same
position get the same response (common random numbers), and differ only where they differ.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..utils.text import query_key
from .shopper import Need, SearchOutcome, Shopper
from .world import Phrase, SimulatedShop

EXAMINATION = 0.85  # probability of examining one more query
SECOND_DEMAND = 0.7  # for what the visit could also be for
LATER_DEMAND = 0.4  # for what is needed later, fading over so many days
LATER_DAYS = 5.0
CURIOSITY = 0.03  # demand without a need, in a department that interests the shopper
FREE_WORDING = 0.8  # familiarity of words that the world has no phrase for, against a plain one
UNDERSTOOD = 3  # of the first five products must be of one type, or a query means nothing

Retrieve = Callable[[str], np.ndarray]  # the shop's search: indices of world.products, best first


@dataclass(frozen=True, slots=True)
class SlateOutcome:
    """What one slate of queries led to; ``position`` is that of the tapped query, or -1."""

    position: int = -1
    query: str = ""
    clicks: int = 0  # products that were clicked
    bought: bool = False
    revenue: float = 0.0

    @property
    def tapped(self) -> bool:
        """Whether a query was tapped."""
        return self.position >= 0


class QueryInterpreter:
    """What a query can mean to a shopper: a product type, and a way of wording it."""

    def __init__(self, world: SimulatedShop) -> None:
        self._world = world
        self._meanings: dict[str, dict[int, Phrase | None]] = {}
        for product in world.products:
            name = f"{world.brands[product.brand_index].name} {product.model}".lower()
            phrase = Phrase(name, "model", brand=product.brand_index)
            self._meanings[query_key(name)] = {product.type_index: phrase}
        for type_index, phrases in enumerate(world.phrases):
            for phrase in phrases:
                self._meanings.setdefault(query_key(phrase.text), {})[type_index] = phrase

    def meanings(self, query: str) -> dict[int, Phrase | None]:
        """The product types that a query can mean, each with its phrase.

        There is no phrase for a free wording (a typo, words put together), which means what
        most of the first products that it matches are, and no type where that is unclear.
        """
        key = query_key(query)
        if key not in self._meanings:
            results = self._world.engine.search(query, 5).tolist()
            types = Counter(self._world.products[i].type_index for i in results)
            self._meanings[key] = {t: None for t, n in types.most_common(1) if n >= UNDERSTOOD}
        return self._meanings[key]


@dataclass(frozen=True)
class Visit:
    """A shopper at the moment when the shop shows queries, before they type anything."""

    shopper: Shopper  # a copy as it was then
    day: float
    seed: tuple[int, ...]

    @classmethod
    def of(cls, shopper: Shopper, day: float, seed: tuple[int, ...]) -> Visit:
        """The shopper now; what they do later does not change the visit."""
        then = copy.copy(shopper)
        then.needs = [replace(need) for need in shopper.needs]
        then.owned = set(shopper.owned)
        then.failed_searches = dict(shopper.failed_searches)
        # Tastes are drawn at their first use: from here on they must not depend on who asks.
        then.style_affinity = dict(shopper.style_affinity)
        then.rng = np.random.default_rng([*seed, 0])
        for kind in then.world.types:
            for style in kind.styles:
                then.style(style)
        return cls(then, day, seed)

    def demand(self, type_index: int) -> tuple[float, Need | None]:
        """How much a product type is wanted now, in [0, 1], and for which need."""
        for position, need in enumerate(self.shopper.due_needs(self.day)):
            if need.type_index == type_index:
                return (1.0 if position == 0 else SECOND_DEMAND), need
        later = [n for n in self.shopper.needs if n.type_index == type_index]
        if later:
            need = min(later, key=lambda n: n.due)
            days = need.due - self.day - 1.0
            return LATER_DEMAND * float(np.exp(-days / LATER_DAYS)), need
        world = self.shopper.world
        department = world.departments.index(world.types[type_index].department)
        return (CURIOSITY if department in self.shopper.departments.tolist() else 0.0), None

    def familiarity(self, type_index: int, phrase: Phrase | None, need: Need | None) -> float:
        """How close a wording is to this shopper's own, in [0, 1]."""
        earlier = need.phrase if need is not None else None
        if phrase and earlier and query_key(phrase.text) == query_key(earlier.text):
            return 1.0  # it worked before
        weights = self.shopper.phrase_weights(type_index, self.day)
        phrases = self.shopper.world.phrases[type_index]
        share = np.sqrt(weights / weights.max())
        if phrase in phrases:
            return float(share[phrases.index(phrase)])
        if phrase is not None:  # a model of some brand
            alike = [i for i, p in enumerate(phrases) if p.brand == phrase.brand]
        else:
            alike = [i for i, p in enumerate(phrases) if p.kind == "generic"]
        return FREE_WORDING * float(share[alike].max()) if alike else 0.0

    def tap_probability(self, interpreter: QueryInterpreter, query: str) -> float:
        """The probability that a query is tapped once it is examined."""
        return self._reading(interpreter, query)[0]

    def _reading(self, interpreter: QueryInterpreter, query: str) -> tuple[float, int]:
        """The probability of a tap, and the product type that the shopper takes a query to mean."""
        best = (0.0, -1)
        for type_index, phrase in interpreter.meanings(query).items():
            demand, need = self.demand(type_index)
            if demand:
                likely = demand * self.familiarity(type_index, phrase, need)
                best = max(best, (likely, type_index))
        return best

    def _browse(
        self, results: np.ndarray, type_index: int, rng: np.random.Generator
    ) -> SearchOutcome:
        """Look through the products of a query that was tapped for a type of product."""
        # Curiosity looks around; only a need buys.
        wanted = type_index if self.demand(type_index)[1] is not None else None
        shopper = copy.copy(self.shopper)
        shopper.rng = rng
        return shopper.browse_results(results, wanted, self.day)

    def expected(
        self, interpreter: QueryInterpreter, query: str, retrieve: Retrieve, draws: int = 20
    ) -> tuple[float, float]:
        """The probabilities of a tap on an examined query, and of a purchase after it.

        For whoever may know the shopper's mind, but not their luck: the draws are others than
        those of `outcomes`.
        """
        tap, type_index = self._reading(interpreter, query)
        if not tap:
            return 0.0, 0.0
        results, key = retrieve(query), zlib.crc32(query_key(query).encode())
        bought = [
            bool(
                self._browse(
                    results, type_index, np.random.default_rng([*self.seed, draw, 3, key])
                ).purchases
            )
            for draw in range(draws)
        ]
        return tap, float(np.mean(bought))

    def outcomes(
        self,
        interpreter: QueryInterpreter,
        queries: Sequence[str],
        retrieve: Retrieve,
        draws: int = 1,
    ) -> list[SlateOutcome]:
        """What the shopper does with a slate of queries, for each of several random draws.

        ``retrieve`` is the shop's search; the same moment is lived through ``draws`` times.
        """
        readings = [self._reading(interpreter, query) for query in queries]
        return [self._outcome(queries, readings, retrieve, draw) for draw in range(draws)]

    def _outcome(
        self,
        queries: Sequence[str],
        readings: Sequence[tuple[float, int]],
        retrieve: Retrieve,
        draw: int,
    ) -> SlateOutcome:
        examined = np.random.default_rng([*self.seed, draw, 1]).random(max(1, len(queries)))
        for position, (query, reading) in enumerate(zip(queries, readings, strict=True)):
            probability, type_index = reading
            if position and examined[position] > EXAMINATION:
                break
            if not probability:
                continue
            key = zlib.crc32(query_key(query).encode())
            rng = np.random.default_rng([*self.seed, draw, 2, key])
            if rng.random() >= probability:
                continue
            result = self._browse(retrieve(query), type_index, rng)
            revenue = sum(self.shopper.world.price(i, self.day) for i in result.purchases)
            return SlateOutcome(
                position, query, len(result.clicks), bool(result.purchases), float(revenue)
            )
        return SlateOutcome()
