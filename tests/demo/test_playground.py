from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from qagent_cli.play import WHY_HIDDEN

from qagent_mlx.agent.slate import Fit
from qagent_mlx.demo.playground import PlaygroundSession, temporary_copy
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.promotions import promoted
from qagent_mlx.policy.registry import SAMPLE, open_policy
from qagent_mlx.policy.small_llama import save_base
from qagent_mlx.policy.versions import promote
from qagent_mlx.shop.shop import Shop
from qagent_mlx.types import UserContext
from qagent_mlx.utils.text import query_key


@pytest.fixture
def session(own_shop):
    # The shipped base: it writes whole chains, which random weights do not.
    return PlaygroundSession(own_shop, open_policy(None, SAMPLE), "u01", group=2, name=SAMPLE)


def test_what_chains_choose_and_nobody_is_shown_is_said_with_what_is_wrong(session):
    answer = session.recommend()
    chosen = [c.query for c in answer.chains if c.finish == "recommended"]
    assert chosen
    shown = {query_key(r.query) for r in answer.recommendations}
    hidden = Counter(q for q in chosen if query_key(q) not in shown)
    given_way = session.recommender.given_way
    assert {item.query: item.votes for item in given_way(answer)} == hidden
    everything = given_way(replace(answer, recommendations=()))
    assert {item.query: item.votes for item in everything} == Counter(chosen)
    # Somebody who has just bought what a choice finds is not shown it, and that is said.
    item = everything[0]
    (found,) = session.recommender.search.search([item.query], 1, [answer.as_of])
    catalog = session.recommender.search.catalog
    leaf = catalog.leaf(catalog.row_of[found[0].product_id])
    assert leaf
    context = UserContext(just_bought=(leaf,))
    bought = replace(answer, recommendations=(), profile=replace(answer.profile, context=context))
    fits = {item.query: item.fit for item in given_way(bought)}
    assert fits[item.query] in (Fit.JUST_BOUGHT, Fit.SOLD_OUT)
    assert set(fits) >= {item.query}


def test_every_reason_to_give_way_has_words():
    assert set(WHY_HIDDEN) == {fit.name for fit in Fit}


def test_what_the_user_does_is_in_the_next_memory_and_recommendation(session):
    user = session.new_user()
    assert not session.shop.has_events(user)
    assert "new user" in session.memory().text
    session.recommend()
    found = session.search("Dune Desk Lamp")
    assert "Desk Lamp" in found[0].title
    before = session.now
    gone = next(n for n, product in enumerate(found, 1) if not product.in_stock)
    with pytest.raises(QAgentError, match="is sold out"):
        session.engage(session.choose(gone), "purchase")
    there = next(n for n, product in enumerate(found, 1) if product.in_stock)
    session.engage(session.choose(there), "purchase")
    assert session.now > before
    view = session.memory()
    assert view.events == 3
    assert {n.name for n in view.graph.nodes if n.kind == "category"} == {"Lamps"}
    # The purchase belongs to the search, so it counts as a success of that query.
    assert session.shop.connection.execute(
        "SELECT count(*) FROM events e JOIN events s ON s.event_id = e.search_id "
        "WHERE e.type = 'purchase' AND s.query = 'Dune Desk Lamp' AND e.user_id = ?",
        [user],
    ).fetchone() == (1,)
    assert "likes lamps dune" in session.recommend().profile.text.replace(",", "")


def test_a_search_that_fails_leaves_nothing_in_the_log(session):
    before = session.shop.counts()["events"]
    with pytest.raises(QAgentError, match="nothing to search for"):
        session.search("?!")
    assert session.shop.counts()["events"] == before


def test_only_what_is_on_the_screen_can_be_chosen(session):
    with pytest.raises(QAgentError, match="nothing is on the screen"):
        session.choose(1)
    session.search("usb cable")
    with pytest.raises(QAgentError, match="from 1 to"):
        session.choose(9)
    session.switch_user("u02")
    with pytest.raises(QAgentError, match="nothing is on the screen"):
        session.choose(1)


def test_new_users_are_new(session):
    assert session.new_user() == "guest-1"
    session.search("usb cable")
    assert session.new_user() == "guest-2"


def test_users_are_found_by_id_and_by_what_they_searched(session):
    assert [one.user for one in session.find_users("u07")] == ["u07"]
    for one in session.find_users("coffee beans"):
        assert session.shop.connection.execute(
            "SELECT count(*) FROM events WHERE user_id = ? AND lower(query) LIKE '%coffee beans%'",
            [one.user],
        ).fetchone()[0]
    assert len(session.find_users()) == 12
    assert session.find_users("' OR 1=1 --") == []


def test_the_past_knows_nothing_of_the_future_and_cannot_be_changed(session):
    start = session.shop.connection.execute("SELECT min(ts) FROM events").fetchone()[0]
    now = session.memory().events
    session.travel(start)
    assert session.memory().events == 0 < now
    assert session.recommend().as_of == start
    before = session.shop.counts()["events"]
    session.search("usb cable")
    assert session.shop.counts()["events"] == before
    with pytest.raises(QAgentError, match="as-of now"):
        session.engage(session.choose(1), "click")
    session.travel(None)
    assert session.memory().events == now


def test_a_chain_is_told_turn_by_turn_as_it_happens(session):
    seen = []
    found = session.recommend(seen.append)
    times = [one.seconds for one in seen]
    assert times == sorted(times) and times[-1] * 1000 <= found.latency_ms
    for number, chain in enumerate(found.chains):
        # What has ended without an answer is told by nobody.
        told = [one.turn for one in seen if one.chain == number]
        assert told == list(chain.turns)[: len(told)] and len(chain.turns) - len(told) <= 1
    fetched = [one for one in seen if one.turn.kind == "fetch"]
    assert fetched and all(one.profile is not None for one in fetched)
    for one in seen:
        assert len(one.products) == len(one.turn.products)


def test_another_policy_is_asked_about_the_same_user_at_the_same_moment(session, new_nano):
    policy, tokenizer, config = new_nano(1)
    save_base(policy, tokenizer, config, session.shop.path / "policies" / "other")
    found = session.compare("other")
    assert list(found) == ["sample", "other"]
    assert {(one.user_id, one.as_of) for one in found.values()} == {("u01", session.now)}
    with pytest.raises(QAgentError, match="no policy"):
        session.compare("nobody")


def test_training_goes_on_with_what_it_made(own_shop, new_nano):
    policy, tokenizer, config = new_nano()
    save_base(policy, tokenizer, config, own_shop.path / "policies" / "nano")
    session = PlaygroundSession(own_shop, policy, "u01", group=2, name="nano")
    steps = []
    found = session.train(1, steps.append)
    assert len(steps) == 1 and "reward" in steps[0]
    assert session.policy_name == "session" and session.policy.lora is not None
    assert found.before.user_id == found.after.user_id == "u01"
    session.search("usb cable")  # the shop can be written to again
    assert session.recommend().as_of == session.now


def test_a_borrowed_shop_is_gone_and_the_shop_is_as_it_was(own_shop, nano_policy):
    before = own_shop.counts()
    path = own_shop.path
    promote(own_shop, SAMPLE)
    own_shop.close()
    with temporary_copy(path) as copy:
        place = copy.path
        assert promoted(copy) == "sample", "who recommends there recommends here"
        session = PlaygroundSession(copy, nano_policy, "u01", group=2)
        session.search("usb cable")
        assert copy.counts()["events"] == before["events"] + 1
        assert session.now - timedelta(days=1) < session.now
    assert not place.exists()
    with Shop.open(path) as shop:
        assert shop.counts() == before
