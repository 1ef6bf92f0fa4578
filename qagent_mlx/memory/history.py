"""Reads users' events, with what is needed to make a state of them (see `state`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import duckdb

SEARCH, VIEW, CLICK, CART, PURCHASE = range(5)  # the order of `event_type` in the schema


class Event(NamedTuple):
    """One row of the log; ``at`` in microseconds since 1970, ``band`` 1 to 3 or None."""

    user_id: str
    event_id: int
    at: int
    type: int
    query: str | None
    query_key: str | None
    product_id: str | None
    session_id: int
    search_id: int | None
    band: int | None


class Good(NamedTuple):
    """What a product adds to the interest graph."""

    title: str
    brand: str | None
    top: str
    leaf: str
    attributes: Sequence[str | None]


class Wording(NamedTuple):
    """How the shop first saw a query typed; ``modifier`` is the brand or attribute in it."""

    query: str
    kind: str
    modifier: str | None
    terms: Sequence[str]


# The price band is that of the moment: what was paid, not what it costs now.
_EVENTS = """
SELECT e.user_id, e.event_id, epoch_us(e.ts), enum_code(e.type::event_type), e.query, e.query_key,
       e.product_id, e.session_id, e.search_id,
       CASE WHEN coalesce(p.price, g.price) IS NULL THEN NULL
            WHEN coalesce(p.price, g.price) <= g.low THEN 1
            WHEN coalesce(p.price, g.price) <= g.high THEN 2 ELSE 3 END AS band
FROM (SELECT * FROM {events} WHERE user_id IN (SELECT unnest($users))) e
LEFT JOIN goods g USING (product_id)
ASOF LEFT JOIN product_history p ON p.product_id = e.product_id AND e.ts >= p.ts
ORDER BY e.user_id, e.ts, e.event_id"""

_GOODS = """
SELECT product_id, title, brand, top, leaf,
       coalesce(map_values(from_json(attributes, '"MAP(VARCHAR, VARCHAR)"')), [])
FROM goods WHERE product_id IN (SELECT unnest($keys))"""

WORDINGS = """
WITH wanted AS (SELECT DISTINCT unnest($keys) AS query_key),
terms AS (SELECT query_key, list(term) AS terms FROM query_terms SEMI JOIN wanted USING (query_key)
          GROUP BY query_key)
SELECT query_key, s.query, k.kind, k.modifier, coalesce(t.terms, [])
FROM wanted JOIN spellings s USING (query_key) JOIN query_kinds k USING (query_key)
LEFT JOIN terms t USING (query_key)"""


class Log:
    """The events of some users, and what is known of their products and queries.

    Args:
        connection: With the tables about the whole shop (see `tables`).
        events: The table to read.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, events: str = "events") -> None:
        self._connection, self._events = connection, events
        self.goods: dict[str, Good] = {}
        self.wordings: dict[str, Wording] = {}

    def of(self, users: Iterable[str]) -> dict[str, list[Event]]:
        """The events of each user that has any, the oldest first."""
        rows = self._connection.execute(
            _EVENTS.format(events=self._events), {"users": list(users)}
        ).fetchall()
        found: dict[str, list[Event]] = {}
        products: set[str] = set()
        keys: set[str] = set()
        for event in map(Event._make, rows):
            if event.user_id not in found:
                found[event.user_id] = []
            found[event.user_id].append(event)
            if event.type == SEARCH:
                keys.add(event.query_key or "")
            elif event.product_id is not None:
                products.add(event.product_id)
        self._read(products - self.goods.keys(), keys - self.wordings.keys())
        return found

    def _read(self, products: set[str], keys: set[str]) -> None:
        if products:
            for product, *rest in self._connection.execute(
                _GOODS, {"keys": list(products)}
            ).fetchall():
                self.goods[product] = Good._make(rest)
        if keys:
            for key, *rest in self._connection.execute(WORDINGS, {"keys": list(keys)}).fetchall():
                self.wordings[key] = Wording._make(rest)
