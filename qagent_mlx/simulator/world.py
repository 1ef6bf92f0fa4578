"""The simulated shop: products, stock, prices, trends and its search engine."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from ..utils.text import words
from .catalog_data import load_catalog

START = datetime(2026, 1, 5)
TIER_PRICES = (0.55, 1.0, 1.9)  # price of a brand's products against the middle one, by its tier
K1, B = 1.2, 0.4  # of BM25


def moment(day: float) -> datetime:
    """The time of a (fractional) day of the simulation, to the millisecond."""
    return START + timedelta(milliseconds=round(day * 86_400_000))


Share = Annotated[float, Meta(ge=0, le=1)]
Days = Annotated[float, Meta(gt=0, le=36_500, extra={"unit": "days"})]


@dataclass(frozen=True)
class SimulatorConfig:
    """Everything that, with the code, determines a simulated shop."""

    seed: Annotated[int, Meta(ge=0, description="Seed of products, stock and shoppers.")] = 7
    users: Annotated[int, Meta(ge=0, le=10**7, description="Shoppers of the log.")] = 1500
    days: Annotated[int, Meta(ge=1, le=36_500, description="Days of the log.")] = 90
    products_per_pair: Annotated[
        float, Meta(ge=2, le=10**4, description="Mean number of products of one type by one brand.")
    ] = 8.0
    missing: Annotated[Share, Meta(description="Products that are never in stock.")] = 0.05
    days_in_stock: Annotated[Days, Meta(description="Mean time until a line sells out.")] = 14.0
    days_sold_out: Annotated[Days, Meta(description="Mean time until it is restocked.")] = 10.0
    days_between_sales: Annotated[Days, Meta(description="Mean time between sales.")] = 30.0
    days_on_sale: Annotated[Days, Meta(description="Mean length of a sale.")] = 6.0
    sale_price: Annotated[Share, Meta(description="Price on sale against the usual one.")] = 0.55
    typo_rate: Annotated[Share, Meta(description="Probability of a typo in a query.")] = 0.03
    patience: Annotated[
        int, Meta(ge=1, le=100, description="Searches for one need in a session.")
    ] = 3
    aspiration: Annotated[
        float,
        Meta(ge=0, le=1000, description="Weight of fame, beside taste, in which brand is typed."),
    ] = 0.9
    homonyms: Annotated[
        Share,
        Meta(description="Types of product that share their name with one of another department."),
    ] = 0.0
    shared_titles: Annotated[
        Share, Meta(description="Lines whose products have one title: brand and type alone.")
    ] = 0.0
    whim: Annotated[
        Share, Meta(description="Weight of a whim, beside taste, in which product is taken.")
    ] = 0.0


@dataclass(frozen=True, slots=True)
class SimProduct:
    """A product, with what only the simulator knows of it."""

    product_id: str
    title: str
    type_index: int
    brand_index: int
    price: float
    missing: bool  # never in stock
    spec: int
    style: int
    model: str
    quality: float


@dataclass(frozen=True, slots=True)
class Phrase:
    """One way of wording a need: ``kind`` is generic, brand, spec, style or model."""

    text: str
    kind: str
    brand: int = -1
    option: int = -1


@dataclass(frozen=True, slots=True)
class ProductColumns:
    """What decides whether a product is to somebody's taste, (products,) each."""

    brands: np.ndarray
    specs: np.ndarray  # place among the type's specifications, in [0, 1]
    styles: np.ndarray  # index in style_names
    style_names: list[str]  # in the order in which products first have them


class SimulatedSearch:
    """The simulated shop's search: BM25 over titles and brands, then quality.

    It does not know the shopper, and like many a real one it shows what is sold out. It is not
    the inventory's BM25, whose changes must never change the sample log.
    """

    def __init__(self, documents: list[str], prior: np.ndarray) -> None:
        self._prior = prior
        bags = [Counter(words(text)) for text in documents]
        lengths = np.array([bag.total() for bag in bags], dtype=float)
        postings: dict[str, list[tuple[int, int]]] = {}
        for document, bag in enumerate(bags):
            for term, count in bag.items():
                postings.setdefault(term, []).append((document, count))
        norm = K1 * (1 - B + B * lengths / lengths.mean())
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, pairs in postings.items():
            ids, counts = np.array(pairs).T
            idf = np.log(1 + (len(documents) - len(ids) + 0.5) / (len(ids) + 0.5))
            tf = counts.astype(float)
            self._weights[term] = (ids, idf * tf * (K1 + 1) / (tf + norm[ids]))
        self._cache: dict[str, np.ndarray] = {}

    def search(self, query: str, k: int = 10) -> np.ndarray:
        """Indices of the top ``k`` products; fewer where fewer match any word."""
        if query not in self._cache:
            scores = np.zeros(len(self._prior))
            for term in words(query):
                if term in self._weights:
                    ids, weights = self._weights[term]
                    scores[ids] += weights
            hits = np.flatnonzero(scores > 0)
            # A page of results does not show what matches only one of several words.
            if len(hits):
                hits = hits[scores[hits] > 0.8 * scores[hits].max()]
            total = np.round(scores[hits] + self._prior[hits], 6)
            self._cache[query] = hits[np.lexsort((hits, -total))][:20]
        return self._cache[query][:k]


class SimulatedShop:
    """Catalog, stock and prices over time, search engine and trends; made from the seed alone.

    A line is one brand's products of one type: they sell out, are restocked and go on sale
    together. Each week some product types and one brand are trending.
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        catalog = load_catalog()
        self.types, self.brands = catalog.types, catalog.brands
        self.type_index = {t.name: i for i, t in enumerate(self.types)}
        self.categories = [f"{t.department} > {t.name.title()}" for t in self.types]
        self._share_names(np.random.default_rng([self.config.seed, 4]))
        self.departments = sorted({t.department for t in self.types})
        self.sellers = [
            [i for i, b in enumerate(self.brands) if t.department in b.departments]
            for t in self.types
        ]
        rng = np.random.default_rng([self.config.seed, 1])
        self.products = self._make_products(rng)
        weeks = self.config.days // 7 + 2
        self.trending_types = [rng.choice(len(self.types), 4, replace=False) for _ in range(weeks)]
        self.trending_brand = [int(rng.integers(len(self.brands))) for _ in range(weeks)]
        config, rng = self.config, np.random.default_rng([self.config.seed, 3])
        lines = sorted({(p.type_index, p.brand_index) for p in self.products})
        # Days at which the state of a line changes, in turn: sold out and back, on sale and off.
        self._stock_changes = {
            line: self._changes(rng, config.days_in_stock, config.days_sold_out) for line in lines
        }
        self._sale_changes = {
            line: self._changes(rng, config.days_between_sales, config.days_on_sale)
            for line in lines
        }
        self.of_type = [
            np.array([i for i, p in enumerate(self.products) if p.type_index == t])
            for t in range(len(self.types))
        ]
        fame = np.array([self.brands[p.brand_index].fame for p in self.products])
        quality = np.array([p.quality for p in self.products])
        self.engine = SimulatedSearch(
            [f"{p.title} {self.brands[p.brand_index].name}" for p in self.products],
            0.25 * fame + 0.8 * quality,
        )
        self.phrases = [self._phrases(t) for t in range(len(self.types))]

    def _share_names(self, rng: np.random.Generator) -> None:
        """Give types of product the name of one of another department (`homonyms`)."""
        types, left = list(self.types), rng.permutation(len(self.types)).tolist()
        for _ in range(round(self.config.homonyms * len(types) / 2)):
            named = left.pop()
            others = [i for i in left if types[i].department != types[named].department]
            if not others:
                break
            left.remove(others[0])
            types[named] = replace(types[named], name=types[others[0]].name)
        self.types = tuple(types)

    def _make_products(self, rng: np.random.Generator) -> list[SimProduct]:
        products: list[SimProduct] = []
        plain = np.random.default_rng([self.config.seed, 5])
        for type_index, kind in enumerate(self.types):
            for brand_index in self.sellers[type_index]:
                brand = self.brands[brand_index]
                options = [(i, j) for i in range(len(kind.specs)) for j in range(len(kind.styles))]
                count = min(len(options), int(rng.poisson(self.config.products_per_pair - 2)) + 2)
                chosen = sorted(rng.permutation(len(options))[:count].tolist())
                name = kind.other_name if rng.random() < 0.3 else kind.name
                letters = (brand.name[0] + kind.name[0]).upper()
                is_plain = plain.random() < self.config.shared_titles
                for spec, style in (options[option] for option in chosen):
                    model = f"{letters}{int(rng.integers(100, 999))}"
                    price = kind.price * TIER_PRICES[brand.tier] * (0.8 + 0.2 * spec)
                    price *= float(rng.lognormal(0, 0.08))
                    title = (
                        f"{brand.name} {name.title()}"
                        if is_plain
                        else f"{brand.name} {model} {kind.specs[spec]} {name.title()}, "
                        f"{kind.styles[style]}"
                    )
                    products.append(
                        SimProduct(
                            product_id=f"p{len(products) + 1:04d}",
                            title=title,
                            type_index=type_index,
                            brand_index=brand_index,
                            price=round(max(round(price), 2) - 0.01, 2),
                            missing=bool(rng.random() < self.config.missing),
                            spec=spec,
                            style=style,
                            model=model,
                            quality=float(rng.random()),
                        )
                    )
        return products

    def _changes(self, rng: np.random.Generator, off: float, on: float) -> list[float]:
        """Days at which a state goes on and off, for exponential times of these means."""
        # Begin somewhere in the cycle, so that the first day is like any other.
        day = -float(rng.random()) * (off + on) * 2
        changes = []
        while day < self.config.days:
            for mean in (off, on):
                day += float(rng.exponential(mean))
                changes.append(day)
        return changes

    def in_stock(self, i: int, day: float) -> bool:
        """Whether a product can be bought on a day."""
        product = self.products[i]
        changes = self._stock_changes[product.type_index, product.brand_index]
        return not product.missing and bisect_right(changes, day) % 2 == 0

    def price(self, i: int, day: float) -> float:
        """What a product costs on a day."""
        product = self.products[i]
        changes = self._sale_changes[product.type_index, product.brand_index]
        if bisect_right(changes, day) % 2 == 0:
            return product.price
        return round(product.price * self.config.sale_price, 2)

    def _phrases(self, type_index: int) -> list[Phrase]:
        kind = self.types[type_index]
        return [
            Phrase(kind.name, "generic"),
            Phrase(kind.other_name, "generic", option=1),
            *(
                Phrase(f"{self.brands[b].name.lower()} {kind.name}", "brand", brand=b)
                for b in self.sellers[type_index]
            ),
            *(Phrase(f"{s} {kind.name}", "spec", option=i) for i, s in enumerate(kind.specs)),
            *(Phrase(f"{s} {kind.name}", "style", option=i) for i, s in enumerate(kind.styles)),
        ]

    @cached_property
    def columns(self) -> ProductColumns:
        """The products' brands, specifications and styles as arrays."""
        kinds = [self.types[p.type_index] for p in self.products]
        styles = [kind.styles[p.style] for kind, p in zip(kinds, self.products, strict=True)]
        names = list(dict.fromkeys(styles))
        highest = np.array([max(len(kind.specs) - 1, 1) for kind in kinds])
        return ProductColumns(
            np.array([p.brand_index for p in self.products]),
            np.array([p.spec for p in self.products]) / highest,
            np.array([names.index(style) for style in styles]),
            names,
        )

    def product_records(self) -> Iterator[dict[str, Any]]:
        """The catalog as a shop would export it: a record for each product and each change."""
        for i, product in enumerate(self.products):
            kind = self.types[product.type_index]
            line = (product.type_index, product.brand_index)
            changes = [*self._stock_changes[line], *self._sale_changes[line]]
            last: tuple[float, bool] | None = None
            for day in sorted([0.0, *(d for d in changes if 0 < d < self.config.days)]):
                state = (self.price(i, day), self.in_stock(i, day))
                if state == last:
                    continue
                last = state
                attributes = {"spec": kind.specs[product.spec], "style": kind.styles[product.style]}
                yield {
                    "product_id": product.product_id,
                    "time": moment(day),
                    "title": product.title,
                    "brand": self.brands[product.brand_index].name,
                    "category": self.categories[product.type_index],
                    "price": state[0],
                    "stock": state[1],
                    "attributes": json.dumps(attributes),
                }
