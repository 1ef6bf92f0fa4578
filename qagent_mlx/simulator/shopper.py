"""A simulated shop: who its shoppers are, what they need, and what they do.

The sample shop's log comes from here, and so do the fresh shoppers of a simulated A/B test.
Shoppers have hidden preferences (brand, price, specification, style), a way of wording
queries, and needs that follow one another: a camera, then a memory card. A search shows
them what the shop's engine returns; they look from the top, engage with what suits them,
and word the query anew when nothing does. Well-known brands are tempting to type, and many
who type them can't afford what comes up or find it sold out. That is the gap between a
query that is tapped and a query that sells (arXiv:2606.05671).

The log holds what a real shop would see. Preferences stay in the simulator: no policy,
profile or demonstration is made from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .world import Phrase, SimulatedShop, moment

# How a cheap, middling or dear price suits a thrifty, average or spending shopper.
_PRICE_FIT = ((1.0, 0.2, 0.0), (0.55, 1.0, 0.1), (0.2, 0.6, 1.0))


@dataclass
class Need:
    """Something that a shopper will look for from a day on."""

    type_index: int
    due: float
    phrase: Phrase | None = None  # wording that worked before
    product: int = -1  # what was looked at and not bought
    visits: int = 0


@dataclass
class Outcome:
    """What a shopper did with one search."""

    query: str
    clicks: list[int] = field(default_factory=list)
    carts: list[int] = field(default_factory=list)
    purchases: list[int] = field(default_factory=list)


class Shopper:
    """One person, with hidden preferences and a list of needs."""

    def __init__(self, world: SimulatedShop, user_id: str, seed: tuple[int, ...]) -> None:
        self.world = world
        self.user_id = user_id
        self.rng = np.random.default_rng(list(seed))
        rng, config = self.rng, world.config
        self.tier = int(rng.choice(3, p=(0.4, 0.38, 0.22)))
        self.departments = rng.choice(len(world.departments), 3, replace=False)
        self.start = float(rng.random() ** 1.3 * config.days * 0.5)
        # One way of wording dominates.
        kinds = ("generic", "brand", "spec", "style")
        main = int(rng.choice(4, p=(0.15, 0.55, 0.17, 0.13)))
        self.wording = {k: 0.85 if i == main else 0.05 for i, k in enumerate(kinds)}
        self.other_names = bool(rng.random() < 0.3)
        # Taste in brands: in each department one favourite of about the right price.
        self.brand_taste = np.full(len(world.brands), 0.25)
        for name in world.departments:
            sellers = [i for i, b in enumerate(world.brands) if name in b.departments]
            fit = np.array([3.0 if world.brands[b].tier == self.tier else 0.3 for b in sellers])
            fit *= np.where([self.brand_taste[b] >= 1 for b in sellers], 4.0, 1.0)
            favourite = sellers[int(rng.choice(len(sellers), p=fit / fit.sum()))]
            self.brand_taste[favourite] = 1.0
        self.loyalty = float(rng.beta(6, 2))
        self.style_taste: dict[str, float] = {}
        self.spec_lean = float(np.clip(0.5 * self.tier + rng.normal(0, 0.35), 0, 1))
        self.taste = self._taste()
        self.disappointed: dict[int, int] = {}  # brand -> searches that led nowhere
        self.needs: list[Need] = []
        self.owned: set[int] = set()

    def style(self, name: str) -> float:
        """How much the shopper likes a style, in [0, 1]."""
        if name not in self.style_taste:
            # The first styles of each type sell best; beyond that it is a person's own taste.
            self.style_taste[name] = float(self.rng.beta(0.6, 0.6))
        return self.style_taste[name]

    def _taste(self) -> np.ndarray:
        """How much each product is to this shopper's taste, price and stock aside: [0, 1]."""
        facts = self.world.facts
        brand = self.loyalty * self.brand_taste[facts.brands] + (1 - self.loyalty) * 0.6
        lean = 1 - np.abs(facts.spec - self.spec_lean)
        style = 0.6 + 0.4 * np.array([self.style(name) for name in facts.style_names])
        made: np.ndarray = brand * (0.6 + 0.4 * lean) * style[facts.styles]
        return made

    def suits(self, i: int, day: float) -> float:
        """How well a product suits on a day, in [0, 1]; 0 when it is sold out."""
        if not self.world.in_stock(i, day):
            return 0.0
        product = self.world.products[i]
        # What it costs now against the usual price of such a thing decides whether it is dear.
        level = self.world.price(i, day) / (
            self.world.types[product.type_index].price * (0.8 + 0.2 * product.spec)
        )
        tier = 0 if level < 0.75 else (1 if level < 1.35 else 2)
        return min(1.0, 1.4 * _PRICE_FIT[self.tier][tier] * float(self.taste[i]))

    def phrase_weights(self, t: int, day: float, tried: Sequence[Phrase] = ()) -> np.ndarray:
        """How much each of the world's phrases for a type is this shopper's way of wording it."""
        world = self.world
        hot = world.hot_brand[int(day // 7)]
        weights = []
        for phrase in world.phrases[t]:
            weight = self.wording[phrase.kind]
            if phrase.kind == "generic":
                weight *= 0.9 if (phrase.option == 1) == self.other_names else 0.1
            elif phrase.kind == "brand":
                fame = world.brands[phrase.brand].fame * (1.8 if phrase.brand == hot else 1.0)
                taste = 3.0 * self.loyalty * (self.brand_taste[phrase.brand] >= 1)
                weight *= taste + world.config.aspiration * 0.15 * fame**2 * 0.6 ** (
                    self.disappointed.get(phrase.brand, 0)
                )
            elif phrase.kind == "spec":
                at = phrase.option / max(len(world.types[t].specs) - 1, 1)
                weight *= np.exp(-4 * abs(at - self.spec_lean))
            else:
                weight *= 0.1 + self.style(world.types[t].styles[phrase.option]) ** 2
            if phrase in tried:
                weight = 0.0
            elif any(phrase.kind == p.kind for p in tried) and phrase.kind != "brand":
                weight *= 0.5
            weights.append(weight)
        return np.array(weights)

    def choose_phrase(self, t: int, day: float, tried: Sequence[Phrase]) -> Phrase:
        """How the shopper words a need now, given what was tried in this session."""
        total = self.phrase_weights(t, day, tried)
        return self.world.phrases[t][int(self.rng.choice(len(total), p=total / total.sum()))]

    def respond(self, query: str, results: np.ndarray, t: int | None, day: float) -> Outcome:
        """Look at a results page from the top; ``t`` is the type that is needed, if any."""
        outcome = Outcome(query)
        for position, i in enumerate(results.tolist()):
            if self.rng.random() > 0.8**position:
                break
            product = self.world.products[i]
            if t is None or product.type_index != t or i in self.owned:
                continue
            wish = self.suits(i, day)
            if self.rng.random() < wish:
                outcome.clicks.append(i)
                if self.rng.random() < 0.6 + 0.4 * wish:
                    outcome.carts.append(i)
                    if self.rng.random() < 0.9:
                        outcome.purchases.append(i)
                        break
                if len(outcome.clicks) >= 2:
                    break
        return outcome

    def typed(self, text: str) -> str:
        """The text as it is typed: now and then with a slip."""
        if self.rng.random() >= self.world.config.typo_rate or len(text) < 6:
            return text
        at = int(self.rng.integers(1, len(text) - 2))
        if text[at] == " " or text[at + 1] == " ":
            return text
        slip = int(self.rng.integers(3))
        if slip == 0:
            return text[:at] + text[at + 1 :]
        if slip == 1:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text[:at] + text[at] + text[at:]

    def spontaneous(self, day: float) -> int:
        """A need that comes from nowhere: an interest, or what is in fashion."""
        world = self.world
        if self.rng.random() < 0.2:
            return int(self.rng.choice(world.hot_types[int(day // 7)]))
        department = world.departments[int(self.rng.choice(self.departments))]
        # People begin with the thing itself, not with what belongs to it.
        inside = [i for i, t in enumerate(world.types) if t.department == department]
        weights = np.array([3.0 if len(world.next_needs[i]) > 2 else 0.3 for i in inside])
        weights *= [0.1 if i in self.owned_types else 1.0 for i in inside]
        return int(inside[int(self.rng.choice(len(inside), p=weights / weights.sum()))])

    @property
    def owned_types(self) -> set[int]:
        """Types of which the shopper has bought something."""
        return {self.world.products[i].type_index for i in self.owned}

    def bought(self, i: int, day: float) -> None:
        """Remember a purchase and the needs that it brings."""
        self.owned.add(i)
        product = self.world.products[i]
        kind = self.world.types[product.type_index]
        for t, probability, days in self.world.next_needs[product.type_index]:
            if self.rng.random() < 1.25 * probability and t not in self.owned_types:
                self.needs.append(Need(t, day + days * 0.8 * float(self.rng.lognormal(0, 0.25))))
        if kind.lasts and self.rng.random() < 0.95:
            self.owned.discard(i)  # it will be used up
            due = day + kind.lasts * float(self.rng.lognormal(0, 0.12))
            self.needs.append(Need(product.type_index, due, self._wording_of(i), i))

    def _wording_of(self, i: int) -> Phrase | None:
        product = self.world.products[i]
        name = self.world.brands[product.brand_index].name.lower()
        kind = self.world.types[product.type_index].name
        return Phrase(f"{name} {kind}", "brand", brand=product.brand_index)

    def live(self) -> Iterator[dict[str, object]]:
        """The shopper's events, session by session, in order of time."""
        for _, events in self.visits():
            yield from events

    def visits(self) -> Iterator[tuple[float, Iterator[dict[str, object]]]]:
        """Each visit as its day and its events.

        A visit is yielded before it happens: it does when its events are taken, which must
        be all of them before the next visit is asked for.
        """
        days = self.world.config.days
        day = self.start
        self.needs.append(Need(self.spontaneous(day), day))
        while day < days:
            yield day, self.session(day)
            self.needs = [n for n in self.needs if n.visits < 4]
            if not self.needs or self.rng.random() < 0.04:
                wait = float(self.rng.exponential(8))
                self.needs.append(Need(self.spontaneous(min(day + wait, days)), day + wait))
            due = min(n.due for n in self.needs)
            # People come back in the evening, a little after they first thought of it.
            day = max(due, day + 0.2) + float(self.rng.exponential(0.6))
            at = 0.97 - abs(0.97 - float(self.rng.normal(0.75, 0.15)))  # nobody late at night
            day = np.floor(day) + max(at, 0.02)

    def ready(self, day: float) -> list[Need]:
        """The needs that a visit on a day is for, the most urgent first."""
        return sorted((n for n in self.needs if n.due <= day + 1.0), key=lambda n: n.due)

    def browse(self, clock: float) -> Iterator[dict[str, object]]:
        """Look around among what is in fashion, without a query."""
        hot = self.world.hot_types[min(int(clock // 7), len(self.world.hot_types) - 1)]
        for _ in range(int(self.rng.integers(1, 4))):
            clock += self._seconds(20)
            i = int(self.rng.choice(self.world.by_type[int(self.rng.choice(hot))]))
            yield self._event(clock, "view", product=i)

    def session(self, day: float) -> Iterator[dict[str, object]]:
        """One visit: look for the most urgent need, and sometimes for another one."""
        clock = day
        for need in self.ready(day)[: 2 if self.rng.random() < 0.25 else 1]:
            self.needs.remove(need)
            need.visits += 1
            tried: list[Phrase] = []
            for _ in range(self.world.config.patience):
                if need.phrase is not None and not tried and self.rng.random() < 0.6:
                    phrase = need.phrase
                else:
                    phrase = self.choose_phrase(need.type_index, day, tried)
                tried.append(phrase)
                query = self.typed(phrase.text)
                yield self._event(clock, "search", query=query)
                outcome = self.respond(query, self.world.engine.search(query), need.type_index, day)
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
                        self.bought(i, day)
                    break
                if outcome.clicks:
                    # Liked it, did not buy it: often comes back.
                    if self.rng.random() < 0.45:
                        break
                    again = day + 0.8 + float(self.rng.exponential(2.5))
                    liked = outcome.clicks[0]
                    phrase_again = phrase
                    if self.rng.random() < 0.3:
                        product = self.world.products[liked]
                        name = self.world.brands[product.brand_index].name
                        phrase_again = Phrase(f"{name} {product.model}".lower(), "model")
                    self.needs.append(
                        Need(need.type_index, again, phrase_again, liked, need.visits)
                    )
                    break
                if phrase.brand >= 0:
                    self.disappointed[phrase.brand] = self.disappointed.get(phrase.brand, 0) + 1
                clock += self._seconds(20)
            else:
                if self.rng.random() < 0.35:
                    self.needs.append(
                        Need(
                            need.type_index,
                            day + 1 + float(self.rng.exponential(4)),
                            visits=need.visits,
                        )
                    )
            clock += self._seconds(60)
        if self.rng.random() < 0.15:
            yield from self.browse(clock)

    def _seconds(self, mean: float) -> float:
        return (3 + float(self.rng.exponential(mean))) / 86400

    def _event(
        self, day: float, kind: str, *, query: str | None = None, product: int = -1
    ) -> dict[str, object]:
        return {
            "user_id": self.user_id,
            "time": moment(day),
            "type": kind,
            "query": query,
            "product_id": self.world.products[product].product_id if product >= 0 else None,
        }
