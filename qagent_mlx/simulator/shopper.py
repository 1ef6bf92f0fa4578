"""The simulated shop's shoppers: what they like and need, and what they do.

The sample shop's log comes from here, and so do the fresh shoppers of a simulated A/B test.
Shoppers have hidden preferences (brand, price, specification, style), a way of wording
queries, and needs that follow one another: a camera, then a memory card. A search shows
them what the shop's engine returns; they look from the top, engage with what suits them,
and reword the query when nothing does. Well-known brands are tempting to type, and many
who type them can't afford what comes up or find it sold out. That is the gap between a
query that is tapped and a query that sells (arXiv:2606.05671).

The log holds what a real shop would see. Preferences stay in the simulator: no policy,
profile or demonstration is made from them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .world import Phrase, SimulatedShop, moment

# Appeal of a cheap, middling or expensive price to a thrifty, average or spending shopper.
PRICE_FIT = ((1.0, 0.2, 0.0), (0.55, 1.0, 0.1), (0.2, 0.6, 1.0))
WORDINGS = ("generic", "brand", "spec", "style")
MAX_VISITS = 4  # for one need


@dataclass
class Need:
    """A product type that a shopper will look for from a day on."""

    type_index: int
    due: float
    phrase: Phrase | None = None  # a wording that worked before
    visits: int = 0  # how often the shopper looked for it already


@dataclass
class SearchOutcome:
    """The products that a shopper clicked, put in the cart and bought after one search."""

    clicks: list[int] = field(default_factory=list)
    carts: list[int] = field(default_factory=list)
    purchases: list[int] = field(default_factory=list)


class Shopper:
    """One person, with hidden preferences and a list of needs."""

    def __init__(self, world: SimulatedShop, user_id: str, seed: tuple[int, ...]) -> None:
        self.world, self.user_id = world, user_id
        self.rng = rng = np.random.default_rng(list(seed))
        self.tier = int(rng.choice(3, p=(0.4, 0.38, 0.22)))
        self.departments = rng.choice(len(world.departments), 3, replace=False)
        self.start = float(rng.random() ** 1.3 * world.config.days * 0.5)
        main = int(rng.choice(4, p=(0.15, 0.55, 0.17, 0.13)))  # one way of wording dominates
        self.wording = {kind: 0.85 if i == main else 0.05 for i, kind in enumerate(WORDINGS)}
        self.uses_other_names = bool(rng.random() < 0.3)
        self.brand_affinity = self._brand_affinity()
        self.loyalty = float(rng.beta(6, 2))
        self.style_affinity: dict[str, float] = {}
        self.spec_preference = float(np.clip(0.5 * self.tier + rng.normal(0, 0.35), 0, 1))
        self.affinity = self._product_affinity()
        self.failed_searches: dict[int, int] = {}  # brand -> searches that led nowhere
        self.needs: list[Need] = []
        self.owned: set[int] = set()

    def _brand_affinity(self) -> np.ndarray:
        """How much the shopper likes each brand: in each department one favourite."""
        world = self.world
        affinity = np.full(len(world.brands), 0.25)
        for department in world.departments:
            sellers = [i for i, b in enumerate(world.brands) if department in b.departments]
            # Favourites are of about the right price, and the same in several departments.
            fit = np.array([3.0 if world.brands[b].tier == self.tier else 0.3 for b in sellers])
            fit *= np.where([affinity[b] >= 1 for b in sellers], 4.0, 1.0)
            affinity[sellers[int(self.rng.choice(len(sellers), p=fit / fit.sum()))]] = 1.0
        return affinity

    def style(self, name: str) -> float:
        """How much the shopper likes a style, in [0, 1]."""
        if name not in self.style_affinity:
            self.style_affinity[name] = float(self.rng.beta(0.6, 0.6))
        return self.style_affinity[name]

    def _product_affinity(self) -> np.ndarray:
        """How much the shopper likes each product, price and stock aside: (products,) in [0, 1]."""
        columns = self.world.columns
        brand = self.loyalty * self.brand_affinity[columns.brands] + (1 - self.loyalty) * 0.6
        spec = 1 - np.abs(columns.specs - self.spec_preference)
        style = 0.6 + 0.4 * np.array([self.style(name) for name in columns.style_names])
        return np.asarray(brand * (0.6 + 0.4 * spec) * style[columns.styles])

    def appeal(self, i: int, day: float) -> float:
        """How well a product suits the shopper on a day, in [0, 1]; 0 when it is sold out."""
        if not self.world.in_stock(i, day):
            return 0.0
        product = self.world.products[i]
        usual = self.world.types[product.type_index].price * (0.8 + 0.2 * product.spec)
        level = self.world.price(i, day) / usual
        tier = 0 if level < 0.75 else (1 if level < 1.35 else 2)
        return min(1.0, 1.4 * PRICE_FIT[self.tier][tier] * float(self.affinity[i]))

    def _appeal_now(self, i: int, day: float) -> float:
        """The same with the whim of the moment."""
        appeal, whim = self.appeal(i, day), self.world.config.whim
        if not whim or not appeal:
            return appeal
        return (1 - whim) * appeal + whim * float(self.rng.random())

    def phrase_weights(
        self, type_index: int, day: float, tried: Sequence[Phrase] = ()
    ) -> np.ndarray:
        """How much each of the world's phrases for a type is this shopper's way of wording it."""
        return np.array(
            [
                self._phrase_weight(phrase, type_index, day, tried)
                for phrase in self.world.phrases[type_index]
            ]
        )

    def _phrase_weight(
        self, phrase: Phrase, type_index: int, day: float, tried: Sequence[Phrase]
    ) -> float:
        world, kind = self.world, self.world.types[type_index]
        weight = self.wording[phrase.kind]
        if phrase.kind == "generic":
            weight *= 0.9 if (phrase.option == 1) == self.uses_other_names else 0.1
        elif phrase.kind == "brand":
            trending = phrase.brand == world.trending_brand[int(day // 7)]
            fame = world.brands[phrase.brand].fame * (1.8 if trending else 1.0)
            taste = 3.0 * self.loyalty * (self.brand_affinity[phrase.brand] >= 1)
            weight *= taste + world.config.aspiration * 0.15 * fame**2 * 0.6 ** (
                self.failed_searches.get(phrase.brand, 0)
            )
        elif phrase.kind == "spec":
            place = phrase.option / max(len(kind.specs) - 1, 1)
            weight *= np.exp(-4 * abs(place - self.spec_preference))
        else:
            weight *= 0.1 + self.style(kind.styles[phrase.option]) ** 2
        if phrase in tried:
            return 0.0
        if phrase.kind != "brand" and any(phrase.kind == p.kind for p in tried):
            weight *= 0.5
        return weight

    def choose_phrase(self, type_index: int, day: float, tried: Sequence[Phrase]) -> Phrase:
        """How the shopper words a need now, given what was tried in this session."""
        total = self.phrase_weights(type_index, day, tried)
        phrases = self.world.phrases[type_index]
        return phrases[int(self.rng.choice(len(total), p=total / total.sum()))]

    def browse_results(
        self, results: np.ndarray, type_index: int | None, day: float
    ) -> SearchOutcome:
        """Look at a results page from the top, for a type of product or for none."""
        outcome = SearchOutcome()
        for position, i in enumerate(results.tolist()):
            if self.rng.random() > 0.8**position:
                break
            product = self.world.products[i]
            if type_index is None or product.type_index != type_index or i in self.owned:
                continue
            appeal = self._appeal_now(i, day)
            if self.rng.random() < appeal:
                outcome.clicks.append(i)
                if self.rng.random() < 0.6 + 0.4 * appeal:
                    outcome.carts.append(i)
                    if self.rng.random() < 0.9:
                        outcome.purchases.append(i)
                        break
                if len(outcome.clicks) >= 2:
                    break
        return outcome

    def type_text(self, text: str) -> str:
        """The text as it is typed: now and then with a typo."""
        if self.rng.random() >= self.world.config.typo_rate or len(text) < 6:
            return text
        at = int(self.rng.integers(1, len(text) - 2))
        if text[at] == " " or text[at + 1] == " ":
            return text
        left_out = text[:at] + text[at + 1 :]
        swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        doubled = text[: at + 1] + text[at:]
        return (left_out, swapped, doubled)[int(self.rng.integers(3))]

    def spontaneous_type(self, day: float) -> int:
        """A product type that the shopper suddenly wants: by interest, or as it is trending."""
        world = self.world
        if self.rng.random() < 0.2:
            return int(self.rng.choice(world.trending_types[int(day // 7)]))
        department = world.departments[int(self.rng.choice(self.departments))]
        types = [i for i, t in enumerate(world.types) if t.department == department]
        # People begin with the thing itself, not with what belongs to it.
        weights = np.array([3.0 if len(world.types[i].follow_ups) > 2 else 0.3 for i in types])
        weights *= [0.1 if i in self.owned_types else 1.0 for i in types]
        return int(types[int(self.rng.choice(len(types), p=weights / weights.sum()))])

    @property
    def owned_types(self) -> set[int]:
        """Types of which the shopper has bought something."""
        return {self.world.products[i].type_index for i in self.owned}

    def buy(self, i: int, day: float) -> None:
        """Own a product from now on, with the needs that it brings."""
        self.owned.add(i)
        product = self.world.products[i]
        kind = self.world.types[product.type_index]
        for next_need in kind.follow_ups:
            type_index = self.world.type_index[next_need.type]
            if self.rng.random() < 1.25 * next_need.probability and (
                type_index not in self.owned_types
            ):
                delay = next_need.days * 0.8 * float(self.rng.lognormal(0, 0.25))
                self.needs.append(Need(type_index, day + delay))
        if kind.lasts_days and self.rng.random() < 0.95:
            self.owned.discard(i)  # it will be used up
            due = day + kind.lasts_days * float(self.rng.lognormal(0, 0.12))
            brand = self.world.brands[product.brand_index].name.lower()
            phrase = Phrase(f"{brand} {kind.name}", "brand", brand=product.brand_index)
            self.needs.append(Need(product.type_index, due, phrase))

    def events(self) -> Iterator[dict[str, Any]]:
        """The shopper's events, session by session, in order of time."""
        for _, events in self.visits():
            yield from events

    def visits(self) -> Iterator[tuple[float, Iterator[dict[str, Any]]]]:
        """Each visit as its day and its events.

        A visit is yielded before it happens: it does when its events are taken, which must
        be all of them before the next visit is asked for.
        """
        days = self.world.config.days
        day = self.start
        self.needs.append(Need(self.spontaneous_type(day), day))
        while day < days:
            yield day, self._session(day)
            self.needs = [n for n in self.needs if n.visits < MAX_VISITS]
            if not self.needs or self.rng.random() < 0.04:
                wait = float(self.rng.exponential(8))
                self.needs.append(Need(self.spontaneous_type(min(day + wait, days)), day + wait))
            due = min(n.due for n in self.needs)
            # People come back in the evening, a little after they first thought of it.
            day = max(due, day + 0.2) + float(self.rng.exponential(0.6))
            hour = 0.97 - abs(0.97 - float(self.rng.normal(0.75, 0.15)))  # nobody late at night
            day = np.floor(day) + max(hour, 0.02)

    def due_needs(self, day: float) -> list[Need]:
        """The needs that a visit on a day is for, the most urgent first."""
        return sorted((n for n in self.needs if n.due <= day + 1.0), key=lambda n: n.due)

    def _session(self, day: float) -> Iterator[dict[str, Any]]:
        """One visit: look for the most urgent need, and sometimes for another one."""
        clock = day
        for need in self.due_needs(day)[: 2 if self.rng.random() < 0.25 else 1]:
            self.needs.remove(need)
            need.visits += 1
            clock = yield from self._look_for(need, day, clock)
            clock += self._seconds(60)
        if self.rng.random() < 0.15:
            yield from self._browse_trending(clock)

    def _look_for(
        self, need: Need, day: float, clock: float
    ) -> Generator[dict[str, Any], None, float]:
        """Search until something is clicked or patience ends; returns the clock."""
        tried: list[Phrase] = []
        for _ in range(self.world.config.patience):
            if need.phrase is not None and not tried and self.rng.random() < 0.6:
                phrase = need.phrase
            else:
                phrase = self.choose_phrase(need.type_index, day, tried)
            tried.append(phrase)
            query = self.type_text(phrase.text)
            yield self._event(clock, "search", query=query)
            outcome = self.browse_results(self.world.engine.search(query), need.type_index, day)
            for i in outcome.clicks:
                clock += self._seconds(25)
                yield self._event(clock, "click", query=query, product=i)
                if i in outcome.carts:
                    clock += self._seconds(30)
                    yield self._event(clock, "cart", product=i)
            if outcome.purchases:
                clock += self._seconds(60)
                for i in outcome.purchases:
                    yield self._event(clock, "purchase", product=i)
                    self.buy(i, day)
                return clock
            if outcome.clicks:
                self._come_back_for(outcome.clicks[0], phrase, need, day)
                return clock
            if phrase.brand >= 0:
                self.failed_searches[phrase.brand] = self.failed_searches.get(phrase.brand, 0) + 1
            clock += self._seconds(20)
        if self.rng.random() < 0.35:
            due = day + 1 + float(self.rng.exponential(4))
            self.needs.append(Need(need.type_index, due, visits=need.visits))
        return clock

    def _come_back_for(self, i: int, phrase: Phrase, need: Need, day: float) -> None:
        """Often look again, some days later, for a product that was clicked and not bought."""
        if self.rng.random() < 0.45:
            return
        due = day + 0.8 + float(self.rng.exponential(2.5))
        if self.rng.random() < 0.3:
            product = self.world.products[i]
            brand = self.world.brands[product.brand_index].name
            phrase = Phrase(f"{brand} {product.model}".lower(), "model")
        self.needs.append(Need(need.type_index, due, phrase, need.visits))

    def _browse_trending(self, clock: float) -> Iterator[dict[str, Any]]:
        """Look around among what is trending, without a query."""
        weeks = self.world.trending_types
        types = weeks[min(int(clock // 7), len(weeks) - 1)]
        for _ in range(int(self.rng.integers(1, 4))):
            clock += self._seconds(20)
            i = int(self.rng.choice(self.world.of_type[int(self.rng.choice(types))]))
            yield self._event(clock, "view", product=i)

    def _seconds(self, mean: float) -> float:
        """A time of about so many seconds, in days."""
        return (3 + float(self.rng.exponential(mean))) / 86400

    def _event(
        self, day: float, kind: str, *, query: str | None = None, product: int = -1
    ) -> dict[str, Any]:
        return {
            "user_id": self.user_id,
            "time": moment(day),
            "type": kind,
            "query": query,
            "product_id": self.world.products[product].product_id if product >= 0 else None,
        }
