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
import duckdb
import numpy as np
from usearch.index import Index

from ..errors import QAgentError
from ..files import read_json, sync_folder, write_json
from ..shop import Shop
from .clicks import seconds
from .encoder import Encoder, SubwordEncoder
from .terms import product_terms

FORMAT = 1
MANIFEST_KEYS = {"catalog_version", "products", "clicks_until", "files"}
EXACT_BELOW = 50_000  # products; below, exact search is as fast as HNSW and never misses
CLICK_SHARE = 0.35  # of the log's time that the encoder may learn from, see `build`


class History:
    """Prices and stock over time, for products that the shop knows more than one state of."""

    def __init__(
        self, rows: np.ndarray, times: np.ndarray, prices: np.ndarray, in_stock: np.ndarray
    ) -> None:
        order = np.lexsort((times, rows))
        self._times, self._prices = times[order], prices[order]
        self._in_stock = in_stock[order]
        unique, starts = np.unique(rows[order], return_index=True)
        ends = np.append(starts[1:], len(rows))
        self._span = dict(
            zip(unique.tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True)
        )

    def state(self, row: int, moment: float) -> tuple[float, bool] | None:
        """(price, in stock) of a product at a time in seconds; the first known state before."""
        if row not in self._span:
            return None
        start, end = self._span[row]
        at = max(start, start + int(np.searchsorted(self._times[start:end], moment, "right")) - 1)
        return float(self._prices[at]), bool(self._in_stock[at])


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
    history: History | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self) -> dict[str, int]:
        """Product id to row."""
        return {product: row for row, product in enumerate(self.ids)}

    def state(self, row: int, as_of: datetime | None = None) -> tuple[float, bool]:
        """(price, in stock) of a product as it was at a moment; now when None."""
        if as_of is not None and self.history is not None:
            known = self.history.state(row, seconds(as_of))
            if known is not None:
                return known
        return float(self.prices[row]), bool(self.in_stock[row])


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


def product_text(
    title: str, brand: str | None, category: str | None, attributes: str | None
) -> str:
    """The text of a product that both indexes see."""
    parts = [title]
    if brand and brand.lower() not in title.lower():
        parts.append(brand)
    if category:
        parts.append(category.replace(">", " "))
    return " ".join(parts)


_PRODUCTS = """SELECT product_id, title, brand, category, price, in_stock, attributes
    FROM products ORDER BY product_id"""
_HISTORY = """SELECT product_id, epoch(ts) AS ts, price, in_stock
    FROM product_history ORDER BY product_id, ts"""


def _catalog(connection: duckdb.DuckDBPyConnection, products: str, history: str) -> Catalog:
    columns = connection.execute(products).fetchall()
    if not columns:
        return Catalog([], [], [], [], np.empty(0), np.empty(0, dtype=bool), [])
    ids, titles, brands, categories, prices, stock, attributes = map(
        list, zip(*columns, strict=True)
    )
    catalog = Catalog(
        ids, titles, brands, categories,
        np.array([np.nan if p is None else p for p in prices], dtype=np.float64),
        np.array(stock, dtype=bool),
        attributes,
    )
    known = connection.execute(history).fetchnumpy()
    if len(known["product_id"]):
        rows_of = catalog.rows_of()
        rows = np.array([rows_of[p] for p in known["product_id"].tolist()], dtype=np.int64)
        catalog.history = History(
            rows,
            np.asarray(known["ts"], dtype=np.float64),
            np.ma.filled(np.ma.asarray(known["price"], dtype=np.float64), np.nan),
            np.asarray(known["in_stock"], dtype=bool),
        )
    return catalog


def read_catalog(shop: Shop) -> Catalog:
    """All products of the shop, in a fixed order, with what is known of their past states."""
    catalog = _catalog(shop.connection, _PRODUCTS, _HISTORY)
    if not len(catalog):
        raise QAgentError(f"{shop.path} has no products; run: qagent ingest products FILE")
    return catalog


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
    terms = [product_terms(text) for text in texts]
    if not any(terms):
        raise QAgentError(
            f"no product of {shop.path} has a letter or digit in its title; "
            "ingest products whose titles are words"
        )
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
    lexical.index(terms, show_progress=False)
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
        for name, query in (("catalog", _PRODUCTS), ("history", _HISTORY)):
            target = str(working / f"{name}.parquet").replace("'", "''")
            shop.connection.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet)")
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
    except (OSError, duckdb.Error) as error:
        line = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise QAgentError(f"cannot write the index of {shop.path}: {line}") from error
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
    try:
        manifest = read_json(folder / "manifest.json", "the index manifest")
    except QAgentError as error:
        raise QAgentError(f"{error}; {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise QAgentError(f"{folder} holds an index of another format; {remedy}")
    if not isinstance(manifest.get("files"), dict) or not manifest.keys() >= MANIFEST_KEYS:
        raise QAgentError(f"the index in {folder} is damaged (manifest.json); {remedy}")
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            raise QAgentError(f"the index in {folder} is damaged ({name}); {remedy}")
    try:
        catalog = _load_catalog(folder)
        lexical = bm25s.BM25.load(str(folder / "lexical"), show_progress=False)
        vectors = Index.restore(str(folder / "vectors.usearch"))
        encoder = SubwordEncoder.load(folder / "encoder.npz")
    except QAgentError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, duckdb.Error,
    ) as error:  # fmt: skip
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise QAgentError(f"the index in {folder} is damaged ({line}); {remedy}") from error
    if vectors is None or len(vectors) != len(catalog) or len(catalog) != manifest["products"]:
        raise QAgentError(f"the index in {folder} does not fit its catalog; {remedy}")
    return InventoryIndex(folder, manifest, catalog, lexical, vectors, encoder)


def _load_catalog(folder: Path) -> Catalog:
    def stored(name: str) -> str:
        path = str(folder / f"{name}.parquet").replace("'", "''")
        return f"SELECT * FROM read_parquet('{path}')"

    with duckdb.connect() as connection:
        return _catalog(connection, stored("catalog"), stored("history"))


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
