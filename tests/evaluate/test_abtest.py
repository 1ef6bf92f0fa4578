from datetime import datetime

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.abtest import abtest, compare_arms, fresh_shoppers, simulated_world
from qagent_mlx.evaluate.baselines.registry import BASELINES, BaselineData
from qagent_mlx.evaluate.config import AbConfig
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.evaluate.oracle import ORACLES
from qagent_mlx.simulator.click_model import SlateOutcome
from qagent_mlx.simulator.world import moment
from qagent_mlx.types import Case
from qagent_mlx.utils.settings import SettingError

ARMS = ("control", "treatment")
SMALL = AbConfig(users=12, visits=2, draws=4)


@pytest.fixture(scope="module")
def world(simulated_shop):
    return simulated_world(simulated_shop)


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
    values = report.to_dict()
    assert values["users"] == 12 and values["rows"] >= 12
    for name in ("ctr", "cvr", "orders", "revenue"):
        rate = values[name]
        assert set(rate) == {"control", "treatment", "lift", "lo", "hi", "p", "needed"}
        assert 0 < rate["p"] <= 1
        if rate["lift"] is not None:
            assert rate["lo"] <= rate["lift"] <= rate["hi"]
    assert values["ctr"]["treatment"] > values["ctr"]["control"]
    assert 0 <= values["same"] < 1
    assert set(values) == {
        *("arms", "ctr", "cvr", "orders", "revenue", "users", "rows"),
        *("same", "tapped", "since", "settings"),
    }
    assert all(set(query) == {"query", "taps"} for arm in values["tapped"] for query in arm)


def test_swapping_the_arms_swaps_the_rates_and_keeps_p(simulated_shop, report):
    other = abtest(simulated_shop, "repeat-last", "popular", SMALL)
    for name in ("ctr", "cvr", "orders", "revenue"):
        swapped, rate = other.rates[name], report.rates[name]
        assert (swapped.control, swapped.treatment) == (rate.treatment, rate.control)
        assert swapped.p == pytest.approx(rate.p, abs=0.03)


def test_a_recommender_of_ones_own_can_be_asked(simulated_shop, report):
    class Silent:
        name = "silent"

        def rank(self, examples, k):
            assert all(e.profile.text for e in examples)
            return [Ranking(()) for _ in examples]

    own = {
        "mine": lambda shop, environment: BASELINES["repeat-last"](BaselineData(shop)),
        "silent": lambda shop, environment: Silent(),
    }
    made = abtest(simulated_shop, "silent", "mine", SMALL, systems=own)
    for name in ("ctr", "cvr", "orders", "revenue"):
        assert made.rates[name].treatment == report.rates[name].treatment
        assert made.rates[name].control == 0
    with pytest.raises(QAgentError, match="there is no policy"):
        abtest(simulated_shop, "silent", "unknown", SMALL, systems=own)


def test_who_knows_the_shoppers_minds_sells_and_is_tapped_most(simulated_shop):
    config = AbConfig(users=12, visits=2, k=3, draws=4)
    control = "top-line"
    reports = {name: abtest(simulated_shop, control, name, config) for name in ORACLES}
    orders = {name: report.rates["orders"].treatment for name, report in reports.items()}
    taps = {name: report.rates["ctr"].treatment for name, report in reports.items()}
    assert orders["oracle"] > reports["oracle"].rates["orders"].control
    assert orders["oracle"] >= orders["oracle-lines"]
    assert taps["oracle-taps"] == max(taps.values()) > reports["oracle"].rates["ctr"].control


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
    found = compare_arms(ARMS, cases(["u", "u", "v"]), [row, row], AbConfig())
    for name in ("ctr", "cvr", "orders", "revenue"):
        rate = found.rates[name]
        assert rate.p == 1.0
        assert rate.lift == rate.lo == rate.hi == 0.0
    assert found.rates["ctr"].control == pytest.approx(2 / 3)
    assert found.rates["cvr"].control == pytest.approx(1 / 2)
    assert found.rates["revenue"].control == pytest.approx(3.0)
    assert found.identical == 1.0
    assert found.most_tapped == ([("a", 1), ("b", 1)], [("a", 1), ("b", 1)])


def test_rates_are_over_all_shoppers_and_draws():
    control = [
        [SlateOutcome(0, "a"), SlateOutcome()],
        [SlateOutcome(0, "a", 1, True, 4.0), SlateOutcome(0, "a")],
    ]
    treatment = [[SlateOutcome(), SlateOutcome()], [SlateOutcome(0, "a", 1, True, 4.0)] * 2]
    found = compare_arms(ARMS, cases(["u", "v"]), [control, treatment], AbConfig())
    assert found.rates["ctr"].control == pytest.approx(3 / 4)
    assert found.rates["ctr"].treatment == pytest.approx(2 / 4)
    assert found.rates["cvr"].control == pytest.approx(1 / 3)
    assert found.rates["cvr"].treatment == pytest.approx(1.0)
    assert found.rates["orders"].lift == pytest.approx(1.0)
    assert (found.users, found.visits) == (2, 2)


def test_a_control_without_any_success_has_no_lift():
    zero, one = [[SlateOutcome()]], [[SlateOutcome(0, "a", 1, True, 4.0)]]
    found = compare_arms(ARMS, cases(["u"]), [zero, one], AbConfig())
    rate = found.rates["ctr"]
    assert rate.lift is rate.lo is rate.needed is None


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
    with pytest.raises(SettingError, match="test_from is too late: only 0 of "):
        fresh_shoppers(world, AbConfig(users=3), moment(400))
