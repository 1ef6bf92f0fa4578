"""Reads users' events, with what is known of their products and queries."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import duckdb

from ..shop.price_bands import price_band
from ..utils.text import tokens

TYPES = ("search", "view", "click", "cart", "purchase")
SEARCH, VIEW, CLICK, CART, PURCHASE = range(5)  # places in `TYPES`

_EPOCH, _MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def time_of(at: int) -> datetime:
    """The moment that is so many microseconds after 1970."""
    return _EPOCH + at * _MICROSECOND


class Event(NamedTuple):
    """One row of the log; ``at`` in microseconds since 1970, ``type`` a place in `TYPES`."""

    user_id: str
    event_id: int
    at: int
    type: int
    query: str | None
    query_key: str | None
    product_id: str | None
    session_id: int
    search_id: int | None


class ProductFacts(NamedTuple):
    """What a product adds to the interest graph.

    A price counts as low up to ``low`` and as middling up to ``high``, among the products of
    its category; ``times`` and ``prices`` are its history, the oldest first.
    """

    title: str
    brand: str | None
    top: str
    leaf: str
    attributes: Sequence[str | None]
    price: float | None
    low: float | None
    high: float | None
    times: Sequence[int] = ()
    prices: Sequence[float | None] = ()

    def band(self, at: int) -> str:
        """The price band of a moment, ``$`` to ``$$$``: what was paid, not what it costs now."""
        place = bisect_right(self.times, at) - 1
        price = self.prices[place] if place >= 0 else None
        price = self.price if price is None else price
        return price_band(price, self.low, self.high)


class Wording(NamedTuple):
    """How the shop first saw a query typed; ``modifier`` is the brand or attribute in it."""

    query: str
    kind: str
    modifier: str | None
    terms: Sequence[str]


# One user, or many: a plain comparison is planned in a fraction of the time.
_EVENTS = """
SELECT user_id, event_id, epoch_us(ts), list_position({types}, type::VARCHAR) - 1, query,
       query_key, product_id, session_id, search_id
FROM events WHERE {where} ORDER BY user_id, ts, event_id"""

_GOODS = """
SELECT product_id, title, brand, top, leaf,
       coalesce(map_values(from_json(attributes, '"MAP(VARCHAR, VARCHAR)"')), []), price, low, high
FROM goods WHERE product_id IN (SELECT unnest($1))"""

_PRICES = """
SELECT product_id, epoch_us(ts), price FROM product_history
WHERE product_id IN (SELECT unnest($1)) ORDER BY product_id, ts"""

_WORDINGS = """
SELECT query_key, query, kind, modifier FROM query_kinds WHERE query_key IN (SELECT unnest($1))"""


def of_users(users: Sequence[str]) -> tuple[str, list[object]]:
    """A condition on ``user_id``, and its values."""
    if len(users) == 1:
        return "user_id = $1", [users[0]]
    return "user_id IN (SELECT unnest($1))", [list(users)]


def read_wordings(
    connection: duckdb.DuckDBPyConnection, keys: Collection[str]
) -> Iterator[tuple[str, Wording]]:
    """How queries are worded, those of which a search is known."""
    for key, query, kind, modifier in connection.execute(_WORDINGS, [list(keys)]).fetchall():
        yield key, Wording(query, kind, modifier, tuple(dict.fromkeys(tokens(query))))


class EventLog:
    """The events of some users, and what is known of their products and queries.

    Args:
        connection: With the catalog (``goods``; see `tables`).
        worded: Also read how the users' queries are worded.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, worded: bool = True) -> None:
        self._connection, self._worded = connection, worded
        self.goods: dict[str, ProductFacts] = {}
        self.wordings: dict[str, Wording] = {}

    def of(self, users: Iterable[str]) -> dict[str, list[Event]]:
        """The events of each user that has any, the oldest first."""
        where, values = of_users(list(users))
        rows = self._connection.execute(
            _EVENTS.format(types=list(TYPES), where=where), values
        ).fetchall()
        found: dict[str, list[Event]] = {}
        for event in map(Event._make, rows):
            if event.user_id not in found:
                found[event.user_id] = []
            found[event.user_id].append(event)
        products = {row[6] for row in rows if row[3] != SEARCH and row[6] is not None}
        self._read_goods(products - self.goods.keys())
        if self._worded:
            self.read_wordings({row[5] for row in rows if row[3] == SEARCH})
        return found

    def read_wordings(self, keys: set[str]) -> None:
        """Know how these queries are worded."""
        fresh = keys - self.wordings.keys()
        if fresh:
            self.wordings |= read_wordings(self._connection, fresh)

    def _read_goods(self, products: set[str]) -> None:
        if not products:
            return
        values = [list(products)]
        prices: dict[str, tuple[list[int], list[float | None]]] = defaultdict(lambda: ([], []))
        for product, at, price in self._connection.execute(_PRICES, values).fetchall():
            prices[product][0].append(at)
            prices[product][1].append(price)
        for product, *rest in self._connection.execute(_GOODS, values).fetchall():
            self.goods[product] = ProductFacts(*rest, *prices.get(product, ((), ())))
