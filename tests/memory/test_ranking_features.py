import math

import numpy as np
import pytest
from candidate_rows import NEXT, OWN, TREND, rows

from qagent_mlx.memory.ranking_features import DUE, FEATURES, PACE, feature_tables, features


def test_features_by_hand():
    made = [dict(zip(FEATURES, x, strict=True)) for x in features(rows(OWN, TREND, NEXT)).tolist()]
    common = {n: v for n, v in made[0].items() if v and v == made[1][n] == made[2][n]}
    own, trend, after = ({n: v for n, v in x.items() if v and n not in common} for x in made)
    assert common == {
        "success": pytest.approx(math.log(0.5)),
        "kind plain": 1,
        "wording": pytest.approx(math.log(0.1)),
    }
    assert own == {
        "own": 1,
        "back": pytest.approx(math.log(2)),
        "times": pytest.approx(math.log(2)),
        "bought": 1,
        "bought week": 1,
        "own week": 1,
        "bought long ago": pytest.approx(math.log(6)),
        "own wording": pytest.approx(math.log(0.1)),
    }
    assert trend == {
        "trend": 1,
        "trend share": pytest.approx(1),
        "long share": pytest.approx(math.log10(0.05) + 2),
        "trend weight": pytest.approx(1),
        "short weight": pytest.approx(0.1),
        "growth": pytest.approx(math.log(2)),
    }
    # A score of 0.01 is the middle of its scale.
    assert after == {
        "next": 1,
        "had": 1,
        "had now": 1,
        "again": pytest.approx(math.log(0.02)),
        "query in time": 1,
    }


def test_a_purchase_that_comes_round_again_is_due_by_the_shops_own_rhythm():
    early, due, late = features(
        rows(
            *(
                {"bought_age": age, "repurchase_pace": age / 20, "repurchase": 0.5}
                for age in (5.0, 20.0, 60.0)
            )
        )
    ).tolist()
    word = {name: i for i, name in enumerate(FEATURES)}
    assert (early[word["early"]], due[word["due"]], late[word["over"]]) == (1, 1, 1)
    assert due[word["due again"]] == 0.5 and not due[word["early"]]


def test_a_need_is_binned_by_strength_and_pace():
    table = features(
        rows(
            {"need": 0.15, "need_pace": -1.5, "need_bought": 1.0, **TREND},
            {"need": 0.05, "need_pace": 3.0, "need_bought": 0.0, **OWN},
        )
    )
    first, second = [{n for n, v in zip(FEATURES, row, strict=True) if v} for row in table.tolist()]
    assert {"need fair", "after bought too early"} <= first and "pressing own" not in first
    assert {"need some", "after liked far too late"} <= second and "pressing own" not in second


def test_what_the_shop_and_the_user_know_of_a_query_is_weighed():
    """A query of which everything is known, with other values than those of the tests above."""
    shop = {"success": 0.4, "focus": 0.7, "coverage": 0.6, "return_rate": 0.3}
    leaf = {"leaf_outcome": 1, "leaf_age": 20.0, "leaf_searches": 3}
    product = {"product_age": 2.0, "product_bought": 1.0}
    words = {"kind": "brand", "wording": 0.2, "taste": 0.15, "typed": 0.25}
    echoes = {"echo_last": 0.5, "echo_most": 0.75}
    need = {"need": 0.3, "need_pace": -0.1, "need_bought": 0.0}
    shares = {"trend_share": 0.02, "longer_share": 0.002, "short_share": 0.03}
    follows = {"neighbour_score": 0.1, "source": "p:x", "timing": math.log(3.0)}
    line = {**OWN, **shop, **leaf, **product, **words, **echoes, **need, **shares, **follows}
    (row,) = features(rows(line)).tolist()
    assert {name: value for name, value in zip(FEATURES, row, strict=True) if value} == {
        **dict.fromkeys(("own", "bought", "bought week", "own week"), 1),
        **{"back": pytest.approx(math.log(2)), "times": pytest.approx(math.log(2))},
        "bought long ago": pytest.approx(math.log(6)),
        **{"next": 1, "next score": pytest.approx(1), "product much too late": 1},
        **{"trend": 1, "trend share": pytest.approx(math.log10(2))},
        "short share": pytest.approx(math.log10(3)),
        "long share": pytest.approx(math.log10(0.2)),
        **{"trend weight": pytest.approx(0.2), "short weight": pytest.approx(0.3)},
        "growth": 2,  # ten times as many, of which no more than e ** 2 counts
        **{"success": pytest.approx(math.log(0.4)), "focus": pytest.approx(0.7)},
        **{"covered": pytest.approx(math.log(0.6)), "returned": pytest.approx(math.log(0.3))},
        "own returned": pytest.approx(math.log(0.3)),
        **dict.fromkeys(("leaf", "leaf liked", "leaf liked month"), 1),
        "leaf times": pytest.approx(math.log(3)),
        **dict.fromkeys(("main", "main bought", "main days", "kind brand"), 1),
        **dict.fromkeys(("wording", "own wording"), pytest.approx(math.log(0.3))),
        **{"taste": pytest.approx(math.log(0.2)), "used": pytest.approx(math.log(0.3))},
        **{"echo last": 0.5, "echo own": 0.75},
        **dict.fromkeys(("need good", "after liked in time"), 1),
        **dict.fromkeys(("pressing own", "pressing next", "pressing worded"), 1),
        "pressing taste": pytest.approx(math.log(0.2)),
    }


def test_a_product_that_the_user_never_searched_for_by_this_query_says_so():
    table = features(rows({"product_age": 50.0}, {"product_age": 50.0, **OWN}, {}))
    assert table[:, FEATURES.index("main")].tolist() == [1, 1, 0]
    assert table[:, FEATURES.index("main unsearched")].tolist() == [1, 0, 0]
    assert table[:, FEATURES.index("main old")].tolist() == [1, 1, 0]


def test_scales_of_time_have_their_middle_where_it_is_time():
    assert PACE.limits == tuple(-limit for limit in reversed(PACE.limits))  # logarithms
    assert DUE.word(1.0) == "due"


def test_features_of_several_moments_are_those_of_each():
    parts = [rows(OWN, TREND), rows(), rows(NEXT)]
    for table, part in zip(feature_tables(parts), parts, strict=True):
        np.testing.assert_array_equal(table, features(part))
    assert list(feature_tables([])) == []
