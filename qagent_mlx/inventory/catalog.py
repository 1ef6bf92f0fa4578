"""The products of a shop as columns, and their earlier prices and stock."""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
from cachetools import LRUCache

from ..errors import QAgentError
from ..shop.price_bands import price_band, price_limits_sql
from ..shop.shop import Shop
from ..utils.database import epoch_seconds, literal, open_duckdb
from ..utils.text import words

CACHED_MOMENTS = 16

PRODUCTS_SQL = """SELECT product_id, title, brand, category, price, in_stock, attributes
    FROM products ORDER BY product_id"""
HISTORY_SQL = """SELECT product_id, epoch(ts) AS ts, price, in_stock
    FROM product_history ORDER BY product_id, ts"""


class ProductState(NamedTuple):
    """Price (NaN where there is none) and stock of a product."""

    price: float
    in_stock: bool


class CatalogState(NamedTuple):
    """Prices and stock of all products, (rows,) each."""

    prices: np.ndarray
    in_stock: np.ndarray


class ProductHistory:
    """Prices and stock over time, of products that were seen in more than one state."""

    def __init__(
        self, rows: np.ndarray, times: np.ndarray, prices: np.ndarray, in_stock: np.ndarray
    ) -> None:
        order = np.lexsort((times, rows))
        self._times, self._prices = times[order], prices[order]
        self._in_stock = in_stock[order]
        self._rows, self._starts = np.unique(rows[order], return_index=True)
        ends = np.append(self._starts[1:], len(rows)).tolist()
        spans = zip(self._starts.tolist(), ends, strict=True)
        self._span_of_row = dict(zip(self._rows.tolist(), spans, strict=True))
        # The state that a first change replaced is dated 1970: it holds for all time before,
        # but history is recorded only from the first later date on.
        self.since = float(times[times > 0].min(initial=np.inf))

    def state_at(self, row: int, moment: float) -> ProductState | None:
        """State of a product at a time in epoch seconds; before its first one, that one."""
        if row not in self._span_of_row:
            return None
        start, end = self._span_of_row[row]
        at = max(start, bisect_right(self._times, moment, start, end) - 1)
        return ProductState(float(self._prices[at]), bool(self._in_stock[at]))

    def states_at(self, moment: float, current: CatalogState) -> CatalogState:
        """States of all products at a time in epoch seconds; current ones without history."""
        prices, in_stock = current.prices.copy(), current.in_stock.copy()
        seen = np.add.reduceat(self._times <= moment, self._starts, dtype=np.int64)
        at = self._starts + np.maximum(seen - 1, 0)
        prices[self._rows], in_stock[self._rows] = self._prices[at], self._in_stock[at]
        return CatalogState(prices, in_stock)


@dataclass
class Catalog:
    """The products of the index as columns; a product's position in them is its row."""

    ids: list[str]
    titles: list[str]
    brands: list[str | None]
    categories: list[str | None]  # paths
    prices: np.ndarray  # NaN where there is none
    in_stock: np.ndarray  # bool
    attributes: list[str | None]  # JSON objects
    history: ProductHistory | None = None
    # (products, 2): up to which price each product is cheap, and middling, in its category
    price_limits: np.ndarray | None = None
    _states: LRUCache[datetime, CatalogState] = field(
        default_factory=lambda: LRUCache(CACHED_MOMENTS), repr=False, compare=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each product id."""
        return {product: row for row, product in enumerate(self.ids)}

    @cached_property
    def words(self) -> frozenset[str]:
        """The normalised words of titles, categories and brands."""
        texts = chain(self.titles, self.categories, self.brands)
        return frozenset(word for text in texts if text for word in words(text))

    def state_at(self, row: int, as_of: datetime | None = None) -> ProductState:
        """Price and stock of a product as they were at a moment; now when None."""
        if as_of is not None and self.history is not None:
            state = self.history.state_at(row, epoch_seconds(as_of))
            if state is not None:
                return state
        return ProductState(float(self.prices[row]), bool(self.in_stock[row]))

    def knows_stock_at(self, as_of: datetime) -> bool:
        """Whether history had begun by then, so that stock is known as it was."""
        return self.history is not None and epoch_seconds(as_of) >= self.history.since

    def states_at(self, as_of: datetime | None = None) -> CatalogState:
        """Prices and stock of all products as they were at a moment; now when None."""
        current = CatalogState(self.prices, self.in_stock)
        if as_of is None or self.history is None:
            return current
        with self._lock:
            if as_of not in self._states:
                self._states[as_of] = self.history.states_at(epoch_seconds(as_of), current)
            return self._states[as_of]

    def price_band(self, row: int, price: float) -> str:
        """The band of a price within a product's category, ``$`` to ``$$$``; see `price_band`."""
        return "" if self.price_limits is None else price_band(price, *self.price_limits[row])

    def in_category(self, prefix: str) -> np.ndarray:
        """Mask of the products whose category path begins so, in any case; bool (rows,)."""
        paths, codes = self._category_codes
        wanted = prefix.lower()
        matches = np.array([path.startswith(wanted) for path in paths], dtype=bool)
        return matches[codes]

    @cached_property
    def _category_codes(self) -> tuple[list[str], np.ndarray]:
        """The distinct category paths in lower case, and the number of each product's."""
        paths = np.array([(c or "").lower() for c in self.categories], dtype=object)
        distinct, codes = np.unique(paths, return_inverse=True)
        return distinct.tolist(), codes

    def leaf(self, row: int) -> str:
        """The narrowest category of a product; empty where it has none."""
        return narrowest_category(self.categories[row])

    def text(self, row: int) -> str:
        """The text of a product that BM25 and encoders index."""
        return product_text(self.titles[row], self.brands[row], self.categories[row])

    def texts(self) -> list[str]:
        """The text of every product."""
        return [self.text(row) for row in range(len(self))]


def narrowest_category(path: str | None) -> str:
    """The last level of a category path; empty where there is none."""
    return (path or "").rpartition(">")[2].strip()


def product_text(title: str, brand: str | None, category: str | None) -> str:
    """Title, brand where the title does not name it, and category path."""
    parts = [title]
    if brand and brand.lower() not in title.lower():
        parts.append(brand)
    if category:
        parts.append(category.replace(">", " "))
    return " ".join(parts)


def read_catalog(shop: Shop) -> Catalog:
    """All products of the shop, ordered by id, with their history.

    Raises:
        QAgentError: the shop has no products.
    """
    catalog = _read(shop.connection, PRODUCTS_SQL, HISTORY_SQL)
    if not len(catalog):
        raise QAgentError(f"{shop.path} has no products; run: qagent ingest products FILE")
    return catalog


def read_stored_catalog(products: Path, history: Path) -> Catalog:
    """The catalog from the Parquet files of an index (`PRODUCTS_SQL` and `HISTORY_SQL`)."""
    queries = [f"SELECT * FROM read_parquet({literal(path)})" for path in (products, history)]
    with open_duckdb() as connection:
        return _read(connection, *queries)


def _read(connection: duckdb.DuckDBPyConnection, products: str, history: str) -> Catalog:
    records = connection.execute(products).fetchall()
    if not records:
        return Catalog([], [], [], [], np.empty(0), np.empty(0, dtype=bool), [])
    ids, titles, brands, categories, prices, in_stock, attributes = map(
        list, zip(*records, strict=True)
    )
    catalog = Catalog(
        ids,
        titles,
        brands,
        categories,
        np.array([np.nan if price is None else price for price in prices], dtype=np.float64),
        np.array(in_stock, dtype=bool),
        attributes,
    )
    limits = connection.execute(
        f"SELECT low, high FROM ({price_limits_sql(f'({products})', f'({history})')}) "
        "ORDER BY product_id"
    ).fetchnumpy()
    catalog.price_limits = np.stack(
        [np.ma.filled(np.ma.asarray(limits[name]), np.nan) for name in ("low", "high")], axis=1
    )
    states = connection.execute(history).fetchnumpy()
    row_of = catalog.row_of
    rows = np.array([row_of.get(p, -1) for p in states["product_id"].tolist()], dtype=np.int64)
    known = rows >= 0
    if known.any():
        catalog.history = ProductHistory(
            rows[known],
            np.asarray(states["ts"], dtype=np.float64)[known],
            np.ma.filled(np.ma.asarray(states["price"], dtype=np.float64), np.nan)[known],
            np.asarray(states["in_stock"], dtype=bool)[known],
        )
    return catalog
