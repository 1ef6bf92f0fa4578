"""What earlier users engaged with after a query: the third side of hybrid search.

Point-in-time: `ClickLog.ranking` counts only engagements before the moment it is asked
about, so a case never profits from what came after it. A query that nobody has typed before
borrows from queries that are written like it, by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import duckdb
import numpy as np

from .encoders.subword import Encoder

SHARE, MOST = 0.3, 5  # of similar queries' evidence; measured, see search_quality

CLICKS_SQL = """
SELECT s.query_key, s.query, e.product_id, epoch(e.ts) AS ts,
       CASE e.type WHEN 'click' THEN 1.0 WHEN 'cart' THEN 2.0 ELSE 3.0 END AS weight
FROM events e JOIN events s ON s.event_id = e.search_id AND s.type = 'search'
WHERE e.type IN ('click', 'cart', 'purchase')
ORDER BY s.query_key, e.ts, e.event_id
"""


class ClickLog:
    """Engagements by query, sorted by time; answers for any moment."""

    def __init__(
        self,
        keys: Sequence[str],
        products: np.ndarray,
        times: np.ndarray,
        weights: np.ndarray,
        half_life_days: float,
        texts: Sequence[str] | None = None,
    ) -> None:
        """One entry an engagement, by key and time; ``texts`` holds the queries as typed."""
        self._keys, self._products, self._times, self._weights = keys, products, times, weights
        self._texts = texts
        self._half_life = half_life_days
        self._rate = np.log(2) / (half_life_days * 86400)
        self._span: dict[str, tuple[int, int]] = {}
        start = 0
        for i in range(1, len(keys) + 1):
            if i == len(keys) or keys[i] != keys[start]:
                self._span[keys[start]] = (start, i)
                start = i

    @classmethod
    def from_rows(
        cls, columns: dict[str, np.ndarray], row_of: dict[str, int], half_life_days: float
    ) -> ClickLog:
        """From the columns of `CLICKS_SQL`; ``row_of`` maps product ids to index rows."""
        known = np.array([p in row_of for p in columns["product_id"]], dtype=bool)
        products = np.array(
            [row_of[p] for p in columns["product_id"][known].tolist()], dtype=np.int64
        )
        return cls(
            columns["query_key"][known].tolist(),
            products,
            columns["ts"][known].astype(float),
            columns["weight"][known].astype(float),
            half_life_days,
            columns["query"][known].tolist() if "query" in columns else None,
        )

    def columns(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The log as columns that `from_rows` takes; ``ids`` names the index rows."""
        made = {
            "query_key": np.array(self._keys, dtype=object),
            "product_id": np.array([ids[row] for row in self._products.tolist()], dtype=object),
            "ts": self._times,
            "weight": self._weights,
        }
        if self._texts is not None:
            made["query"] = np.array(self._texts, dtype=object)
        return made

    def moved(self, ids: Sequence[str], row_of: dict[str, int]) -> ClickLog:
        """The log for another catalog: ``ids`` names the rows so far, ``row_of`` the new ones."""
        return ClickLog.from_rows(self.columns(ids), row_of, self._half_life)

    def queries(self) -> list[tuple[str, str]]:
        """(key, text as it was first typed) of each query; none where texts are not known."""
        if self._texts is None:
            return []
        return [(key, self._texts[start]) for key, (start, _) in self._span.items()]

    def ranking(
        self, key: str, as_of: datetime | None, limit: int = 50
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and decayed weights of what was engaged with for a query before ``as_of``.

        The heaviest first, ties by row.
        """
        start, end = self._span.get(key, (0, 0))
        if start < end and as_of is not None:
            end = start + int(np.searchsorted(self._times[start:end], epoch_seconds(as_of), "left"))
        if start >= end:
            return np.empty(0, dtype=np.int64), np.empty(0)
        now = epoch_seconds(as_of) if as_of is not None else self._times[end - 1]
        decay = np.exp(-self._rate * (now - self._times[start:end]))
        if end - start == 1:  # as with most queries of a log
            return self._products[start:end], self._weights[start:end] * decay
        rows, inverse = np.unique(self._products[start:end], return_inverse=True)
        weight = np.bincount(inverse, self._weights[start:end] * decay)
        order = np.lexsort((rows, -np.round(weight, 9)))[:limit]
        return rows[order], weight[order]


class SimilarQueries:
    """Finds queries of a log that are written much like another one."""

    def __init__(self, clicks: ClickLog, encoder: Encoder) -> None:
        found = clicks.queries()
        self._keys = [key for key, _ in found]
        self._vectors = encoder.encode([text for _, text in found], queries=True)

    def find(self, vectors: np.ndarray, least: float) -> list[list[tuple[str, float]]]:
        """For each vector the (key, cosine similarity) of all queries at least so similar.

        The most similar come first, ties in the order of the log's keys.
        """
        made: list[list[tuple[str, float]]] = []
        for vector, near in zip(vectors, vectors @ self._vectors.T, strict=True):
            rows = np.flatnonzero(near >= least - 1e-4)
            if not len(rows):
                made.append([])
                continue
            # Computed again, one by one: a product's last bits depend on the batch.
            exact = (self._vectors[rows].astype(np.float64) * vector).sum(axis=1)
            value = np.round(exact, 5)
            order = np.lexsort((rows, -value))
            made.append(
                [
                    (self._keys[row], score)
                    for row, score in zip(rows[order].tolist(), value[order].tolist(), strict=True)
                    if score >= least
                ]
            )
        return made


def similar_ranking(
    clicks: ClickLog, similar: Sequence[tuple[str, float]], as_of: datetime | None, limit: int = 50
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What was engaged with under similar queries before a moment, for one that has nothing.

    The evidence of a similar query counts `SHARE` times its similarity cubed; the `MOST`
    most similar that have any are used.

    Returns:
        Rows and weights as `ClickLog.ranking` gives them, and the keys that they came from.
    """
    total: dict[int, float] = {}
    used: list[str] = []
    for key, near in similar:
        rows, weights = clicks.ranking(key, as_of, limit)
        if not len(rows):
            continue
        used.append(key)
        for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
            total[row] = total.get(row, 0.0) + SHARE * near**3 * weight
        if len(used) == MOST:
            break
    best = sorted(total.items(), key=lambda item: (-round(item[1], 9), item[0]))[:limit]
    return (
        np.array([row for row, _ in best], dtype=np.int64),
        np.array([weight for _, weight in best]),
        used,
    )


def epoch_seconds(moment: datetime) -> float:
    """Seconds since 1970 of a naive UTC datetime."""
    return (moment - datetime(1970, 1, 1)).total_seconds()


def read_clicks(connection: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """The columns of `CLICKS_SQL` as numpy arrays."""
    rows = connection.execute(CLICKS_SQL).fetchnumpy()
    return {name: np.asarray(values) for name, values in rows.items()}
