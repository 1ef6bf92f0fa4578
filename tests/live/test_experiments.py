"""Experiments: who gets what, and what may be said of it when."""

from dataclasses import replace

import numpy as np
import pytest
from showing import NOW, after, did, show

from qagent_mlx.errors import QAgentError
from qagent_mlx.live.experiment_report import (
    anytime_half_width,
    compare,
    experiment_report,
    split_check,
    users_needed,
)
from qagent_mlx.live.experiments import (
    Experiment,
    experiments,
    find_experiment,
    running,
    start_experiment,
    stop_experiment,
)

ONE = Experiment("one", "memory", "agent", 0.3, "salt", NOW)


def test_an_arm_follows_from_the_user_and_the_salt_alone():
    users = [f"u{n}" for n in range(20_000)]
    arms = [ONE.arm(user) for user in users]
    assert arms == [replace(ONE, name="two", control="a").arm(user) for user in users]
    assert np.mean([arm == "treatment" for arm in arms]) == pytest.approx(0.3, abs=0.01)
    other = [replace(ONE, salt="pepper").arm(user) for user in users]
    both = np.mean([a == b == "treatment" for a, b in zip(arms, other, strict=True)])
    assert both == pytest.approx(0.09, abs=0.01)
    assert {ONE.systems(user) for user in users} == {("memory",), ("agent",)}
    assert replace(ONE, kind="interleave").systems("u1") == ("memory", "agent")


def test_one_runs_at_a_time_and_its_name_is_its_own(own_shop):
    with pytest.raises(QAgentError, match="qagent experiment start"):
        find_experiment(own_shop, None)
    made = start_experiment(own_shop, "first", "memory", "agent", 0.5, NOW)
    own_shop.close()  # a restart
    assert running(own_shop) == made and find_experiment(own_shop, None) == made
    with pytest.raises(QAgentError, match="first runs; stop it"):
        start_experiment(own_shop, "second", "memory", "agent", 0.5, NOW)
    assert stop_experiment(own_shop, after(days=1)).stopped == after(days=1)
    assert running(own_shop) is None and find_experiment(own_shop, None).name == "first"
    for name, share, message in (("first", 0.5, "another name"), ("x y", 0.5, "cannot name")):
        with pytest.raises(QAgentError, match=message):
            start_experiment(own_shop, name, "memory", "agent", share, NOW)
    with pytest.raises(QAgentError, match="no experiment runs"):
        stop_experiment(own_shop, NOW)
    assert [e.name for e in experiments(own_shop)] == ["first"]
    assert "salt" not in made.to_dict()


def a_night(rng, users, lift=0.0):
    """Answers and taken ones of users, each with a rate of their own."""
    is_treated = rng.random(users) < 0.5
    answers = rng.poisson(4, users) + 1.0
    habit = rng.beta(2, 6, users)
    rate = np.clip(habit * (1 + lift * is_treated), 0, 1)
    taken = rng.binomial(answers.astype(int), rate).astype(float)
    before = np.column_stack([habit * 20 + rng.normal(0, 0.5, users), np.zeros(users)])
    return taken, answers, is_treated, before


def test_an_a_a_test_is_significant_as_often_as_it_says():
    rng = np.random.default_rng(0)
    runs = [compare(*a_night(rng, 400)) for _ in range(600)]
    assert np.mean([run.p < 0.05 for run in runs]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([run.is_significant for run in runs]) < 0.02  # it may be looked at any time


def test_an_interval_that_is_looked_at_after_every_night_holds_no_zero_rarely():
    rng = np.random.default_rng(1)
    wrong = once = 0
    for _ in range(200):
        night = a_night(rng, 1500)
        looks = [compare(*(part[:n] for part in night)) for n in range(100, 1501, 100)]
        wrong += any(look.is_significant for look in looks)
        once += any(look.p < 0.05 for look in looks)
    assert wrong / 200 <= 0.05 < once / 200


def test_a_lift_is_found_and_its_interval_covers_it():
    rng = np.random.default_rng(2)
    found = [compare(*a_night(rng, 2500, lift=0.2)) for _ in range(60)]
    covered = [run.lo <= 0.25 * 0.2 <= run.hi for run in found]
    assert np.mean(covered) >= 0.95
    assert np.mean([run.is_significant for run in found]) > 0.9
    assert np.mean([run.lift for run in found]) == pytest.approx(0.2, abs=0.02)


def test_what_was_known_before_takes_noise_out_and_moves_nothing():
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(100):
        taken, answers, is_treated, before = a_night(rng, 800)
        pairs.append(
            (compare(taken, answers, is_treated), compare(taken, answers, is_treated, before))
        )
    plain, adjusted = zip(*pairs, strict=True)
    assert np.mean([a.variance_saved for a in adjusted]) > 0.2
    assert np.std([a.difference for a in adjusted]) < 0.9 * np.std([p.difference for p in plain])
    assert abs(np.mean([a.difference for a in adjusted])) < 0.004


@pytest.mark.parametrize("users", [(0, 0), (1, 0), (1, 1), (5, 1)])
def test_few_users_say_nothing(users):
    is_treated = np.array([False] * users[0] + [True] * users[1])
    ones = np.ones(len(is_treated))
    effect = compare(ones, ones, is_treated, np.zeros((len(is_treated), 2)))
    assert (effect.lo, effect.p, effect.is_significant) == (None, None, False)


def test_the_width_shrinks_with_users_and_never_below_that_of_one_look():
    widths = [anytime_half_width(1.0 / n, n, 2000) for n in (100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert all(w > 1.96 / n**0.5 for w, n in zip(widths, (100, 1000, 10_000), strict=True))


def test_a_broken_split_is_seen():
    assert split_check(500, 1000, 0.5) > 0.9
    assert split_check(430, 1000, 0.5) < 0.001


def test_the_report_counts_each_arm_and_leaves_out_who_saw_both(own_shop):
    experiment = start_experiment(own_shop, "x", "memory", "agent", 0.5, NOW)
    for n in range(12):
        user, arm = f"n{n}", "treatment" if n % 2 else "control"
        source = "top-line" if arm == "control" else "agent"
        named = {"experiment": "x", "arm": arm, "latency_ms": 10.0 * (1 + n % 2)}
        answer = show(own_shop, "usb cable", user=user, at=after(hours=1), source=source, **named)
        show(own_shop, user=user, at=after(hours=2), source=source, **named)  # nothing to show
        if n % 4 == 1:
            events = {"user_id": user, "recommendation_id": answer, "position": 1}
            did(
                own_shop,
                {
                    **events,
                    "time": after(hours=1, minutes=1),
                    "type": "search",
                    "query": "usb cable",
                },
                {
                    **events,
                    "time": after(hours=1, minutes=2),
                    "type": "purchase",
                    "product_id": "p000",
                },
            )
    show(own_shop, "lamp", user="n0", at=after(hours=3), experiment="x", arm="treatment")
    show(own_shop, "lamp", user="other", at=after(hours=3))
    own_shop.close()
    report = experiment_report(own_shop, experiment, after(days=1))
    assert report.users == {"control": 5, "treatment": 6} and report.switched == 1
    assert report.answers == {"control": 10, "treatment": 12}
    assert report.effects["ctr"].control == 0 and report.effects["ctr"].treatment == 3 / 12
    assert report.effects["orders"].treatment == 3 / 12
    assert report.effects["revenue"].treatment > 0
    assert report.guardrails["latency_ms"] == {"control": 10.0, "treatment": 20.0}
    assert report.guardrails["empty"] == {"control": 0.5, "treatment": 0.5}
    assert report.guardrails["fallbacks"] == {"control": 0.0, "treatment": 0.0}
    early = experiment_report(own_shop, experiment, after(minutes=30))
    assert early.users == {"control": 0, "treatment": 0} and not early.is_split_broken


def test_power_needs_something_that_was_shown(own_shop):
    assert users_needed(own_shop, 0.05) is None
    for n in range(40):
        answer = show(own_shop, "usb cable", user=f"n{n}", at=after(hours=n))
        if n % 4 == 0:
            did(
                own_shop,
                {
                    "user_id": f"n{n}",
                    "recommendation_id": answer,
                    "position": 1,
                    "time": after(hours=n, minutes=1),
                    "type": "search",
                    "query": "usb cable",
                },
            )
    own_shop.close()
    small, large = users_needed(own_shop, 0.05), users_needed(own_shop, 0.2)
    assert small == pytest.approx(16 * large, rel=0.01) and large > 300
