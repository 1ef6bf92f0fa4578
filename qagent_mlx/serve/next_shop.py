"""Another snapshot of a served shop, and what of it is opened before it is answered from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..agent.recommend import Recommender
from ..agent.suggest import Completer
from ..errors import QAgentError
from ..inventory.encoders.registry import SUBWORD
from ..inventory.index import built_index, open_index, updated_index
from ..inventory.product_search import open_shop_search
from ..inventory.search import HybridSearch, hybrid_search, open_search
from ..inventory.stored_index import InventoryIndex
from ..inventory.types import ProductSearch
from ..memory.profile import Memory
from ..memory.store import MemoryStore
from ..shop.shop import Shop
from .shop_answers import prepared_completer


@dataclass(frozen=True, slots=True)
class NextShop:
    """Another snapshot of the shop, with what was opened of it so far.

    Attributes:
        shop: The snapshot.
        index: Its search index; None where the shop has an engine of its own, or see ``problem``.
        search: Its search, where that needs no model: models compute in the worker's thread only.
        problem: Why there is no index of it; else empty.
        memory: Its memory.
        completer: Its completions of what somebody types, and until when they hold.
    """

    shop: Shop
    index: InventoryIndex | None
    search: ProductSearch | None
    problem: str
    memory: Memory
    completer: tuple[datetime, Completer] | None


def open_next(recommender: Recommender, shop: Shop) -> NextShop:
    """Open search and memory of another snapshot, in any thread, beside the answers."""
    settings = shop.config.search
    index, search, problem = None, None, ""
    try:
        if settings.engine is None:
            # A model takes minutes for it, and in the thread that answers.
            index = open_index(shop) if settings.encoder == SUBWORD else built_index(shop)
            if settings.encoder == SUBWORD and not settings.reranker:
                search = hybrid_search(shop, index)
    except QAgentError as error:
        problem = str(error)
    store_memory(shop)
    memory = recommender.open_memory(shop)
    now = shop.end_of_log()
    memory.read_all(now)
    completer = prepared_completer(memory, search, now)
    return NextShop(shop, index, search, problem, memory, completer)


def next_search(following: NextShop, before: ProductSearch) -> tuple[ProductSearch, str]:
    """The search of another snapshot, in the worker's thread.

    Where it cannot be opened it is the one from before, with the snapshot's products and clicks as
    far as these can be had; and why.
    """
    shop = following.shop
    try:
        if following.problem:
            raise QAgentError(following.problem)
        if following.search is not None:
            return following.search, ""
        if following.index is None:
            return open_shop_search(shop), ""
        index = following.index
        if index.manifest.catalog_version != shop.catalog_version:
            index = updated_index(shop, index)
        return open_search(shop, index), ""
    except QAgentError as error:
        problem = str(error)
    if not isinstance(before, HybridSearch):
        return before, problem
    try:
        return hybrid_search(shop, updated_index(shop, before.index), before.reranker), problem
    except QAgentError:
        return before, problem


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
