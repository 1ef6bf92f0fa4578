"""Search in a shop in which products come up at a moment: before that they are not found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..inventory.search import HybridSearch
from ..inventory.types import Filters
from ..types import Hit
from .scenario_shop import Launch

DEPTH = 4  # times as many hits are looked at, so that enough are left without the new ones


class LaunchSearch(HybridSearch):
    """A search that leaves out the products of a launch at moments before it."""

    def __init__(self, search: HybridSearch, launch: Launch) -> None:
        """The launch of some products of the search's catalog."""
        super().__init__(
            search.index, search.click_log, search.config, search.reranker, search.tells_clicks
        )
        self._moment, self._new = launch.moment, frozenset(launch.products)

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, best first; see `HybridSearch.search`."""
        moments = list(as_of) if as_of is not None else [None] * len(queries)
        found = super().search(queries, DEPTH * k, moments, filters)
        return [
            [hit for hit in hits if self._is_there(hit.product_id, moment)][:k]
            for hits, moment in zip(found, moments, strict=True)
        ]

    def _is_there(self, product: str, moment: datetime | None) -> bool:
        return moment is None or moment >= self._moment or product not in self._new
