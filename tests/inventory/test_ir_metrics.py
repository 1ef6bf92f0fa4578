import pytest

from qagent_mlx.inventory.ir_metrics import ndcg


def test_ndcg_by_hand():
    assert ndcg(["a", "b"], ["b"], 10) == pytest.approx(0.6309, abs=1e-4)
    assert ndcg(["a"], ["b"], 10) == 0
    assert ndcg(["a", "b"], ["a", "b"], 10) == 1
    assert ndcg([], ["a"], 10) == ndcg(["a"], [], 10) == 0
    assert ndcg(["b", "a"], ["a"], 1) == 0  # behind the cut
