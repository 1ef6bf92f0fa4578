"""A shop's log as arrays, read once and sorted by time, and how to read it without looking ahead.

Queries, users, products and categories are numbered in order of their text, so that events
which come later never change how two earlier ones compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice

import numpy as np

from ...environment.environment import Example
from ...shop.shop import Shop
from ...utils.text import query_key

WEIGHTS = {"view": 0.3, "click": 1.0, "cart": 2.0, "purchase": 4.0}  # of engagements


@dataclass(frozen=True, slots=True)
class SweepState:
    """What is known when the next case is answered."""

    index: int  # of the case among the examples
    moment: np.datetime64  # when the case begins
    searches: slice  # the part of the log since the case before
    counts: np.ndarray  # (K,) searches of each query so far: one array, which grows


@dataclass(frozen=True)
class SearchLog:
    """All searches of a shop, by time: n of them, of K distinct queries."""

    times: np.ndarray  # (n,) datetime64[us]
    queries: np.ndarray  # (n,) number of the query
    users: np.ndarray  # (n,) number of the user
    sessions: np.ndarray  # (n,) the session's id
    texts: np.ndarray  # (n,) the query as it was typed
    spellings: np.ndarray  # (K,) each query as it was first typed
    user_numbers: dict[str, int]

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
        return cls(
            times=columns["ts"].astype("datetime64[us]"),
            queries=columns["query"].astype(np.int64),
            users=columns["user"].astype(np.int64),
            sessions=columns["session"].astype(np.int64),
            texts=columns["text"],
            spellings=spellings,
            user_numbers={user: i for i, (user,) in enumerate(users)},
        )

    @cached_property
    def by_user(self) -> np.ndarray:
        """(n,) indices of the searches, by user and then by time."""
        return np.argsort(self.users, kind="stable")

    @cached_property
    def user_spans(self) -> np.ndarray:
        """(users + 1,) where each user's part of `by_user` begins."""
        return np.searchsorted(self.users[self.by_user], np.arange(len(self.user_numbers) + 1))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Query key -> number of the query."""
        return {query_key(text): i for i, text in enumerate(self.spellings.tolist())}

    @cached_property
    def _by_query(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the searches by query and then by time, and where each query's begin."""
        order = np.argsort(self.queries, kind="stable")
        return order, np.searchsorted(self.queries[order], np.arange(len(self.spellings) + 1))

    def before(self, moment: np.datetime64) -> int:
        """The number of searches before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))

    def of_user(self, user_id: str, moment: np.datetime64) -> np.ndarray:
        """The indices of a user's searches before a moment, by time."""
        user = self.user_numbers.get(user_id)
        if user is None:
            return np.empty(0, dtype=np.int64)
        own = self.by_user[self.user_spans[user] : self.user_spans[user + 1]]
        return own[: np.searchsorted(self.times[own], moment, "left")]

    def last_queries(self, user_id: str, moment: np.datetime64, k: int) -> dict[int, str]:
        """The last ``k`` distinct queries of a user before a moment, the latest first.

        The number of each query -> how the user typed it the last time.
        """
        queries: dict[int, str] = {}
        for index in self.of_user(user_id, moment)[::-1].tolist():
            if len(queries) == k:
                break
            queries.setdefault(int(self.queries[index]), self.texts[index])
        return queries

    def count(self, query: str, moment: np.datetime64) -> int:
        """How often a query was searched before a moment."""
        number = self.numbers.get(query_key(query))
        if number is None:
            return 0
        order, spans = self._by_query
        searches = order[spans[number] : spans[number + 1]]
        return int(np.searchsorted(searches, self.before(moment), "left"))

    def sweep(self, examples: Sequence[Example]) -> Iterator[SweepState]:
        """Go through the examples in order of time."""
        moments = np.array([moment_of(e.case.as_of) for e in examples], dtype="datetime64[us]")
        counts = np.zeros(len(self.spellings), dtype=np.int64)
        start = 0
        for index in np.argsort(moments, kind="stable").tolist():
            searches = slice(start, self.before(moments[index]))
            np.add.at(counts, self.queries[searches], 1)
            yield SweepState(index, moments[index], searches, counts)
            start = searches.stop


@dataclass(frozen=True)
class EngagementLog:
    """All clicks, carts and purchases of a shop, by time: m of them, of P distinct products."""

    times: np.ndarray  # (m,) datetime64[us]
    users: np.ndarray  # (m,) user ids
    products: np.ndarray  # (m,) number of the product
    queries: np.ndarray  # (m,) number of the query that led to it, -1 for none
    weights: np.ndarray  # (m,)
    titles: list[str]  # (P,)
    categories: np.ndarray  # (P,) number of the leaf category, -1 for none

    @classmethod
    def of_shop(cls, shop: Shop, log: SearchLog) -> EngagementLog:
        """A copy of the shop's engagements; the database is not needed again."""
        products = shop.connection.execute(
            """SELECT product_id, title, trim(split_part(category, '>', -1)) FROM products
            WHERE product_id IN (SELECT product_id FROM events) ORDER BY product_id"""
        ).fetchall()
        number = {product: i for i, (product, *_) in enumerate(products)}
        leaves = sorted({leaf for *_, leaf in products if leaf})
        category = {leaf: i for i, leaf in enumerate(leaves)}
        events = shop.connection.execute(
            """SELECT e.ts, e.user_id, e.product_id, e.type::VARCHAR, s.query_key
            FROM events e LEFT JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
            WHERE e.type IN ('click', 'cart', 'purchase') ORDER BY e.ts, e.event_id"""
        ).fetchall()
        events = [event for event in events if event[2] in number]
        times, users, ids, types, keys = list(zip(*events, strict=True)) or [()] * 5
        return cls(
            times=np.array(times, dtype="datetime64[us]"),
            users=np.array(users, dtype=object),
            products=np.array([number[product] for product in ids], dtype=np.int64),
            queries=np.array([log.numbers.get(key, -1) for key in keys], dtype=np.int64),
            weights=np.array([WEIGHTS[kind] for kind in types]),
            titles=[title for _, title, _ in products],
            categories=np.array([category.get(leaf, -1) for *_, leaf in products], dtype=np.int64),
        )

    def before(self, moment: np.datetime64) -> int:
        """The number of engagements before a moment."""
        return int(np.searchsorted(self.times, moment, "left"))

    @cached_property
    def _by_user(self) -> dict[str, list[int]]:
        """User id -> indices of their engagements, by time."""
        indices: dict[str, list[int]] = {}
        for index, user in enumerate(self.users.tolist()):
            indices.setdefault(user, []).append(index)
        return indices

    def last_products(self, user_id: str, moment: np.datetime64, k: int) -> list[int]:
        """The numbers of a user's last ``k`` distinct products, the latest first."""
        end = self.before(moment)
        own = (i for i in reversed(self._by_user.get(user_id, [])) if i < end)
        return list(islice(dict.fromkeys(int(self.products[i]) for i in own), k))


def moment_of(as_of: datetime) -> np.datetime64:
    """A datetime as numpy has it."""
    return np.datetime64(as_of, "us")


def top_queries(k: int, counts: np.ndarray, scores: np.ndarray | None = None) -> list[int]:
    """The ``k`` best queries of those searched so far: by score, then count, then number."""
    searched = np.flatnonzero(counts)
    scores = counts if scores is None else scores
    if len(searched) > k:
        threshold = np.partition(scores[searched], len(searched) - k)[len(searched) - k]
        searched = searched[scores[searched] >= threshold]
    order = np.lexsort((searched, -counts[searched], -scores[searched]))
    return [int(q) for q in searched[order[:k]]]
