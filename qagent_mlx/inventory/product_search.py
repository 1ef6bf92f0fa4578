"""Search a shop's products, with its own engine or the built-in search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.settings import merge
from ..utils.text import query_key
from .catalog import Catalog, read_catalog
from .external_engines import REMEDY, ExternalEngine, OpenSearchSettings, PostgresSettings
from .opensearch import OpenSearch
from .search import HybridSearch, open_search
from .types import Explanation, Filters, ProductSearch


def _open_postgres(catalog: Catalog, settings: PostgresSettings) -> ExternalEngine:
    try:
        from .postgres import Postgres
    except ImportError as error:
        raise QAgentError(
            "PostgreSQL needs psycopg; run: pip install 'qagent-mlx[postgres]'"
        ) from error
    return Postgres(catalog, settings)


# An engine's kind in shop.json: its settings, and what opens it.
ENGINES: dict[str, tuple[type[Any], Callable[[Catalog, Any], ExternalEngine]]] = {
    "opensearch": (OpenSearchSettings, OpenSearch),
    "postgres": (PostgresSettings, _open_postgres),
}


@dataclass(frozen=True, slots=True)
class ProductHit:
    """A product that a search returned, with price and stock of the search's moment."""

    product_id: str
    title: str
    score: float
    price: float | None
    in_stock: bool
    brand: str | None
    why: Explanation | None = None  # where the search was asked to explain

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the score is rounded."""
        return {
            "product_id": self.product_id,
            "title": self.title,
            "score": round(self.score, 6),
            "price": self.price,
            "in_stock": self.in_stock,
            "brand": self.brand,
            **({"why": self.why.to_dict()} if self.why is not None else {}),
        }


def open_shop_search(shop: Shop) -> ProductSearch:
    """The search that a shop's users get: its own engine where its settings name one.

    Raises:
        QAgentError: the engine's settings are wrong.
    """
    if shop.config.search.engine is None:
        return open_search(shop)
    values = dict(shop.config.search.engine)
    kind = values.pop("kind", None)
    if kind not in ENGINES:
        raise QAgentError(
            f"search.engine has the kind {kind!r}; known are {', '.join(ENGINES)}; {REMEDY}"
        )
    settings_class, open_engine = ENGINES[kind]
    return open_engine(read_catalog(shop), merge(settings_class(), values, "search.engine"))


def search_products(
    shop: Shop,
    query: str,
    k: int = 10,
    *,
    filters: Filters | None = None,
    as_of: datetime | None = None,
    search: ProductSearch | None = None,
    explain: bool = False,
) -> list[ProductHit]:
    """At most ``k`` products for a query, best first.

    Args:
        shop: Read only is enough.
        query: What somebody would type.
        k: Number of products.
        filters: Applied before ranking, to prices and stock of the moment.
        as_of: The moment of clicks, prices and stock; now when None.
        search: An open search of the shop; by default its own engine or the built-in one.
        explain: Say what each ranking adds to a product's score.

    Raises:
        QAgentError: the query has no letters or digits, or the shop's own engine cannot explain.
    """
    if not query_key(query):
        raise QAgentError(f"{query!r} has no letters or digits; nothing to search for")
    search = search or open_shop_search(shop)
    explanations: list[Explanation | None]
    if explain:
        if not isinstance(search, HybridSearch):
            raise QAgentError(
                "the shop's own search engine cannot explain its hits; ask without explain"
            )
        explanations = [*search.explain(query, k, as_of, filters)]
        hits = [explanation.hit for explanation in explanations if explanation is not None]
    else:
        hits = search.search([query], k, [as_of], filters)[0]
        explanations = [None] * len(hits)
    catalog = search.catalog
    products = []
    for hit, explanation in zip(hits, explanations, strict=True):
        row = catalog.row_of[hit.product_id]
        price, in_stock = catalog.state_at(row, as_of)
        products.append(
            ProductHit(
                hit.product_id,
                catalog.titles[row],
                hit.score,
                None if math.isnan(price) else price,
                in_stock,
                catalog.brands[row],
                explanation,
            )
        )
    return products


def unlike_products(shop: Shop, query: str, as_of: datetime | None = None) -> int:
    """How many products the relevance floor leaves out of the nearest ones to a query.

    0 where the shop has an engine of its own.
    """
    search = open_shop_search(shop)
    return search.left_out(query, as_of) if isinstance(search, HybridSearch) else 0
