"""Answers that were thought before they were asked for."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from qagent_mlx.policy.versions import promote
from qagent_mlx.serve import thinking
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.serve.requests import PendingRequest, RecommendResponse
from qagent_mlx.serve.thinking import Thinker
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.stamps import utc_now

EVENT = {"type": "search", "query": "usb cable"}
NEVER = 1e9


@pytest.fixture
def soon(monkeypatch):
    """Thinks as soon as there is something to think about."""
    monkeypatch.setattr(thinking, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(thinking, "THINKING_SHARE", 1.0)
    return monkeypatch


def ask(client, user="u01", **more):
    reply = client.post("/recommend", json={"user_id": user, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def responder_of(client):
    return client.app.state.service.worker.responder


def post(client, user="u01"):
    assert client.post("/events", json={**EVENT, "user_id": user}).status_code == 200


def thought(client, user="u01"):
    """Whether an answer waits for a user, once the worker had time for it."""
    responder = responder_of(client)
    request = PendingRequest(user, 5, responder.chains, 0.0)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if responder.thinker.ready(request):
            return True
        if responder.thinker.pause() > 1 and responder.thinker.pause() < NEVER:
            return False
        time.sleep(0.02)
    return False


@pytest.mark.usefixtures("soon")
def test_after_an_event_the_answer_waits_and_is_what_a_request_would_get(serving):
    client = serving(cache_seconds=0.0)
    assert not ask(client)["thought_before"]
    post(client)
    assert thought(client)
    waited = ask(client)
    assert waited["thought_before"] and not waited["cached"] and not waited["fallback"]
    assert waited["source"] == "agent" and waited["age_seconds"] < 30
    responder = responder_of(client)
    thinking.SETTLE_SECONDS = NEVER  # put back by the fixture
    client.app.state.service.worker.call(responder.thinker.clear).result(20)
    computed = ask(client)
    assert not computed["thought_before"] and computed["age_seconds"] == 0
    for key in ("recommendations", "as_of", "chains", "policy", "version"):
        assert waited[key] == computed[key]
    text = client.get("/metrics").text
    assert 'qagent_answers_total{source="thought"} 1.0' in text
    assert "qagent_thought_age_seconds_count 1.0" in text


@pytest.mark.usefixtures("soon")
def test_only_what_was_thought_about_is_answered_so(serving):
    client = serving(cache_seconds=0.0)
    post(client)
    assert thought(client)
    assert not ask(client, "u02")["thought_before"]
    assert not ask(client, k=3)["thought_before"]
    assert not ask(client, chains=1)["thought_before"]
    assert not ask(client, as_of="2100-01-01T00:00:00Z")["thought_before"]
    assert ask(client)["thought_before"]


def _stock(client, _folder):
    product = ask(client)["recommendations"][0]["products"][0]["product_id"]
    body = {"product_id": product, "stock": 0}
    assert client.post("/products", json=body).status_code == 200


def _rule(client, _folder):
    query = ask(client)["recommendations"][0]["query"]
    assert client.post("/rules", json={"kind": "block", "text": query}).status_code == 200


def _wish(client, _folder):
    query = ask(client)["recommendations"][0]["query"]
    assert client.post("/users/u01/wishes", json={"query": query}).status_code == 200


def _policy(client, _folder):
    assert client.post("/policy", json={"policy": "b"}).status_code == 200


def _promotion(client, folder):
    with Shop.open(folder) as shop:
        promote(shop, "b")
    until = time.monotonic() + 20
    while ask(client, "u02")["policy"] != "b" and time.monotonic() < until:
        time.sleep(0.05)


def _erasure(client, _folder):
    assert client.delete("/users/u01").status_code == 200


def _snapshot(client, folder):
    worker, snapshot = client.app.state.service.worker, Shop.snapshot(folder)
    responder = worker.responder
    worker.call(lambda: responder.use_shop(responder.prepare(snapshot))).result(20).close()


@pytest.mark.parametrize(
    "change",
    [
        lambda client, _: post(client),
        *(_stock, _rule, _wish, _policy, _promotion, _erasure, _snapshot),
    ],
)
def test_what_an_answer_follows_from_makes_it_void(serving, own_folder, soon, change):
    named = {} if change is _promotion else {"policy": "a"}
    if change is _promotion:
        with Shop.open(own_folder) as shop:
            promote(shop, "a")
        named = {"policy": ""}
    client = serving(cache_seconds=0.0, **named)
    post(client)
    assert thought(client) and ask(client)["thought_before"]
    soon.setattr(thinking, "SETTLE_SECONDS", NEVER)
    change(client, own_folder)
    got = ask(client)
    assert not got["thought_before"] and not got["cached"]
    if change is _promotion or change is _policy:
        assert got["policy"] == "b"


def test_a_rule_that_begins_makes_it_void_at_once(serving, soon):
    client = serving(cache_seconds=0.0)
    query = ask(client)["recommendations"][0]["query"]
    starts = utc_now() + timedelta(hours=1)
    body = {"kind": "block", "text": query, "starts": starts.isoformat() + "Z"}
    assert client.post("/rules", json=body).status_code == 200
    post(client)
    assert thought(client) and query in [r["query"] for r in ask(client)["recommendations"]]
    soon.setattr(thinking, "SETTLE_SECONDS", NEVER)
    soon.setattr("qagent_mlx.serve.responder.utc_now", lambda: starts)
    got = ask(client)
    assert not got["thought_before"]
    assert query not in [r["query"] for r in got["recommendations"]]


@pytest.mark.usefixtures("soon")
def test_who_was_erased_is_not_thought_about_again(serving):
    client = serving(cache_seconds=0.0)
    post(client)
    assert thought(client)
    assert client.delete("/users/u01").status_code == 200
    until = time.monotonic() + 20
    while 'outcome="left"' not in client.get("/metrics").text and time.monotonic() < until:
        time.sleep(0.05)
    responder = responder_of(client)
    assert "u01" not in responder.thinker._due
    assert not responder.thinker.ready(PendingRequest("u01", 5, responder.chains, 0.0))


@pytest.mark.usefixtures("soon")
def test_whoever_was_active_is_thought_about_without_any_event(serving):
    client = serving(cache_seconds=0.0, think="active")
    active = client.app.state.service.worker.call(responder_of(client).active_users).result(20)
    assert active
    assert all(thought(client, user) for user in active[:5])
    assert ask(client, active[0])["thought_before"]


@pytest.mark.usefixtures("soon")
def test_off_means_off(serving):
    client = serving(cache_seconds=0.0, think="off")
    post(client)
    time.sleep(0.3)
    assert not ask(client)["thought_before"]
    assert "qagent_thoughts_total{" not in client.get("/metrics").text


@pytest.mark.usefixtures("soon")
def test_whoever_waits_interrupts_a_thought_which_is_thought_again(serving):
    client = serving(cache_seconds=0.0)
    worker, responder = client.app.state.service.worker, responder_of(client)
    pace = responder.decoder.pace.seconds_per_chain

    def interrupted():
        responder.thinker.forget("u01")
        responder.think(lambda: True)
        request = PendingRequest("u01", 5, responder.chains, 0.0)
        return responder.thinker.ready(request), list(responder.thinker._due)

    assert worker.call(interrupted).result(20) == (None, ["u01"])
    assert responder.decoder.pace.seconds_per_chain == pace  # it was not slow, it was left
    assert thought(client)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def thinker(**settings):
    clock = Clock()
    return Thinker(ServeConfig(**settings), Metrics(), clock), clock


def answer_with(thinker):
    def answer(request):
        thinker.keep(request, RecommendResponse((), "agent", None, "a"))

    return answer


def ready(thinker, user):
    return thinker.ready(PendingRequest(user, 5, 2, 0.0))


def test_a_burst_of_events_is_thought_about_once_when_it_is_over():
    one, clock = thinker()
    for _ in range(5):
        one.forget("u")
        clock.now += 0.5
        one.think(answer_with(one), 2, lambda: False)
        assert not ready(one, "u")
    clock.now += 0.6
    one.think(answer_with(one), 2, lambda: False)
    assert ready(one, "u")
    assert one.pause() > NEVER


def test_answers_get_old_and_no_more_are_held_than_may_be():
    one, clock = thinker(think_users=3, think_seconds=100.0)
    for user in "abcdef":
        one.forget(user)
    assert len(one._due) == 3
    for _ in range(9):
        clock.now += 2
        one.think(answer_with(one), 2, lambda: False)
    assert [user for user in "abcdef" if ready(one, user)] == ["d", "e", "f"]
    clock.now += 101
    assert not any(ready(one, user) for user in "abcdef")


def test_thinking_leaves_time_to_others():
    one, clock = thinker()
    one.forget("a")
    one.forget("b")
    clock.now += 2

    def slowly(request):
        clock.now += 3
        answer_with(one)(request)

    one.think(slowly, 2, lambda: False)
    assert one.pause() == pytest.approx(3 * (1 / thinking.THINKING_SHARE - 1))
    one.think(slowly, 2, lambda: False)
    assert not ready(one, "b")
    clock.now += 3
    one.think(slowly, 2, lambda: False)
    assert ready(one, "b")


def test_the_active_ones_are_looked_at_again_before_their_answers_are_old():
    one, clock = thinker(think="active", think_seconds=100.0)
    assert one.looks
    one.consider(lambda: ["a", "b"])
    assert not one.looks and list(one._due) == ["a", "b"]
    clock.now += 51
    assert one.looks
    one.clear()
    assert one.pause() == 0.0
