"""Products that users looked at, and the words that a shopper would type for them.

It needs no query log: a product is asked for by what kind of thing it is and by its brand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...inventory.catalog import narrowest_category
from ...shop.shop import Shop
from ...utils.text import query_key, title_head, words
from ...utils.title_words import title_kinds
from .search_log import WEIGHTS


@dataclass(frozen=True)
class ProductLog:
    """All events of a shop with a product, by time: n of them, of P distinct products.

    Views count, too. ``kinds`` and ``names`` are queries: what kind of thing a product is, and the
    same with its brand.
    """

    times: np.ndarray  # (n,) datetime64[us]
    users: list[str]  # (n,)
    sessions: list[int]  # (n,) the session's id
    products: list[int]  # (n,) number of the product
    weights: list[float]  # (n,) see `WEIGHTS`
    kinds: list[str]  # (P,)
    names: list[str]  # (P,)

    @classmethod
    def of_shop(cls, shop: Shop) -> ProductLog:
        """A copy of the shop's events; the database is not needed again."""
        catalog = shop.connection.execute(
            "SELECT product_id, title, brand, category FROM products ORDER BY product_id"
        ).fetchall()
        kinds = kind_queries({product: rest for product, *rest in catalog})
        brands = {product: brand or "" for product, _, brand, _ in catalog}
        events = shop.connection.execute(
            """SELECT ts, user_id, session_id, product_id, type::VARCHAR FROM events
            WHERE type <> 'search' AND product_id IN (SELECT product_id FROM products)
            ORDER BY ts, event_id"""
        ).fetchall()
        met = {product: number for number, product in enumerate(sorted({e[3] for e in events}))}
        times, users, sessions, products, types = list(zip(*events, strict=True)) or [()] * 5
        return cls(
            times=np.array(times, dtype="datetime64[us]"),
            users=list(users),
            sessions=list(sessions),
            products=[met[product] for product in products],
            weights=[WEIGHTS[kind] for kind in types],
            kinds=[kinds[product] for product in met],
            names=[_with_brand(brands[product], kinds[product]) for product in met],
        )

    def before(self, moment: np.datetime64) -> int:
        """The number of events before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))


def kind_queries(catalog: Mapping[str, list[str | None]]) -> dict[str, str]:
    """What kind of thing each product is, as a shopper would word it.

    The name of its narrowest category; where it has none, the words of its title that most titles
    share; and in a catalog that names no brands either, where a title is a name (games, books), the
    beginning of the title. Each product has a title, a brand and the path of its category.
    """
    titles = {product: title or "" for product, (title, _, _) in catalog.items()}
    brands = {product: brand for product, (_, brand, _) in catalog.items()}
    leaves = {product: narrowest_category(path) for product, (_, _, path) in catalog.items()}
    shared = title_kinds(titles, brands)
    return {
        product: leaf.lower()
        if query_key(leaf)
        else shared.get(product) or title_head(titles[product])
        for product, leaf in leaves.items()
    }


def _with_brand(brand: str, kind: str) -> str:
    """A kind of thing of a brand, which is not said twice."""
    is_named = set(words(brand)) <= set(words(kind))
    return kind if is_named else f"{brand.lower()} {kind}"
