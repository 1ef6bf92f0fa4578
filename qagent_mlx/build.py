"""Build what a shop needs before it can recommend: search index, stored memory, memory ranker."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import QAgentError
from .ingest.api import writable
from .ingest.ingest import ingest_files
from .ingest.options import Kind, ReadOptions
from .inventory.index import build_index, clicked_queries, renewed_index
from .inventory.published import tell_published
from .inventory.relevance_effect import FloorEffect, floor_effect
from .inventory.search import hybrid_search
from .inventory.stored_index import InventoryIndex
from .memory.buckets import build_memory
from .memory.ranker import MemoryRanker, Retrieve, fit_ranker, learning_of
from .memory.store import MemoryStore
from .memory.title_kinds import TitleKinds, told_title_kinds
from .shop.config import MemoryConfig, ShopConfig
from .shop.sample import sample_data_folder
from .shop.shop import Shop
from .utils.atomic_files import read_json
from .utils.callable_module import make_callable

make_callable(__name__, f"{__name__}:build")

LINE_WORTH = "line_worth.json"  # in the folder of the sample data
OnStage = Callable[[str], None]  # called with what begins

# Simulated people type nothing that is their own, and the base policy and all published results are
# of a memory in which a query reaches others at once.
SAMPLE_MEMORY = MemoryConfig(
    least_users=1, least_users_unknown=1, new_user_hours=0.0, trends_by="searches"
)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Size and sources of a shop's index and memory ranker."""

    products: int
    clicks_until: datetime | None  # the encoder learned from clicks before this moment
    clicked_pairs: int  # of query and product, that it learned from
    learned_from: int  # moments that the memory ranker learned from
    seconds: float
    taken: bool = False  # whether another machine of a lake had built the index
    relevance: FloorEffect | None = None  # what the relevance floor changes; None without one
    title_kinds: TitleKinds | None = None  # how memory names products without a category

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "relevance": self.relevance.to_dict() if self.relevance else None,
            "title_kinds": asdict(self.title_kinds) if self.title_kinds else None,
            "products": self.products,
            "clicks_until": self.clicks_until.isoformat() if self.clicks_until else None,
            "clicked_pairs": self.clicked_pairs,
            "taken": self.taken,
            "learned_from": self.learned_from,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, slots=True)
class SampleShopReport:
    """Contents of a new sample shop."""

    shop: Path
    counts: dict[str, int]  # see `Shop.counts`
    learned_from: int  # moments that the memory ranker learned from
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the counts stand beside the other values."""
        return {
            "shop": str(self.shop),
            **self.counts,
            "learned_from": self.learned_from,
            "seconds": round(self.seconds, 1),
        }


def build(shop: Shop | str | Path, on_stage: OnStage | None = None) -> BuildReport:
    """Index a shop, a folder or one that is open for writing, as ``qagent index`` does."""
    with writable(shop) as opened:
        return build_shop(opened, on_stage)


def build_shop(
    shop: Shop,
    on_stage: OnStage | None = None,
    anew: bool = False,
    known: MemoryRanker | None = None,
) -> BuildReport:
    """Build the search index, store memory, and fit the memory ranker of a writable shop.

    What was built and learned already stays, where nothing has changed of what it follows from or
    only the end of the log is new; ``anew`` does all of it again. What takes long works on a
    snapshot, so that others can read and write meanwhile. What is ``known`` of this very log, its
    memory ranker, is not learned.
    """
    notify = on_stage or (lambda stage: None)
    start = time.perf_counter()
    is_current = MemoryStore(shop.connection, shop.config.memory).is_current()
    # Other machines of a lake take what this one publishes.
    if anew or shop.store.is_shared or not is_current:
        notify("storing what is remembered of each user")
        build_memory(shop, anew)
    shop.close()
    with Shop.snapshot(shop.path) as snapshot:
        notify("building the index")
        index = build_index(snapshot) if anew else renewed_index(snapshot)
        clicked = clicked_queries(snapshot, index.catalog, index.clicks_until)
        effect = floor_effect(index, snapshot.config.search, clicked)
        notify("learning what lines of memory are worth")
        source = f"{index.manifest.clicks} {index.manifest.encoder}"
        retrieve = retrieval(snapshot, index)
        ranker = fit_ranker(snapshot, index.clicks_until, retrieve, source, anew, known)
    with shop.transaction():
        ranker.keep(shop)
        tell_published(shop, index.manifest)
        named = told_title_kinds(shop.connection, shop.config.memory)
    return BuildReport(
        len(index.catalog),
        index.clicks_until,
        index.manifest.clicked_pairs,
        ranker.moments,
        time.perf_counter() - start,
        index.manifest.taken,
        effect,
        named,
    )


def retrieval(shop: Shop, index: InventoryIndex) -> Retrieve:
    """The shop's search without its reranker, which would read thousands of result lists."""
    search = hybrid_search(shop, index)

    def retrieve(queries: Sequence[str], moments: Sequence[datetime]) -> list[list[str]]:
        return [[hit.product_id for hit in hits] for hits in search.search(queries, 10, moments)]

    return retrieve


def create_sample_shop(
    path: str | Path, on_stage: OnStage | None = None, name: str = "sample"
) -> SampleShopReport:
    """Create the sample shop in a new or empty folder, built and ready to use.

    A shop that could not be finished is deleted again.
    """
    notify = on_stage or (lambda stage: None)
    source = sample_data_folder()
    simulated = read_json(source / "simulator.json", "the sample data")
    start = time.perf_counter()
    shop = Shop.create(path, ShopConfig(name=name, memory=SAMPLE_MEMORY, simulated=simulated))
    try:
        kinds: tuple[Kind, ...] = ("products", "events")
        for kind in kinds:
            notify(f"ingesting {kind}")
            # Simulated times may lie ahead of this machine's clock.
            options = ReadOptions(allow_future=True)
            report = ingest_files(shop, kind, [source / f"{kind}.parquet"], options)
            if report.rejected:
                raise QAgentError(
                    f"the sample data is damaged ({report.examples[0]}); install qagent-mlx again"
                )
        learned_from = build_shop(shop, notify, known=known_line_worth(shop.config)).learned_from
        seconds = time.perf_counter() - start
        return SampleShopReport(shop.path, shop.counts(), learned_from, seconds)
    except BaseException:
        shop.delete()
        raise
    finally:
        shop.close()


def known_line_worth(config: ShopConfig) -> MemoryRanker | None:
    """The memory ranker of the sample shop, which comes with its data; None where that is another.

    It holds for these files and settings and this way of learning alone. `line_worth_document`
    makes it.
    """
    file = sample_data_folder() / LINE_WORTH
    if not file.exists():
        return None
    stored = read_json(file, "the sample data")
    is_same = isinstance(stored, dict) and stored.get("of") == _origin(config)
    return MemoryRanker.from_json(json.dumps(stored["ranker"])) if is_same else None


def line_worth_document(shop: Shop) -> dict[str, Any]:
    """What `known_line_worth` reads, from a sample shop that has learned it (`make line-worth`)."""
    learned = json.loads(MemoryRanker.of_shop(shop).to_json())
    for step in learned["steps"]:
        step["source"] = ""  # each shop's own
    return {"of": _origin(shop.config), "ranker": learned}


def _origin(config: ShopConfig) -> str:
    """Identifies all that the sample shop's memory ranker follows from."""
    digest = hashlib.sha256(f"{learning_of(config.memory)} {config.search}".encode())
    for kind in ("products", "events"):
        digest.update((sample_data_folder() / f"{kind}.parquet").read_bytes())
    return digest.hexdigest()[:16]


def sample_shop(path: str | Path = "shop") -> Shop:
    """Open the sample shop in a folder for reading; created first where it is not there yet."""
    if not (Path(path) / "shop.json").exists():
        create_sample_shop(path)
    return Shop.open(path)
