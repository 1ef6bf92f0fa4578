"""Rules and wishes in answers: the next one follows them, of chains and of memory alike."""

import json
from datetime import timedelta

import pytest

from qagent_mlx.agent.recommend import Recommender, RecommendRequest
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.forgetting import forget_events
from qagent_mlx.live.limits import PINNED, Limits, LimitsBook
from qagent_mlx.live.rules import change_rules, new_rule
from qagent_mlx.live.wishes import change_wishes, new_wish, wishes_of, withdrawn_wish
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.policy.shop_memory import inspect_memory
from qagent_mlx.privacy import erase_user, export_user
from qagent_mlx.serve.batch import bulk_recommend
from qagent_mlx.utils.text import query_key

USER = "u01"


@pytest.fixture
def answers(own_shop, nano_policy):
    """Recommendations to a user under rules that are stored first: those of chains and memory."""
    recommender = Recommender(own_shop, nano_policy, group=2)

    def answers(*rules, user=USER, k=4):
        if rules:
            change_rules(own_shop, rules)
        recommender.limits = LimitsBook(own_shop)
        (chains,) = recommender.recommend([user], k)
        profile = recommender.profiles([user])[0]
        (limits,) = recommender.limits.limits([user])
        request = RecommendRequest(profile, own_shop.end_of_log(), k, limits=limits)
        (memory,) = recommender.recommend_from_memory([request])
        return chains.recommendations, memory

    return answers


def queries(slate):
    return [item.query for item in slate]


def test_what_is_blocked_is_in_no_answer_and_others_take_its_place(answers):
    chains, memory = answers()
    blocked = {queries(chains)[0], queries(memory)[0]}
    after = answers(*(new_rule("block", text=query) for query in blocked))
    for before, slate in zip((chains, memory), after, strict=True):
        assert not blocked & set(queries(slate))
        assert len(slate) == len(before) == 4


def test_a_category_is_excluded_with_all_that_leads_there_first(own_shop, answers):
    category = dict(
        own_shop.connection.execute("SELECT product_id, category FROM products").fetchall()
    )
    _, memory = answers()
    into = category[memory[0].products[0]]
    for slate in answers(new_rule("exclude-category", category=into.split(" > ")[0].upper())):
        assert slate and into not in {category[item.products[0]] for item in slate}


def test_a_product_is_hidden_under_a_query_or_under_all(answers):
    _, memory = answers()
    query, product = memory[0].query, memory[0].products[0]
    elsewhere = {item.query for item in memory[1:] if product in item.products}
    _, memory = answers(new_rule("hide-product", text=query.upper(), product_id=product))
    shown = {item.query: item.products for item in memory}
    assert product not in shown[query] and len(shown[query]) > 0
    assert all(product in shown[other] for other in elsewhere)
    for slate in answers(new_rule("hide-product", product_id=product)):
        assert all(product not in item.products for item in slate)


def test_a_pinned_query_stands_at_its_position_once(answers):
    _, memory = answers()
    pinned = queries(memory)[3]
    slates = answers(
        new_rule("pin", text="acme coffee beans", position=2), new_rule("pin", text=pinned)
    )
    for slate in slates:
        assert queries(slate)[:2] == [pinned, "acme coffee beans"]
        assert len(slate) == 4 and len(set(map(query_key, queries(slate)))) == 4
        assert slate[1].reason == PINNED and slate[1].products


def test_a_pin_gives_way_to_blocks_refusals_and_what_finds_nothing(own_shop, answers):
    change_wishes(own_shop, [new_wish(USER, query="desk lamp")])
    slates = answers(
        new_rule("pin", text="zzzz qqqq"),
        new_rule("pin", text="desk lamp"),
        new_rule("pin", text="coffee beans"),
        new_rule("block-word", text="beans"),
    )
    for slate in slates:
        assert PINNED not in {item.reason for item in slate}
    (other, _) = answers(user="nobody")
    assert queries(other)[0] == "desk lamp"


def test_a_pin_of_a_category_is_for_answers_that_lead_there(answers):
    rule = new_rule("pin", text="acme desk lamp", category="Office")
    for user in (USER, "u02", "u03", "u04"):
        before = answers(user=user, k=2)[1]
        leads = any(p.startswith("p4") for item in before for p in item.products[:1])
        after = answers(*([rule] if user == USER else []), user=user, k=2)[1]
        if "acme desk lamp" not in queries(before):
            assert (queries(after)[0] == "acme desk lamp") == leads


def test_bulk_follows_the_rules(own_shop, nano_policy, answers, tmp_path):
    blocked = queries(answers()[1])[0]
    change_rules(own_shop, [new_rule("block", text=blocked)])
    out = tmp_path / "all.jsonl"
    bulk_recommend(Recommender(own_shop, nano_policy, group=1), [USER, "u02"], out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["user_id"] for row in rows} == {USER, "u02"}
    for row in rows:
        assert query_key(row["query"]) != query_key(blocked)
        assert f"“{blocked}”" not in row["reason"]


# ---------------------------------------------------------------- users


def test_what_one_user_wants_no_more_comes_back_when_it_is_withdrawn(own_shop, answers):
    _, memory = answers()
    query = memory[0].query
    change_wishes(own_shop, [new_wish(USER, query=query.upper())])
    for slate in answers():
        assert query not in queries(slate)
    (wish,) = wishes_of(own_shop, [USER])
    assert inspect_memory(own_shop, USER).wishes == [wish.to_dict()]
    assert wishes_of(own_shop, ["u02"]) == []
    change_wishes(own_shop, [withdrawn_wish(own_shop, USER, wish.wish_id)])
    assert queries(answers()[1]) == queries(memory)


def test_a_category_that_a_user_wants_no_more(answers, own_shop):
    _, memory = answers()
    category = own_shop.connection.execute(
        "SELECT category FROM products WHERE product_id = ?", [memory[0].products[0]]
    ).fetchone()[0]
    change_wishes(own_shop, [new_wish(USER, category=category)])
    _, after = answers()
    assert after and memory[0].query not in queries(after)


@pytest.mark.parametrize("values", [{}, {"query": "a", "category": "b"}, {"query": "?!"}])
def test_a_wish_is_of_one_query_or_one_category(values):
    with pytest.raises(QAgentError):
        new_wish(USER, **values)


def log_of(shop, user):
    return shop.connection.execute(
        "SELECT ts, type, query_key, product_id, search_id FROM events WHERE user_id = ? ORDER BY ALL",
        [user],
    ).fetchall()


def test_forgetting_a_query_deletes_what_followed_it_and_nothing_else(own_shop):
    others = {user: log_of(own_shop, user) for user in ("u02", "u03")}
    before = log_of(own_shop, USER)
    searched = next(row for row in before if row[1] == "search")
    key = searched[2]
    under = own_shop.connection.execute(
        """SELECT count(*) FROM events e LEFT JOIN events s ON s.event_id = e.search_id
        WHERE e.user_id = ? AND (e.query_key = ? OR s.query_key = ?)""",
        [USER, key, key],
    ).fetchone()[0]
    assert forget_events(own_shop, USER, query=key.upper()) == under > 0
    after = log_of(own_shop, USER)
    assert len(after) == len(before) - under and key not in {row[2] for row in after}
    assert {user: log_of(own_shop, user) for user in others} == others
    store = MemoryStore(own_shop.connection, own_shop.config.memory)
    if store.is_current():
        state = own_shop.connection.execute(
            "SELECT * FROM profiles WHERE user_id = ?", [USER]
        ).fetchall()
        assert key not in str(state)


def test_forgetting_a_category_deletes_its_products_and_their_searches(own_shop):
    forget_events(own_shop, USER, category="phones")
    left = log_of(own_shop, USER)
    assert not [row for row in left if row[3] and row[3].startswith("p1")]
    assert forget_events(own_shop, USER, category="Phones") == 0


def test_wishes_are_exported_and_erased_with_their_user(own_shop):
    change_wishes(own_shop, [new_wish("newcomer", query="desk lamp")])
    assert [w["query"] for w in export_user(own_shop, "newcomer").wishes] == ["desk lamp"]
    assert erase_user(own_shop, "newcomer").wishes == 1
    assert wishes_of(own_shop) == []


def test_without_rules_and_wishes_everybody_has_the_same_limits(own_shop):
    book = LimitsBook(own_shop)
    assert book.limits(["a", "b"]) == [Limits(), Limits()]
    assert book.limits(["a"], own_shop.end_of_log() - timedelta(days=3)) == [Limits()]
