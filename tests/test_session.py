from __future__ import annotations

from types import SimpleNamespace

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest import append_events, ingest
from qagent_mlx.inspection import user_known
from qagent_mlx.inventory.search import open_search
from qagent_mlx.memory.profile import words_cost
from qagent_mlx.session import Session
from qagent_mlx.shop import Shop


@pytest.fixture
def session(tmp_path, monkeypatch):
    (tmp_path / "products.csv").write_text(
        "product_id,title,category,price\nt,Acme Tent,Tent,100\ns,Brio Stove,Stove,50\n"
    )
    monkeypatch.setattr(
        "qagent_mlx.session.Recommender",
        lambda shop, policy, group: SimpleNamespace(search=open_search(shop)),
    )
    policy = SimpleNamespace(codec=SimpleNamespace(count=words_cost))
    with Shop.create(tmp_path / "shop") as shop:
        ingest(shop, "products", [tmp_path / "products.csv"])
        append_events(
            shop, [{"user_id": "ann", "time": "2026-01-01", "type": "search", "query": "tent"}]
        )
        yield Session(shop, policy, "ann")


def test_what_the_user_does_is_in_the_next_memory(session):
    user = session.new_user()
    assert not user_known(session.shop, user)
    assert "new user" in session.memory()["text"]
    found = session.search("stove")
    assert found[0]["product_id"] == "s"
    before = session.now
    session.engage(session.choose(1), "purchase")
    assert session.now > before
    view = session.memory()
    assert view["events"] == 3
    assert {n["node"] for n in view["graph"]["nodes"] if n["kind"] == "category"} == {"Stove"}
    # The purchase belongs to the search, so it counts as a success of that query.
    assert session.shop.connection.execute(
        "SELECT count(*) FROM events e JOIN events s ON s.event_id = e.search_id "
        "WHERE e.type = 'purchase' AND s.query = 'stove'"
    ).fetchone() == (1,)


def test_a_search_that_fails_leaves_nothing_in_the_log(session):
    before = session.shop.counts()["events"]
    with pytest.raises(QAgentError, match="nothing to search for"):
        session.search("?!")
    assert session.shop.counts()["events"] == before


def test_only_what_is_on_the_screen_can_be_chosen(session):
    with pytest.raises(QAgentError, match="nothing is on the screen"):
        session.choose(1)
    session.search("tent")
    with pytest.raises(QAgentError, match="from 1 to"):
        session.choose(9)
    session.use("bob")
    with pytest.raises(QAgentError, match="nothing is on the screen"):
        session.choose(1)


def test_new_users_are_new(session):
    assert session.new_user() == "guest-1"
    session.search("tent")
    assert session.new_user() == "guest-2"
