"""Another snapshot of a served shop, and what of it is opened before it is answered from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..agent.recommend import Recommender
from ..agent.suggest import Completer
from ..inventory.encoders.registry import SUBWORD
from ..inventory.index import updated_index
from ..inventory.product_search import open_shop_search
from ..inventory.search import HybridSearch, hybrid_search
from ..inventory.types import ProductSearch
from ..memory.profile import Memory
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from .shop_answers import prepared_completer


@dataclass(frozen=True, slots=True)
class NextShop:
    """Another snapshot of the shop, with what was opened of it so far."""

    shop: Shop
    search: ProductSearch | None
    memory: Memory
    completer: tuple[datetime, Completer] | None


def open_next(recommender: Recommender, shop: Shop) -> NextShop:
    """Open search and memory of another snapshot, in any thread, beside the answers."""
    settings = shop.config.search
    # Models compute in the worker's thread only.
    is_plain = settings.encoder == SUBWORD and not (settings.reranker or settings.engine)
    search = open_shop_search(shop) if is_plain else None
    store_memory(shop)
    memory = recommender.open_memory(shop)
    now = shop.end_of_log()
    memory.read_all(now)
    return NextShop(shop, search, memory, prepared_completer(memory, search, now))


def store_memory(shop: Shop) -> None:
    """Store the memory of a snapshot, where the file has none that is current."""
    store = MemoryStore(shop.connection, shop.config.memory)
    if not store.is_current():
        with shop.transaction():
            store.build()


def current_search(shop: Shop, search: ProductSearch) -> ProductSearch:
    """A search in line with a snapshot's catalog."""
    if not isinstance(search, HybridSearch):
        return open_shop_search(shop)
    if search.index.manifest.catalog_version == shop.catalog_version:
        return search
    index = updated_index(shop, search.index)
    return hybrid_search(shop, index, search.reranker)


def titles_of(recommender: Recommender) -> dict[str, str]:
    """Title of each product id."""
    catalog = recommender.search.catalog
    return dict(zip(catalog.ids, catalog.titles, strict=True))
