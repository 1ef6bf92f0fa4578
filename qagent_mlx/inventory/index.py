"""The inventory index: catalog, BM25, vectors and encoder, built and updated as one.

`build_index` makes all of it; `open_index` opens it and adds, changes and removes what the shop's
catalog has different. An index in memory never changes: an update makes a new one that shares
what is the same, so searches under way are not disturbed. `stored_index` keeps its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from ..errors import QAgentError
from ..shop.shop import Shop
from .analyzer import ANALYZER_VERSION, product_terms
from .bm25 import BM25Index
from .catalog import Catalog, read_catalog
from .encoders.encoder import Encoder
from .encoders.registry import EncoderSpec, open_encoder
from .encoders.subword import ClickedQuery, SubwordEncoder
from .index_files import REMEDY, IndexWriter, Manifest, clear_if_idle, leftovers, read_manifest
from .published import open_published, publish_missing, sharing, take_published
from .relevance import MIN_PAIRS, learn_floor
from .stored_index import InventoryIndex, load_index, store_index
from .vector_index import VectorIndex

CLICK_SHARE = 0.35  # of the log's time that the encoder may learn from, see `build_index`
LONGER_SHARE = 0.1  # by which the log's part may have grown, before clicks are learned again
REFIT_SHARE = 0.3  # of the catalog with new text, from which on an encoder is learned again


@dataclass(frozen=True, slots=True)
class IndexChanges:
    """How many products an update found different."""

    added: int = 0
    changed: int = 0  # whose text changed
    restated: int = 0  # of which only price, stock or other facts changed
    removed: int = 0


def build_index(shop: Shop, clicks_until: datetime | None = None) -> InventoryIndex:
    """Build the index of a shop, in place of the one that is there.

    The encoder learns from clicks before ``clicks_until``; see `default_clicks_until`.

    Raises:
        QAgentError: the shop has no products, its encoder cannot be opened, or its folder
            cannot be written.
    """
    with sharing(shop, open_published(shop), takes=False) as writer:
        return _build(shop, clicks_until, writer)


def default_clicks_until(shop: Shop) -> datetime | None:
    """The moment until which the encoder may learn from clicks: the end of the log's first part.

    One index serves training, evaluation and live search, so what is baked into it must lie
    before every case; later clicks reach search through the point-in-time click log.
    """
    ((first, last),) = shop.connection.execute("SELECT min(ts), max(ts) FROM events").fetchall()
    if first is None:
        return None
    moment: datetime = first + timedelta(seconds=(last - first).total_seconds() * CLICK_SHARE)
    return moment


def open_index(shop: Shop) -> InventoryIndex:
    """The shop's index, brought in line with its catalog; see `sync_index`."""
    return sync_index(shop)[0]


def sync_index(shop: Shop) -> tuple[InventoryIndex, IndexChanges]:
    """Open the shop's index, built if there is none, and updated if it is out of date.

    In a lake it is the one that a machine has published last, see `published`.

    An update keeps the encoder, and terms and vectors of unchanged texts. All is built again
    where the index is damaged or of another encoder than the shop names, or where much of the
    catalog is new text that the encoder is learned from. An index that is open stays usable.

    Raises:
        QAgentError: the shop has no products, or its folder cannot be written.
    """
    published = open_published(shop)
    take_published(shop, published)
    index = _load_if_usable(shop)
    if index is not None and index.manifest.catalog_version == shop.catalog_version:
        if leftovers(index.folder, index.manifest):
            clear_if_idle(index.folder)
        return index, IndexChanges()
    with sharing(shop, published) as writer:
        # Another process, or machine, may have done it while this one waited.
        index = _load_if_usable(shop)
        if index is None:
            index = _build(shop, _last_clicks_until(shop), writer)
            return index, IndexChanges(added=len(index.catalog))
        if index.manifest.catalog_version != shop.catalog_version:
            return _update(shop, index, writer)
        return index, IndexChanges()


def built_index(shop: Shop) -> InventoryIndex:
    """The index that is built already with the shop's encoder, here or by another machine.

    It may be of an earlier catalog: for who cannot wait.

    Raises:
        QAgentError: there is none, it is damaged, or the encoder cannot be opened.
    """
    spec = EncoderSpec.of(shop.config.search)
    take_published(shop, open_published(shop))
    index = load_index(shop.path / "inventory")
    if index.manifest.encoder != spec:
        raise QAgentError(
            f"no index is built yet with the encoder {shop.config.search.encoder}; {REMEDY}"
        )
    return index


def _build(shop: Shop, clicks_until: datetime | None, writer: IndexWriter) -> InventoryIndex:
    catalog = read_catalog(shop)
    clicks_until = clicks_until or default_clicks_until(shop)
    texts = catalog.texts()
    if not any(product_terms(text) for text in texts):
        raise QAgentError(
            f"no product of {shop.path} has a letter or digit in its title; "
            "ingest products whose titles are words"
        )
    spec = EncoderSpec.of(shop.config.search)
    clicked = clicked_queries(shop, catalog, clicks_until)
    encoder: Encoder
    if spec.is_learned:
        encoder = SubwordEncoder.fit(texts, clicked, shop.config.search.dimensions)
    else:
        encoder = open_encoder(spec)
    lexical = BM25Index.build(texts, catalog.titles)
    vectors = VectorIndex.build(encoder.encode(texts))
    manifest = Manifest(
        generation=writer.generation,
        catalog_version=shop.catalog_version,
        products=len(catalog),
        encoder=spec,
        clicks_until=clicks_until,
        clicked_pairs=len(clicked) if spec.is_learned else 0,
        clicks=_digest(clicked),
        dimensions=vectors.dimensions,
        terms=ANALYZER_VERSION,
        relevance=learn_floor(encoder, lexical, vectors, catalog, clicked),
    )
    index = InventoryIndex(writer.folder, manifest, catalog, lexical, vectors, encoder)
    return store_index(shop, writer, index, {})


def renewed_index(shop: Shop) -> InventoryIndex:
    """The shop's index; built again, unless it would learn the same or not much more.

    It stays where no text of the catalog and no click that it learned from has changed, while the
    part of the log that it may learn from is less than `LONGER_SHARE` longer; prices and stock are
    brought in.

    Raises:
        QAgentError: as `build_index`.
    """
    published = open_published(shop)
    take_published(shop, published)
    if not _knows(shop, _load_if_usable(shop)):
        with sharing(shop, published) as writer:
            if not _knows(shop, _load_if_usable(shop)):  # as no other machine did meanwhile
                return _build(shop, None, writer)
    index = open_index(shop)
    publish_missing(shop, published)
    return index


def _knows(shop: Shop, index: InventoryIndex | None) -> bool:
    """Whether an index has learned from the shop as it is, but for the end of its log."""
    if index is None:
        return False
    until, possible = index.clicks_until, default_clicks_until(shop)
    ((first,),) = shop.connection.execute("SELECT min(ts) FROM events").fetchall()
    if until is None or possible is None or first >= until:
        return False
    if not 0 <= (possible - until) / (until - first) < LONGER_SHARE:
        return False
    if index.manifest.catalog_version != shop.catalog_version:
        _, changes = _updated(shop, index)
        if changes.added or changes.changed or changes.removed:
            return False
    clicked = clicked_queries(shop, index.catalog, until)
    has_floor = index.manifest.relevance is not None or len(clicked) < MIN_PAIRS
    return has_floor and index.manifest.clicks == _digest(clicked)


def _digest(clicked: Sequence[ClickedQuery]) -> str:
    return hashlib.sha256(repr([tuple(x) for x in clicked]).encode()).hexdigest()[:16]


def clicked_queries(shop: Shop, catalog: Catalog, until: datetime | None) -> list[ClickedQuery]:
    """Queries and the products that users engaged with under them before a moment."""
    if until is None:
        return []
    return [
        ClickedQuery(catalog.row_of[product], query, float(np.log1p(count)))
        for product, query, count in shop.connection.execute(
            """SELECT e.product_id, arg_min(s.query, s.event_id), count(*)
            FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
            WHERE e.type IN ('click', 'cart', 'purchase') AND e.ts < ?
            GROUP BY e.product_id, s.query_key ORDER BY e.product_id, s.query_key""",
            [until],
        ).fetchall()
        if product in catalog.row_of
    ]


def _update(
    shop: Shop, index: InventoryIndex, writer: IndexWriter
) -> tuple[InventoryIndex, IndexChanges]:
    updated, changes = _updated(shop, index)
    spec = EncoderSpec.of(shop.config.search)
    if spec.is_learned and changes.added + changes.changed > REFIT_SHARE * len(updated.catalog):
        return _build(shop, index.clicks_until, writer), changes
    same_texts = updated.lexical is index.lexical
    # Files whose content stays are used by the new generation too, if they are still there.
    shard_files = {shard.file for shard in updated.vectors.shards}
    reused = {
        name: stamp
        for name, stamp in index.manifest.files.items()
        if (writer.folder / name).exists()
        and (
            name.startswith("encoder-")
            or (same_texts and name.startswith(("lexical_", "slots-")))
            or name in shard_files
        )
    }
    manifest = replace(updated.manifest, generation=writer.generation, taken=False)
    updated = replace(updated, folder=writer.folder, manifest=manifest)
    return store_index(shop, writer, updated, reused), changes


def updated_index(shop: Shop, index: InventoryIndex) -> InventoryIndex:
    """An index in line with the catalog of a snapshot; nothing is written, and the encoder stays.

    Raises:
        QAgentError: the shop has no products.
    """
    return _updated(shop, index)[0]


def _updated(shop: Shop, index: InventoryIndex) -> tuple[InventoryIndex, IndexChanges]:
    """An index of the shop's catalog that shares with another one what is the same."""
    catalog = read_catalog(shop)
    texts = catalog.texts()
    source, changes = _compare(index.catalog, catalog, texts)
    lexical, vectors = index.lexical, index.vectors
    same_texts = len(source) == len(index.catalog) and bool(
        (source == np.arange(len(source))).all()
    )
    if not same_texts:
        fresh = np.flatnonzero(source < 0).tolist()
        fresh_texts = [texts[row] for row in fresh]
        lexical = lexical.updated(source, fresh_texts, [catalog.titles[row] for row in fresh])
        vectors = vectors.updated(source, index.encoder.encode(fresh_texts))
    manifest = replace(
        index.manifest,
        catalog_version=shop.catalog_version,
        products=len(catalog),
        dimensions=vectors.dimensions,
        terms=ANALYZER_VERSION,
    )
    updated = InventoryIndex(index.folder, manifest, catalog, lexical, vectors, index.encoder)
    return updated, changes


def _compare(old: Catalog, new: Catalog, texts: list[str]) -> tuple[np.ndarray, IndexChanges]:
    """For each new row the old row with the same text (-1 where there is none), and counts."""
    source = np.full(len(new), -1, dtype=np.int64)
    added = changed = restated = 0
    for row, product in enumerate(new.ids):
        old_row = old.row_of.get(product, -1)
        if old_row < 0:
            added += 1
        elif old.text(old_row) != texts[row] or old.titles[old_row] != new.titles[row]:
            changed += 1
        else:
            source[row] = old_row
            restated += _facts(old, old_row) != _facts(new, row)
    removed = len(old) - (len(new) - added)
    return source, IndexChanges(added, changed, restated, removed)


def _facts(catalog: Catalog, row: int) -> tuple[object, ...]:
    columns = (catalog.in_stock, catalog.brands, catalog.categories, catalog.attributes)
    # By its text a price that is NaN equals itself.
    return (repr(catalog.prices[row]), *(column[row] for column in columns))


def _load_if_usable(shop: Shop) -> InventoryIndex | None:
    """The index on disk, if it is whole and was built with the shop's encoder."""
    try:
        index = load_index(shop.path / "inventory")
    except QAgentError:
        return None
    return index if index.manifest.encoder == EncoderSpec.of(shop.config.search) else None


def _last_clicks_until(shop: Shop) -> datetime | None:
    """Until when the last index's encoder learned, if its manifest can still be read."""
    try:
        return read_manifest(shop.path / "inventory").clicks_until
    except QAgentError:
        return None
