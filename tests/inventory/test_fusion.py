from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.inventory.fusion import (
    HALF_EVIDENCE,
    click_side,
    fuse,
    text_scores,
    text_sides,
    vectors_alone,
)
from qagent_mlx.inventory.types import ClickRanking, Ranking, TextRankings
from qagent_mlx.shop.config import SearchConfig

CONFIG = SearchConfig()
ROWS = st.lists(st.integers(0, 30), unique=True, max_size=20)


def ranking(rows, weights=None):
    scores = np.linspace(2, 1, len(rows)) if weights is None else np.array(weights)
    return Ranking(np.array(rows, dtype=np.int64), scores)


@given(
    lexical=ROWS,
    dense=ROWS,
    clicked=st.dictionaries(st.integers(0, 30), st.floats(0.01, 9), max_size=12),
    unlike=st.sets(st.integers(0, 30)),
    borrowed=st.booleans(),
    k=st.integers(1, 25),
)
def test_fused_at_a_moment_is_what_adding_up_all_sides_gives(
    lexical, dense, clicked, unlike, borrowed, k
):
    texts = TextRankings(ranking(lexical), ranking(dense), (), frozenset(unlike & {*dense}))
    ranked = ranking([*clicked], [*clicked.values()])
    clicks = click_side(ClickRanking(ranked, ("lamp",) if borrowed else ()), CONFIG, None)

    sums: dict[int, float] = {}
    for side in (*text_sides(texts, CONFIG).values(), clicks):
        for row, adds in zip(side.rows.tolist(), side.scores.tolist(), strict=True):
            sums[row] = sums.get(row, 0.0) + adds
    for row in vectors_alone(texts, clicks):
        del sums[row]
    rounded = {row: np.round(score, 12) for row, score in sums.items()}
    expected = sorted(sums, key=lambda row: (-rounded[row], row))[:k]

    best = fuse(text_scores(texts, CONFIG), clicks, k)
    assert best.rows.tolist() == expected
    assert best.scores.tolist() == [sums[row] for row in expected]


def test_what_vectors_alone_do_not_find_counts_where_it_was_clicked():
    texts = TextRankings(ranking([]), ranking([3, 4]), (), frozenset({3, 4}))
    text = text_scores(texts, CONFIG)
    assert fuse(text, ranking([]), 5).rows.tolist() == []
    clicks = click_side(ClickRanking(ranking([4])), CONFIG, None)
    best = fuse(text, clicks, 5)
    assert best.rows.tolist() == [4]
    assert best.scores[0] > clicks.scores[0]  # and then its vector adds to it


def test_clicks_add_by_rank_and_by_share_the_more_there_are():
    clicked = ranking([7, 3, 5], [3.0, 2.0, 1.0])
    half = CONFIG.weight_clicks * 6 / (6 + HALF_EVIDENCE)
    by_rank = [half / (CONFIG.rrf_k + rank) for rank in (1, 2, 3)]
    shares = [CONFIG.weight_shares * score / (6 + HALF_EVIDENCE) for score in (3, 2, 1)]

    own = click_side(ClickRanking(clicked), CONFIG, None)
    assert own.rows.tolist() == [7, 3, 5]
    np.testing.assert_allclose(own.scores, np.add(by_rank, shares), rtol=1e-12)
    # How often a product was taken under other words says nothing of its share under these.
    borrowed = click_side(ClickRanking(clicked, ("lamp",)), CONFIG, None)
    np.testing.assert_allclose(borrowed.scores, by_rank, rtol=1e-12)


def test_clicks_on_what_may_not_be_found_are_no_evidence():
    clicked = ranking([7, 3], [3.0, 2.0])
    allowed = np.zeros(10, dtype=bool)
    assert not len(click_side(ClickRanking(clicked), CONFIG, allowed))
    allowed[3] = True
    some = click_side(ClickRanking(clicked), CONFIG, allowed)
    alone = click_side(ClickRanking(ranking([3], [2.0])), CONFIG, None)
    assert some.rows.tolist() == [3] and some.scores.tolist() == alone.scores.tolist()
