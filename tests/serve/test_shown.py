"""Every answer of a server is recorded with an id that events may name."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime

import pytest
from qagent_cli.options import PROGRAM

from qagent_mlx.live.outcomes import outcomes, shown_answers
from qagent_mlx.live.shown import ShownAnswer
from qagent_mlx.serve import store
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.atomic_files import read_json, write_json


def ask(client, user="u01", **more):
    return client.post("/recommend", json={"user_id": user, **more}).json()


def post(client, **event):
    reply = client.post("/events", json={"user_id": "u01", **event})
    assert reply.status_code == 200, reply.text


def recorded(folder):
    with Shop.open(folder) as shop:
        return {a["recommendation_id"]: a for a in shown_answers(shop, limit=1000)}


def test_each_answer_is_recorded_as_it_was_shown(serving, own_folder):
    client = serving()
    first, cached = ask(client, k=3), ask(client, k=3)
    other = ask(client, "nobody", k=2)
    assert cached["cached"]
    ids = [reply["recommendation_id"] for reply in (first, cached, other)]
    assert len(set(ids)) == 3
    shown = recorded(own_folder)
    assert shown.keys() == set(ids)
    for reply in (first, cached, other):
        answer = shown[reply["recommendation_id"]]
        assert [q["query"] for q in answer["queries"]] == [
            r["query"] for r in reply["recommendations"]
        ]
        assert [q["position"] for q in answer["queries"]] == [
            *range(1, len(reply["recommendations"]) + 1)
        ]
        assert {q["propensity"] for q in answer["queries"]} == {1.0}
        assert (answer["user_id"], answer["source"]) == (reply["user_id"], reply["source"])
        assert (answer["policy"], answer["version"]) == ("a", reply["version"])


def test_events_name_their_recommendation(serving, own_folder):
    client = serving()
    reply = ask(client)
    query = reply["recommendations"][1]["query"]
    named = {"recommendation_id": reply["recommendation_id"], "position": 2}
    post(client, type="search", query=query, **named)
    post(client, type="click", query=query, product_id="p000", **named)
    bad = client.post("/events", json={"user_id": "u01", "type": "search", "query": "x", **named,
                                       "position": 0})  # fmt: skip
    assert bad.status_code == 422 and "position" in bad.json()["error"]
    with Shop.open(own_folder) as shop:
        (outcome,) = outcomes(shop)
    assert (outcome.taken, outcome.attributed, outcome.clicks) == (1, 0, 1)


def test_what_is_no_answer_to_show_is_not_recorded(serving, own_folder):
    client = serving()
    assert ask(client, as_of="2026-03-20T00:00:00")["recommendation_id"] is None
    client.__exit__(None, None, None)
    for settings in ({"record": False}, {"read_only": True}):
        client = serving(**settings)
        assert ask(client)["recommendation_id"] is None
        client.__exit__(None, None, None)
    assert recorded(own_folder) == {}
    assert not list((own_folder / "journal").glob("*.log"))


def test_a_fallback_is_recorded_as_what_it_is(serving, own_folder):
    client = serving()
    reply = ask(client, deadline_ms=1)
    answer = recorded(own_folder)[reply["recommendation_id"]]
    assert answer["source"] == reply["source"] != "agent"


def test_a_full_disk_costs_no_answer(serving, own_folder, monkeypatch):
    client = serving()

    def full(*_):
        raise store.QAgentError("no space")

    service = client.app.state.service
    monkeypatch.setattr(service.worker.responder.store.shown, "write", full)
    reply = ask(client)
    assert reply["recommendations"] and reply["recommendation_id"] is None
    assert 'qagent_shown_total{outcome="lost"} 1.0' in client.get("/metrics").text


def test_answers_move_into_the_file_without_a_post_and_leave_the_journal(
    serving, own_folder, monkeypatch
):
    monkeypatch.setattr(store, "SHOWN_SECONDS", 0.1)
    monkeypatch.setattr(store, "MOVE_SECONDS", 0.1)
    client = serving()
    reply = ask(client)
    until = time.monotonic() + 20
    while any(path.stat().st_size for path in (own_folder / "journal").glob("*.log")):
        assert time.monotonic() < until
        time.sleep(0.05)
    with Shop.open(own_folder) as shop:
        assert [a["recommendation_id"] for a in shown_answers(shop)] == [reply["recommendation_id"]]
    assert ask(client)["recommendation_id"] in recorded(own_folder)


def test_times_of_a_simulated_shop_are_those_of_its_log(serving, own_folder):
    values = read_json(own_folder / "shop.json", "the shop")
    write_json(own_folder / "shop.json", {**values, "simulated": {"users": 1}})
    client = serving()
    post(client, type="search", query="usb cable", time="2026-04-02T12:00:00Z")
    reply = ask(client)
    answer = recorded(own_folder)[reply["recommendation_id"]]
    assert answer["ts"].startswith("2026-04-02T12:00:01")


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_a_killed_server_loses_no_answer_that_it_gave(served_folder, own_folder):
    import httpx

    command = [*PROGRAM, "serve", "--shop", str(own_folder), "--policy", "a", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = ""
            for line in process.stderr:
                if "http://" in line:
                    address = "http://" + line.partition("http://")[2].split()[0].rstrip(".,/")
                    break
            with httpx.Client(base_url=address) as client:
                ids = {ask(client, f"u{n:02}")["recommendation_id"] for n in range(12)}
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert len(ids) == 12
    assert recorded(own_folder).keys() == ids


def test_what_a_server_stores_itself_while_it_looks_is_no_change_to_look_at(
    own_folder, monkeypatch
):
    with closing(store.ShopStore(own_folder, False, Metrics())) as kept:
        moment = datetime(2026, 1, 1)
        answer = ShownAnswer("r1", "u01", moment, ("usb cable",), (1.0,), "agent", "a")
        assert kept.record_shown(answer)
        os.utime(own_folder / "shop.duckdb")  # as if another process had changed it
        kept._follow_file()
        assert "r1" in recorded(own_folder)
        monkeypatch.setattr(store.Shop, "open", lambda *_: pytest.fail("looked again"))
        kept._follow_file()
        monkeypatch.undo()
