"""Two systems share each answer: what is shown, and who is preferred."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from showing import NOW, after, did, show

from qagent_mlx.live.experiments import find_experiment, start_experiment
from qagent_mlx.live.interleaving import interleaving_report, prefer, report_of, team_draft
from qagent_mlx.live.off_policy import logged_answers

items = st.lists(st.integers(0, 9), max_size=8, unique=True)


@given(items, items, st.integers(1, 8), st.integers(0, 99))
def test_a_draft_shows_the_best_of_both_once_and_turns_are_fair(control, treatment, k, seed):
    chosen, teams = team_draft(control, treatment, k, int, random.Random(seed))
    assert len(chosen) == len(teams) == len(set(chosen)) == min(k, len({*control, *treatment}))
    for arm, ranking in (("control", control), ("treatment", treatment)):
        own = [item for item, team in zip(chosen, teams, strict=True) if team == arm]
        assert own == [item for item in ranking if item in own]  # in its own order
    if not set(control) & set(treatment):
        taken = Counter(teams)
        most = min(len(control), len(treatment))
        if k <= 2 * most:
            assert abs(taken["control"] - taken["treatment"]) <= 1
    if control == treatment:
        assert chosen == control[:k]


def test_each_system_is_first_half_of_the_time():
    chance = random.Random(0)
    first = [team_draft("abc", "xyz", 3, str, chance)[1][0] for _ in range(4000)]
    assert np.mean([arm == "control" for arm in first]) == pytest.approx(0.5, abs=0.03)


def a_night(rng, users, better=0.0):
    """Answers of users, of which either system wins some."""
    answers = rng.poisson(4, users) + 1.0
    habit = rng.beta(2, 6, users)
    control = rng.binomial(answers.astype(int), habit / 2)
    treatment = rng.binomial(
        answers.astype(int) - control, np.clip(habit / 2 * (1 + better) / (1 - habit / 2), 0, 1)
    )
    return control.astype(float), treatment.astype(float), answers


def test_equal_systems_are_told_apart_as_rarely_as_it_says_and_a_better_one_is_found():
    rng = np.random.default_rng(0)
    equal = [prefer(*a_night(rng, 300)) for _ in range(600)]
    assert np.mean([found.p < 0.05 for found in equal]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([found.is_significant for found in equal]) < 0.02
    better = [prefer(*a_night(rng, 1500, better=0.4)) for _ in range(40)]
    assert np.mean([found.is_significant and found.margin > 0 for found in better]) > 0.9


@pytest.mark.parametrize("users", [0, 1, 5])
def test_few_users_or_no_wins_say_nothing(users):
    found = prefer(np.zeros(users), np.zeros(users), np.ones(users))
    assert (found.lo, found.p, found.is_significant) == (None, None, False)


def test_a_query_counts_for_the_system_that_named_it(own_shop):
    experiment = start_experiment(own_shop, "x", "memory", "agent", 0.5, NOW, "interleave")
    taken = {"u01": ["usb cable"], "u02": ["desk lamp"], "u03": ["usb cable", "desk lamp"]}
    for n, (user, queries) in enumerate(taken.items()):
        answer = show(
            own_shop,
            *("usb cable", "desk lamp"),
            user=user,
            at=after(hours=n),
            source="interleaved",
            experiment="x",
            teams=("treatment", "control"),
        )
        for query in queries:
            event = {"user_id": user, "recommendation_id": answer, "query": query}
            did(own_shop, {**event, "type": "search", "time": after(hours=n, minutes=1)})
    bought = {"user_id": "u01", "type": "purchase", "product_id": "p000"}
    did(own_shop, {**bought, "query": "usb cable", "time": after(minutes=2)})
    # One that fell back to what is trending was shared by nobody.
    show(own_shop, "phone case", user="u04", at=after(hours=5), source="trending", experiment="x")
    own_shop.close()
    assert find_experiment(own_shop, "x") == experiment
    report = interleaving_report(own_shop, experiment, after(days=1))
    assert (report.users, report.answers) == (3, 3)
    won = report.preferences["taken"]
    assert (won.control, won.treatment, won.margin) == (1, 1, 0.0)  # and a tie
    assert report.preferences["bought"].treatment == 1
    assert report_of(own_shop, experiment, after(days=1)) == report
    assert [answer.keys for answer in logged_answers(own_shop)] == [("phonecase",)]
