"""The products of a shop as columns, and what is known of their earlier prices and stock."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np

from ..errors import QAgentError
from ..shop.price_bands import price_band, price_limits_sql
from ..shop.shop import Shop
from ..utils.database import literal, open_duckdb
from .click_log import epoch_seconds

MOMENTS = 16  # whose prices and stock a catalog remembers


class ProductHistory:
    """Prices and stock over time, for products that the shop knows more than one state of."""

    def __init__(
        self, rows: np.ndarray, times: np.ndarray, prices: np.ndarray, in_stock: np.ndarray
    ) -> None:
        order = np.lexsort((times, rows))
        self._times, self._prices = times[order], prices[order]
        self._in_stock = in_stock[order]
        self._rows, self._starts = np.unique(rows[order], return_index=True)
        ends = np.append(self._starts[1:], len(rows)).tolist()
        spans = zip(self._starts.tolist(), ends, strict=True)
        self._span = dict(zip(self._rows.tolist(), spans, strict=True))
        # What a change replaced is kept as of 1970: known since ever, but followed only since then.
        self.since = float(times[times > 0].min(initial=np.inf))

    def state_at(self, row: int, moment: float) -> tuple[float, bool] | None:
        """(price, in stock) of a product at a time in seconds; the first known state before."""
        if row not in self._span:
            return None
        start, end = self._span[row]
        at = max(start, start + int(np.searchsorted(self._times[start:end], moment, "right")) - 1)
        return float(self._prices[at]), bool(self._in_stock[at])

    def states(
        self, moment: float, prices: np.ndarray, in_stock: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """All rows' prices and stock at a time in seconds, given those of rows without history."""
        prices, in_stock = prices.copy(), in_stock.copy()
        known = np.add.reduceat(self._times <= moment, self._starts, dtype=np.int64)
        at = self._starts + np.maximum(known - 1, 0)
        prices[self._rows], in_stock[self._rows] = self._prices[at], self._in_stock[at]
        return prices, in_stock


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
    history: ProductHistory | None = None
    # (products, 2): up to which price each product is cheap, and middling, in its category
    price_limits: np.ndarray | None = None
    _states: OrderedDict[datetime, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=OrderedDict, repr=False
    )
    _paths: tuple[list[str], np.ndarray] | None = field(default=None, repr=False)
    _row_of: dict[str, int] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_of(self) -> dict[str, int]:
        """Row of each product id."""
        if self._row_of is None:
            self._row_of = {product: row for row, product in enumerate(self.ids)}
        return self._row_of

    def state_at(self, row: int, as_of: datetime | None = None) -> tuple[float, bool]:
        """(price, in stock) of a product as it was at a moment; now when None."""
        if as_of is not None and self.history is not None:
            known = self.history.state_at(row, epoch_seconds(as_of))
            if known is not None:
                return known
        return float(self.prices[row]), bool(self.in_stock[row])

    def knows_stock_at(self, as_of: datetime) -> bool:
        """Whether stock is known as it was at a moment, and not only as of a later day."""
        return self.history is not None and epoch_seconds(as_of) >= self.history.since

    def states_at(self, as_of: datetime | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(prices, in stock) of all products as they were at a moment; now when None."""
        if as_of is None or self.history is None:
            return self.prices, self.in_stock
        if as_of not in self._states:
            self._states[as_of] = self.history.states(
                epoch_seconds(as_of), self.prices, self.in_stock
            )
            if len(self._states) > MOMENTS:
                self._states.popitem(last=False)
        return self._states[as_of]

    def price_band(self, row: int, price: float) -> str:
        """The band of a price within a product's category, ``$`` to ``$$$``; see `price_band`."""
        return "" if self.price_limits is None else price_band(price, *self.price_limits[row])

    def within(self, prefix: str) -> np.ndarray:
        """Rows whose category path begins so, whatever the case; bool (rows,)."""
        if self._paths is None:
            names = np.array([(c or "").lower() for c in self.categories], dtype=object)
            unique, codes = np.unique(names, return_inverse=True)
            self._paths = (unique.tolist(), codes)
        unique_names, codes = self._paths
        wanted = prefix.lower()
        fits = np.array([name.startswith(wanted) for name in unique_names], dtype=bool)
        return fits[codes]

    def text(self, row: int) -> str:
        """The text of a product that both indexes see."""
        return product_text(
            self.titles[row], self.brands[row], self.categories[row], self.attributes[row]
        )

    def texts(self) -> list[str]:
        """The text of every product."""
        return [self.text(row) for row in range(len(self))]


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


PRODUCTS_SQL = """SELECT product_id, title, brand, category, price, in_stock, attributes
    FROM products ORDER BY product_id"""
HISTORY_SQL = """SELECT product_id, epoch(ts) AS ts, price, in_stock
    FROM product_history ORDER BY product_id, ts"""


def _catalog(connection: duckdb.DuckDBPyConnection, products: str, history: str) -> Catalog:
    columns = connection.execute(products).fetchall()
    if not columns:
        return Catalog([], [], [], [], np.empty(0), np.empty(0, dtype=bool), [])
    ids, titles, brands, categories, prices, stock, attributes = map(
        list, zip(*columns, strict=True)
    )
    catalog = Catalog(
        ids,
        titles,
        brands,
        categories,
        np.array([np.nan if p is None else p for p in prices], dtype=np.float64),
        np.array(stock, dtype=bool),
        attributes,
    )
    limits = connection.execute(
        f"SELECT low, high FROM ({price_limits_sql(f'({products})', f'({history})')}) "
        "ORDER BY product_id"
    ).fetchnumpy()
    catalog.price_limits = np.stack(
        [np.ma.filled(np.ma.asarray(limits[name]), np.nan) for name in ("low", "high")], axis=1
    )
    known = connection.execute(history).fetchnumpy()
    row_of = catalog.row_of
    rows = np.array([row_of.get(p, -1) for p in known["product_id"].tolist()], dtype=np.int64)
    if (rows >= 0).any():
        here = rows >= 0
        catalog.history = ProductHistory(
            rows[here],
            np.asarray(known["ts"], dtype=np.float64)[here],
            np.ma.filled(np.ma.asarray(known["price"], dtype=np.float64), np.nan)[here],
            np.asarray(known["in_stock"], dtype=bool)[here],
        )
    return catalog


def read_catalog(shop: Shop) -> Catalog:
    """All products of the shop, in a fixed order, with what is known of their past states."""
    catalog = _catalog(shop.connection, PRODUCTS_SQL, HISTORY_SQL)
    if not len(catalog):
        raise QAgentError(f"{shop.path} has no products; run: qagent ingest products FILE")
    return catalog


def read_stored(products: Path, history: Path) -> Catalog:
    """The catalog in two Parquet files, as `PRODUCTS_SQL` and `HISTORY_SQL` gave them."""
    files = [f"SELECT * FROM read_parquet({literal(path)})" for path in (products, history)]
    with open_duckdb() as connection:
        return _catalog(connection, *files)
