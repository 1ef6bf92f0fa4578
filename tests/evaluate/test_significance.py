import math
from dataclasses import astuple

import numpy as np
import pytest

from qagent_mlx.evaluate.significance import (
    PairedDifference,
    bootstrap,
    compare_rates,
    holm,
    paired_difference,
    permutation_p,
    sample_size,
)


def test_bootstrap_holds_the_mean_and_narrows_with_cases():
    random = np.random.default_rng(1)
    small, large = random.random(50), random.random(5000)
    for values in (small, large):
        interval = bootstrap(values, seed=3)
        assert interval.mean == pytest.approx(values.mean())
        assert interval.lo < interval.mean < interval.hi
        error = values.std() / math.sqrt(len(values))
        assert (interval.hi - interval.lo) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap(small, seed=3) == bootstrap(small, seed=3)
    assert bootstrap(small, seed=3) != bootstrap(small, seed=4)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        interval = bootstrap(random.random(100) < 0.3, seed=seed, samples=300)
        held += interval.lo <= 0.3 <= interval.hi
    assert 0.89 <= held / 200 <= 0.99


def test_bootstrap_in_chunks_equals_the_same_resamples_at_once(monkeypatch):
    values = np.random.default_rng(2).random(64)
    whole = bootstrap(values, samples=500)
    monkeypatch.setattr("qagent_mlx.evaluate.significance._CHUNK", 640)
    assert astuple(bootstrap(values, samples=500)) == pytest.approx(astuple(whole))


@pytest.mark.parametrize("values", [np.empty(0), np.ones((2, 3))])
def test_bootstrap_refuses_what_is_not_one_number_a_case(values):
    with pytest.raises(ValueError, match="one number a case"):
        bootstrap(values)


def test_paired_finds_a_difference_that_is_there():
    random = np.random.default_rng(7)
    hard = random.random(400)
    b = (random.random(400) < hard).astype(float)
    a = np.where(random.random(400) < 0.1, 1.0, b)
    found = paired_difference(a, b)
    assert found.diff == pytest.approx((a - b).mean())
    assert 0 < found.lo < found.diff < found.hi
    assert found.p < 0.001
    back = paired_difference(b, a)
    assert back.diff == -found.diff and back.hi < 0 and back.p < 0.001


def test_paired_p_is_uniform_when_there_is_no_difference():
    random = np.random.default_rng(11)
    found = []
    for seed in range(200):
        a, b = random.random((2, 60))
        found.append(paired_difference(a, b, seed=seed, samples=50).p)
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
    assert 0.4 <= np.mean(found) <= 0.6


def test_paired_p_equals_the_exact_sign_test_on_wins_and_losses():
    a = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 20)
    b = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 20)
    exact = 2 * sum(math.comb(10, i) for i in range(3)) / 2**10
    assert paired_difference(a, b).p == pytest.approx(exact, abs=0.015)


def test_equal_systems_differ_by_nothing():
    a = np.array([0.0, 1.0, 1.0])
    assert paired_difference(a, a) == PairedDifference(diff=0.0, lo=0.0, hi=0.0, p=1.0)


def test_paired_refuses_systems_that_saw_different_cases():
    with pytest.raises(ValueError, match="same cases"):
        paired_difference(np.ones(5), np.ones(1))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_is_uniform_where_nothing_differs_and_small_where_much_does():
    random = np.random.default_rng(0)
    p = []
    for seed in range(120):
        bottom = np.ones((2, 60))
        top = (random.random((2, 60)) < 0.3).astype(float)
        p.append(permutation_p(top, bottom, seed))
    assert np.mean(np.array(p) < 0.05) <= 0.11
    assert 0.4 < np.mean(p) < 0.65
    top = np.stack([random.random(60) < 0.2, random.random(60) < 0.7]).astype(float)
    assert permutation_p(top, np.ones((2, 60))) < 0.01


def test_the_interval_covers_the_true_lift_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(40):
        bottom = random.integers(1, 4, (2, 200)).astype(float)
        top = random.binomial(bottom.astype(int), [[0.2], [0.24]]).astype(float)
        rate = compare_rates(top, bottom, seed)
        covered += rate.lo <= 0.2 <= rate.hi
    assert covered >= 33


def test_the_sample_size_is_the_textbook_one_for_a_plain_rate():
    random = np.random.default_rng(2)
    top = (random.random((20, 2, 4000)) < 0.25).astype(float)
    found = sample_size(top, np.ones_like(top), 0.1)
    # 2 (1.96 + 0.84)^2 p (1 - p) / (0.1 p)^2
    assert found == pytest.approx(2 * 7.849 * 0.75 / (0.01 * 0.25), rel=0.03)
    assert sample_size(top, np.ones_like(top), 0.2) == pytest.approx(found / 4, rel=0.01)
