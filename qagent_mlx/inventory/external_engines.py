"""Search engines that a shop can name in place of the built-in one.

An engine is named in the shop's ``shop.json`` (see `OpenSearchSettings`, `PostgresSettings`):

    "search": {"engine": {"kind": "opensearch", "url": "http://localhost:9200",
                          "index": "products", "fields": ["title^2", "brand"]}}
    "search": {"engine": {"kind": "postgres", "dsn": "dbname=shop", "table": "products",
                          "text": ["title", "brand"]}}

An engine returns product ids and scores; titles, prices and stock come from the shop's catalog,
and products that the catalog does not hold are left out. An engine searches the shop as it is
now, not as of a case's moment: it serves `search` and `recommend`, while training and
evaluation use the built-in search.

An engine is asked only once its user has named its address and the variables that it would be
sent (`utils.trust`), as a shop may come from somebody else.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from msgspec import Meta

from ..errors import QAgentError
from ..types import Hit
from ..utils import trust
from ..utils.text import query_key
from .catalog import Catalog
from .types import Filters

REMEDY = "correct search.engine in shop.json"

Seconds = Annotated[float, Meta(gt=0, le=3600, extra={"unit": "seconds"})]


@dataclass(frozen=True, slots=True)
class OpenSearchSettings:
    """Where the engine is and how its documents are laid out. Secrets stay in the environment."""

    url: Annotated[str, Meta(description="Address of the engine.")] = ""
    index: Annotated[str, Meta(description="Index that is searched.")] = "products"
    fields: Annotated[
        tuple[str, ...], Meta(description="Fields that are searched, with boosts such as title^2.")
    ] = ("title^2", "brand", "category")
    id: Annotated[
        str | None, Meta(description="Field of the product id; by default the document's own id.")
    ] = None
    in_stock: Annotated[str, Meta(description="Field that says whether it is in stock.")] = (
        "in_stock"
    )
    price: Annotated[str, Meta(description="Field of the price.")] = "price"
    category: Annotated[str, Meta(description="Field of the category path.")] = "category.keyword"
    timeout: Annotated[Seconds, Meta(description="Time to wait for an answer.")] = 10.0
    parallel: Annotated[int, Meta(ge=1, le=256, description="Requests at the same time.")] = 8
    user: Annotated[str | None, Meta(description="Name for basic authentication.")] = None
    password_variable: Annotated[
        str | None, Meta(description="Environment variable that holds the password.")
    ] = None
    api_key_variable: Annotated[
        str | None, Meta(description="Environment variable that holds an API key.")
    ] = None


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Where the products are. The password belongs in PGPASSWORD, ~/.pgpass or the variable."""

    dsn: Annotated[
        str, Meta(description="Connection string of libpq; empty for the PG* variables.")
    ] = ""
    dsn_variable: Annotated[
        str | None, Meta(description="Environment variable that holds the connection string.")
    ] = None
    table: Annotated[str, Meta(description="Table of the products.")] = "products"
    id: Annotated[str, Meta(description="Column of the product id.")] = "product_id"
    text: Annotated[tuple[str, ...], Meta(description="Columns that are searched.")] = (
        "title",
        "brand",
        "category",
    )
    vector: Annotated[
        str | None, Meta(description="Column of type tsvector that is searched instead of texts.")
    ] = None
    language: Annotated[str, Meta(description="Text search configuration.")] = "english"
    in_stock: Annotated[str, Meta(description="Column that says whether it is in stock.")] = (
        "in_stock"
    )
    price: Annotated[str, Meta(description="Column of the price.")] = "price"
    category: Annotated[str, Meta(description="Column of the category path.")] = "category"
    timeout: Annotated[Seconds, Meta(description="Time to wait for an answer.")] = 10.0


class EngineFailed(QAgentError):
    """An engine does not answer, or not as it should."""


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
            EngineFailed: the engine does not answer, or not as it should.
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


def require_trust(address: str, *variables: str | None) -> None:
    """Refuse an engine, or variables that it would be sent, which the user has not named."""
    named = [variable for variable in variables if variable is not None]
    trust.require_address(address, named, "search.engine in shop.json", "remove it there")


def secret_from_environment(variable: str | None) -> str | None:
    """The value of an environment variable; None where the settings name none."""
    if variable is None:
        return None
    if variable not in os.environ:
        raise QAgentError(f"search.engine names the variable {variable}, which is not set; set it")
    return os.environ[variable]
