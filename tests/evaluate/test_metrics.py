import math

import numpy as np
import pytest
from shelf import AS_OF, Shelf, a_case

from qagent_mlx.evaluate.metrics import METRICS, Ranking, calibration, diversity, score_case


def test_a_right_query_with_its_product_on_top_scores_everything():
    found = score_case(Shelf({"red-SHOE": ("p2", "p9", "p1")}), a_case(), Ranking(("red-SHOE",)))
    assert tuple(found) == METRICS
    for name in ("q_em", "q_rouge", "q_hit@5", "i_hit@1", "i_hit@10", "cons@1", "mrr", "coverage"):
        assert found[name] == 1.0, name
    assert found["row_hit@10"] == 1 and found["own_words"] == 1
    best = 1 + 1 / math.log2(3)
    assert found["i_ndcg@10"] == pytest.approx((1 + 1 / math.log2(4)) / best)


def test_query_and_item_are_judged_apart_and_consistency_needs_both():
    shelf = Shelf({"red shoe": ("p9", "p1"), "red boot": ("p1",)})
    query_only = score_case(shelf, a_case(), Ranking(("red shoe",)))
    assert (query_only["q_em"], query_only["i_hit@1"], query_only["cons@1"]) == (1, 0, 0)
    assert query_only["i_hit@10"] == 1
    item_only = score_case(shelf, a_case(), Ranking(("red boot",)))
    assert (item_only["q_em"], item_only["i_hit@1"], item_only["cons@1"]) == (0, 1, 0)
    assert item_only["q_rouge"] == pytest.approx(0.5)  # one word of two, both ways


def test_only_the_top_query_is_judged_by_its_products_and_at_the_moment_of_the_case():
    shelf = Shelf({"boot": ("p1",)})
    found = score_case(shelf, a_case(), Ranking(("hat", "boot", "RED shoe")))
    assert shelf.asked == [("hat", AS_OF), ("boot", AS_OF), ("RED shoe", AS_OF)]
    assert found["q_em"] == 0 and found["i_hit@1"] == 0 and found["q_hit@5"] == 1
    assert found["i_hit@10"] == 0 and found["zero_result"] == 1
    assert found["mrr"] == pytest.approx(1 / 3)


def test_a_row_hits_where_one_of_five_queries_shows_what_was_engaged_with():
    def hit(queries, **found):
        return score_case(Shelf(found), a_case(), Ranking(queries))["row_hit@10"]

    ten = tuple(f"x{i}" for i in range(10))
    assert hit(("a", "b"), b=(*ten[:9], "p2")) == 1
    assert hit(("a", "b"), b=(*ten, "p2")) == 0
    assert hit(("a", "b", "c", "d", "e"), e=("p1",)) == 1
    assert hit(("a", "b", "c", "d", "e", "f"), f=("p1",)) == 0
    assert hit((), a=("p1",)) == 0


def test_own_words_are_the_queries_that_no_line_has():
    lines = ("Red Shoe", "blue hat")

    def own(*queries):
        return score_case(Shelf({}), a_case(), Ranking(queries), lines)["own_words"]

    assert own("red-shoe", "BLUE hat") == 0
    assert own("red shoe", "green hat", "sock", "?!") == pytest.approx(2 / 3)
    assert own("a", "b", "c", "d", "e", "red shoe") == 1  # of the row alone
    assert own() == 0


def test_where_nothing_was_typed_no_query_is_right():
    case = a_case(query="", key="")
    found = score_case(Shelf({"hat": ("p1",)}), case, Ranking(("?!", "hat")))
    assert (found["q_em"], found["q_hit@5"], found["mrr"], found["q_rouge"]) == (0, 0, 0, 0)
    assert found["row_hit@10"] == 1


def test_places_beyond_five_and_ten_do_not_count():
    late = Ranking(("a", "b", "c", "d", "e", "red shoe"))
    found = score_case(Shelf({"a": (*(f"x{i}" for i in range(10)), "p1")}), a_case(), late)
    assert found["q_hit@5"] == 0 and found["mrr"] == pytest.approx(1 / 6)
    assert found["i_hit@10"] == 0 and found["i_ndcg@10"] == 0


@pytest.mark.parametrize("queries", [(), ("",), ("?!",)])
def test_nothing_recommended_scores_nothing(queries):
    shelf = Shelf({"": ("p1",), "?!": ("p1",)})
    ranking = Ranking(queries, valid=0.25, searches=1.5, tokens=30.0)
    found = score_case(shelf, a_case(), ranking)
    costs = {"valid": 0.25, "searches": 1.5, "tokens": 30.0}
    assert found == {name: costs.get(name, 0.0) for name in METRICS}
    assert shelf.asked == []


def test_diversity_is_one_minus_shared_words():
    assert diversity(("red shoe", "blue boot")) == 1.0
    assert diversity(("red shoe", "shoe RED")) == 0.0
    assert diversity(("red shoe", "red boot", "hat")) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert diversity(("hat",)) == diversity(()) == 0.0


def test_a_first_query_that_finds_nothing_is_a_zero_result():
    assert score_case(Shelf({}), a_case(), Ranking(("hat",)))["zero_result"] == 1.0
    assert score_case(Shelf({"hat": ("p9",)}), a_case(), Ranking(("hat",)))["zero_result"] == 0.0
    assert score_case(Shelf({}), a_case(), Ranking(()))["zero_result"] == 0.0


def test_calibration_is_the_gap_between_said_and_true():
    scores = np.array([0.95] * 10 + [0.25] * 10)
    hits = np.array([1.0] * 9 + [0.0] + [0.0] * 10)
    found = calibration(scores, hits)
    assert found.ece == pytest.approx((0.05 + 0.25) / 2)
    assert found.brier == pytest.approx(np.mean((scores - hits) ** 2))
    assert [b.cases for b in found.bins] == [10, 10]
    assert calibration(np.array([1.0, 0.0]), np.array([1.0, 0.0])).ece == 0.0
