"""What came of recommendations is counted once, for the answer that it came of."""

from datetime import timedelta

import pytest
from showing import NOW, after, did, show

from qagent_mlx.errors import QAgentError
from qagent_mlx.live.outcomes import ATTRIBUTION, outcomes, shown_answers
from qagent_mlx.live.shown import new_recommendation_id
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def count(own_shop):
    """The outcomes, with the journal applied as by any other process."""

    def count(by="policy", **limits):
        own_shop.close()
        return {o.group: o for o in outcomes(own_shop, by, **limits)}

    return count


def test_what_follows_a_named_recommendation_is_its_own(own_shop, count):
    answer = show(own_shop, "desk lamp", "usb cable")
    named = {"recommendation_id": answer, "position": 2}
    did(
        own_shop,
        {"time": after(minutes=1), "type": "search", "query": "usb cable", **named},
        {"time": after(minutes=2), "type": "click", "query": "usb cable", "product_id": "p000"},
        {"time": after(minutes=3), "type": "cart", "product_id": "p000"},
        {"time": after(minutes=4), "type": "purchase", "product_id": "p000"},
        {"time": after(minutes=5), "type": "search", "query": "phone case"},
        {"time": after(minutes=6), "type": "click", "query": "phone case", "product_id": "p100"},
    )
    outcome = count()["a"]
    assert (outcome.answers, outcome.queries, outcome.taken, outcome.attributed) == (1, 2, 1, 0)
    assert (outcome.clicks, outcome.carts, outcome.purchases) == (1, 1, 1)
    ((price,),) = own_shop.connection.execute(
        "SELECT arg_max(price, ts) FROM product_history WHERE product_id = 'p000' AND ts < ?", [NOW]
    ).fetchall()
    assert (outcome.revenue, outcome.ctr, outcome.cvr) == (price, 1.0, 1.0)
    by_position = count("position")
    assert (by_position["1"].taken, by_position["2"].taken) == (0, 1)
    (shown,) = shown_answers(own_shop, "u01")
    assert [(q["query"], q["taken"], q["how"]) for q in shown["queries"]] == [
        ("desk lamp", False, None),
        ("usb cable", True, "named"),
    ]
    assert shown_answers(own_shop, "u02") == []


def test_a_search_that_names_none_belongs_to_the_last_answer_with_its_query(own_shop, count):
    show(own_shop, "usb cable", policy="old", at=after(minutes=-10))
    show(own_shop, "desk lamp", "USB  Cable", policy="new")
    show(own_shop, "usb cable", policy="late", at=after(minutes=20))
    did(own_shop, {"time": after(minutes=1), "type": "search", "query": "usb cable"})
    found = count()
    assert {name: (o.taken, o.attributed) for name, o in found.items()} == {
        "old": (0, 0),
        "new": (1, 1),
        "late": (0, 0),
    }


@pytest.mark.parametrize(
    "event",
    [
        {"time": NOW + ATTRIBUTION + timedelta(seconds=1)},
        {"time": after(seconds=-1)},
        {"user_id": "u02"},
        {"query": "usb"},
        {"recommendation_id": "of-somebody-else"},
    ],
    ids=["too late", "before", "another user", "another query", "another answer"],
)
def test_other_searches_did_not_come_of_it(own_shop, count, event):
    show(own_shop, "usb cable")
    search = {"time": after(minutes=1), "type": "search", "query": "usb cable"}
    did(own_shop, {**search, **event})
    assert count()["a"].taken == 0


def test_nobody_takes_what_another_one_was_shown(own_shop, count):
    answer = show(own_shop, "usb cable", user="u02")
    search = {"time": after(minutes=1), "type": "search", "query": "usb cable"}
    did(own_shop, {**search, "recommendation_id": answer, "position": 1})
    assert count()["a"].taken == 0


def test_a_click_on_a_product_can_name_the_recommendation_itself(own_shop, count):
    answer = show(own_shop, "desk lamp", "usb cable")
    click = {"time": after(minutes=1), "type": "click", "product_id": "p000"}
    did(own_shop, {**click, "recommendation_id": answer, "position": 2})
    assert (count()["a"].taken, count()["a"].clicks) == (1, 1)
    assert count("position")["2"].clicks == 1


def test_a_query_that_was_searched_twice_counts_once(own_shop, count):
    answer = show(own_shop, "usb cable")
    named = {"recommendation_id": answer, "position": 1, "query": "usb cable"}
    did(
        own_shop,
        {"time": after(minutes=1), "type": "search", **named},
        {"time": after(minutes=2), "type": "search", **named},
        {"time": after(minutes=3), "type": "click", "product_id": "p000", **named},
    )
    assert (count()["a"].taken, count()["a"].clicks, count()["a"].ctr) == (1, 1, 1.0)


def test_time_and_groups_limit_what_is_counted(own_shop, count):
    show(own_shop, "usb cable", policy="a", version=2)
    show(own_shop, "usb cable", at=after(days=1), experiment="x", arm="agent")
    assert set(count()) == {"a@2", "a"}
    assert count(since=after(hours=1)).keys() == {"a"}
    assert count(until=after(hours=1)).keys() == {"a@2"}
    assert set(count("arm")) == {"(none)", "x: agent"}
    with pytest.raises(QAgentError, match="use one of policy, source, position, arm"):
        count("weather")


def test_a_snapshot_holds_none_of_it(own_shop):
    show(own_shop, "usb cable")
    own_shop.close()
    with Shop.open(own_shop.path, read_only=False) as shop:
        assert len(shown_answers(shop)) == 1
    with Shop.snapshot(own_shop.path) as snapshot:
        assert shown_answers(snapshot) == []
        assert snapshot.counts()["events"] == own_shop.counts()["events"]


def test_ids_are_long_and_never_the_same():
    ids = {new_recommendation_id() for _ in range(10_000)}
    assert len(ids) == 10_000 and min(map(len, ids)) >= 20
