"""The search tool: what a query retrieves, described for one user at one moment."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from ..inventory.types import ProductSearch
from ..protocol.actions import product_line
from ..protocol.config import AgentConfig
from ..protocol.marks import Mark
from ..types import UserContext
from ..utils.text import query_key

RETRIEVED = 10  # products that a search returns
QUERIES = 4096  # queries at a moment whose engagement shares are remembered
MIN_ENGAGEMENTS = 2.0  # weight below which shares say nothing; a recent click weighs 1
_MODEL_NUMBER = re.compile(r"[a-z]{1,4}-?\d{3,}[a-z]?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A query that a chain searches at a moment, for the user of a context."""

    query: str
    as_of: datetime | None
    context: UserContext


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The ids of the retrieved products, and the lines that the agent reads; best first."""

    products: tuple[str, ...]
    lines: tuple[str, ...]


class SearchProducts:
    """Answers ``<search>`` for all chains that wait, in one call of the search engine.

    The line of a product has its short title, its price band within its category, and marks:
    ``fits`` (the user's usual price band), ``brand`` (one that the user chose before),
    ``bought`` or ``seen``, ``chosen`` or ``often`` (most, or many, of those who searched the
    same before engaged with it) and ``out`` (sold out).
    """

    def __init__(self, search: ProductSearch, config: AgentConfig) -> None:
        self._search, self.catalog, self._config = search, search.catalog, config
        self.seconds = 0.0  # spent in `run` so far
        # Users of a batch ask the same queries at the same moment.
        self._shares = lru_cache(QUERIES)(self._engagement_shares)
        self._title = lru_cache(None)(self._short_title)

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Search for all requests; returns one result for each, in order."""
        if not self._config.search:
            return [SearchResult((), ())] * len(requests)
        start = time.perf_counter()
        # Chains of a group often ask the same, which is searched once.
        unique = list(dict.fromkeys((r.query, r.as_of) for r in requests))
        queries, moments = [query for query, _ in unique], [moment for _, moment in unique]
        results = self._search.search(queries, RETRIEVED, moments)
        products = {
            key: tuple(hit.product_id for hit in hits)
            for key, hits in zip(unique, results, strict=True)
        }
        found = [self._result(r, products[r.query, r.as_of]) for r in requests]
        self.seconds += time.perf_counter() - start
        return found

    def _result(self, request: SearchRequest, products: tuple[str, ...]) -> SearchResult:
        shares = self._shares(request.query, request.as_of)
        lines = []
        for number, product in enumerate(products[: self._config.results_shown], 1):
            row = self.catalog.row_of[product]
            marks = self._marks(row, product, request, shares.get(row, 0.0))
            lines.append(product_line(number, self._title(row), marks))
        return SearchResult(products, tuple(lines))

    def _marks(self, row: int, product: str, request: SearchRequest, share: float) -> list[str]:
        """The marks of a product for the user; ``share`` is that of earlier searchers."""
        price, in_stock = self.catalog.state_at(row, request.as_of)
        band = self.catalog.price_band(row, price)
        marks: list[str] = [band] if band else []
        if self._config.marks:
            context = request.context
            if band and context.prices.get(band, 0.0) >= 0.25:
                marks.append(Mark.FITS)
            brand = (self.catalog.brands[row] or "").lower()
            if context.brands.get(brand, 0.0) >= 0.15:
                marks.append(Mark.BRAND)
            if product in context.bought:
                marks.append(Mark.BOUGHT)
            elif product in context.seen:
                marks.append(Mark.SEEN)
        if share >= 0.2:
            marks.append(Mark.CHOSEN if share >= 0.5 else Mark.OFTEN)
        if not in_stock:
            marks.append(Mark.OUT)
        return marks

    def _engagement_shares(self, query: str, moment: datetime | None) -> dict[int, float]:
        """Catalog row -> its share of what earlier searchers of the query engaged with."""
        clicks = getattr(self._search, "clicks", None)  # a shop's own engine may have none
        if clicks is None or not self._config.marks:
            return {}
        ranking = clicks.ranking(query_key(query), moment)
        total = float(ranking.scores.sum())
        if total < MIN_ENGAGEMENTS:
            return {}
        shares = (ranking.scores / total).tolist()
        return dict(zip(ranking.rows.tolist(), shares, strict=True))

    def _short_title(self, row: int) -> str:
        """The first words of a product's title without model numbers, which no agent can use."""
        words = self.catalog.titles[row].replace(",", " ").split()
        useful = [word for word in words if not _MODEL_NUMBER.fullmatch(word)]
        return " ".join(useful[: self._config.title_words])
