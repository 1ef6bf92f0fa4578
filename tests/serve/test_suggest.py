"""Completions over HTTP."""

from qagent_mlx.utils.text import query_key


def suggest(client, prefix, user=None, **more):
    body = {"prefix": prefix, **({"user_id": user} if user else {}), **more}
    reply = client.post("/suggest", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["suggestions"]


def test_completions_begin_as_typed_and_are_personal_first(serving):
    client = serving()
    assert "usb cable" in [s["query"] for s in suggest(client, "us")]
    client.post("/recommend", json={"user_id": "u01"})
    own = {}
    for letter in "abcdpru":
        for s in suggest(client, letter, "u01"):
            own.setdefault(s["source"], []).append(s["query"])
            assert any(word.startswith(letter) for word in s["query"].lower().split())
    assert own["own"] and own["shop"]
    assert len(suggest(client, "d", k=1)) == 1 and suggest(client, "qqq") == []


def test_what_a_user_did_just_now_and_refused_is_known(serving):
    client = serving()
    query = "acme desk lamp red"
    event = {"user_id": "u09", "type": "search", "query": query}
    client.post("/events", json=event)
    client.post("/events", json={**event, "type": "click", "product_id": "p401"})
    first = suggest(client, "acme desk lamp r", "u09")
    client.post("/users/u09/wishes", json={"query": query})
    assert query_key(query) not in {query_key(s["query"]) for s in suggest(client, "acme d", "u09")}
    assert query not in [s["query"] for s in suggest(client, "acme desk lamp r", "u02")]
    assert isinstance(first, list)


def test_rules_hold_for_completions(serving):
    client = serving()
    client.post("/rules", json={"kind": "block", "text": "usb cable"})
    assert "usb cable" not in [s["query"] for s in suggest(client, "us")]
    long = client.post("/suggest", json={"prefix": "x" * 201})
    assert long.status_code == 422 and "prefix" in long.json()["error"]


def test_a_user_is_the_same_with_spaces_around_the_id(serving):
    client = serving()
    client.post("/recommend", json={"user_id": "u01"})
    suggest(client, "a", "u01")
    client.get("/users/u01/memory")  # the worker has read what completions take from it
    found = [suggest(client, letter, "u01") for letter in "abcdpru"]
    assert "own" in {s["source"] for part in found for s in part}
    assert [suggest(client, letter, " u01\t") for letter in "abcdpru"] == found
    nobody = client.post("/suggest", json={"prefix": "us", "user_id": " "})
    assert nobody.status_code == 422 and "user_id" in nobody.json()["error"]
