"""Build what a shop needs before it can recommend: search index, stored memory, memory ranker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import QAgentError
from .ingest.ingest import ingest_files
from .inventory.index import InventoryIndex, build_index
from .inventory.search import HybridSearch, open_clicks
from .memory.ranker import Retrieve, fit_ranker
from .memory.store import MemoryStore
from .shop.config import ShopConfig
from .shop.sample import sample_data_folder
from .shop.shop import Shop
from .utils.atomic_files import read_json


def create_sample_shop(
    path: str | Path, on_stage: Callable[[str], None] | None = None, name: str = "sample"
) -> dict[str, Any]:
    """Make the sample shop in a new or empty folder, with its index: it is ready to use.

    A shop that could not be finished is deleted again.

    Args:
        path: The new shop's folder.
        on_stage: Called with what begins.
        name: What the shop is called in its settings.

    Returns:
        shop, what `Shop.counts` says, ``learned_from`` (moments that memory learned the
        worth of its lines from), and ``seconds``.

    Raises:
        QAgentError: the folder holds something else, or cannot be written.
    """
    say = on_stage or (lambda stage: None)
    source = sample_data_folder()
    simulated = read_json(source / "simulator.json", "the sample data")
    start = time.perf_counter()
    shop = Shop.create(path, ShopConfig(name=name, simulated=simulated))
    try:
        for kind in ("products", "events"):
            say(f"ingesting {kind}")
            report = ingest_files(shop, kind, [source / f"{kind}.parquet"])
            if report.rejected:
                raise QAgentError(
                    f"the sample data is damaged ({report.examples[0]}); install qagent-mlx again"
                )
        learned = build_shop(shop, say)
        return {
            "shop": str(shop.path),
            **shop.counts(),
            "learned_from": learned["learned_from"],
            "seconds": round(time.perf_counter() - start, 1),
        }
    except BaseException:
        shop.remove()
        raise
    finally:
        shop.close()


def sample_shop(path: str | Path = "shop") -> Shop:
    """The sample shop in a folder, open for reading; made first where it is not there yet.

    Raises:
        QAgentError: the folder holds something else, or cannot be written.
    """
    if not (Path(path) / "shop.json").exists():
        create_sample_shop(path)
    return Shop.open(path)


def build_shop(shop: Shop, on_stage: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Build the index and learn what lines of memory are worth.

    Args:
        shop: Open for writing.
        on_stage: Called with what begins.

    Returns:
        products, clicks_until, clicked_pairs, learned_from, seconds.
    """
    say = on_stage or (lambda stage: None)
    start = time.perf_counter()
    say("building the index")
    index = build_index(shop)
    say("storing what is remembered of each user")
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).build()
    say("learning what lines of memory are worth")
    worth = fit_ranker(shop, index.clicks_until, _retrieve(shop, index))
    return {
        "products": len(index.catalog),
        "clicks_until": index.manifest["clicks_until"],
        "clicked_pairs": index.manifest["clicked_pairs"],
        "learned_from": worth.moments,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _retrieve(shop: Shop, index: InventoryIndex) -> Retrieve:
    """What the shop's search finds; without its reranker, which would read thousands of pages."""
    search = HybridSearch(index, open_clicks(shop, index), shop.config.search)

    def retrieve(queries: Sequence[str], moments: Sequence[datetime]) -> list[list[str]]:
        return [[hit.product_id for hit in hits] for hits in search.search(queries, 10, moments)]

    return retrieve
