"""What the search engines that a shop can name in place of the built-in one have in common.

An engine is named in the shop's ``shop.json`` (see `opensearch` and `postgres` for settings):

    "search": {"engine": {"kind": "opensearch", "url": "http://localhost:9200",
                          "index": "products", "fields": ["title^2", "brand"]}}
    "search": {"engine": {"kind": "postgres", "dsn": "dbname=shop", "table": "products",
                          "text": ["title", "brand"]}}

An engine returns product ids and scores; titles, prices and stock come from the shop's catalog,
and products that the catalog does not hold are left out. An engine searches the shop as it is
now, not as of a case's moment: it serves `search` and `recommend`, while training and
evaluation use the built-in search.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from ..errors import QAgentError
from ..types import Hit
from ..utils.text import query_key
from .catalog import Catalog
from .types import Filters

REMEDY = "correct search.engine in shop.json"


class ExternalEngine(ABC):
    """A `ProductSearch` that asks another system."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, best first; ``as_of`` has no effect.

        Raises:
            QAgentError: the engine does not answer, or not as it should.
        """
        distinct = [query for query in dict.fromkeys(queries) if query_key(query)]
        if not distinct or k < 1:
            return [[] for _ in queries]
        hits = self._search(distinct, k, filters or Filters())
        by_query = dict(zip(distinct, hits, strict=True))
        return [list(by_query.get(query, [])) for query in queries]

    @abstractmethod
    def _search(self, queries: Sequence[str], k: int, filters: Filters) -> list[list[Hit]]:
        """Ask the engine; the queries are distinct and none is empty."""


def secret_from_environment(variable: str | None) -> str | None:
    """The value of an environment variable; None where the settings name none."""
    if variable is None:
        return None
    if variable not in os.environ:
        raise QAgentError(f"search.engine names the variable {variable}, which is not set; set it")
    return os.environ[variable]
