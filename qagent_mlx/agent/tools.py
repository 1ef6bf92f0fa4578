"""The agent's two tools: reading memory and searching the inventory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from ..inventory.types import ProductSearch
from ..protocol.actions import product_line, profile_text
from ..protocol.config import AgentConfig
from ..protocol.marks import Mark
from ..types import Profile, UserContext
from ..utils.text import query_key

RETRIEVED = 10  # products that a search returns
PICKS = 4096  # queries at a moment whose picks are remembered
ENOUGH_PICKS = 2.0  # engagements, of what weight a recent click has, before shares mean anything
_MODEL_NUMBER = re.compile(r"[a-z]{1,4}-?\d{3,}[a-z]?", re.IGNORECASE)


class FetchMemory:
    """Answers ``<fetch_memory/>`` with the profile."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config

    def run(self, profile: Profile) -> str:
        """The observation's text; empty of content in the no-memory ablation."""
        if not self._config.memory:
            return profile_text(empty_profile(profile))
        return profile_text(profile)


def empty_profile(profile: Profile) -> Profile:
    """The profile of somebody of whom nothing is known."""
    return Profile(profile.user_id, profile.as_of, "", (), ())


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search that a chain wants: a query at a moment, for somebody with this context."""

    query: str
    as_of: datetime | None
    context: UserContext


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search returned: product ids and the lines for the agent, the best first."""

    products: tuple[str, ...]
    lines: tuple[str, ...]


class SearchProducts:
    """Answers ``<search>`` for all rows that wait, in one call of the search engine.

    Each shown product says its price band within its category and, in marks, how it fits
    the user at that moment: ``fits`` (the usual price band), ``brand`` (a brand that the
    user chose before), ``bought``, ``seen``, ``out`` (sold out). ``chosen`` and ``often`` say
    that most, or many, of those who asked the same before went for this product.
    """

    def __init__(self, search: ProductSearch, config: AgentConfig) -> None:
        self._search = search
        self._config = config
        self._rows = search.catalog.row_of
        # Users of a batch ask the same queries at the same moment.
        self._picked = lru_cache(PICKS)(self._picks)
        self._titles: dict[int, str] = {}

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """One answer a request, in order."""
        if not self._config.search:
            return [SearchResult((), ()) for _ in requests]
        # Rows of a group often ask the same: ask the engine once.
        unique = list(dict.fromkeys((r.query, r.as_of) for r in requests))
        hits = dict(
            zip(
                unique,
                self._search.search(
                    [q for q, _ in unique], RETRIEVED, [moment for _, moment in unique]
                ),
                strict=True,
            )
        )
        picked = {(query, moment): self._picked(query, moment) for query, moment in unique}
        made = []
        for request in requests:
            products = tuple(h.product_id for h in hits[request.query, request.as_of])
            shown = products[: self._config.results_shown]
            picks = picked[request.query, request.as_of]
            lines = tuple(self._line(i, p, request, picks) for i, p in enumerate(shown, 1))
            made.append(SearchResult(products, lines))
        return made

    def _picks(self, query: str, moment: datetime | None) -> dict[int, float]:
        """Catalog row -> share of what earlier searchers of the query engaged with."""
        clicks = getattr(self._search, "clicks", None)  # a shop's own engine may keep none
        if clicks is None or not self._config.marks:
            return {}
        rows, weight = clicks.ranking(query_key(query), moment)
        total = float(weight.sum())
        if total < ENOUGH_PICKS:
            return {}
        return dict(zip(rows.tolist(), (weight / total).tolist(), strict=True))

    def _line(
        self, number: int, product: str, request: SearchRequest, picks: dict[int, float]
    ) -> str:
        catalog = self._search.catalog
        row = self._rows[product]
        price, in_stock = catalog.state_at(row, request.as_of)
        marks: list[str] = []
        band = catalog.price_band(row, price)
        if band:
            marks.append(band)
        if self._config.marks:
            context = request.context
            if band and context.prices.get(band, 0.0) >= 0.25:
                marks.append(Mark.FITS)
            brand = (catalog.brands[row] or "").lower()
            if context.brands.get(brand, 0.0) >= 0.15:
                marks.append(Mark.BRAND)
            if product in context.bought:
                marks.append(Mark.BOUGHT)
            elif product in context.seen:
                marks.append(Mark.SEEN)
        share = picks.get(row, 0.0)
        if share >= 0.2:
            marks.append(Mark.CHOSEN if share >= 0.5 else Mark.OFTEN)
        if not in_stock:
            marks.append(Mark.OUT)
        title = self._titles.get(row)
        if title is None:
            title = self._titles[row] = short_title(catalog.titles[row], self._config)
        return product_line(number, title, marks)


def short_title(title: str, config: AgentConfig) -> str:
    """The first words of a title, without model numbers: what an agent can use of it."""
    found = [w for w in title.replace(",", " ").split() if not _MODEL_NUMBER.fullmatch(w)]
    return " ".join(found[: config.title_words])
