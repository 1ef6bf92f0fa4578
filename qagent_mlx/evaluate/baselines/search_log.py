"""A shop's log as arrays, and what baselines need to read it without looking ahead.

The log is read once, sorted by time; cases are answered in order of time, while counts of
what was searched so far grow along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...shop.shop import Shop
from ...utils.text import query_key
from ..metrics import Ranking

if TYPE_CHECKING:
    from ...environment.environment import Example

WEIGHTS = {"view": 0.3, "click": 1.0, "cart": 2.0, "purchase": 4.0}  # of engagements


@dataclass(frozen=True)
class SearchLog:
    """All searches of a shop, by time: n of them, by any user, of K distinct queries.

    Queries and users are numbered in order of their text, so that searches which come later
    never change how two earlier queries compare.
    """

    times: np.ndarray  # (n,) datetime64[us]
    queries: np.ndarray  # (n,) number of the query
    users: np.ndarray  # (n,) number of the user
    sessions: np.ndarray  # (n,) the session's id
    texts: np.ndarray  # (n,) the query as it was typed
    spellings: np.ndarray  # (K,) each query as it was first typed
    user_numbers: dict[str, int]
    own: np.ndarray  # (n,) places in the arrays above, by user and then by time
    spans: np.ndarray  # (users + 1,) where each user's part of `own` starts

    @classmethod
    def of_shop(cls, shop: Shop) -> SearchLog:
        """A copy of the shop's searches; the database is not needed again."""
        connection = shop.connection
        columns = connection.execute(
            """SELECT ts, session_id AS session, query AS text,
                   dense_rank() OVER (ORDER BY query_key) - 1 AS query,
                   dense_rank() OVER (ORDER BY user_id) - 1 AS "user"
            FROM events WHERE type = 'search' ORDER BY ts, event_id"""
        ).fetchnumpy()
        spellings = connection.execute(
            """SELECT arg_min(query, (ts, event_id)) AS text FROM events
            WHERE type = 'search' GROUP BY query_key ORDER BY query_key"""
        ).fetchnumpy()["text"]
        users = connection.execute(
            "SELECT DISTINCT user_id FROM events WHERE type = 'search' ORDER BY user_id"
        ).fetchall()
        numbers = columns["user"].astype(np.int64)
        own = np.argsort(numbers, kind="stable")
        return cls(
            times=columns["ts"].astype("datetime64[us]"),
            queries=columns["query"].astype(np.int64),
            users=numbers,
            sessions=columns["session"].astype(np.int64),
            texts=columns["text"],
            spellings=spellings,
            user_numbers={user: i for i, (user,) in enumerate(users)},
            own=own,
            spans=np.searchsorted(numbers[own], np.arange(len(users) + 1)),
        )

    def before(self, moment: np.datetime64) -> int:
        """How many searches came before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))

    def last_of(self, user_id: str, moment: np.datetime64, k: int) -> dict[int, str]:
        """The last ``k`` distinct queries of a user before a moment, the latest first.

        Number of the query -> how the user typed it the last time.
        """
        user = self.user_numbers.get(user_id)
        if user is None:
            return {}
        mine = self.own[self.spans[user] : self.spans[user + 1]]
        mine = mine[: np.searchsorted(self.times[mine], moment, "left")]
        found: dict[int, str] = {}
        for place in mine[::-1].tolist():
            if len(found) == k:
                break
            found.setdefault(int(self.queries[place]), self.texts[place])
        return found

    def sweep(self, examples: Sequence[Example]) -> Iterator[tuple[int, np.datetime64, np.ndarray]]:
        """The examples in order of time: place, moment, and counts so far (K,).

        The counts are one array that grows; it holds only until the next example.
        """
        moments = np.array([moment_of(e.case.as_of) for e in examples], dtype="datetime64[us]")
        counts = np.zeros(len(self.spellings), dtype=np.int64)
        done = 0
        for i in np.argsort(moments, kind="stable").tolist():
            end = self.before(moments[i])
            np.add.at(counts, self.queries[done:end], 1)
            done = end
            yield i, moments[i], counts

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Query key -> number of the query."""
        return {query_key(text): i for i, text in enumerate(self.spellings.tolist())}

    @cached_property
    def first_seen(self) -> np.ndarray:
        """(K,) the place of each query's first search."""
        places = np.full(len(self.spellings), len(self.times), dtype=np.int64)
        np.minimum.at(places, self.queries, np.arange(len(self.queries)))
        return places

    @cached_property
    def _by_query(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.queries, kind="stable")
        return order, np.searchsorted(self.queries[order], np.arange(len(self.spellings) + 1))

    def count(self, query: str, moment: np.datetime64) -> int:
        """How often a query was searched before a moment."""
        number = self.numbers.get(query_key(query))
        if number is None:
            return 0
        order, spans = self._by_query
        places = order[spans[number] : spans[number + 1]]
        return int(np.searchsorted(places, self.before(moment), "left"))


@dataclass(frozen=True)
class EngagementLog:
    """All clicks, carts and purchases of a shop, by time: m of them, of P distinct products.

    Products and categories are numbered in order of their text, as the queries are.
    """

    times: np.ndarray  # (m,) datetime64[us]
    users: np.ndarray  # (m,) user ids
    products: np.ndarray  # (m,) number of the product
    queries: np.ndarray  # (m,) number of the query that led to it, -1 for none
    weights: np.ndarray  # (m,)
    ids: list[str]  # product ids
    titles: list[str]
    categories: np.ndarray  # (P,) number of the leaf category, -1 for none

    @classmethod
    def of_shop(cls, shop: Shop, log: SearchLog) -> EngagementLog:
        """A copy of the shop's engagements; the database is not needed again."""
        rows = shop.connection.execute(
            """SELECT e.ts, e.user_id AS "user", e.product_id AS product, e.type::VARCHAR AS type,
                   s.query_key AS query
            FROM events e LEFT JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
            WHERE e.type IN ('click', 'cart', 'purchase') ORDER BY e.ts, e.event_id"""
        ).fetchall()
        goods = shop.connection.execute(
            """SELECT product_id, title, trim(split_part(category, '>', -1)) FROM products
            WHERE product_id IN (SELECT product_id FROM events) ORDER BY product_id"""
        ).fetchall()
        number = {product: i for i, (product, *_) in enumerate(goods)}
        leaves = sorted({leaf for *_, leaf in goods if leaf})
        place = {leaf: i for i, leaf in enumerate(leaves)}
        rows = [row for row in rows if row[2] in number]
        return cls(
            times=np.array([row[0] for row in rows], dtype="datetime64[us]"),
            users=np.array([row[1] for row in rows], dtype=object),
            products=np.array([number[row[2]] for row in rows], dtype=np.int64),
            queries=np.array([log.numbers.get(row[4], -1) for row in rows], dtype=np.int64),
            weights=np.array([WEIGHTS[row[3]] for row in rows]),
            ids=[product for product, *_ in goods],
            titles=[title for _, title, _ in goods],
            categories=np.array([place.get(leaf, -1) for *_, leaf in goods], dtype=np.int64),
        )

    def before(self, moment: np.datetime64) -> int:
        """How many engagements came before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))

    @cached_property
    def of_user(self) -> dict[str, list[int]]:
        """User id -> places of their engagements, by time."""
        made: dict[str, list[int]] = {}
        for place, user in enumerate(self.users.tolist()):
            made.setdefault(user, []).append(place)
        return made

    def last_of(self, user_id: str, moment: np.datetime64, k: int) -> list[int]:
        """Numbers of the last ``k`` distinct products of a user, the latest first."""
        end = self.before(moment)
        found: dict[int, None] = {}
        for place in reversed(self.of_user.get(user_id, [])):
            if place < end:
                found.setdefault(int(self.products[place]))
                if len(found) == k:
                    break
        return list(found)


def moment_of(as_of: datetime) -> np.datetime64:
    """A datetime as numpy has it."""
    return np.datetime64(as_of, "us")


def top_queries(k: int, counts: np.ndarray, scores: np.ndarray | None = None) -> list[int]:
    """The ``k`` best queries of those searched so far: by score, then count, then number."""
    seen = np.flatnonzero(counts)
    first = counts if scores is None else scores
    if len(seen) > k:
        threshold = np.partition(first[seen], len(seen) - k)[len(seen) - k]
        seen = seen[first[seen] >= threshold]
    order = np.lexsort((seen, -counts[seen], -first[seen]))
    return [int(q) for q in seen[order[:k]]]


def ranking(log: SearchLog, queries: Sequence[int], typed: dict[int, str] | None = None) -> Ranking:
    """Numbered queries as texts, spelled as ``typed`` says or as they were first typed."""
    typed = typed or {}
    return Ranking(tuple(typed.get(q) or log.spellings[q] for q in queries))
