"""Users' events, with what is known of the products and queries in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

import duckdb

from ..shop.price_bands import price_band
from ..types import EVENT_TYPES
from ..utils.text import tokens
from .sql import sql

SEARCH, VIEW, CLICK, CART, PURCHASE = range(5)  # positions in `EVENT_TYPES`
DAY = 86_400_000_000  # microseconds
BOUGHT = 3  # the outcome of a search that led to a purchase

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


def start_of_hour(moment: datetime) -> datetime:
    """The beginning of a moment's hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


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


@dataclass(slots=True)
class PastSearch:
    """A search of a user, and what came of it."""

    event: Event
    outcome: int = 0  # 0 nothing, 1 click, 2 cart, 3 purchase
    product_id: str | None = None  # of the strongest engagement
    known: int = 0  # when the first engagement came, in microseconds since 1970
    first_product: str | None = None  # of the first engagement

    def add(self, event: Event) -> None:
        """Count an engagement that it led to; they come in order of time."""
        outcome = event.type - CLICK + 1
        if not self.outcome:
            self.known, self.first_product = event.at, event.product_id
        if outcome > self.outcome:  # the earliest of the strongest
            self.outcome, self.product_id = outcome, event.product_id


class History:
    """One user's events up to a moment, the oldest first, and the searches among them.

    ``log`` knows their products and queries; ``at`` is the moment in microseconds since 1970, by
    default that of the last event.
    """

    def __init__(self, events: Sequence[Event], log: EventLog, at: int | None = None) -> None:
        self.events, self.log = events, log
        self.at = events[-1].at if at is None else at
        self.user = events[0].user_id if events else ""
        self.products, self.wordings = log.products, log.wordings

    @cached_property
    def searches(self) -> list[PastSearch]:
        """The searches, the oldest first."""
        searches = {e.event_id: PastSearch(e) for e in self.events if e.type == SEARCH}
        for event in self.events:
            if event.type >= CLICK and event.search_id in searches:
                searches[event.search_id].add(event)
        return list(searches.values())

    @cached_property
    def successes(self) -> list[PastSearch]:
        """The searches that led to an engagement, the oldest first.

        Of a user who never searched: the sessions in which something was engaged with, each as a
        search of no known query. So a log without queries teaches what people need next, too.
        """
        if self.searches:
            return [search for search in self.searches if search.outcome]
        sessions: dict[int, PastSearch] = {}
        for event in self.events:
            if event.type >= CLICK and event.product_id is not None:
                if event.session_id not in sessions:
                    sessions[event.session_id] = PastSearch(event._replace(query_key=None))
                sessions[event.session_id].add(event)
        return list(sessions.values())

    def before(self, at: int) -> History:
        """The history as it was at an earlier or later moment."""
        end = bisect_left(self.events, at, key=lambda event: event.at)
        return History(self.events[:end], self.log, at)

    def age(self, event: Event) -> float:
        """Days from an event to the moment."""
        return (self.at - event.at) / DAY

    def leaf(self, product: str | None) -> str | None:
        """The narrowest category of a product; None where none is known."""
        return self.log.leaf(product)

    def category_key(self, search: PastSearch) -> str | None:
        """The category that a search led to: ``b:`` (bought) or ``l:`` (liked) and its name."""
        return self.log.category_key(search)


def users_condition(users: Sequence[str]) -> tuple[str, list[object]]:
    """A condition on ``user_id``, and its parameters."""
    if len(users) == 1:  # a plain comparison is planned in a fraction of the time
        return "user_id = $1", [users[0]]
    return "user_id IN (SELECT unnest($1))", [list(users)]


def read_wordings(
    connection: duckdb.DuckDBPyConnection, keys: Collection[str]
) -> Iterator[tuple[str, Wording]]:
    """How queries are worded, by their keys; queries that nobody searched are left out."""
    query_kinds = connection.execute(
        """SELECT query_key, query, kind, modifier FROM query_kinds
        WHERE query_key IN (SELECT unnest($1))""",
        [list(keys)],
    )
    for key, query, kind, modifier in query_kinds.fetchall():
        yield key, Wording(query, kind, modifier, tuple(dict.fromkeys(tokens(query))))


def _with_texts_once(rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Rows whose equal texts are one: the database makes one for each cell."""
    known: dict[str, str] = {}
    for row in rows:
        yield [known.setdefault(cell, cell) if type(cell) is str else cell for cell in row]


class EventLog:
    """Reads the events of some users, from a database with the tables of `shop_tables`.

    Collects what is known of the events' products and queries.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.products: dict[str, ProductFacts] = {}
        self.wordings: dict[str, Wording] = {}

    def read(self, users: Iterable[str], once: bool = False) -> dict[str, History]:
        """The history of each user that has any; wordings of queries are not read yet.

        ``once`` holds equal texts once, for many users of whom a part is kept for long.
        """
        where, parameters = users_condition(list(users))
        events: dict[str, list[Event]] = defaultdict(list)
        products = set()
        query = sql("events", types=list(EVENT_TYPES), where=where)
        rows = self._connection.execute(query, parameters).fetchall()
        for event in map(Event._make, _with_texts_once(rows) if once else rows):
            events[event.user_id].append(event)
            if event.type != SEARCH and event.product_id is not None:
                products.add(event.product_id)
        self._read_products(products)
        return {user: History(own, self) for user, own in events.items()}

    def leaf(self, product: str | None) -> str | None:
        """The narrowest category of a product; None where none is known."""
        facts = self.products.get(product or "")
        return (facts.leaf or None) if facts is not None else None

    def category_key(self, search: PastSearch) -> str | None:
        """The category that a search led to: ``b:`` (bought) or ``l:`` (liked) and its name."""
        leaf = self.leaf(search.product_id)
        return f"{'b' if search.outcome == BOUGHT else 'l'}:{leaf}" if leaf else None

    def read_wordings(self, histories: Iterable[History]) -> None:
        """Read how the queries of some histories are worded, where that is not known yet."""
        events = (event for history in histories for event in history.events)
        keys = {event.query_key or "" for event in events if event.type == SEARCH}
        if fresh := keys - self.wordings.keys():
            self.wordings |= read_wordings(self._connection, fresh)

    def _read_products(self, products: set[str]) -> None:
        fresh = [list(products - self.products.keys())]
        if not fresh[0]:
            return
        changes: dict[str, tuple[list[int], list[float | None]]] = defaultdict(lambda: ([], []))
        prices = self._connection.execute(
            """SELECT product_id, epoch_us(ts), price FROM product_history
            WHERE product_id IN (SELECT unnest($1)) ORDER BY product_id, ts""",
            fresh,
        )
        for product, at, price in prices.fetchall():
            changes[product][0].append(at)
            changes[product][1].append(price)
        for product, *facts in self._connection.execute(sql("product_facts"), fresh).fetchall():
            self.products[product] = ProductFacts(*facts, *changes.get(product, ((), ())))
