from datetime import datetime

import numpy as np
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.abtest import (
    AbConfig,
    abtest,
    compare_arms,
    fresh_shoppers,
    permutation_p,
    ratio_difference,
    sample_size,
    world_of,
)
from qagent_mlx.evaluate.baselines.popularity import baseline
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.simulator.click_model import SlateOutcome
from qagent_mlx.simulator.world import moment
from qagent_mlx.types import Case

SMALL = AbConfig(users=12, visits=2, draws=4)


@pytest.fixture(scope="module")
def world(simulated_shop):
    return world_of(simulated_shop)


@pytest.fixture(scope="module")
def report(simulated_shop):
    return abtest(simulated_shop, "popular", "repeat-last", SMALL)


def cases(users):
    return [Case(i, u, datetime(2026, 1, 1), "", "", (), 1, "test") for i, u in enumerate(users)]


def test_fresh_shoppers_are_new_and_nothing_of_theirs_comes_after_their_visits(world):
    since = moment(25)
    people = fresh_shoppers(world, SMALL, since)
    assert len({c.user_id for c in people.cases}) == 12
    assert all(c.user_id.startswith("fresh-") and c.as_of >= since for c in people.cases)
    assert all(not c.query and not c.products for c in people.cases)
    last = {c.user_id: c.as_of for c in people.cases}
    for event in people.log:
        assert event["time"] < last[event["user_id"]]
    again = fresh_shoppers(world, SMALL, since)
    assert (again.log, again.cases) == (people.log, people.cases)
    other = fresh_shoppers(world, AbConfig(users=12, visits=2, seed=1), since)
    assert other.log != people.log


def test_the_report_has_the_keys_that_others_read(report):
    assert report["users"] == 12 and report["rows"] >= 12
    for name in ("ctr", "cvr", "orders", "revenue"):
        row = report[name]
        assert set(row) == {"control", "treatment", "lift", "lo", "hi", "p", "needed"}
        assert 0 < row["p"] <= 1
        if row["lift"] is not None:
            assert row["lo"] <= row["lift"] <= row["hi"]
    assert report["ctr"]["treatment"] > report["ctr"]["control"]
    assert 0 <= report["same"] < 1


def test_swapping_the_arms_swaps_the_rates_and_keeps_p(simulated_shop, report):
    other = abtest(simulated_shop, "repeat-last", "popular", SMALL)
    for name in ("ctr", "cvr", "orders", "revenue"):
        assert other[name]["control"] == report[name]["treatment"]
        assert other[name]["treatment"] == report[name]["control"]
        assert other[name]["p"] == pytest.approx(report[name]["p"], abs=0.03)


def test_a_recommender_of_ones_own_can_be_asked(simulated_shop, report):
    class Silent:
        name = "silent"

        def rank(self, examples, k):
            assert all(e.profile.text for e in examples)
            return [Ranking(()) for _ in examples]

    own = {
        "mine": lambda shop, environment: baseline(shop, "repeat-last", environment),
        "silent": lambda shop, environment: Silent(),
    }
    made = abtest(simulated_shop, "silent", "mine", SMALL, systems=own)
    for name in ("ctr", "cvr", "orders", "revenue"):
        assert made[name]["treatment"] == report[name]["treatment"]
        assert made[name]["control"] == 0
    with pytest.raises(QAgentError, match="there is no policy"):
        abtest(simulated_shop, "silent", "unknown", SMALL, systems=own)


def test_the_shop_is_left_as_it_was(simulated_shop, report):
    fresh = simulated_shop.connection.execute(
        "SELECT count(*) FROM events WHERE user_id LIKE 'fresh-%'"
    ).fetchone()
    assert fresh == (0,)


def test_two_systems_that_show_the_same_do_not_differ():
    row = [
        [SlateOutcome(0, "a", 1, True, 9.0)],
        [SlateOutcome()],
        [SlateOutcome(1, "b", 1, False, 0.0)],
    ]
    found = compare_arms(cases(["u", "u", "v"]), [row, row], AbConfig())
    for name in ("ctr", "cvr", "orders", "revenue"):
        assert found[name]["p"] == 1.0
        assert found[name]["lift"] == found[name]["lo"] == found[name]["hi"] == 0.0
    assert found["ctr"]["control"] == pytest.approx(2 / 3)
    assert found["cvr"]["control"] == pytest.approx(1 / 2)
    assert found["revenue"]["control"] == pytest.approx(3.0)


def test_rates_are_over_all_shoppers_and_draws():
    control = [
        [SlateOutcome(0, "a"), SlateOutcome()],
        [SlateOutcome(0, "a", 1, True, 4.0), SlateOutcome(0, "a")],
    ]
    treatment = [[SlateOutcome(), SlateOutcome()], [SlateOutcome(0, "a", 1, True, 4.0)] * 2]
    found = compare_arms(cases(["u", "v"]), [control, treatment], AbConfig())
    assert found["ctr"]["control"] == pytest.approx(3 / 4)
    assert found["ctr"]["treatment"] == pytest.approx(2 / 4)
    assert found["cvr"]["control"] == pytest.approx(1 / 3)
    assert found["cvr"]["treatment"] == pytest.approx(1.0)
    assert found["orders"]["lift"] == pytest.approx(1.0)
    assert (found["users"], found["rows"]) == (2, 2)


def test_a_control_without_any_success_has_no_lift():
    zero, one = [[SlateOutcome()]], [[SlateOutcome(0, "a", 1, True, 4.0)]]
    found = compare_arms(cases(["u"]), [zero, one], AbConfig())
    assert found["ctr"]["lift"] is found["ctr"]["lo"] is found["ctr"]["needed"] is None


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
        row = ratio_difference(top, bottom, seed)
        covered += row["lo"] <= 0.2 <= row["hi"]
    assert covered >= 33


def test_the_sample_size_is_the_textbook_one_for_a_plain_rate():
    random = np.random.default_rng(2)
    top = (random.random((20, 2, 4000)) < 0.25).astype(float)
    found = sample_size(top, np.ones_like(top), 0.1)
    # 2 (1.96 + 0.84)^2 p (1 - p) / (0.1 p)^2
    assert found == pytest.approx(2 * 7.849 * 0.75 / (0.01 * 0.25), rel=0.03)
    assert sample_size(top, np.ones_like(top), 0.2) == pytest.approx(found / 4, rel=0.01)


def test_a_shop_that_is_not_simulated_is_refused(tiny_shop):
    with pytest.raises(QAgentError, match="not a simulated shop"):
        abtest(tiny_shop, "popular", "trending", SMALL)


def test_unknown_and_equal_names_are_refused_before_anything_is_simulated(simulated_shop):
    stages = []
    for name in ("nobody", "sample (no nothing)"):
        with pytest.raises(QAgentError, match="no policy .*popular.*ablation"):
            abtest(simulated_shop, "popular", name, SMALL, on_stage=stages.append)
    with pytest.raises(QAgentError, match="no policy popular"):
        abtest(simulated_shop, "popular", "popular (no search)", SMALL, on_stage=stages.append)
    assert stages == []
    with pytest.raises(QAgentError, match="the same"):
        abtest(simulated_shop, "popular", "popular")


def test_a_test_that_begins_after_all_visits_is_refused(world):
    with pytest.raises(QAgentError, match="--test-from"):
        fresh_shoppers(world, AbConfig(users=3), moment(400))
