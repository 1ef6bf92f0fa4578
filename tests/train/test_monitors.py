"""Each alarm rings when it should, only then, and the same again after a resume."""

from dataclasses import replace

import mlx.core as mx
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.memory_estimate import check_memory
from qagent_mlx.train.monitors import (
    DRIFT,
    ROUNDED_DRIFT,
    AlarmConfig,
    AlarmMonitor,
    StretchedSchedule,
    alarms_for,
    with_actions,
)

CONFIG = AlarmConfig(patience=3)
FINE = {
    "recommended": 0.9,
    "entropy": 0.4,
    "kl": 0.1,
    "groups": 8,
    "dropped_groups": 2,
    "ratio_drift": 1e-5,
    "first_line": 0.9,
    "words": 0.2,
    "distinct": 1.1,
}
TROUBLE = {
    "format": {"recommended": 0.1},
    "entropy": {"entropy": 0.001},
    "searches": {"first_line": 0.998},
    "words": {"words": 0.004},
    "distinct": {"distinct": 0.2},
    "kl": {"kl": 7.0},
    "dropped": {"dropped_groups": 8},
}
WORDS = {
    "format": "format collapse",
    "entropy": "entropy collapse",
    "searches": "search collapse: 99.8%",
    "words": "nothing is written: 0.4% of the searches are in words (floor 1%)",
    "distinct": "the same for everybody",
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


def test_a_gradient_that_explodes_rings_at_once_and_a_large_one_does_not():
    watch = AlarmMonitor(CONFIG)
    rows = [{**FINE, "grad_norm": norm} for norm in (0.4, 20.0, 42.0, 75.0, 0.3, 321.0)]
    alarms = fired(watch, *rows)
    assert [(alarm.name, alarm.step) for alarm in alarms] == [("gradient", 3), ("gradient", 6)]
    assert "gradient explosion: a norm of 42" in alarms[0].reason
    assert "lower learning_rate" in alarms[0].reason
    assert not fired(AlarmMonitor(replace(CONFIG, gradient="off")), *rows)
    assert not fired(AlarmMonitor(replace(CONFIG, gradient_ceiling=400)), *rows)


def test_what_is_no_number_rings_like_what_is_too_large():
    bad = {**FINE, "kl": float("nan")}
    assert [a.name for a in fired(AlarmMonitor(CONFIG), bad, bad, bad)] == ["kl"]
    assert [a.name for a in fired(AlarmMonitor(CONFIG), {**FINE, "grad_norm": float("nan")})] == [
        "gradient"
    ]


def test_a_step_without_an_update_rings_for_its_groups_only():
    bad = {"recommended": 1.0, "groups": 8, "dropped_groups": 8}
    assert [a.name for a in fired(AlarmMonitor(CONFIG), bad, bad, bad)] == ["dropped"]


def test_entropy_rings_although_nothing_is_updated():
    """As at a learning rate of 1e-3: chains are all alike, so no step has an update's entropy."""
    settled = {"recommended": 1.0, "groups": 8, "dropped_groups": 8, "surprise": 0.001}
    rows = [settled, {**FINE, "entropy": 0.002}, settled]
    assert [a.name for a in fired(AlarmMonitor(CONFIG), *rows)] == ["entropy"]
    assert not fired(
        AlarmMonitor(replace(CONFIG, dropped="off")), *[{**settled, "surprise": 0.1}] * 5
    )


def test_a_policy_in_half_precision_may_score_its_samples_less_exactly(nano_policy, new_nano):
    config = AlarmConfig(patience=1)
    rounded = new_nano()[0]
    rounded.model.set_dtype(mx.bfloat16)
    for policy, ceiling in ((nano_policy, DRIFT), (rounded, ROUNDED_DRIFT)):
        monitor = AlarmMonitor(alarms_for(config, policy))
        assert not fired(monitor, {**FINE, "ratio_drift": ceiling - 1e-3})
        assert [a.name for a in fired(monitor, {**FINE, "ratio_drift": ceiling + 1e-3})] == [
            "ratio"
        ]
        assert alarms_for(replace(config, ratio_ceiling=0.5), policy).ratio_ceiling == 0.5


def test_a_policy_that_may_search_once_is_no_search_collapse(new_nano):
    policy = new_nano()[0]
    assert alarms_for(AlarmConfig(), policy).searches == "warn"
    policy.info = replace(policy.info, agent=replace(policy.info.agent, max_searches=1))
    assert alarms_for(AlarmConfig(), policy).searches == "off"


def test_only_an_agent_that_may_write_can_cease_to(new_nano):
    policy = new_nano()[0]
    assert alarms_for(AlarmConfig(), policy).words == "off"
    policy.info = replace(policy.info, agent=replace(policy.info.agent, writes=True))
    assert alarms_for(AlarmConfig(), policy).words == "warn"
    policy.info = replace(policy.info, agent=replace(policy.info.agent, search=False))
    assert alarms_for(AlarmConfig(), policy).words == "off"


def test_a_cosine_that_is_stretched_says_by_how_much_the_rate_jumps():
    before = GrpoConfig(steps=100, schedule="cosine", learning_rate=1e-3)
    watch = StretchedSchedule(before, replace(before, steps=200))
    watch.replay([{"step": n} for n in range(1, 81)])
    (alert,) = watch.observe({"step": 81})
    rates = [f"{c.learning_rate_at(80):.2g}" for c in (replace(before, steps=200), before)]
    assert (alert.name, alert.action, alert.step) == ("schedule", "warn", 81)
    assert f"goes on at {rates[0]} instead of {rates[1]}" in alert.reason
    assert watch.observe({"step": 82}) == []  # once
    assert StretchedSchedule(before, before).observe({"step": 81}) == []
    constant = replace(before, schedule="constant")
    assert StretchedSchedule(constant, replace(constant, steps=200)).observe({"step": 81}) == []


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


def test_what_stops_a_run_is_said_first():
    bad = {**FINE, **TROUBLE["format"], **TROUBLE["kl"], **TROUBLE["distinct"]}
    alerts = fired(
        AlarmMonitor(replace(CONFIG, format="warn", kl="stop", distinct="warn")), *[bad] * 3
    )
    assert [(alert.name, alert.action) for alert in alerts] == [
        *(("kl", "stop"), ("format", "warn"), ("distinct", "warn"))
    ]


def test_an_alarm_that_cannot_be_is_refused_before_the_first_step():
    with pytest.raises(QAgentError, match="patience must be"):
        AlarmMonitor(replace(CONFIG, patience=0))
