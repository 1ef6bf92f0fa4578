"""Users' events, with what is known of the products and queries in them."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import duckdb

from ..shop.price_bands import price_band
from ..types import EVENT_TYPES
from ..utils.text import tokens

SEARCH, VIEW, CLICK, CART, PURCHASE = range(5)  # positions in `EVENT_TYPES`
DAY = 86_400_000_000  # microseconds

_EPOCH, _MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """A moment as microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(at: int) -> datetime:
    """The moment that is ``at`` microseconds after 1970."""
    return _EPOCH + at * _MICROSECOND


def start_of_day(moment: datetime) -> datetime:
    """Midnight before a moment."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


class Event(NamedTuple):
    """An event of the log; ``at`` in microseconds since 1970, ``type`` indexes `EVENT_TYPES`."""

    user_id: str
    event_id: int
    at: int
    type: int
    query: str | None
    query_key: str | None
    product_id: str | None
    session_id: int
    search_id: int | None  # the search of the session that the event belongs to


class ProductFacts(NamedTuple):
    """What memory uses of a product; ``times`` and ``prices`` are its history, oldest first."""

    title: str
    brand: str | None
    department: str  # the widest category
    leaf: str  # the narrowest category
    attributes: Sequence[str | None]
    price: float | None  # the first known price
    low: float | None  # the limits of the category's price bands
    high: float | None
    times: Sequence[int] = ()
    prices: Sequence[float | None] = ()

    def band(self, at: int) -> str:
        """The price band at a moment: of what the product cost then."""
        version = bisect_right(self.times, at) - 1
        price = self.prices[version] if version >= 0 else None
        return price_band(self.price if price is None else price, self.low, self.high)


class Wording(NamedTuple):
    """How the shop first saw a query typed."""

    query: str
    kind: str  # `statistics_cache.KINDS`
    modifier: str | None  # the brand or attribute that the query names
    terms: Sequence[str]


_EVENTS = """
SELECT user_id, event_id, epoch_us(ts), list_position({types}, type::VARCHAR) - 1, query,
       query_key, product_id, session_id, search_id
FROM events WHERE {where} ORDER BY user_id, ts, event_id"""

_PRODUCTS = """
SELECT product_id, title, brand, top, leaf,
       coalesce(map_values(from_json(attributes, '"MAP(VARCHAR, VARCHAR)"')), []), price, low, high
FROM goods WHERE product_id IN (SELECT unnest($1))"""

_PRICES = """
SELECT product_id, epoch_us(ts), price FROM product_history
WHERE product_id IN (SELECT unnest($1)) ORDER BY product_id, ts"""

_WORDINGS = """
SELECT query_key, query, kind, modifier FROM query_kinds WHERE query_key IN (SELECT unnest($1))"""


def users_condition(users: Sequence[str]) -> tuple[str, list[object]]:
    """A condition on ``user_id``, and its parameters."""
    if len(users) == 1:  # a plain comparison is planned in a fraction of the time
        return "user_id = $1", [users[0]]
    return "user_id IN (SELECT unnest($1))", [list(users)]


def read_wordings(
    connection: duckdb.DuckDBPyConnection, keys: Collection[str]
) -> Iterator[tuple[str, Wording]]:
    """How queries are worded, by their keys; queries that nobody searched are left out."""
    for key, query, kind, modifier in connection.execute(_WORDINGS, [list(keys)]).fetchall():
        yield key, Wording(query, kind, modifier, tuple(dict.fromkeys(tokens(query))))


class EventLog:
    """Reads the events of some users; collects what is known of their products and queries.

    Args:
        connection: With the tables of `shop_tables`.
        worded: Also read how the users' queries are worded.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, worded: bool = True) -> None:
        self._connection, self._worded = connection, worded
        self.products: dict[str, ProductFacts] = {}
        self.wordings: dict[str, Wording] = {}

    def read(self, users: Iterable[str]) -> dict[str, list[Event]]:
        """The events of each user that has any, the oldest first."""
        where, parameters = users_condition(list(users))
        events = [
            Event._make(row)
            for row in self._connection.execute(
                _EVENTS.format(types=list(EVENT_TYPES), where=where), parameters
            ).fetchall()
        ]
        histories: dict[str, list[Event]] = {}
        for event in events:
            histories.setdefault(event.user_id, []).append(event)
        self._read_products({e.product_id for e in events if e.product_id and e.type != SEARCH})
        if self._worded:
            self.read_wordings({e.query_key or "" for e in events if e.type == SEARCH})
        return histories

    def read_wordings(self, keys: Collection[str]) -> None:
        """Read how these queries are worded, where that is not known yet."""
        fresh = set(keys) - self.wordings.keys()
        if fresh:
            self.wordings |= read_wordings(self._connection, fresh)

    def _read_products(self, products: set[str]) -> None:
        fresh = [list(products - self.products.keys())]
        if not fresh[0]:
            return
        history: dict[str, tuple[list[int], list[float | None]]] = defaultdict(lambda: ([], []))
        for product, at, price in self._connection.execute(_PRICES, fresh).fetchall():
            history[product][0].append(at)
            history[product][1].append(price)
        for product, *facts in self._connection.execute(_PRODUCTS, fresh).fetchall():
            self.products[product] = ProductFacts(*facts, *history.get(product, ((), ())))
