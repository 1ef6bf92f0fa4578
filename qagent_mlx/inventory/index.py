"""The inventory index on disk: products, lexical index, vectors, and a manifest.

The manifest is written last and names the catalog version and the size of every file, so
an index that is torn or older than its catalog is noticed when it is opened.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from usearch.index import Index

from ..errors import QAgentError
from ..files import read_json, sync_folder, write_json
from ..shop import Shop
from .encoder import Encoder, SubwordEncoder
from .terms import product_terms

FORMAT = 1
EXACT_BELOW = 50_000  # products; below, exact search is as fast as HNSW and never misses
CLICK_SHARE = 0.35  # of the log's time that the encoder may learn from, see `build`


@dataclass(slots=True)
class Catalog:
    """The products of the index as columns; a row number stands for a product."""

    ids: list[str]
    titles: list[str]
    brands: list[str | None]
    categories: list[str | None]
    prices: np.ndarray  # NaN where there is none
    in_stock: np.ndarray  # bool
    attributes: list[str | None]  # JSON

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self) -> dict[str, int]:
        """Product id to row."""
        return {product: row for row, product in enumerate(self.ids)}


@dataclass(slots=True)
class InventoryIndex:
    """All that static search needs, loaded."""

    folder: Path
    manifest: dict[str, Any]
    catalog: Catalog
    lexical: bm25s.BM25
    vectors: Index
    encoder: Encoder

    @property
    def clicks_until(self) -> datetime | None:
        """The encoder learned from clicks before this moment, and from none after it."""
        text = self.manifest.get("clicks_until")
        return datetime.fromisoformat(text) if text else None


def product_text(title: str, brand: str | None, category: str | None, attributes: str | None) -> str:
    """The text of a product that both indexes see."""
    parts = [title]
    if brand and brand.lower() not in title.lower():
        parts.append(brand)
    if category:
        parts.append(category.replace(">", " "))
    return " ".join(parts)


def read_catalog(shop: Shop) -> Catalog:
    """All products of the shop, in a fixed order."""
    columns = shop.connection.execute(
        """SELECT product_id, title, brand, category, coalesce(price, 'nan'::DOUBLE) AS price,
                  in_stock, attributes FROM products ORDER BY product_id"""
    ).fetchall()
    if not columns:
        raise QAgentError(f"{shop.path} has no products; run: qagent ingest products FILE")
    ids, titles, brands, categories, prices, stock, attributes = map(
        list, zip(*columns, strict=True)
    )
    return Catalog(
        ids, titles, brands, categories,
        np.array(prices, dtype=np.float64), np.array(stock, dtype=bool), attributes,
    )


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


def build(shop: Shop, clicks_until: datetime | None = None) -> InventoryIndex:
    """Build the index of a shop and put it in place of the one that is there.

    Args:
        shop: Read only is enough.
        clicks_until: The encoder learns from clicks before this moment; by default from
            the first part of the log (see `default_clicks_until`).

    Raises:
        QAgentError: the shop has no products, or its folder cannot be written.
    """
    catalog = read_catalog(shop)
    until = clicks_until or default_clicks_until(shop)
    texts = [
        product_text(t, b, c, a)
        for t, b, c, a in zip(
            catalog.titles, catalog.brands, catalog.categories, catalog.attributes, strict=True
        )
    ]
    rows_of = catalog.rows_of()
    clicked = []
    if until is not None:
        clicked = [
            (rows_of[product], query, float(np.log1p(count)))
            for product, query, count in shop.connection.execute(
                """SELECT e.product_id, arg_min(s.query, s.event_id), count(*)
                FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
                WHERE e.type IN ('click', 'cart', 'purchase') AND e.ts < ?
                GROUP BY e.product_id, s.query_key ORDER BY e.product_id, s.query_key""",
                [until],
            ).fetchall()
            if product in rows_of
        ]
    encoder = SubwordEncoder.fit(texts, clicked, shop.config.search.dimensions)
    lexical = bm25s.BM25(k1=1.2, b=0.4)
    lexical.index([product_terms(t) for t in texts], show_progress=False)
    vectors = Index(ndim=encoder.dimensions, metric="cos", dtype="f16")
    vectors.add(np.arange(len(texts), dtype=np.uint64), encoder.encode(texts))

    try:
        working = Path(tempfile.mkdtemp(dir=shop.path, prefix=".inventory."))
    except OSError as error:
        raise QAgentError(f"cannot write in {shop.path}: {error.strerror}") from error
    try:
        encoder.save(working / "encoder.npz")
        lexical.save(working / "lexical", show_progress=False)
        vectors.save(str(working / "vectors.usearch"))
        shop.connection.execute(
            f"""COPY (SELECT product_id, title, brand, category, price, in_stock, attributes
            FROM products ORDER BY product_id)
            TO '{str(working / "catalog.parquet").replace("'", "''")}' (FORMAT parquet)"""
        )
        files = sorted(p for p in working.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "catalog_version": shop.catalog_version,
            "products": len(catalog),
            "encoder": {"name": encoder.name, "dimensions": encoder.dimensions},
            "clicks_until": until.isoformat() if until else None,
            "clicked_pairs": len(clicked),
            "files": {str(p.relative_to(working)): p.stat().st_size for p in files},
        }
        write_json(working / "manifest.json", manifest)
        place = shop.path / "inventory"
        old = shop.path / ".inventory.old"
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        working.rename(place)
        sync_folder(shop.path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise QAgentError(f"cannot write the index of {shop.path}: {error.strerror}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return InventoryIndex(place, manifest, catalog, lexical, vectors, encoder)


def load(folder: Path) -> InventoryIndex:
    """Open the index in ``folder``.

    Raises:
        QAgentError: there is none, or it is torn, damaged or of another format.
    """
    remedy = "run: qagent index"
    if not (folder / "manifest.json").exists():
        raise QAgentError(f"{folder} holds no index; {remedy}")
    manifest = read_json(folder / "manifest.json", "the index manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise QAgentError(f"{folder} holds an index of another format; {remedy}")
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            raise QAgentError(f"the index in {folder} is damaged ({name}); {remedy}")
    try:
        catalog = _load_catalog(folder / "catalog.parquet")
        lexical = bm25s.BM25.load(str(folder / "lexical"), show_progress=False)
        vectors = Index.restore(str(folder / "vectors.usearch"))
        encoder = SubwordEncoder.load(folder / "encoder.npz")
    except QAgentError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise QAgentError(f"the index in {folder} is damaged ({error}); {remedy}") from error
    if vectors is None or len(vectors) != len(catalog) or len(catalog) != manifest["products"]:
        raise QAgentError(f"the index in {folder} does not fit its catalog; {remedy}")
    return InventoryIndex(folder, manifest, catalog, lexical, vectors, encoder)


def _load_catalog(path: Path) -> Catalog:
    import duckdb

    columns = duckdb.execute(
        "SELECT * REPLACE (coalesce(price, 'nan'::DOUBLE) AS price) FROM read_parquet(?)",
        [str(path)],
    ).fetchall()
    ids, titles, brands, categories, prices, stock, attributes = map(
        list, zip(*columns, strict=True)
    )
    return Catalog(
        ids, titles, brands, categories,
        np.array(prices, dtype=np.float64), np.array(stock, dtype=bool), attributes,
    )


def ensure(shop: Shop) -> InventoryIndex:
    """The shop's index; built when there is none, and built again when it is stale or torn."""
    folder = shop.path / "inventory"
    try:
        index = load(folder)
    except QAgentError:
        return build(shop)
    if index.manifest["catalog_version"] != shop.catalog_version:
        return build(shop, index.clicks_until)
    return index
