"""Rules of a merchant: what they match, when they hold, and who changed them."""

import pickle
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.errors import QAgentError
from qagent_mlx.live.limits import LimitsBook
from qagent_mlx.live.rules import (
    NO_RULES,
    ShopRules,
    blocked_words,
    change_rules,
    is_within,
    new_rule,
    rules_of,
    withdrawn,
)
from qagent_mlx.utils.text import query_key

NOW = datetime(2026, 5, 1)


def holding(*rules):
    return ShopRules.at(rules, NOW)


@pytest.mark.parametrize(
    ("rule", "blocked", "allowed"),
    [
        (new_rule("block", text="USB Cable"), ["usb  cable", "USB-Cable"], ["usb cables", "usb"]),
        (new_rule("block-word", text="Cable"), ["usb cable", "CABLE!"], ["cables", "usb"]),
        (new_rule("block-word", text="cheap copy"), ["a cheap copy"], ["cheap", "copy cheap"]),
        (new_rule("block-pattern", text="^rep(lica)?s?\\b"), ["Replica bag"], ["my replica"]),
    ],
)
def test_each_kind_of_block_matches_what_it_says(rule, blocked, allowed):
    rules = pickle.loads(pickle.dumps(holding(rule)))  # as it goes to worker processes
    assert not any(map(rules.allows, blocked))
    assert all(map(rules.allows, allowed))


@given(st.text(max_size=40))
def test_no_query_breaks_the_rules_and_a_blocked_one_is_never_allowed(query):
    rules = holding(new_rule("block-word", text="knife"), new_rule("block-pattern", text="x{3}"))
    rules.allows(query)
    assert NO_RULES.allows(query)
    if query_key(query):
        assert not holding(new_rule("block", text=query)).allows(
            query.upper().lower() or query
        ) or (query_key(query.upper().lower()) != query_key(query))


def test_a_hostile_pattern_keeps_nobody_waiting():
    rules = holding(new_rule("block-pattern", text="(a+)+$"))
    assert rules.allows("a" * 299 + "!")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("forbid", {}, "use one of block"),
        ("block", {"text": "?!"}, "letters or digits"),
        ("block", {"text": "x" * 301}, "at most 300"),
        ("block-pattern", {"text": "(x"}, "no pattern of RE2"),
        ("block-pattern", {"text": "x*"}, "matches every query"),
        ("exclude-category", {}, "needs a category"),
        ("hide-product", {"text": "x"}, "product's id"),
        ("pin", {"text": "x", "starts": NOW, "ends": NOW}, "end after"),
    ],
)
def test_a_rule_that_could_never_work_is_refused(kind, values, message):
    with pytest.raises(QAgentError, match=message):
        new_rule(kind, **values)


def test_rules_hold_in_their_time_only():
    hour = timedelta(hours=1)
    rule = new_rule("block", text="usb cable", starts=NOW, ends=NOW + hour)
    at = {
        shift: ShopRules.at([rule], NOW + shift * hour).allows("usb cable") for shift in (-1, 0, 1)
    }
    assert at == {-1: True, 0: False, 1: True}


def test_a_category_is_a_path_and_all_below_it():
    assert is_within("Sports > Shoes", "sports") and is_within("Sports", "Sports")
    assert not is_within("Sportswear > Shoes", "Sports")


def test_a_list_of_words_is_read_line_by_line():
    rules = blocked_words(["knife", "", "# a comment", "cheap copy", "knife", "?!"])
    assert [rule.text for rule in rules] == ["knife", "cheap copy"]


def test_the_history_says_who_changed_what_and_when(own_shop):
    first = new_rule("block", "ann", text="usb cable")
    change_rules(own_shop, [first, new_rule("pin", "bob", text="gift card", position=2)])
    change_rules(own_shop, withdrawn(own_shop, [first.rule_id], "carl"))
    assert [rule.kind for rule in rules_of(own_shop)] == ["pin"]
    gone = rules_of(own_shop, everything=True)[0]
    assert (gone.author, gone.removed_by) == ("ann", "carl") and gone.created <= gone.removed
    with pytest.raises(QAgentError, match="no rule"):
        withdrawn(own_shop, [first.rule_id])


def test_the_same_rules_are_the_same_object_until_one_begins_or_ends(own_shop):
    change_rules(own_shop, [new_rule("block", text="x", starts=NOW, ends=NOW + timedelta(days=1))])
    book = LimitsBook(own_shop)
    before, during = book.rules_at(NOW - timedelta(days=9)), book.rules_at(NOW)
    assert before.allows("x") and not during.allows("x")
    assert book.rules_at(NOW + timedelta(hours=23)) is during
    assert book.rules_at(NOW + timedelta(days=1)).allows("x")
