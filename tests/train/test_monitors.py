"""Each alarm rings when it should, only then, and the same again after a resume."""

from dataclasses import replace

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.train.memory_estimate import check_memory
from qagent_mlx.train.monitors import AlarmConfig, AlarmMonitor, with_actions

CONFIG = AlarmConfig(patience=3)
FINE = {
    "recommended": 0.9,
    "entropy": 0.4,
    "kl": 0.1,
    "groups": 8,
    "dropped_groups": 2,
    "ratio_drift": 1e-5,
}
TROUBLE = {
    "format": {"recommended": 0.1},
    "entropy": {"entropy": 0.001},
    "kl": {"kl": 7.0},
    "dropped": {"dropped_groups": 8},
}
WORDS = {
    "format": "format collapse",
    "entropy": "entropy collapse",
    "kl": "KL runaway",
    "dropped": "all groups dropped",
}


def fired(monitor, *rows):
    steps = enumerate(rows, 1)
    return [alert for i, row in steps for alert in monitor.observe({"step": i, **row})]


@pytest.mark.parametrize("name", TROUBLE)
def test_an_alarm_rings_after_so_many_steps_in_a_row_and_says_why(name):
    bad = {**FINE, **TROUBLE[name]}
    watch = AlarmMonitor(replace(CONFIG, **{name: "stop"}))
    (alarm,) = fired(watch, bad, bad, FINE, bad, bad, bad)
    assert (alarm.name, alarm.action, alarm.step) == (name, "stop", 6)
    assert WORDS[name] in alarm.reason


@pytest.mark.parametrize("name", TROUBLE)
def test_an_alarm_that_is_off_is_silent(name):
    bad = {**FINE, **TROUBLE[name]}
    assert not fired(AlarmMonitor(replace(CONFIG, **{name: "off"})), *[bad] * 6)


def test_a_warning_is_given_once_until_things_are_well_again():
    bad = {**FINE, **TROUBLE["kl"]}
    watch = AlarmMonitor(replace(CONFIG, kl="warn"))
    assert [a.step for a in fired(watch, *[bad] * 5, FINE, *[bad] * 4)] == [3, 9]


def test_a_first_ratio_that_is_not_one_rings_at_once():
    (alarm,) = fired(AlarmMonitor(CONFIG), FINE, {**FINE, "ratio_drift": 0.2})
    assert (alarm.name, alarm.step) == ("ratio", 2)
    assert "first ratio is not 1" in alarm.reason


def test_what_is_no_number_rings_like_what_is_too_large():
    bad = {**FINE, "kl": float("nan")}
    assert [a.name for a in fired(AlarmMonitor(CONFIG), bad, bad, bad)] == ["kl"]


def test_a_step_without_an_update_rings_for_its_groups_only():
    bad = {"recommended": 1.0, "groups": 8, "dropped_groups": 8}
    assert [a.name for a in fired(AlarmMonitor(CONFIG), bad, bad, bad)] == ["dropped"]


def test_a_resumed_watch_stands_where_the_unbroken_one_stood():
    bad = {**FINE, **TROUBLE["kl"]}
    rows = [{"step": i, **row} for i, row in enumerate([FINE, bad, bad, bad, bad, FINE, bad], 1)]
    for cut in range(len(rows)):
        whole, resumed = (
            AlarmMonitor(replace(CONFIG, kl="warn")),
            AlarmMonitor(replace(CONFIG, kl="warn")),
        )
        before = [whole.observe(row) for row in rows]
        resumed.replay(rows[:cut])
        assert [resumed.observe(row) for row in rows[cut:]] == before[cut:]


def test_actions_and_thresholds_are_read_and_wrong_ones_refused():
    config = with_actions(AlarmConfig(), ["kl=warn", "kl_ceiling=2", "patience=2"])
    assert (config.kl, config.kl_ceiling, config.patience) == ("warn", 2.0, 2)
    for pair, words in (
        ("kl=loud", "kl must be one of stop, warn, off"),
        ("kll=stop", "unknown setting 'kll'; did you mean kl?"),
        ("kl_ceiling=high", "kl_ceiling must be a number, not 'high'"),
        ("patience=2.5", "patience must be a whole number"),
        ("kl", "kl must be one of stop, warn, off"),
    ):
        with pytest.raises(QAgentError) as caught:
            with_actions(AlarmConfig(), [pair])
        assert words in str(caught.value)


def test_a_run_that_will_not_fit_stops_warns_or_goes_on():
    gib = 2**30
    assert check_memory(8 * gib, AlarmConfig(), 10 * gib) == ""
    with pytest.raises(QAgentError, match="needs about 9.5 GiB, and 9.0 GiB may be used"):
        check_memory(int(9.5 * gib), AlarmConfig(), 10 * gib)
    assert "lower token_budget" in check_memory(20 * gib, AlarmConfig(memory="warn"), 10 * gib)
    assert check_memory(20 * gib, AlarmConfig(memory="off"), 10 * gib) == ""
