"""The inventory index: catalog, words, vectors and encoder, built, updated and opened as one.

`build_index` makes all of it; `update_index` brings it in line with the shop's catalog by adding,
changing and removing what differs; `open_index` opens it and does whichever is needed. An index
in memory never changes: an update makes a new one that shares what is the same, so searches under
way go on undisturbed. How the files are kept is told in `index_files`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any

import duckdb
import numpy as np

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal
from .analyzer import ANALYZER_VERSION, has_outdated_terms, product_terms
from .bm25 import ARRAYS, BM25Index
from .catalog import HISTORY_SQL, PRODUCTS_SQL, Catalog, read_catalog, read_stored
from .encoders.registry import EncoderSpec, open_encoder
from .encoders.subword import Encoder, SubwordEncoder
from .index_files import (
    REMEDY,
    IndexWriter,
    check_files,
    clear_if_idle,
    leftovers,
    read_manifest,
    writing,
)
from .vector_index import VectorIndex, open_shard, save_shard

CLICK_SHARE = 0.35  # of the log's time that the encoder may learn from, see `build_index`
REFIT_SHARE = 0.3  # of the catalog with new text, from which on an encoder is learned anew


@dataclass(slots=True)
class InventoryIndex:
    """All that static search needs, loaded."""

    folder: Path
    manifest: dict[str, Any]
    catalog: Catalog
    lexical: BM25Index
    vectors: VectorIndex
    encoder: Encoder

    @property
    def clicks_until(self) -> datetime | None:
        """The encoder learned from clicks before this moment, and from none after it."""
        text = self.manifest.get("clicks_until")
        return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True, slots=True)
class IndexChanges:
    """What an update found: numbers of products."""

    added: int
    changed: int  # of which the text changed
    restated: int  # of which only price, stock or other facts changed
    removed: int


def default_clicks_until(shop: Shop) -> datetime | None:
    """The moment after the first part of the log, from which the encoder may learn.

    One index serves training, evaluation and live search, so what is baked into it must
    lie before every case; fresher clicks reach search through the point-in-time click log.
    """
    row = shop.connection.execute("SELECT min(ts), max(ts) FROM events").fetchone()
    if row is None or row[0] is None:
        return None
    first, last = row
    return first + timedelta(seconds=(last - first).total_seconds() * CLICK_SHARE)


def build_index(shop: Shop, clicks_until: datetime | None = None) -> InventoryIndex:
    """Build the index of a shop and put it in place of the one that is there.

    Args:
        shop: Read only is enough.
        clicks_until: The encoder learns from clicks before this moment; by default from
            the first part of the log (see `default_clicks_until`).

    Raises:
        QAgentError: the shop has no products, its encoder cannot be opened, or its folder
            cannot be written.
    """
    with writing(shop.path / "inventory") as writer:
        return _build(shop, clicks_until, writer)


def _build(shop: Shop, clicks_until: datetime | None, writer: IndexWriter) -> InventoryIndex:
    catalog = read_catalog(shop)
    until = clicks_until or default_clicks_until(shop)
    texts = catalog.texts()
    if not any(product_terms(text) for text in texts):
        raise QAgentError(
            f"no product of {shop.path} has a letter or digit in its title; "
            "ingest products whose titles are words"
        )
    spec = EncoderSpec.of(shop.config.search)
    clicked = _clicked(shop, catalog, until) if spec.learned else []
    encoder: Encoder
    if spec.learned:
        encoder = SubwordEncoder.fit(texts, clicked, shop.config.search.dimensions)
    else:
        encoder = open_encoder(spec)
    lexical = BM25Index.build(texts, catalog.titles)
    vectors = VectorIndex.build(encoder.encode(texts))
    values = {
        "encoder": spec.stored(encoder),
        "clicks_until": until.isoformat() if until else None,
        "clicked_pairs": len(clicked),
    }
    kept: dict[str, list[int]] = {}
    return _write(
        shop,
        writer,
        InventoryIndex(writer.folder, values, catalog, lexical, vectors, encoder),
        kept,
    )


def _clicked(shop: Shop, catalog: Catalog, until: datetime | None) -> list[tuple[int, str, float]]:
    """(row, query, weight) of what was engaged with under a query before a moment."""
    if until is None:
        return []
    row_of = catalog.row_of
    return [
        (row_of[product], query, float(np.log1p(count)))
        for product, query, count in shop.connection.execute(
            """SELECT e.product_id, arg_min(s.query, s.event_id), count(*)
            FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
            WHERE e.type IN ('click', 'cart', 'purchase') AND e.ts < ?
            GROUP BY e.product_id, s.query_key ORDER BY e.product_id, s.query_key""",
            [until],
        ).fetchall()
        if product in row_of
    ]


def update_index(shop: Shop, index: InventoryIndex) -> tuple[InventoryIndex, IndexChanges]:
    """Bring an index in line with the shop's catalog: products that came, changed or went.

    The encoder stays as it is; words and vectors of unchanged texts are used again. Where much
    of the catalog is new text and the encoder is learned from it, all is built anew.

    Args:
        shop: Read only is enough.
        index: The shop's index as it was opened; it stays usable.

    Raises:
        QAgentError: the shop has no products, or its folder cannot be written.
    """
    with writing(shop.path / "inventory") as writer:
        return _update(shop, index, writer)


def _update(
    shop: Shop, index: InventoryIndex, writer: IndexWriter
) -> tuple[InventoryIndex, IndexChanges]:
    old, catalog = index.catalog, read_catalog(shop)
    row_of = old.row_of
    before, texts = old.texts(), catalog.texts()
    source = np.full(len(catalog), -1, dtype=np.int64)
    added = changed = restated = 0
    for row, product in enumerate(catalog.ids):
        at = row_of.get(product, -1)
        if at < 0:
            added += 1
        elif before[at] != texts[row] or old.titles[at] != catalog.titles[row]:
            changed += 1
        else:
            source[row] = at
            restated += _facts(old, at) != _facts(catalog, row)
    removed = len(old) - (len(catalog) - added)
    changes = IndexChanges(added, changed, restated, removed)
    spec = EncoderSpec.of(shop.config.search)
    if spec.learned and added + changed > REFIT_SHARE * len(catalog):
        return _build(shop, index.clicks_until, writer), changes
    fresh = np.flatnonzero(source < 0)
    same = len(source) == len(old) and bool((source == np.arange(len(source))).all())
    new_texts = [texts[row] for row in fresh.tolist()]
    made = InventoryIndex(
        writer.folder,
        {key: index.manifest[key] for key in ("encoder", "clicks_until", "clicked_pairs")},
        catalog,
        index.lexical
        if same
        else index.lexical.rearranged(
            source, new_texts, [catalog.titles[row] for row in fresh.tolist()]
        ),
        index.vectors
        if same
        else index.vectors.rearranged(source, index.encoder.encode(new_texts)),
        index.encoder,
    )
    # Files whose content stays are named by the new generation too, if they are still there.
    kept = {
        name: stored
        for name, stored in index.manifest["files"].items()
        if (writer.folder / name).exists()
        and (
            name.startswith("encoder-")
            or (same and name.startswith(("lexical_", "slots-")))
            or name in {shard.file for shard in made.vectors.shards}
        )
    }
    return _write(shop, writer, made, kept), changes


def _facts(catalog: Catalog, row: int) -> tuple[Any, ...]:
    return (
        repr(catalog.prices[row]),
        catalog.in_stock[row],
        catalog.brands[row],
        catalog.categories[row],
        catalog.attributes[row],
    )


def _write(
    shop: Shop, writer: IndexWriter, index: InventoryIndex, kept: dict[str, list[int]]
) -> InventoryIndex:
    """Write what is not ``kept``, and return the index with its manifest and mapped shards."""

    def has(stem: str) -> bool:
        return any(name.startswith(f"{stem}-") for name in kept)

    def copy(query: str, path: Path) -> None:
        shop.connection.execute(f"COPY ({query}) TO {literal(path)} (FORMAT parquet)")

    writer.add("catalog.parquet", partial(copy, PRODUCTS_SQL))
    writer.add("history.parquet", partial(copy, HISTORY_SQL))
    arrays = {f"lexical_{name}": array for name, array in index.lexical.arrays().items()}
    for name, array in {**arrays, "slots": index.vectors.slots}.items():
        if not has(name):
            writer.add(f"{name}.npy", partial(_save_array, array))
    if isinstance(index.encoder, SubwordEncoder) and not has("encoder"):
        writer.add("encoder.npz", index.encoder.save)
    shards: list[list[Any]] = []
    for number, shard in enumerate(index.vectors.shards):
        file = shard.file
        if file is None or file not in kept:
            suffix = "npy" if shard.graph is None else "usearch"
            file = writer.add(f"vectors{number}.{suffix}", partial(save_shard, shard))
        shards.append([file, shard.start, shard.size])
    index.manifest = writer.commit(
        {
            "catalog_version": shop.catalog_version,
            "products": len(index.catalog),
            **index.manifest,
            "dimensions": index.vectors.dimensions,
            "shards": shards,
            "terms": ANALYZER_VERSION,
        },
        kept,
    )
    index.vectors = _open_vectors(index.folder, index.manifest, index.vectors.slots)
    return index


def _save_array(array: np.ndarray, path: Path) -> None:
    np.save(path, array)


def _open_vectors(folder: Path, manifest: dict[str, Any], slots: np.ndarray) -> VectorIndex:
    shards = [open_shard(folder, *shard) for shard in manifest["shards"]]
    return VectorIndex(manifest["dimensions"], shards, slots)


def load_index(folder: Path) -> InventoryIndex:
    """Open the index in ``folder``; vectors are mapped into memory.

    Raises:
        QAgentError: there is none, or it is torn, damaged or of another format.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return _load(folder, manifest)
        except QAgentError:
            # A writer may have replaced it meanwhile and removed these files.
            if read_manifest(folder) == manifest:
                raise


def _load(folder: Path, manifest: dict[str, Any]) -> InventoryIndex:
    check_files(folder, manifest)
    try:
        files = {name.rpartition("-")[0]: folder / name for name in manifest["files"]}
        catalog = read_stored(files["catalog"], files["history"])
        lexical = BM25Index.from_arrays(
            {name: np.load(files[f"lexical_{name}"], mmap_mode="r") for name in ARRAYS}
        )
        vectors = _open_vectors(folder, manifest, np.load(files["slots"]))
        spec = EncoderSpec.from_stored(manifest["encoder"])
        encoder: Encoder = (
            SubwordEncoder.load(files["encoder"]) if spec.learned else open_encoder(spec)
        )
        fits = len(catalog) == len(lexical) == len(vectors) == manifest["products"]
    except QAgentError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RuntimeError,
        EOFError,
        ArithmeticError,
        MemoryError,
        duckdb.Error,
        SyntaxError,
        TokenError,  # numpy reads an array's header as Python's own literals
    ) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise QAgentError(f"the index in {folder} is damaged ({line}); {REMEDY}") from error
    if not fits:
        raise QAgentError(f"the index in {folder} does not fit its catalog; {REMEDY}")
    if manifest.get("terms", 1) != ANALYZER_VERSION and has_outdated_terms(lexical.terms):
        raise QAgentError(f"the index in {folder} cuts texts as an older version did; {REMEDY}")
    return InventoryIndex(folder, manifest, catalog, lexical, vectors, encoder)


def open_index(shop: Shop) -> InventoryIndex:
    """The shop's index; built when there is none or it is torn, updated when it is stale.

    It is built anew, too, when the shop names another encoder than it was built with.
    """
    index = _opened(shop)
    if index is not None and index.manifest["catalog_version"] == shop.catalog_version:
        if leftovers(index.folder, index.manifest):
            clear_if_idle(index.folder)
        return index
    with writing(shop.path / "inventory") as writer:
        # Another process may have done it while this one waited.
        index = _opened(shop)
        if index is None:
            return _build(shop, _last_cut(shop), writer)
        if index.manifest["catalog_version"] != shop.catalog_version:
            return _update(shop, index, writer)[0]
        return index


def _opened(shop: Shop) -> InventoryIndex | None:
    """The index on disk, if it is whole and made with the shop's encoder."""
    try:
        index = load_index(shop.path / "inventory")
    except QAgentError:
        return None
    wanted = EncoderSpec.of(shop.config.search)
    return index if EncoderSpec.from_stored(index.manifest["encoder"]) == wanted else None


def _last_cut(shop: Shop) -> datetime | None:
    """The moment that the last index's encoder learned until, if that can still be read."""
    try:
        text = read_manifest(shop.path / "inventory")["clicks_until"]
        return datetime.fromisoformat(text) if text else None
    except (QAgentError, ValueError, TypeError):
        return None
