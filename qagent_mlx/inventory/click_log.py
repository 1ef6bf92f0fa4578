"""Engagements of earlier users by query: the third ranking of hybrid search.

Point-in-time: `ClickLog.ranking` counts only engagements before the moment it is asked for, so a
case never profits from what came after it. A query that nobody has typed before borrows from
queries that are worded like it, by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

import duckdb
import numpy as np

from ..utils.database import epoch_seconds
from .encoders.encoder import Encoder
from .types import EMPTY_RANKING, ClickRanking, Ranking, SimilarQuery

# Of similar queries' evidence, and how many lend theirs; measured, see search_quality.
SIMILAR_SHARE, SIMILAR_QUERIES = 0.3, 5

SPANS = 4096  # of engagements whose distinct rows are remembered

_COLUMNS = """s.query_key, s.query, e.product_id, epoch(e.ts) AS ts,
       CASE e.type WHEN 'click' THEN 1.0 WHEN 'cart' THEN 2.0 ELSE 3.0 END AS weight"""
_ENGAGEMENTS = """events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
WHERE e.type IN ('click', 'cart', 'purchase')"""

CLICKS_SQL = f"SELECT {_COLUMNS} FROM {_ENGAGEMENTS} ORDER BY s.query_key, e.ts, e.event_id"

# The same with each text where it differs from the row before, or comes up first: as many texts as
# there are different ones take a tenth of the memory of one for each engagement.
_TOLD_ONCE = f"""
WITH clicks AS MATERIALIZED (SELECT e.event_id, {_COLUMNS} FROM {_ENGAGEMENTS}),
products AS MATERIALIZED (
    SELECT product_id, row_number() OVER () - 1 AS product, min(event_id) AS first
    FROM clicks GROUP BY product_id),
told AS (
    SELECT *, row_number() OVER by_key = 1 AS new_query_key,
        row_number() OVER by_key = 1 OR lag(query) OVER by_key IS DISTINCT FROM query AS new_query,
        event_id = first AS new_product_id
    FROM clicks JOIN products USING (product_id)
    WINDOW by_key AS (PARTITION BY query_key ORDER BY ts, event_id))
SELECT new_query_key, CASE WHEN new_query_key THEN query_key END AS query_key,
    new_query, CASE WHEN new_query THEN query END AS query,
    new_product_id, CASE WHEN new_product_id THEN product_id END AS product_id,
    product, ts, weight
FROM told t ORDER BY t.query_key, ts, event_id
"""


def read_clicks(connection: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """The columns of `CLICKS_SQL`: query_key, query, product_id, ts, weight."""
    columns = connection.execute(_TOLD_ONCE).fetchnumpy()
    found = {name: np.ma.getdata(values) for name, values in columns.items()}
    for name in ("query_key", "query"):
        last = np.maximum.accumulate(np.where(found[f"new_{name}"], np.arange(len(found[name])), 0))
        found[name] = found[name][last]
    first = np.flatnonzero(found["new_product_id"])
    products = np.empty(len(first), dtype=object)
    products[found["product"][first]] = found["product_id"][first]
    found["product_id"] = products[found["product"]]
    return {name: found[name] for name in ("query_key", "query", "product_id", "ts", "weight")}


class ClickLog:
    """Engagements by query, in order of time."""

    def __init__(
        self, columns: dict[str, np.ndarray], row_of: dict[str, int], half_life_days: float
    ) -> None:
        """Index the columns of `read_clicks`: one entry per engagement, by query key and time.

        Engagements with products that ``row_of`` (product id to row) lacks are left out; they
        count half at an age of ``half_life_days``.
        """
        count, products = len(columns["product_id"]), columns["product_id"]
        rows = np.fromiter((row_of.get(product, -1) for product in products), np.int64, count)
        known = np.flatnonzero(rows >= 0)
        self._rows, self._times = rows[known], columns["ts"][known].astype(float, copy=False)
        self._weights = columns["weight"][known].astype(np.float32)  # 1, 2 or 3
        self._decay_rate = np.log(2) / (half_life_days * 86400)
        # Most moments are later than all engagements of a query.
        self._distinct = lru_cache(SPANS)(self._distinct_rows)
        distinct, first = np.unique(self._rows, return_index=True)
        self._product_of = dict(zip(distinct.tolist(), products[known[first]], strict=True))
        keys = columns["query_key"][known]
        bounds = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1], True]) if len(keys) else keys
        self._span_of_key = {keys[a]: (a, b) for a, b in pairwise(bounds.tolist())}
        # (key, text as it was first typed); stored runs of earlier versions lack the texts.
        self.queries: list[tuple[str, str]] = []
        if "query" in columns:
            spans = self._span_of_key.items()
            self.queries = [(key, columns["query"][known[a]]) for key, (a, _) in spans]

    def columns(self) -> dict[str, np.ndarray]:
        """What makes this log again, to be stored with a run: columns as `read_clicks` has them.

        Engagements with other products are left out, and ``query`` is the text first typed.
        """
        sizes = np.array([end - start for start, end in self._span_of_key.values()], np.int64)
        texts = {"query_key": list(self._span_of_key), "query": [text for _, text in self.queries]}
        columns = {
            name: np.repeat(np.array(distinct, dtype=object), sizes)
            for name, distinct in texts.items()
            if len(distinct) == len(sizes)
        }
        products = [self._product_of[row] for row in self._rows.tolist()]
        columns["product_id"] = np.array(products, dtype=object)
        return columns | {"ts": self._times, "weight": self._weights}

    def ranking(self, key: str, as_of: datetime | None, limit: int = 50) -> Ranking:
        """Rank what was engaged with for a query before a moment, by decayed weight.

        The heaviest comes first, ties by row; None counts the whole log.
        """
        start, end = self._span_of_key.get(key, (0, 0))
        if start < end and as_of is not None:
            times = self._times[start:end]
            end = start + int(np.searchsorted(times, epoch_seconds(as_of), "left"))
        if start >= end:
            return EMPTY_RANKING
        now = epoch_seconds(as_of) if as_of is not None else self._times[end - 1]
        weights = self._weights[start:end] * np.exp(
            -self._decay_rate * (now - self._times[start:end])
        )
        if end - start == 1:  # as with most queries of a log
            return Ranking(self._rows[start:end], weights)
        rows, inverse = self._distinct(start, end)
        totals = np.bincount(inverse, weights)
        order = np.lexsort((rows, -np.round(totals, 9)))[:limit]
        return Ranking(rows[order], totals[order])

    def _distinct_rows(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows of some entries, and the place of each entry's row among them."""
        rows, inverse = np.unique(self._rows[start:end], return_inverse=True)
        return rows, inverse

    def borrowed_ranking(
        self, similar: Sequence[SimilarQuery], as_of: datetime | None, limit: int = 50
    ) -> ClickRanking:
        """Rank what was engaged with under similar queries, for a query without clicks.

        The evidence of a similar query counts `SIMILAR_SHARE` times its similarity cubed; only
        the first `SIMILAR_QUERIES` that have any are used.
        """
        totals: dict[int, float] = {}
        lenders: list[str] = []
        for query in similar:
            ranking = self.ranking(query.key, as_of, limit)
            if not len(ranking):
                continue
            lenders.append(query.key)
            share = SIMILAR_SHARE * query.similarity**3
            for row, weight in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True):
                totals[row] = totals.get(row, 0.0) + share * weight
            if len(lenders) == SIMILAR_QUERIES:
                break
        best = sorted(totals.items(), key=lambda item: (-round(item[1], 9), item[0]))[:limit]
        rows = np.array([row for row, _ in best], dtype=np.int64)
        weights = np.array([weight for _, weight in best])
        return ClickRanking(Ranking(rows, weights), tuple(lenders))


class SimilarQueryIndex:
    """The vectors of a log's queries, searched for those that are worded like another query."""

    def __init__(self, clicks: ClickLog, encoder: Encoder) -> None:
        self._keys = [key for key, _ in clicks.queries]
        self._vectors = encoder.encode([text for _, text in clicks.queries], queries=True)

    def search(self, vectors: np.ndarray, min_similarity: float) -> list[list[SimilarQuery]]:
        """The logged queries that are at least so similar to each vector, most similar first.

        Ties are in the order of the log's keys.
        """
        results: list[list[SimilarQuery]] = []
        for vector, products in zip(vectors, vectors @ self._vectors.T, strict=True):
            candidates = np.flatnonzero(products >= min_similarity - 1e-4)
            # Computed again: the last bits of a matrix product depend on the batch.
            similarities = np.round(
                (self._vectors[candidates].astype(np.float64) * vector).sum(axis=1), 5
            )
            order = np.lexsort((candidates, -similarities))
            results.append(
                [
                    SimilarQuery(self._keys[number], similarity)
                    for number, similarity in zip(
                        candidates[order].tolist(), similarities[order].tolist(), strict=True
                    )
                    if similarity >= min_similarity
                ]
            )
        return results
