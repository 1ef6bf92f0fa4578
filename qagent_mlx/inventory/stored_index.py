"""An index and its files: written as a generation of its folder, and opened from one.

`index_files` says how the folder is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tokenize import TokenError

import duckdb
import numpy as np

from ..errors import QAgentError
from ..shop.shop import Shop
from ..utils.database import literal
from .analyzer import ANALYZER_VERSION, has_outdated_terms
from .bm25 import STORED_ARRAYS, BM25Index
from .catalog import HISTORY_SQL, PRODUCTS_SQL, Catalog, read_stored_catalog
from .encoders.encoder import Encoder
from .encoders.registry import open_encoder
from .encoders.subword import SubwordEncoder
from .index_files import (
    REMEDY,
    FileStamp,
    IndexWriter,
    Manifest,
    StoredShard,
    check_files,
    damaged,
    read_manifest,
)
from .vector_index import VectorIndex, open_shard, save_shard

# What DuckDB, numpy (which reads an array's header as a Python literal) and usearch raise for
# damaged files.
_DAMAGE: tuple[type[Exception], ...] = (ArithmeticError, AttributeError, EOFError, LookupError)
_DAMAGE += (MemoryError, OSError, RuntimeError, SyntaxError, TokenError, TypeError, ValueError)
_DAMAGE += (duckdb.Error,)


@dataclass(frozen=True, slots=True)
class InventoryIndex:
    """All that search needs, whatever the moment."""

    folder: Path
    manifest: Manifest
    catalog: Catalog
    lexical: BM25Index
    vectors: VectorIndex
    encoder: Encoder

    @property
    def clicks_until(self) -> datetime | None:
        """The encoder learned from clicks before this moment, and from none after it."""
        return self.manifest.clicks_until


def load_index(folder: Path) -> InventoryIndex:
    """Open the index in ``folder``; vectors are mapped into memory.

    Raises:
        QAgentError: there is none, or it is incomplete, damaged or of another format.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return _load(folder, manifest)
        except QAgentError:
            # A writer may have replaced it meanwhile and removed these files.
            if read_manifest(folder) == manifest:
                raise


def store_index(
    shop: Shop, writer: IndexWriter, index: InventoryIndex, reused: Mapping[str, FileStamp]
) -> InventoryIndex:
    """Write the files that are not reused; the returned index has its vectors mapped."""
    reused_stems = {name.rpartition("-")[0] for name in reused}

    def copy(query: str, path: Path) -> None:
        shop.connection.execute(f"COPY ({query}) TO {literal(path)} (FORMAT parquet)")

    writer.add("catalog.parquet", partial(copy, PRODUCTS_SQL))
    writer.add("history.parquet", partial(copy, HISTORY_SQL))
    arrays = {f"lexical_{name}": array for name, array in index.lexical.arrays().items()}
    for name, array in {**arrays, "slots": index.vectors.slots}.items():
        if name not in reused_stems:
            writer.add(f"{name}.npy", partial(np.save, arr=array))
    if isinstance(index.encoder, SubwordEncoder) and "encoder" not in reused_stems:
        writer.add("encoder.npz", index.encoder.save)
    shards: list[StoredShard] = []
    for number, shard in enumerate(index.vectors.shards):
        file = shard.file
        if file is None or file not in reused:
            suffix = "npy" if shard.graph is None else "usearch"
            file = writer.add(f"vectors{number}.{suffix}", partial(save_shard, shard))
        shards.append(StoredShard(file, shard.start, shard.size))
    manifest = writer.commit(replace(index.manifest, shards=tuple(shards)), reused)
    vectors = _open_vectors(index.folder, manifest, index.vectors.slots)
    return replace(index, manifest=manifest, vectors=vectors)


def _open_vectors(folder: Path, manifest: Manifest, slots: np.ndarray) -> VectorIndex:
    shards = [open_shard(folder, *shard) for shard in manifest.shards]
    return VectorIndex(manifest.dimensions, shards, slots)


def _load(folder: Path, manifest: Manifest) -> InventoryIndex:
    check_files(folder, manifest)
    spec = manifest.encoder
    try:
        files = {name.rpartition("-")[0]: folder / name for name in manifest.files}
        catalog = read_stored_catalog(files["catalog"], files["history"])
        lexical = BM25Index.from_arrays(
            {name: np.load(files[f"lexical_{name}"], mmap_mode="r") for name in STORED_ARRAYS}
        )
        vectors = _open_vectors(folder, manifest, np.load(files["slots"]))
        encoder: Encoder = (
            SubwordEncoder.load(files["encoder"]) if spec.is_learned else open_encoder(spec)
        )
    except _DAMAGE as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise damaged(folder, line) from error
    if not len(catalog) == len(lexical) == len(vectors) == manifest.products:
        raise QAgentError(f"the index in {folder} does not fit its catalog; {REMEDY}")
    if manifest.terms != ANALYZER_VERSION and has_outdated_terms(lexical.terms):
        raise QAgentError(f"the index in {folder} cuts texts as an older version did; {REMEDY}")
    return InventoryIndex(folder, manifest, catalog, lexical, vectors, encoder)
