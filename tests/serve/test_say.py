"""Rules and wishes over HTTP: the next answer follows them, and they survive."""

import time
from datetime import datetime

import pytest

from qagent_mlx.live.rules import change_rules, new_rule, rules_of
from qagent_mlx.live.wishes import wishes_of
from qagent_mlx.serve import responder
from qagent_mlx.shop.shop import Shop


def queries(client, user="u01", **more):
    reply = client.post("/recommend", json={"user_id": user, "k": 4, **more}).json()
    return [r["query"] for r in reply["recommendations"]]


def test_a_rule_holds_from_the_next_answer_on_and_is_kept(serving, own_folder):
    client = serving()
    first, trending = queries(client)[0], queries(client, "nobody", deadline_ms=1)[0]
    posted = client.post("/rules", json={"kind": "block", "text": first, "author": "ann"})
    assert posted.status_code == 200, posted.text
    (rule,) = posted.json()["rules"]
    client.post("/rules", json={"rules": [{"kind": "block", "text": trending}]})
    assert first not in queries(client)
    assert trending not in queries(client, "nobody", deadline_ms=1)
    assert [r["author"] for r in client.get("/rules").json()["rules"]] == ["ann", "api"]
    gone = client.delete(f"/rules/{rule['rule_id']}", params={"author": "bob"})
    assert gone.json()["rules"][0]["removed_by"] == "bob"
    assert client.delete(f"/rules/{rule['rule_id']}").status_code == 404
    assert queries(client)[0] == first
    assert len(client.get("/rules", params={"everything": "true"}).json()["rules"]) == 2
    client.__exit__(None, None, None)
    with Shop.open(own_folder) as shop:
        assert [rule.text for rule in rules_of(shop)] == [trending]
        assert rules_of(shop, everything=True)[0].removed is not None


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"kind": "forbid"}, "rule 2: kind"),
        ({"kind": "block-pattern", "text": "(x"}, "no pattern"),
        ({"kind": "pin", "text": "x", "position": 0}, "position"),
        ({"kind": "block", "text": "x", "ends": "soon"}, "ends must be a time"),
    ],
)
def test_a_bad_rule_is_refused_and_nothing_is_kept(serving, rule, says):
    client = serving()
    reply = client.post("/rules", json={"rules": [{"kind": "block", "text": "lamp"}, rule]})
    assert reply.status_code in (400, 422) and says in reply.json()["error"]
    assert client.get("/rules").json()["rules"] == []


def test_a_read_only_server_takes_no_rule(serving):
    client = serving(read_only=True)
    reply = client.post("/rules", json={"kind": "block", "text": "lamp"})
    assert reply.status_code == 400 and "read only" in reply.json()["error"]
    assert client.get("/rules").json()["rules"] == []


def test_a_rule_of_a_time_holds_when_its_time_comes(serving, monkeypatch):
    client = serving()
    first = queries(client)[0]
    body = {"kind": "block", "text": first, "starts": "2199-01-01T00:00:00Z"}
    client.post("/rules", json=body)
    assert queries(client)[0] == first
    monkeypatch.setattr(responder, "utc_now", lambda: datetime(2199, 1, 2))
    monkeypatch.setattr("qagent_mlx.live.limits.shop_time", lambda _shop: datetime(2199, 1, 2))
    until = time.monotonic() + 20
    while first in queries(client):  # cached until the worker looks
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_another_process_changes_is_taken_up(serving, own_folder):
    client = serving()
    first = queries(client)[0]
    with Shop.open(own_folder, read_only=False) as shop:
        change_rules(shop, [new_rule("block", text=first)])
    until = time.monotonic() + 30
    while first in queries(client):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_user_refuses_a_query_of_an_answer_a_category_and_takes_it_back(serving, own_folder):
    client = serving()
    reply = client.post("/recommend", json={"user_id": "u01", "k": 4}).json()
    second = reply["recommendations"][1]["query"]
    named = {"recommendation_id": reply["recommendation_id"], "position": 2}
    posted = client.post("/users/u01/wishes", json=named)
    assert posted.status_code == 200, posted.text
    wish = posted.json()["wish"]
    assert wish["query"] == second and posted.json()["events"] == 0
    assert second not in queries(client)
    assert client.get("/users/u01/memory").json()["wishes"] == [wish]
    assert client.get("/users/u01/wishes").json()["wishes"] == [wish]
    assert client.get("/users/u02/wishes").json()["wishes"] == []
    assert client.post("/users/u02/wishes", json=named).status_code == 404
    assert client.post("/users/u01/wishes", json={}).status_code == 400
    assert client.delete(f"/users/u02/wishes/{wish['wish_id']}").status_code == 404
    assert client.delete(f"/users/u01/wishes/{wish['wish_id']}").status_code == 200
    assert second in queries(client)


def test_a_user_has_a_query_forgotten(serving, own_folder):
    client = serving()
    search = {"user_id": "u01", "type": "search", "query": "secret lamp wish"}
    client.post("/events", json=search)
    client.post("/events", json={**search, "type": "click", "product_id": "p400"})
    assert "secret lamp wish" in client.get("/users/u01/export").text
    body = {"query": "Secret  Lamp wish", "forget": True}
    assert client.post("/users/u01/wishes", json=body).json()["events"] == 2
    exported = client.get("/users/u01/export").json()
    assert not [e for e in exported["events"] if e["query"] == "secret lamp wish"]
    assert "secretlampwish" not in str(exported["stored"])
    assert "secret lamp wish" not in queries(client)
    client.__exit__(None, None, None)
    with Shop.open(own_folder) as shop:
        assert len(wishes_of(shop, ["u01"])) == 1
        assert shop.connection.execute(
            "SELECT count(*) FROM events WHERE query_key = 'secretlampwish'"
        ).fetchone() == (0,)


def test_the_description_has_both_methods_of_a_path(serving):
    paths = serving().get("/openapi.json").json()["paths"]
    assert paths["/rules"].keys() == {"get", "post"}
    assert paths["/users/{user_id}/wishes"].keys() == {"get", "post"}
