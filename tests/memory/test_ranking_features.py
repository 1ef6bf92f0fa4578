import math

import numpy as np
import pytest
from candidate_rows import NEXT, OWN, TREND, rows

from qagent_mlx.memory.ranking_features import FEATURES, feature_tables, features


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


def test_features_of_several_moments_are_those_of_each():
    parts = [rows(OWN, TREND), rows(), rows(NEXT)]
    for table, part in zip(feature_tables(parts), parts, strict=True):
        np.testing.assert_array_equal(table, features(part))
    assert list(feature_tables([])) == []
