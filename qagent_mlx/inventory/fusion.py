"""Fuse the rankings of a query: what its text finds, once, and past clicks, at each moment.

    score(product) = sum over rankings of  weight / (rrf_k + rank)       (Cormack et al., 2009)
                     + weight_shares * its share of the query's past clicks

What the text adds is the same at every moment, and most queries have few past clicks. So a search
at another moment only places the rows that were clicked among those that the text ranks first.
"""

from __future__ import annotations

import numpy as np

from ..shop.config import SearchConfig
from .types import ClickRanking, Ranking, TextRankings, TextScores

HALF_EVIDENCE = 2.0  # weight of past clicks at which they count half of what they can


def text_scores(texts: TextRankings, config: SearchConfig) -> TextScores:
    """Fuse what a query's text retrieves."""
    sides = text_sides(texts, config)
    rows, places = np.unique(
        np.concatenate([side.rows for side in sides.values()]), return_inverse=True
    )
    scores = np.bincount(
        places, np.concatenate([side.scores for side in sides.values()]), len(rows)
    )
    unlike = texts.unlike.difference(texts.lexical.rows.tolist())
    is_unlike = np.isin(rows, [*unlike]) if unlike else np.zeros(len(rows), dtype=bool)
    order = np.lexsort((rows, -np.round(scores, 12), is_unlike))
    return TextScores(rows[order], scores[order], len(rows) - int(is_unlike.sum()))


def fuse(text: TextScores, clicks: Ranking, k: int) -> Ranking:
    """The ``k`` rows with the highest fused scores, ties by row.

    Args:
        text: What the text adds.
        clicks: Distinct rows, and what past clicks add to each (`click_side`).
        k: Rows.
    """
    count = len(clicks)
    if not count:
        best = min(k, text.found)
        return Ranking(text.rows[:best], text.scores[:best])
    same = text.rows[:, None] == clicks.rows
    is_known = same.any(axis=0)
    places = same.argmax(axis=0)[is_known] if len(text.rows) else np.zeros(0, dtype=np.int64)
    scores = np.zeros(count)
    scores[is_known] = text.scores[places]
    scores += clicks.scores
    head = min(text.found, k + count)  # at most so many of these come before the k-th row
    is_left = np.ones(head, dtype=bool)
    is_left[places[places < head]] = False
    rows = np.concatenate([text.rows[:head][is_left], clicks.rows])
    scores = np.concatenate([text.scores[:head][is_left], scores])
    best_places = np.lexsort((rows, -np.round(scores, 12)))[:k]
    return Ranking(rows[best_places], scores[best_places])


def text_sides(texts: TextRankings, config: SearchConfig) -> dict[str, Ranking]:
    """By side of the text: its rows, and what it adds to the fused score of each."""
    lexical, dense = texts.lexical, texts.dense
    return {
        "words": Ranking(lexical.rows, config.weight_lexical * _by_rank(lexical, config)),
        "vectors": Ranking(dense.rows, config.weight_dense * _by_rank(dense, config)),
    }


def click_side(clicks: ClickRanking, config: SearchConfig, allowed: np.ndarray | None) -> Ranking:
    """The allowed rows that were clicked, and what that adds to the fused score of each."""
    clicked = clicks.ranking.filtered(allowed)
    if not len(clicked):
        return clicked
    evidence = float(clicked.scores.sum())
    share = config.weight_clicks * evidence / (evidence + HALF_EVIDENCE)
    adds = share * _by_rank(clicked, config)
    if not clicks.borrowed:  # the clicks of similar queries do not say how many it would get
        adds += config.weight_shares * clicked.scores / (evidence + HALF_EVIDENCE)
    return Ranking(clicked.rows, adds)


def vectors_alone(texts: TextRankings, clicks: Ranking) -> frozenset[int]:
    """The rows below the floor that neither words nor clicks find."""
    return texts.unlike.difference([*texts.lexical.rows.tolist(), *clicks.rows.tolist()])


def _by_rank(ranking: Ranking, config: SearchConfig) -> np.ndarray:
    """Reciprocal rank, 1 / (rrf_k + rank), of each position: (rows,)."""
    return np.asarray(1.0 / (config.rrf_k + np.arange(1, len(ranking) + 1)))
