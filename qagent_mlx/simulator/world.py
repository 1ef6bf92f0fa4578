"""The simulated shop: products, stock, prices and its search engine."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np

from ..utils.text import words
from .catalog_data import Brand, ProductType, brands, follow_ups, product_types

START = datetime(2026, 1, 5)


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
class ProductColumns:
    """Products as columns: brand, specification in [0, 1], and style as a place in the names."""

    brands: np.ndarray
    spec: np.ndarray
    styles: np.ndarray
    style_names: list[str]  # in the order in which the products first have them


class SimulatedSearch:
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


class SimulatedShop:
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
        self.engine = SimulatedSearch(
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
                            type_index=t,
                            brand_index=b,
                            price=round(max(round(price), 2) - 0.01, 2),
                            missing=bool(rng.random() < self.config.missing),
                            spec=spec,
                            style=style,
                            model=model,
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
    def facts(self) -> ProductColumns:
        """What of each product decides whether it is to somebody's taste."""
        names: dict[str, int] = {}
        styles = [
            names.setdefault(self.types[p.type_index].styles[p.style], len(names))
            for p in self.products
        ]
        return ProductColumns(
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
        for i, (product, attributes) in enumerate(zip(self.products, self.attributes, strict=True)):
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
