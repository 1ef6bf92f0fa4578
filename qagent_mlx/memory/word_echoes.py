"""How much the words of queries are those of others, for many moments at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .keyed import Numbers, first_of_runs


def echoes(
    queries: tuple[np.ndarray, np.ndarray],
    said: tuple[np.ndarray, np.ndarray],
    terms: Sequence[Collection[str]],
) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard similarity of queries' words to what was said at the same moment.

    Args:
        queries: Moments and ids of some queries.
        said: Moments and ids of what users searched, in order of moment, the last search first.
        terms: The words of each id.

    Returns:
        Of each query the similarity to what was said last, and the largest one: (queries,) each.
        A query is not compared with itself.
    """
    (moments, ids), (said_moments, said_ids) = queries, said
    last, most = np.zeros(len(ids)), np.zeros(len(ids))
    if not len(said_ids) or not len(ids):
        return last, most
    distinct, word_of = np.unique(np.append(ids, said_ids), return_inverse=True)
    sizes = np.array([len(terms[i]) for i in distinct.tolist()])
    numbers = Numbers[str]()
    words = numbers.number(term for i in distinct.tolist() for term in terms[i])
    ends = np.cumsum(sizes)

    def spread(of: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each word of some queries: the query's row, and the key of moment and word."""
        rows = np.repeat(np.arange(len(of)), sizes[of])
        within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes[of]) - sizes[of], sizes[of])
        return rows, numbers.key(at[rows], words[(ends - sizes)[of][rows] + within])

    rows, keys = spread(word_of[: len(ids)], moments)
    said_rows, said_keys = spread(word_of[len(ids) :], said_moments)
    order = np.argsort(said_keys, kind="stable")
    said_rows, said_keys = said_rows[order], said_keys[order]
    first = np.searchsorted(said_keys, keys, "left")
    count = np.searchsorted(said_keys, keys, "right") - first
    # Each word that a query shares with something said: most share none.
    begin = np.repeat(np.cumsum(count) - count, count)
    shared = said_rows[np.repeat(first, count) + np.arange(int(count.sum())) - begin]
    pairs, both = np.unique(np.repeat(rows, count) * len(said_ids) + shared, return_counts=True)
    row, other = np.divmod(pairs, len(said_ids))
    all_words = sizes[word_of[row]] + sizes[word_of[len(ids) + other]] - both
    similarity = np.where(ids[row] == said_ids[other], 0.0, both / all_words)
    np.maximum.at(most, row, similarity)
    is_last = np.zeros(len(said_ids), dtype=bool)
    is_last[first_of_runs(said_moments)] = True
    last[row[is_last[other]]] = similarity[is_last[other]]
    return last, most
