"""What one user's history teaches, by hand."""

from histories import START, history

from qagent_mlx.memory.event_log import DAY, from_microseconds
from qagent_mlx.memory.transitions import (
    ADJACENT,
    MAX_STEPS,
    WITHIN_DAYS,
    Cycle,
    Return,
    Step,
    transitions_of,
)


def steps(*sessions):
    return transitions_of(history(*sessions)).steps


def at(days):
    return from_microseconds(int(START + days * DAY))


def test_a_success_is_followed_by_the_successes_of_later_sessions():
    found = steps((0, ("kettle", "k")), (2, ("tea", "t")))
    known = at(2 + 1 / 48)
    assert found == [
        Step("u", source, "tea", known, ADJACENT, 2.0) for source in ("c:of k", "q:kettle", "p:k")
    ]
    # What was searched again follows its category only: that a query leads to itself is no news.
    again = steps((0, ("kettle", "k")), (2, ("kettle", "k")))
    assert [(step.source, step.query_key) for step in again] == [("c:of k", "kettle")]
    # Neither the session itself nor what found nothing.
    assert steps((0, ("kettle", "k"), ("tea", "t"))) == []
    assert steps((0, ("kettle", "k")), (2, ("tea", None))) == []


def test_nearer_successes_count_more_and_those_too_far_or_too_late_not_at_all():
    sessions = [(day, (f"q{day}", f"p{day}")) for day in range(MAX_STEPS + 2)]
    near = {s.query_key: s.closeness for s in steps(*sessions) if s.source == "q:q0"}
    assert near == {f"q{n}": ADJACENT // n for n in range(1, MAX_STEPS + 1)}
    for days, expected in ((WITHIN_DAYS - 0.5, {"tea"}), (WITHIN_DAYS, set())):
        found = steps((0, ("kettle", "k")), (days, ("tea", "t")))
        assert {step.query_key for step in found} == expected


def test_a_search_in_vain_is_followed_by_what_its_session_then_found():
    found = steps((0, ("kettel", None), ("kettle", "k"), ("kettle", "k")))
    assert found == [
        Step("u", "r:kettel", "kettle", at((1 + n) / 24 + 1 / 48), ADJACENT, (1 + n) / 24)
        for n in range(2)
    ]
    assert steps((0, ("kettel", None)), (1, ("kettle", "k"))) == []


def test_purchases_of_a_category_come_round():
    tea = ("tea", "t", True)
    cycles = transitions_of(history((0, tea), (10, tea), (14, tea))).cycles
    assert [cycle.gap for cycle in cycles] == [None, 10.0, 4.0]
    assert cycles[0] == Cycle("u", "of t", at(1 / 48), None, None)


def test_who_comes_back_comes_for_the_same_or_for_something_else():
    tea, cup = ("tea", "t", True), ("cup", "c")
    returns = transitions_of(history((0, tea), (3, tea), (7, cup))).returns
    assert returns == [
        Return("u", "tea", at(3 + 1 / 48), True, "b:of t", "of t", 3.0),
        Return("u", "tea", at(7 + 1 / 48), False, "b:of t", "of c", 4.0),
    ]
