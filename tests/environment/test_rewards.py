from dataclasses import replace
from datetime import datetime

import pytest

from qagent_mlx.agent.types import Rollout, Turn
from qagent_mlx.environment.rewards import (
    WEIGHTS,
    Outcome,
    component_rewards,
    parse_weight,
    weighted_reward,
)
from qagent_mlx.errors import QAgentError
from qagent_mlx.types import Case
from qagent_mlx.utils.settings import SettingError

CASE = Case(0, "u", datetime(2026, 1, 1), "gears of war 3", "gearsofwar3", ("p1",), 3)


def outcome(turns, query="", finish="recommended", products=(), repeated=0, refused=0):
    rollout = Rollout(
        case=0,
        member=0,
        tokens=(),
        prompt_length=0,
        sampled=(),
        logprobs=(),
        turns=tuple(turns),
        query=query,
        finish=finish,
        repeated=repeated,
        refused=refused,
    )
    return Outcome(rollout, CASE, products, "Gears of War 3", ("Gears of War 3",))


PERFECT = [
    Turn("fetch"),
    Turn("search", "Gears of War3", "r0", ("p1", "p2")),
    Turn("recommend", "Gears of War3", "s1"),
]


def test_a_perfect_chain_gets_everything():
    parts = component_rewards(outcome(PERFECT, "Gears of War3", products=("p1", "p2")))
    for name in ("format", "tool", "item", "consistency"):
        assert parts[name] == pytest.approx(1)
    assert parts["query"] > 0.9
    assert weighted_reward(parts, WEIGHTS) > 0.97


def test_consistency_is_both_or_nothing():
    wrong_item = component_rewards(outcome(PERFECT, "Gears of War3", products=("p2", "p1")))
    assert wrong_item["consistency"] == 0
    assert 0 < wrong_item["item"] < 0.5
    other = [Turn("fetch"), Turn("search", "xbox", "r1", ("p1",)), Turn("recommend", "xbox", "s1")]
    wrong_query = component_rewards(outcome(other, "xbox", products=("p1",)))
    assert wrong_query["consistency"] == 0
    assert wrong_query["item"] == pytest.approx(1)


def test_an_unsearched_recommendation_loses_a_third_of_the_tool_reward():
    turns = [Turn("fetch"), Turn("recommend", "Gears of War 3", "r0")]
    parts = component_rewards(outcome(turns, "Gears of War 3", products=("p1",)))
    assert parts["tool"] == pytest.approx(2 / 3)
    assert parts["format"] == 1


def test_repeated_searches_lose_a_third_of_the_tool_reward():
    parts = component_rewards(outcome(PERFECT, "Gears of War3", products=("p1",), repeated=1))
    assert parts["tool"] == pytest.approx(2 / 3)


def test_a_chain_that_breaks_off_gets_next_to_nothing():
    parts = component_rewards(outcome([Turn("fetch")], finish="invalid"))
    assert parts["format"] == parts["query"] == parts["consistency"] == 0
    assert weighted_reward(parts, WEIGHTS) < 0.15


def test_a_component_outside_0_and_1_is_refused():
    with pytest.raises(QAgentError, match="between 0 and 1"):
        component_rewards(outcome(PERFECT), {"mine": lambda _: 2.0})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("query=0.5", ("query", 0.5)),
        ("query=0", ("query", 0.0)),
        ("item=0@1,2@30", ("item", ((1.0, 0.0), (30.0, 2.0)))),
    ],
)
def test_weights_are_read(text, parsed):
    assert parse_weight(text, ["query", "item"]) == parsed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fun=1", "there is no reward 'fun'; known are query"),
        ("query", "write it as query=0.5"),
        ("query=-1", "write it as query=0.5"),
        ("query=inf", "write it as query=0.5"),
        ("query=1@2@3", "query=0@1,2@30"),
        ("query=1@2,3", "query=0@1,2@30"),
    ],
)
def test_weights_that_cannot_be_are_refused(text, reason):
    with pytest.raises(SettingError, match=reason) as error:
        parse_weight(text, ["query"])
    assert error.value.setting == "weights"


@pytest.mark.parametrize(
    ("query", "products", "value"),
    [
        ("gears of war 3", (), 1.0),  # the words, whatever they retrieve now
        ("gow", ("p1", "p2", "p3", "p4"), 1.0),
        ("war games", ("p1", "p9", "p4"), 0.5),
        ("xbox", ("p8",), 0.0),
    ],
)
def test_another_wording_counts_by_the_products_that_it_shares_with_what_was_typed(
    query, products, value
):
    result = outcome([Turn("recommend", query)], query, products=products)
    typed = replace(result, wanted=("p1", "p2", "p3", "p4"))
    assert component_rewards(typed)["overlap"] == value
    if value < 1:
        assert component_rewards(result)["overlap"] == 0.0, "nothing was typed"


def test_the_first_ten_products_count_and_no_more():
    own, others = [f"p{i}" for i in range(20)], [f"q{i}" for i in range(10)]
    for products, overlap, reach in ((own, 1.0, 1.0), (others + own, 0.0, 0.0)):
        result = outcome([Turn("recommend", "xbox")], "xbox", products=tuple(products))
        result = replace(result, wanted=tuple(own))
        assert component_rewards(result)["overlap"] == overlap
        assert component_rewards(result)["reach"] == reach
    short = replace(outcome([Turn("recommend", "x")], "x", products=tuple(own[:5])), wanted=(*own,))
    assert component_rewards(short)["overlap"] == 0.5


def test_ten_products_are_looked_at_and_no_more():
    """Of what is retrieved, and of what the user's own query would have retrieved."""
    others = tuple(f"x{i}" for i in range(9))
    tenth, eleventh = (*others, "p1"), (*others, "x9", "p1")
    asked = outcome(PERFECT, "xbox")
    for products, reached in ((tenth, 1.0), (eleventh, 0.0)):
        assert component_rewards(replace(asked, products=products))["reach"] == reached
        seen = replace(asked, products=products, wanted=("p1", "p9"))
        assert component_rewards(seen)["overlap"] == reached / 2
        shown = replace(asked, products=("p1",), wanted=products)
        assert component_rewards(shown)["overlap"] == reached / 10
