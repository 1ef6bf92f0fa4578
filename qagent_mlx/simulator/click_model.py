"""How a simulated shopper answers a row of recommended queries: tap one, look, buy or not.

The model of a visit, in order:

1. The shopper looks at the queries from the left and gives up with each one
   (``EXAMINE ** position``), as on a page of results.
2. A query is tapped with the chance ``need x appeal``. *Need* says how much they want such a
   thing now: it is 1 for what the visit is for, less for what comes later, almost nothing
   otherwise. *Appeal* is how close the query is to their own way of wording, fame of brands
   included: ``sqrt(weight / best weight)``, as one recognises more than one would type.
3. A tapped query is searched in the shop's real inventory, and the shopper goes through the
   products as after any search (`Shopper.respond`): taste, price now and stock decide, by
   preferences that stand in no file and that no policy saw.

So a famous brand that a shopper can't afford is tapped and not bought. All chances of a visit
are drawn from its own seed and the query's text: two systems that show the same query in the
same place get the same answer (common random numbers), and differ only where they differ.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..utils.text import query_key
from .shopper import Need, Shopper
from .world import Phrase, SimulatedShop

EXAMINE = 0.85  # the chance of looking at one more query
SECOND = 0.7  # need for what the visit could also be for
LATER = 0.4  # need for what comes later, fading over so many days
LATER_DAYS = 5.0
IDLE = 0.03  # curiosity about a department that interests, without a need
FREE_WORDING = 0.8  # appeal of words that the world has no phrase for, against a plain one
UNDERSTOOD = 3  # of the first five products must be of one type, or a query means nothing


@dataclass(frozen=True, slots=True)
class SlateOutcome:
    """What one row of queries led to; ``position`` is that of the tapped query, or -1."""

    position: int = -1
    query: str = ""
    clicks: int = 0  # products looked at
    bought: bool = False
    revenue: float = 0.0

    @property
    def tapped(self) -> bool:
        """Whether a query was tapped."""
        return self.position >= 0


class QueryInterpreter:
    """What a query means to a shopper: a type of product, and the way of wording it."""

    def __init__(self, world: SimulatedShop) -> None:
        self._world = world
        self._known: dict[str, tuple[int | None, Phrase | None]] = {}
        for product in world.products:
            name = f"{world.brands[product.brand_index].name} {product.model}".lower()
            phrase = Phrase(name, "model", brand=product.brand_index)
            self._known[query_key(name)] = (product.type_index, phrase)
        for t, phrases in enumerate(world.phrases):
            for phrase in phrases:
                self._known[query_key(phrase.text)] = (t, phrase)

    def of(self, query: str) -> tuple[int | None, Phrase | None]:
        """(type, phrase); no phrase for a free wording, no type for what means nothing.

        A free wording (a typo, words put together) means what most of the first products
        that it matches are.
        """
        key = query_key(query)
        if key not in self._known:
            found = self._world.engine.search(query, 5).tolist()
            types = Counter(self._world.products[i].type_index for i in found)
            t, count = types.most_common(1)[0] if types else (-1, 0)
            self._known[key] = (t if count >= UNDERSTOOD else None, None)
        return self._known[key]


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
        then.disappointed = dict(shopper.disappointed)
        # Tastes are made up when first asked for: from here on they must not hang on who asks.
        then.style_taste = dict(shopper.style_taste)
        then.rng = np.random.default_rng([*seed, 0])
        for kind in then.world.types:
            for style in kind.styles:
                then.style(style)
        return cls(then, day, seed)

    def need(self, t: int) -> tuple[float, Need | None]:
        """How much a type of product is wanted now, in [0, 1], and for which need."""
        ready = self.shopper.ready(self.day)
        for place, need in enumerate(ready):
            if need.type_index == t:
                return (1.0 if place == 0 else SECOND), need
        later = [n for n in self.shopper.needs if n.type_index == t]
        if later:
            need = min(later, key=lambda n: n.due)
            return LATER * float(np.exp(-(need.due - self.day - 1.0) / LATER_DAYS)), need
        world = self.shopper.world
        place = world.departments.index(world.types[t].department)
        return (IDLE if place in self.shopper.departments.tolist() else 0.0), None

    def appeal(self, t: int, phrase: Phrase | None, need: Need | None) -> float:
        """How much a wording is this shopper's own, in [0, 1]."""
        before = need.phrase if need is not None else None
        if phrase and before and query_key(phrase.text) == query_key(before.text):
            return 1.0  # it worked before
        weights = self.shopper.phrase_weights(t, self.day)
        phrases = self.shopper.world.phrases[t]
        share = np.sqrt(weights / weights.max())
        if phrase in phrases:
            return float(share[phrases.index(phrase)])
        if phrase is not None:  # a model of some brand
            alike = [i for i, p in enumerate(phrases) if p.brand == phrase.brand]
        else:
            alike = [i for i, p in enumerate(phrases) if p.kind == "generic"]
        return FREE_WORDING * float(share[alike].max()) if alike else 0.0

    def chance(self, meanings: QueryInterpreter, query: str) -> float:
        """The chance that a query is tapped once it is looked at."""
        t, phrase = meanings.of(query)
        if t is None:
            return 0.0
        want, need = self.need(t)
        return want * self.appeal(t, phrase, need) if want else 0.0

    def answers(
        self,
        meanings: QueryInterpreter,
        queries: Sequence[str],
        retrieve: Callable[[str], np.ndarray],
        draws: int = 1,
    ) -> list[SlateOutcome]:
        """What the shopper does with a row of queries, each time with other luck.

        Args:
            meanings: Of the shopper's world.
            queries: As shown, the first one first.
            retrieve: The shop's search: a query to rows of ``world.products``, best first.
            draws: How many times the same moment is lived through.
        """
        chances = [self.chance(meanings, query) for query in queries]
        return [self._answer(meanings, queries, chances, retrieve, draw) for draw in range(draws)]

    def _answer(
        self,
        meanings: QueryInterpreter,
        queries: Sequence[str],
        chances: Sequence[float],
        retrieve: Callable[[str], np.ndarray],
        draw: int,
    ) -> SlateOutcome:
        looks = np.random.default_rng([*self.seed, draw, 1]).random(max(1, len(queries)))
        for position, (query, chance) in enumerate(zip(queries, chances, strict=True)):
            if position and looks[position] > EXAMINE:
                break
            if not chance:
                continue
            key = zlib.crc32(query_key(query).encode())
            own = np.random.default_rng([*self.seed, draw, 2, key])
            if own.random() >= chance:
                continue
            t, _ = meanings.of(query)
            assert t is not None
            # Curiosity looks around; only a need buys.
            wanted = t if self.need(t)[1] is not None else None
            shopper = copy.copy(self.shopper)
            shopper.rng = own
            outcome = shopper.respond(query, retrieve(query), wanted, self.day)
            revenue = sum(shopper.world.price(i, self.day) for i in outcome.purchases)
            return SlateOutcome(
                position, query, len(outcome.clicks), bool(outcome.purchases), float(revenue)
            )
        return SlateOutcome()
