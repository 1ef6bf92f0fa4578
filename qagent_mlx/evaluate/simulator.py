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

import json
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np

from ..utils.atomic_files import replacing, write_json
from ..utils.database import open_duckdb
from ..utils.text import words
from .world import Brand, ProductType, brands, follow_ups, product_types

START = datetime(2026, 1, 5)
# How a cheap, middling or dear price suits a thrifty, average or spending shopper.
_PRICE_FIT = ((1.0, 0.2, 0.0), (0.55, 1.0, 0.1), (0.2, 0.6, 1.0))


def moment(day: float) -> datetime:
    """The time of a (fractional) day of the simulation, to the millisecond."""
    return START + timedelta(milliseconds=round(day * 86_400_000))


@dataclass(frozen=True)
class SimulatorConfig:
    """Everything that, with the code, determines a simulated shop."""

    seed: int = 7
    users: int = 1500
    days: int = 90
    products_per_pair: float = 8.0  # products of one type by one brand
    missing: float = 0.05  # single products that are never in stock
    days_in_stock: float = 14.0  # a line sells out after about this long ...
    days_sold_out: float = 10.0  # ... and comes back after about this long
    days_between_sales: float = 30.0
    days_on_sale: float = 6.0
    sale_price: float = 0.55
    typo_rate: float = 0.03
    patience: int = 3  # searches in a session before giving up
    aspiration: float = 0.9  # how much fame, beside taste, decides which brand is typed


@dataclass(frozen=True, slots=True)
class SimProduct:
    """A product and what the simulator knows of it."""

    product_id: str
    title: str
    type_index: int
    brand_index: int
    price: float
    missing: bool
    spec: int
    style: int
    model: str
    quality: float


@dataclass(frozen=True, slots=True)
class Phrase:
    """One way of wording a need."""

    text: str
    kind: str  # generic, brand, spec, style, model
    brand: int = -1
    option: int = -1


@dataclass(frozen=True, slots=True)
class Facts:
    """Products as columns: brand, specification in [0, 1], and style as a place in the names."""

    brands: np.ndarray
    spec: np.ndarray
    styles: np.ndarray
    style_names: list[str]  # in the order in which the products first have them


class Engine:
    """The simulated shop's search: BM25 over titles and categories, then quality.

    It does not know the shopper, and it does not hide what is sold out, like many a
    real one.
    """

    def __init__(self, documents: list[str], prior: np.ndarray, k1: float = 1.2, b: float = 0.4):
        self.prior = prior
        postings: dict[str, dict[int, int]] = {}
        lengths = np.zeros(len(documents))
        for i, text in enumerate(documents):
            terms = words(text)
            lengths[i] = len(terms)
            for term in terms:
                postings.setdefault(term, {}).setdefault(i, 0)
                postings[term][i] += 1
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, counts in postings.items():
            ids = np.fromiter(counts, dtype=np.int64)
            tf = np.array([counts[i] for i in ids.tolist()], dtype=float)
            idf = np.log(1 + (len(documents) - len(ids) + 0.5) / (len(ids) + 0.5))
            self._weights[term] = (ids, idf * tf * (k1 + 1) / (tf + norm[ids]))
        self._cache: dict[str, np.ndarray] = {}

    def search(self, query: str, k: int = 10) -> np.ndarray:
        """Indices of the top ``k`` products; fewer when fewer match any word."""
        cached = self._cache.get(query)
        if cached is None:
            scores = np.zeros(len(self.prior))
            for term in words(query):
                if term in self._weights:
                    ids, weight = self._weights[term]
                    scores[ids] += weight
            hit = np.flatnonzero(scores > 0)
            # A page of results does not show what matches only one of several words.
            if len(hit):
                hit = hit[scores[hit] > 0.8 * scores[hit].max()]
            total = np.round(scores[hit] + self.prior[hit], 6)
            cached = hit[np.lexsort((hit, -total))][:20]
            self._cache[query] = cached
        return cached[:k]


class World:
    """The catalog, its engine, and what is in fashion when. Made from the seed alone."""

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self.types: list[ProductType] = product_types()
        self.brands: list[Brand] = brands()
        self.type_index = {t.name: i for i, t in enumerate(self.types)}
        self.departments = sorted({t.department for t in self.types})
        self.next_needs = [
            [(self.type_index[n], p, d) for n, p, d in follow_ups().get(t.name, [])]
            for t in self.types
        ]
        self.sellers = [
            [i for i, b in enumerate(self.brands) if t.department in b.departments]
            for t in self.types
        ]
        rng = np.random.default_rng([self.config.seed, 1])
        self.products = self._make_products(rng)
        # A line (one brand's products of one type) sells out, comes back, and is on sale.
        self.sold_out, self.on_sale = self._make_lines(np.random.default_rng([self.config.seed, 3]))
        weeks = self.config.days // 7 + 2
        # Each week a few types and one brand are in fashion.
        self.hot_types = [rng.choice(len(self.types), 4, replace=False) for _ in range(weeks)]
        self.hot_brand = [int(rng.integers(len(self.brands))) for _ in range(weeks)]
        self.by_type = [
            np.array([i for i, p in enumerate(self.products) if p.type_index == t])
            for t in range(len(self.types))
        ]
        fame = np.array([self.brands[p.brand_index].fame for p in self.products])
        quality = np.array([p.quality for p in self.products])
        self.engine = Engine(
            [f"{p.title} {self.brands[p.brand_index].name}" for p in self.products],
            0.25 * fame + 0.8 * quality,
        )
        self.phrases = [self._phrases(t) for t in range(len(self.types))]

    def _make_products(self, rng: np.random.Generator) -> list[SimProduct]:
        tier_price = (0.55, 1.0, 1.9)
        made: list[SimProduct] = []
        for t, kind in enumerate(self.types):
            for b in self.sellers[t]:
                brand = self.brands[b]
                options = [(i, j) for i in range(len(kind.specs)) for j in range(len(kind.styles))]
                count = min(len(options), int(rng.poisson(self.config.products_per_pair - 2)) + 2)
                chosen = sorted(rng.permutation(len(options))[:count].tolist())
                name = kind.other_name if rng.random() < 0.3 else kind.name
                letters = (brand.name[0] + kind.name[0]).upper()
                for c in chosen:
                    spec, style = options[c]
                    model = f"{letters}{int(rng.integers(100, 999))}"
                    price = kind.price * tier_price[brand.tier] * (0.8 + 0.2 * spec)
                    price *= float(rng.lognormal(0, 0.08))
                    made.append(
                        SimProduct(
                            product_id=f"p{len(made) + 1:04d}",
                            title=f"{brand.name} {model} {kind.specs[spec]} {name.title()}, "
                            f"{kind.styles[style]}",
                            type_index=t, brand_index=b,
                            price=round(max(round(price), 2) - 0.01, 2),
                            missing=bool(rng.random() < self.config.missing),
                            spec=spec, style=style, model=model,
                            quality=float(rng.random()),
                        )
                    )
        return made

    def _make_lines(
        self, rng: np.random.Generator
    ) -> tuple[dict[tuple[int, int], list[float]], dict[tuple[int, int], list[float]]]:
        """Days at which each line's state flips: sold out and back, on sale and off."""

        def flips(off: float, on: float) -> list[float]:
            # Begin somewhere in the cycle, so that the first day is like any other.
            at = -float(rng.random()) * (off + on) * 2
            made = []
            while at < self.config.days:
                at += float(rng.exponential(off))
                made.append(at)
                at += float(rng.exponential(on))
                made.append(at)
            return made

        config = self.config
        lines = sorted({(p.type_index, p.brand_index) for p in self.products})
        out = {line: flips(config.days_in_stock, config.days_sold_out) for line in lines}
        sale = {line: flips(config.days_between_sales, config.days_on_sale) for line in lines}
        return out, sale

    def in_stock(self, i: int, day: float) -> bool:
        """Whether a product can be bought on a day."""
        product = self.products[i]
        line = (product.type_index, product.brand_index)
        return not product.missing and bisect_right(self.sold_out[line], day) % 2 == 0

    def price(self, i: int, day: float) -> float:
        """What a product costs on a day."""
        product = self.products[i]
        line = (product.type_index, product.brand_index)
        if bisect_right(self.on_sale[line], day) % 2 == 0:
            return product.price
        return round(product.price * self.config.sale_price, 2)

    def _phrases(self, t: int) -> list[Phrase]:
        kind = self.types[t]
        made = [Phrase(kind.name, "generic"), Phrase(kind.other_name, "generic", option=1)]
        made += [
            Phrase(f"{self.brands[b].name.lower()} {kind.name}", "brand", brand=b)
            for b in self.sellers[t]
        ]
        made += [Phrase(f"{s} {kind.name}", "spec", option=i) for i, s in enumerate(kind.specs)]
        made += [Phrase(f"{s} {kind.name}", "style", option=i) for i, s in enumerate(kind.styles)]
        return made

    @cached_property
    def facts(self) -> Facts:
        """What of each product decides whether it is to somebody's taste."""
        names: dict[str, int] = {}
        styles = [
            names.setdefault(self.types[p.type_index].styles[p.style], len(names))
            for p in self.products
        ]
        return Facts(
            np.array([p.brand_index for p in self.products]),
            np.array(
                [p.spec / max(len(self.types[p.type_index].specs) - 1, 1) for p in self.products]
            ),
            np.array(styles),
            list(names),
        )

    @cached_property
    def attributes(self) -> list[dict[str, str]]:
        """What the catalog says of each product beside title, brand and category."""
        return [
            {
                "spec": self.types[p.type_index].specs[p.spec],
                "style": self.types[p.type_index].styles[p.style],
            }
            for p in self.products
        ]

    def product_rows(self) -> Iterator[dict[str, object]]:
        """The catalog as a shop would export it: a row a product, and one a change."""
        for i, (product, attributes) in enumerate(
            zip(self.products, self.attributes, strict=True)
        ):
            kind = self.types[product.type_index]
            line = (product.type_index, product.brand_index)
            days = [0.0, *(d for d in self.sold_out[line] if 0 < d < self.config.days)]
            days += [d for d in self.on_sale[line] if 0 < d < self.config.days]
            last: tuple[float, bool] | None = None
            for day in sorted(days):
                state = (self.price(i, day), self.in_stock(i, day))
                if state == last:
                    continue
                last = state
                yield {
                    "product_id": product.product_id,
                    "time": moment(day),
                    "title": product.title,
                    "brand": self.brands[product.brand_index].name,
                    "category": f"{kind.department} > {kind.name.title()}",
                    "price": state[0],
                    "stock": state[1],
                    "attributes": json.dumps(attributes),
                }


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

    def __init__(self, world: World, user_id: str, seed: tuple[int, ...]) -> None:
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
                weight *= taste + world.config.aspiration * 0.15 * fame ** 2 * 0.6 ** (
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
                outcome = self.respond(
                    query, self.world.engine.search(query), need.type_index, day
                )
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
                        Need(need.type_index, day + 1 + float(self.rng.exponential(4)),
                             visits=need.visits)
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


def simulate(config: SimulatorConfig | None = None) -> tuple[World, list[dict[str, object]]]:
    """A world and the log that its shoppers left, in order of time."""
    world = World(config)
    log: list[dict[str, object]] = []
    end = START + timedelta(days=world.config.days)
    for number in range(world.config.users):
        shopper = Shopper(world, f"u{number + 1:04d}", (world.config.seed, 2, number))
        log += [e for e in shopper.live() if e["time"] < end]  # type: ignore[operator]
    log.sort(key=lambda e: (e["time"], e["user_id"]))  # type: ignore[arg-type, return-value, unused-ignore]
    return world, log


def write_sample(folder: Path, config: SimulatorConfig | None = None) -> dict[str, int]:
    """Write ``products.parquet``, ``events.parquet`` and ``simulator.json`` to a folder."""
    world, log = simulate(config)
    connection = open_duckdb()
    columns = {
        "products": {
            "product_id": "VARCHAR", "title": "VARCHAR", "brand": "VARCHAR",
            "time": "TIMESTAMP", "category": "VARCHAR", "price": "DOUBLE", "stock": "BOOLEAN",
            "attributes": "VARCHAR",
        },
        "events": {
            "user_id": "VARCHAR", "time": "TIMESTAMP", "type": "VARCHAR", "query": "VARCHAR",
            "product_id": "VARCHAR",
        },
    }
    counts = {}
    for name, rows in (("products", list(world.product_rows())), ("events", log)):
        kinds = ", ".join(f"{c} {t}" for c, t in columns[name].items())
        connection.execute(f"CREATE TABLE {name} ({kinds})")
        with connection.appender(name) as appender:
            for row in rows:
                appender.append_row(*(row[c] for c in columns[name]))
        with replacing(folder / f"{name}.parquet") as temporary:
            connection.execute(
                f"COPY {name} TO '{temporary}' (FORMAT parquet, COMPRESSION zstd, "
                "COMPRESSION_LEVEL 19)"
            )
        counts[name] = len(rows)
    write_json(folder / "simulator.json", asdict(world.config))
    return counts


if __name__ == "__main__":
    print(write_sample(Path(sys.argv[1] if len(sys.argv) > 1 else "sample_data")))
