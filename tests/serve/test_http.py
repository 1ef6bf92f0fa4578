from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from qagent_mlx.agent.recommend import Recommender
from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.index import open_index
from qagent_mlx.policy.registry import open_policy, resolve
from qagent_mlx.policy.shop_memory import inspect_memory
from qagent_mlx.policy.versions import promote, rollback
from qagent_mlx.privacy import erase_user
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.http import create_app
from qagent_mlx.serve.middleware import RateLimiter
from qagent_mlx.serve.worker import Worker
from qagent_mlx.shop.shop import Shop


def ask(client, user="u01", **more):
    return client.post("/recommend", json={"user": user, **more})


def metric(client, name, **labels):
    """The value of one sample; 0 when it was never counted."""
    wanted = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
    text = client.get("/metrics").text
    line = f"{name}{{{wanted}}} " if wanted else f"{name} "
    found = [row for row in text.splitlines() if row.startswith(line)]
    return float(found[0].split()[-1]) if found else 0.0


def test_an_answer_is_what_the_recommender_says(serving, served_folder):
    client = serving()
    got = ask(client, k=3).json()
    with Shop.open(served_folder) as shop:
        expected = Recommender(shop, open_policy(shop, "a"), group=2).recommend(["u01"], 3)[0]
    assert [r["query"] for r in got["recommendations"]] == [
        r.query for r in expected.recommendations
    ]
    assert got["recommendations"][0]["products"][0]["title"]
    assert (got["source"], got["fallback"], got["policy"], got["chains"]) == (
        "agent",
        False,
        "a",
        2,
    )


def test_requests_that_come_together_share_a_decode_and_change_no_answer(serving):
    client = serving(collect_ms=300.0, cache_seconds=0.0)
    users = ["u01", "u02", "u03", "nobody"]
    alone = {user: ask(client, user).json()["recommendations"] for user in users}
    decodes = metric(client, "qagent_batch_users_count")
    assert decodes == 4
    together = {}

    def go(user):
        together[user] = ask(client, user).json()["recommendations"]

    threads = [threading.Thread(target=go, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert metric(client, "qagent_batch_users_count") < decodes + 4


def test_an_event_is_in_the_next_recommendation_and_nobody_elses_cache_suffers(serving):
    client = serving()
    first = ask(client, "newcomer").json()
    ask(client, "u02")
    assert ask(client, "newcomer").json()["cached"]
    for query, product in (("Borealis Desk Lamp", "p410"), ("Borealis Desk Lamp", "p411")):
        event = {"user_id": "newcomer", "query": query}
        rows = [{**event, "type": "search"}, {**event, "type": "click", "product_id": product}]
        assert client.post("/events", json={"events": rows}).json()["accepted"] == 2
    second = ask(client, "newcomer").json()
    assert not second["cached"]
    assert second["as_of"] > first["as_of"]
    queries = [r["query"] for r in second["recommendations"]]
    assert "Borealis Desk Lamp" in queries
    assert queries != [r["query"] for r in first["recommendations"]]
    assert ask(client, "u02").json()["cached"]


def test_events_that_come_together_are_stored_together_and_each_is_told_its_own(
    serving, monkeypatch
):
    client = serving()
    worker = client.app.state.service.worker
    gate, busy = threading.Event(), threading.Event()
    worker.call(lambda: (busy.set(), gate.wait(20)))
    busy.wait(20)
    found = [
        worker.post([{"user_id": "a", "type": "search", "query": "usb cable"}]),
        worker.post([{"user_id": "b", "type": "search", "query": "usb cable"}] * 2),
        worker.post(
            [{"user_id": "c", "type": "search", "query": "x", "time": datetime(2199, 1, 1)}]
        ),
    ]
    gate.set()
    assert [f.result(20).accepted for f in found[:2]] == [1, 2]
    with pytest.raises(QAgentError, match="future"):
        found[2].result(20)
    assert metric(client, "qagent_events_total", outcome="accepted") == 3


def test_a_wrong_address_or_method_is_told_what_there_is(serving):
    client = serving()
    wrong = client.get("/health")
    assert wrong.status_code == 404
    assert wrong.json()["error"] == (
        "there is nothing at /health; GET /openapi.json lists all there is"
    )
    method = client.get("/recommend")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert method.json()["error"] == "/recommend takes POST, not GET"


def test_what_is_posted_right_after_a_new_snapshot_is_stored_there(serving, own_folder):
    client = serving()
    worker = client.app.state.service.worker
    snapshot = Shop.snapshot(own_folder)
    responder = worker.responder
    worker.call(lambda: responder.use_shop(responder.prepare(snapshot))).result(20).close()
    report = worker.post([{"user_id": "late", "type": "search", "query": "usb cable"}]).result(20)
    assert (report.accepted, report.duplicates) == (1, 0)
    assert worker.call(lambda: inspect_memory(responder.shop, "late").events).result(20) == 1


def test_a_deadline_gets_the_memorys_lines_or_the_trends_and_says_so(serving):
    client = serving(cache_seconds=0.0)
    full = ask(client, deadline_ms=30_000).json()
    assert not full["fallback"]
    late = ask(client, deadline_ms=1).json()
    assert late["fallback"] and late["reason"] == "deadline"
    assert late["source"] in ("top-line", "trending") and late["chains"] == 0
    assert late["recommendations"]
    assert metric(client, "qagent_fallbacks_total", reason="deadline") == 1


def test_whoever_cannot_be_answered_in_time_gets_the_memorys_top_line(serving):
    client = serving(cache_seconds=0.0)
    service = client.app.state.service
    service.worker.responder.decoder.pace.seconds_per_chain = 1000.0  # as if decoding took minutes
    got = ask(client).json()
    assert (got["source"], got["reason"]) == ("top-line", "deadline")
    worker = service.worker
    profile = worker.call(lambda: worker.responder.recommender.profiles(["u01"])[0]).result()
    # A line that leads to what is sold out or was just bought is not the first.
    assert got["recommendations"][0]["query"] in profile.references[:3]


def test_too_long_a_queue_answers_at_once(serving):
    client = serving(queue=1)
    worker = client.app.state.service.worker
    gate, busy = threading.Event(), threading.Event()
    calls = [worker.call(lambda: (busy.set(), gate.wait(20))), worker.call(lambda: None)]
    busy.wait(20)
    calls += [worker.call(lambda: None) for _ in range(3)]
    try:
        got = ask(client).json()
        assert (got["source"], got["reason"]) == ("trending", "overload")
        assert got["recommendations"]
    finally:
        gate.set()
    for call in calls:
        call.result(20)


def test_an_error_in_a_decode_is_a_fallback_and_the_worker_lives_on(serving, monkeypatch, caplog):
    client = serving(cache_seconds=0.0)
    recommender = client.app.state.service.worker.responder.recommender
    with monkeypatch.context() as patch:
        patch.setattr(recommender.runner, "run", lambda *_, **__: 1 / 0)
        got = ask(client).json()
    assert (got["fallback"], got["reason"]) == (True, "error")
    assert "ZeroDivisionError" in caplog.text
    assert not ask(client).json()["fallback"]


def test_the_budget_of_chains_bounds_the_work(serving):
    client = serving(chains=4)
    ask(client, "u01", chains=1)
    assert metric(client, "qagent_chains_total") == 1
    assert ask(client, "u01", chains=5).status_code == 422


def test_a_changed_policy_is_taken_up_and_no_request_is_lost(serving, own_folder):
    client = serving(watch=True, cache_seconds=0.0)
    statuses, policies, stop = [], [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answer = ask(client)
            statuses.append(answer.status_code)
            policies.append(answer.json()["policy"])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        changed = client.post("/policy", json={"policy": "b"}).json()
        assert changed == {"policy": "b", "version": 1}
        assert ask(client).json()["policy"] == "b"
    finally:
        stop.set()
        thread.join()
    assert set(statuses) == {200} and set(policies) <= {"a", "b"}
    loads = metric(client, "qagent_policy_loads_total", outcome="taken")
    # The same policy, trained again, is taken up.
    shutil.copytree(resolve_in(own_folder, "b"), own_folder / "policies" / "b" / "2")
    soon(client, lambda: ask(client).json()["version"] == 2)
    assert metric(client, "qagent_policy_loads_total", outcome="taken") == loads + 1


def resolve_in(folder, name):
    with Shop.open(folder) as shop:
        return resolve(shop, name)


def soon(client, is_so):
    """Waits for what the server looks for once a second."""
    for _ in range(600):
        client.app.state.service.worker._watched_at = 0.0
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_promotion_is_taken_up_and_rolled_back_and_no_request_is_lost(serving, own_folder):
    with Shop.open(own_folder, read_only=False) as shop:
        promote(shop, "a")
    client = serving(policy="", watch=True, cache_seconds=0.0)
    answers, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answers.append(ask(client))

    def answers_with(policy):
        health = client.get("/healthz").json()
        return health["policy"] == policy and not health["problem"]

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        assert answers_with("a")
        with Shop.open(own_folder) as shop:
            for policy in ("b", "sample"):
                promote(shop, policy)
                soon(client, lambda policy=policy: answers_with(policy))
            for policy in ("b", "a"):
                assert rollback(shop).policy == f"{policy}@1"
                soon(client, lambda policy=policy: answers_with(policy))
            # One that a client names stays until the next promotion.
            assert client.post("/policy", json={"policy": "b@1"}).status_code == 200
            soon(client, lambda: answers_with("b"))
            promote(shop, "sample")
            soon(client, lambda: answers_with("sample"))
    finally:
        stop.set()
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["policy"] for answer in answers} <= {"a", "b", "sample"}
    assert metric(client, "qagent_policy_info", policy="sample", version="") == 1
    assert metric(client, "qagent_policy_loads_total", outcome="taken") == 6


def test_a_promotion_that_cannot_be_loaded_keeps_the_old_policy_and_is_told(serving, own_folder):
    client = serving(policy="", watch=True)
    before = ask(client).json()["policy"]
    with Shop.open(own_folder) as shop:
        other = "a" if before == "b" else "b"
        promote(shop, other)
        (resolve(shop, other) / "config.json").write_text("{}")
    soon(client, lambda: client.get("/healthz").json()["problem"])
    health = client.get("/healthz").json()
    assert health["policy"] == before and health["status"] == "ok"
    assert health["problem"].startswith(f"{other}@1 was not taken up: ")
    assert ask(client).json()["policy"] == before
    assert metric(client, "qagent_policy_loads_total", outcome="refused") == 1
    with Shop.open(own_folder) as shop:
        promote(shop, before)
    soon(client, lambda: not client.get("/healthz").json()["problem"])


def test_a_server_that_names_its_policy_follows_no_promotion(serving, own_folder):
    client = serving(policy="a@1", watch=True)
    with Shop.open(own_folder) as shop:
        promote(shop, "b")
    responder = client.app.state.service.worker.responder
    assert client.app.state.service.worker.call(responder.served.to_load).result(30) is None


def test_a_policy_that_cannot_be_loaded_leaves_the_old_one(serving, own_folder):
    client = serving()
    (resolve_in(own_folder, "b") / "model.safetensors").write_bytes(b"broken")
    refused = client.post("/policy", json={"policy": "b"})
    assert refused.status_code == 400 and "b" in refused.json()["error"]
    assert (
        client.post("/policy", json={"policy": str(own_folder / "policies" / "b")}).status_code
        == 400
    )
    assert ask(client).json()["policy"] == "a"


def test_search_and_memory_answer_with_the_commands_keys(serving):
    client = serving()
    found = client.get("/search", params={"q": "usb cable", "k": 2}).json()
    assert found["query"] == "usb cable" and len(found["results"]) == 2
    assert {"product_id", "title", "score"} <= set(found["results"][0])
    cheap = client.get("/search", params={"q": "usb cable", "max_price": 10}).json()["results"]
    assert cheap and all(p["price"] <= 10 for p in cheap)
    view = client.get("/users/u01/memory").json()
    assert {"user", "as_of", "tokens", "raw_tokens", "text", "sections", "graph"} <= set(view)
    early = client.get("/users/u01/memory", params={"as_of": "2026-02-01T00:00:00Z"}).json()
    assert early["events"] == 0 < view["events"]
    assert client.get("/users/a%2Fb/memory").json()["user"] == "a/b"


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/recommend", {"k": 3}, 422, "user"),
        ("/recommend", {"user": "u", "k": 0}, 422, "k must be"),
        ("/recommend", {"user": "u", "k": 2.5}, 422, "whole"),
        ("/recommend", {"user": "u", "k": True}, 422, "k must be"),
        ("/recommend", {"user": "u", "deadline_ms": "soon"}, 422, "deadline_ms"),
        ("/recommend", {"user": "u", "as_of": "yesterday"}, 422, "as_of"),
        ("/recommend", {"user": "u", "K": 3}, 422, "unknown field 'K'"),
        ("/recommend", {"user": "\ud800"}, 422, "user"),
        ("/recommend", [1], 422, "object"),
        ("/events", {"events": []}, 422, "1 to"),
        ("/events", {"events": [{"user_id": 7}]}, 422, "event 1: user_id"),
        (
            "/events",
            {"user_id": "u", "type": "search", "query": "x", "time": "2099-01-01"},
            400,
            "future",
        ),
        ("/events", {"user_id": "u", "type": "click", "product_id": "no-such"}, 422, None),
        ("/policy", {"policy": "../a"}, 400, "no policy"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(serving, path, body, status, word):
    headers = {"content-type": "application/json"}
    answer = serving().post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code == status
    if word:
        assert word in answer.json()["error"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    else:
        assert answer.json()["reasons"] == {"unknown product": 1}


def test_bodies_are_json_and_short(serving):
    client = serving(body_bytes=200)
    headers = {"content-type": "application/json"}
    assert client.post("/recommend", content="{", headers=headers).status_code == 400
    assert client.post("/recommend", content='{"user": "u"}').status_code == 415
    assert client.post("/recommend", content=b"x" * 500, headers=headers).status_code == 413
    chunks = (b"x" * 100 for _ in range(5))  # no content-length says that it is too long
    assert client.post("/recommend", content=chunks, headers=headers).status_code == 413
    assert client.get("/nowhere").status_code == 404
    assert client.get("/recommend").status_code == 405


def test_a_token_is_needed_where_there_is_one_and_it_is_never_logged(serving, caplog):
    token = "correct-horse-battery"
    caplog.set_level(logging.DEBUG, "qagent.serve")
    client = serving(token=token)
    assert client.get("/healthz").status_code == 200
    for value in (None, "Bearer wrong", f"Basic {token}", "Bearer ", f"Bearer {token}x"):
        headers = {"authorization": value} if value else {}
        for path in ("/metrics", "/users/u01/memory", "/openapi.json", "/nowhere"):
            assert client.get(path, headers=headers).status_code == 401
        refused = client.post("/recommend", json={"user": "u01"}, headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/metrics", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert token not in caplog.text


def test_to_listen_beyond_this_machine_takes_a_token(tmp_path):
    with pytest.raises(QAgentError, match="token"):
        create_app(tmp_path, ServeConfig(host="0.0.0.0"))
    with pytest.raises(QAgentError, match="token"):
        create_app(tmp_path, ServeConfig(host="shop.example", token="short"))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServeConfig(host=host).check()
    ServeConfig(host="0.0.0.0", token="x" * 16).check()


def test_another_host_name_cannot_reach_a_server_without_a_token(serving):
    client = serving()
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400


def test_a_client_that_asks_too_often_is_told_to_wait(serving):
    client = serving(rate=0.001, burst=3.0)
    statuses = [client.get("/healthz").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert int(client.get("/healthz").headers["retry-after"]) >= 1


def test_a_rate_lets_through_what_it_says():
    now = [0.0]
    rates = RateLimiter(2.0, 4.0, clock=lambda: now[0])
    assert [rates.wait("a") for _ in range(4)] == [0.0] * 4
    assert rates.wait("a") == pytest.approx(0.5)
    assert rates.wait("b") == 0.0
    passed = 0
    for tick in range(100):  # ten seconds
        now[0] = tick / 10
        passed += rates.wait("a") == 0.0
    assert passed == pytest.approx(20, abs=1)


def test_logs_have_the_requests_id_and_no_user(serving, caplog):
    caplog.set_level(logging.INFO, "qagent.serve")
    client = serving()
    answer = client.get("/users/secret-person/memory", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    forged = client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", forged)
    assert "id=abc-1 method=GET route=/users/{user_id:path}/memory status=200" in caplog.text
    assert "secret-person" not in caplog.text


def test_the_description_has_every_route_and_no_other(serving):
    client = serving()
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in client.app.routes
        for method in route.methods - {"HEAD"}
    }
    assert routes == {(p, m) for p, item in described["paths"].items() for m in item}
    names = set(re.findall(r"#/components/schemas/(\w+)", str(described)))
    assert names <= set(described["components"]["schemas"])
    schemas = described["components"]["schemas"]
    event = {"user_id": "u01", "type": "search", "query": "usb cable"}
    for reply, answer in (
        ("RecommendReply", ask(client)),
        ("IngestReport", client.post("/events", json=event)),
        ("SearchReply", client.get("/search", params={"q": "usb"})),
        ("MemoryReply", client.get("/users/u01/memory")),
        ("PolicyReply", client.post("/policy", json={"policy": "a"})),
        ("RemovalReply", client.delete("/products/p410")),
        ("ExportReply", client.get("/users/u01/export")),
        ("ErasureReply", client.delete("/users/u01")),
        ("HealthReply", client.get("/healthz")),
        ("ErrorReply", client.get("/search")),
    ):
        assert set(answer.json()) == set(schemas[reply]["properties"]), reply


def test_the_description_has_the_limits_that_hold(serving):
    client = serving(k=7, chains=3, events_a_post=4)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["RecommendBody"]["properties"]
    assert (fields["k"]["default"], fields["chains"]["maximum"]) == (7, 3)
    assert ask(client, chains=3).status_code == 200 and ask(client, chains=4).status_code == 422
    most = schemas["EventsBody"]["properties"]["events"]["maxItems"]
    events = [{"user_id": "u", "type": "search", "query": "x"}] * (most + 1)
    assert client.post("/events", json={"events": events}).status_code == 422
    assert client.post("/events", json={"events": events[1:]}).status_code == 200


def test_a_read_only_server_refuses_events_and_shares_the_shop(serving, own_folder):
    client = serving(read_only=True)
    event = {"user_id": "u01", "type": "search", "query": "usb cable"}
    refused = client.post("/events", json=event)
    assert refused.status_code == 400 and "read only" in refused.json()["error"]
    assert ask(client).status_code == 200
    with Shop.open(own_folder) as shop:
        assert shop.counts()["users"]


def test_an_event_without_a_time_happened_now(serving, own_folder):
    client = serving()
    client.post("/events", json={"user_id": "u01", "type": "search", "query": "usb cable"})
    as_of = datetime.fromisoformat(ask(client).json()["as_of"])
    assert abs(as_of - datetime.utcnow()) < timedelta(minutes=2)


def test_a_shop_that_cannot_be_served_says_why_at_the_start(own_folder, tmp_path):
    with pytest.raises(QAgentError, match="no shop"):
        Worker(tmp_path / "none", ServeConfig()).start()
    with pytest.raises(QAgentError, match="no policy"):
        Worker(own_folder, ServeConfig(policy="none")).start()


def test_two_workers_answer_as_one_does_and_events_and_policies_reach_both(serving):
    users = [f"u{n:02}" for n in range(6)]

    def answers(client):
        with ThreadPoolExecutor(6) as threads:
            got = list(threads.map(lambda user: ask(client, user).json(), users))
        assert {a["source"] for a in got} == {"agent"}
        return [a["recommendations"] for a in got]

    client = serving(workers=2, collect_ms=300.0, cache_seconds=0.0)
    first = answers(client)
    assert client.post("/policy", json={"policy": "b"}).status_code == 200
    assert ask(client).json()["policy"] == "b"
    assert client.post("/policy", json={"policy": "a"}).status_code == 200
    assert answers(client) == first
    event = {"user_id": "u01", "type": "search", "query": "desk lamp"}
    assert client.post("/events", json=event).json()["accepted"] == 1
    memory = client.get("/users/u01/memory").json()
    assert "desk lamp" in memory["text"]
    assert answers(client)[1] != first[1]


def test_a_switch_is_true_or_false_and_a_wrong_method_is_told_the_right_one(serving):
    client = serving()
    for value, status in (("true", 200), ("False", 200), ("0", 200), ("maybe", 422)):
        found = client.get("/search", params={"q": "usb", "in_stock": value})
        assert found.status_code == status, value
    assert "in_stock must be true or false" in found.json()["error"]
    refused = client.get("/recommend")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_the_memory_shown_is_that_of_a_memory_opened_anew(serving, own_folder):
    client = serving()
    event = {"user_id": "u01", "type": "search", "query": "desk lamp"}
    assert client.post("/events", json=event).status_code == 200
    shown = client.get("/users/u01/memory").json()
    responder = client.app.state.service.worker.responder
    count = responder.recommender.policy.codec.count
    call = client.app.state.service.worker.call(
        lambda: inspect_memory(responder.shop, "u01", None, count).to_dict()
    )
    assert shown == {**call.result(30), "user_id": "u01"}


def test_a_server_that_cannot_start_ends_with_one_line_and_exit_code_1(own_folder, tmp_path):
    empty = tmp_path / "empty"
    Shop.create(empty).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for shop, words in ((own_folder, "cannot listen on"), (empty, "has no")):
            command = [sys.executable, "-m", "qagent_mlx", "serve", "--port", port]
            run = subprocess.run(
                [*command, "--shop", shop], capture_output=True, text=True, check=False
            )
            assert run.returncode == 1, run
            (line,) = run.stderr.splitlines()
            assert line.startswith("Error: ") and words in line


def search_ids(client, query, **more):
    found = client.get("/search", params={"query": query, **more}).json()["results"]
    return [product["product_id"] for product in found]


def test_a_posted_product_is_in_the_next_search_and_recommendation(serving, own_folder):
    client = serving()
    assert "kite" not in search_ids(client, "stunt kite")
    kite = {"product_id": "kite", "title": "Stunt Kite, red", "price": 20, "category": ["Toys"]}
    assert client.post("/products", json=kite).json()["accepted"] == 1
    assert search_ids(client, "stunt kite")[0] == "kite"
    click = {"user_id": "flyer", "type": "click", "product_id": "kite", "query": "stunt kite"}
    rows = [{"user_id": "flyer", "type": "search", "query": "stunt kite"}, click]
    assert client.post("/events", json={"events": rows}).json()["accepted"] == 2
    shown = ask(client, "flyer").json()["recommendations"]
    assert {"product_id": "kite", "title": "Stunt Kite, red"} in [
        product for query in shown for product in query["products"]
    ]
    # A change of one field leaves the others as they are.
    for change, wanted in (
        ({"price": 15.5}, {"price": 15.5, "in_stock": True}),
        ({"stock": 0}, {"price": 15.5, "in_stock": False}),
        ({"brand": "Dune", "stock": True}, {"brand": "Dune", "in_stock": True, "price": 15.5}),
        ({"price": None}, {"brand": "Dune", "price": None}),
    ):
        assert client.post("/products", json={"product_id": "kite", **change}).status_code == 200
        first = client.get("/search", params={"query": "stunt kite"}).json()["results"][0]
        assert first["title"] == "Stunt Kite, red" and wanted.items() <= first.items()
    same = client.post("/products", json={"product_id": "kite", "brand": "Dune"}).json()
    assert (same["accepted"], same["duplicates"]) == (0, 1)
    with Shop.open(own_folder) as shop:  # as every other process does
        row = shop.connection.execute(
            "SELECT title, brand, category, price, in_stock FROM products WHERE product_id = 'kite'"
        ).fetchone()
        assert row == ("Stunt Kite, red", "Dune", "Toys", None, True)
        assert open_index(shop).catalog.row_of["kite"] >= 0


def test_a_deleted_product_is_found_and_recommended_no_longer(serving, own_folder):
    client = serving(cache_seconds=60.0)
    before = search_ids(client, "desk lamp", k=100)
    ask(client, "u01")
    assert client.delete(f"/products/{before[0]}").json() == {"product_id": before[0]}
    assert before[0] not in search_ids(client, "desk lamp", k=100)
    assert not ask(client, "u01").json()["cached"]
    assert client.delete(f"/products/{before[0]}").status_code == 404
    with Shop.open(own_folder) as shop:
        assert shop.counts()["products"] == 39


def test_a_wrong_product_is_told_what_is_wrong_and_changes_nothing(serving):
    client = serving(products_a_post=2)
    for body, status, words in (
        ({"title": "x"}, 422, "product_id"),
        ({"product_id": "new", "price": 1}, 422, "no title"),
        ({"product_id": "p000", "price": -1}, 422, "price"),
        ({"product_id": "p000", "colour": "red"}, 422, "colour"),
        ({"product_id": "p000", "time": "soon"}, 422, "time"),
        ({"products": [{"product_id": "p000"}] * 3}, 422, "1 to 2"),
        ({"products": []}, 422, "1 to 2"),
    ):
        answer = client.post("/products", json=body)
        assert answer.status_code == status and words in answer.text, answer.text


def test_products_are_known_to_all_processes_that_decode(serving):
    client = serving(workers=2, cache_seconds=0.0)
    client.post("/products", json={"product_id": "kite", "title": "Stunt Kite"})
    responder = client.app.state.service.worker.responder
    assert search_ids(client, "stunt kite")[0] == "kite"
    wait_until(lambda: not responder.decoder.is_pool_stale)

    def all_are_ready():
        responder._pool.look_after()
        return len(responder._pool.ready) == 2

    wait_until(lambda: client.app.state.service.worker.call(all_are_ready).result(20))
    with ThreadPoolExecutor(4) as threads:
        users = [f"u{n:02}" for n in range(4)]
        answers = list(threads.map(lambda user: ask(client, user).json(), users))
    assert {answer["source"] for answer in answers} == {"agent"}
    assert len(responder._pool) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_who_waits_for_a_process_that_is_stopped_is_answered_by_another(serving):
    client = serving(workers=2, cache_seconds=0.0, deadline_ms=60_000.0)
    worker = client.app.state.service.worker
    pool = worker.responder._pool

    def all_are_ready():
        pool.look_after()
        return list(pool.ready)

    wait_until(lambda: len(worker.call(all_are_ready).result(20)) == 2)
    stopped = [process.pid for process in worker.call(all_are_ready).result(20)]
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            users = [f"u{n:02}" for n in range(4)]
            answers = list(threads.map(lambda user: ask(client, user).json(), users))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert {answer["source"] for answer in answers} == {"agent"}
    assert time.monotonic() - began < 30  # half of the deadline


def wait_until(is_true):
    until = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_user_can_be_exported_and_forgotten_while_the_server_runs(serving):
    client = serving(cache_seconds=60.0)
    event = {"user_id": "gone/1", "type": "search", "query": "usb cable"}
    client.post("/events", json=event)
    ask(client, "gone/1")
    exported = client.get("/users/gone%2F1/export").json()
    assert [e["query"] for e in exported["events"]] == ["usb cable"] and exported["memory"]
    erased = client.delete("/users/gone%2F1")
    assert (erased.status_code, erased.json()["events"]) == (200, 1)
    assert not ask(client, "gone/1").json()["cached"]
    assert client.get("/users/gone%2F1/memory").json()["events"] == 0
    assert client.get("/users/gone%2F1/export").json()["events"] == []
    again = client.delete("/users/gone%2F1").json()  # what was shown since
    assert again["events"] == 0 and again["recommendations"] > 0
    assert client.delete("/users/gone%2F1").status_code == 404
    assert client.post("/events", json=event).json()["accepted"] == 1  # and may come back


def test_a_forgotten_user_is_in_no_file_of_the_shop(serving, own_folder):
    client = serving()
    event = {"user_id": "leaver-4711", "type": "search", "query": "usb cable"}
    assert client.post("/events", json=event).status_code == 200
    assert client.delete("/users/leaver-4711").status_code == 200
    for file in own_folder.rglob("*"):
        assert file.is_dir() or b"leaver-4711" not in file.read_bytes(), file


def test_another_process_forgets_a_user_and_the_server_does_too(serving, own_folder):
    client = serving(cache_seconds=600.0)
    event = {"user_id": "leaver-4711", "type": "search", "query": "usb cable"}
    assert client.post("/events", json=event).status_code == 200
    ask(client, "leaver-4711")
    with Shop.open(own_folder, read_only=False) as shop:
        erase_user(shop, "leaver-4711")
    wait_until(lambda: not client.get("/users/leaver-4711/memory").json()["events"])

    def is_in_a_file():
        files = [file for file in own_folder.rglob("*") if file.is_file()]
        return any(b"leaver-4711" in file.read_bytes() for file in files)

    wait_until(lambda: not is_in_a_file())
    assert not ask(client, "leaver-4711").json()["cached"]


def test_a_read_only_server_changes_nothing(serving):
    client = serving(read_only=True)
    product = {"product_id": "p000", "price": 1}
    for answer in (
        client.post("/products", json=product),
        client.delete("/products/p000"),
        client.delete("/users/u01"),
    ):
        assert answer.status_code == 400 and "read only" in answer.json()["error"]
    assert client.get("/users/u01/export").status_code == 200


def test_old_names_of_fields_still_work_and_are_marked(serving):
    client = serving()
    new = client.post("/recommend", json={"user_id": "u01"}).json()
    old = client.post("/recommend", json={"user": "u01"}).json()
    assert new["recommendations"] == old["recommendations"]
    assert new["user_id"] == new["user"] == old["user_id"] == "u01"
    both = client.post("/recommend", json={"user": "u01", "user_id": "u02"})
    assert both.status_code == 422 and "different" in both.json()["error"]
    assert client.post("/recommend", json={}).json()["error"] == "user_id must be given"
    assert search_ids(client, "usb") == [
        p["product_id"] for p in client.get("/search", params={"q": "usb"}).json()["results"]
    ]
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for name in ("RecommendBody", "RecommendReply", "MemoryReply"):
        fields = schemas[name]["properties"]
        assert fields["user"]["deprecated"] and "deprecated" not in fields["user_id"], name
    parameters = {p["name"]: p for p in document["paths"]["/search"]["get"]["parameters"]}
    assert parameters["q"]["deprecated"]
    assert parameters["query"]["required"] and "deprecated" not in parameters["query"]


def test_who_waits_for_no_decode_is_answered_also_while_all_is_computed_anew(serving, monkeypatch):
    client = serving(cache_seconds=0.0)
    responder = client.app.state.service.worker.responder
    compute, seen = responder.recommender.recommend_from_memory, []

    def slowly(requests):
        if requests[0].profile.user_id == "":  # what is trending
            seen.append(ask(client, "u01", deadline_ms=1).json())
        return compute(requests)

    monkeypatch.setattr(responder.recommender, "recommend_from_memory", slowly)
    client.post("/products", json={"product_id": "kite", "title": "Stunt Kite"})
    assert seen and all(answer["recommendations"] for answer in seen)
