import dataclasses
from datetime import datetime

import pytest

from qagent_mlx.agent.types import Group, Rollout, Task, Turn, split_groups
from qagent_mlx.types import Profile

NOW = datetime(2026, 2, 1)


def chain(*turns, query="", **values):
    return Rollout(0, 0, (1, 2, 3), 1, (True, False), (-0.5, 0.0), turns, query, **values)


def test_an_answer_is_as_likely_as_all_tokens_of_its_turn():
    """A chat model writes a tag in several tokens, and a query in many."""
    sampled = (True,) * 2 + (False,) * 3 + (True,) * 5
    logprobs = (-9.0,) * 2 + (0.0,) * 3 + (-1.0, -2.0, 0.0, 0.0, -0.5)
    rollout = Rollout(0, 0, tuple(range(12)), 2, sampled, logprobs)
    assert rollout.answer_logprob == -3.5
    assert Rollout(0, 0, (), 0, (), ()).answer_logprob == 0


def test_the_mask_covers_the_prompt_too():
    assert chain().trained_mask == [False, True, False]
    assert chain().sampled_logprobs == [-0.5]


def test_a_recommendation_is_validated_by_a_search_of_the_same_words():
    searched = Turn("search", "USB-cable", products=("p1", "p2"))
    validated = chain(Turn("fetch"), searched, Turn("recommend", "usb cable"), query="usb cable")
    assert validated.validated and validated.products == ("p1", "p2")
    assert validated.fetched and validated.searches == 1
    other = chain(searched, Turn("recommend", "lamp"), query="lamp")
    assert not other.validated and other.products == () and not other.fetched
    refused = chain(Turn("refused", "lamp"), Turn("recommend", "lamp"), query="lamp")
    assert not refused.validated and refused.searches == 0


def test_what_has_happened_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain().query = "another"


def test_rollouts_are_cut_into_groups_of_different_sizes():
    tasks = [Task(Profile(user, NOW, "", (), ()), NOW) for user in "abc"]
    rollouts = [chain(query=str(i)) for i in range(6)]
    groups = split_groups(rollouts, tasks, [3, 0, 3])
    assert groups == [
        Group(tasks[0], tuple(rollouts[:3])),
        Group(tasks[1], ()),
        Group(tasks[2], tuple(rollouts[3:])),
    ]


def test_a_search_that_found_nothing_validates_no_recommendation():
    empty = chain(Turn("search", "xqzzy"), Turn("recommend", "xqzzy"), query="xqzzy")
    assert not empty.validated and empty.products == () and empty.searches == 1
