"""The clock of posted events: clients cannot move it, and simulated shops keep theirs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from qagent_mlx.shop.shop import Shop


def utc_now():
    return datetime.now(timezone.utc).replace(tzinfo=None)


def end_of(folder):
    with Shop.open(folder) as shop:
        return shop.end_of_log()


def post(client, time=None, n=0):
    event = {"user_id": "u01", "type": "search", "query": f"lamp {n}"}
    return client.post("/events", json={**event, "time": time.isoformat()} if time else event)


def as_of(client):
    reply = client.post("/recommend", json={"user_id": "u01"}).json()
    return datetime.fromisoformat(reply["as_of"])


def make_simulated(folder, shift):
    """A simulated shop whose log ends so long from now."""
    with Shop.open(folder, read_only=False) as shop:
        shop.config = replace(shop.config, simulated={"seed": 1})
        shop.save_config()
        offset = utc_now() + shift - shop.end_of_log()
        with shop.transaction() as connection:
            connection.execute("UPDATE events SET ts = ts + ?", [offset])


def test_posts_ahead_of_the_clock_move_it_no_further_than_a_clocks_error(serving):
    client = serving()
    ahead = timedelta(minutes=4, seconds=50)
    statuses = [post(client, utc_now() + ahead, n).status_code for n in range(40)]
    assert statuses == [200] * 40
    # What was accepted before would have taken "now" along with it, post by post.
    refused = post(client, as_of(client) + ahead, 41)
    assert refused.status_code == 400 and "future" in refused.json()["error"]
    assert as_of(client) < utc_now() + timedelta(minutes=5)


@pytest.mark.parametrize("shift", [timedelta(days=-200), timedelta(days=200)])
def test_a_simulated_shop_goes_on_from_its_log_as_fast_as_time_does(serving, own_folder, shift):
    make_simulated(own_folder, shift)
    start, began = end_of(own_folder), utc_now()
    client = serving()
    for n in range(30):
        assert post(client, None, n).json()["accepted"] == 1
    moved = as_of(client) - start
    assert timedelta() < moved < utc_now() - began + timedelta(seconds=2)
    if shift > timedelta():  # its time is ahead of ours: a client may name it, and nothing later
        assert post(client, start + timedelta(minutes=4), 50).status_code == 200
        assert post(client, start + timedelta(minutes=9), 51).status_code == 400
        assert post(client, as_of(client) + timedelta(minutes=4), 52).status_code == 400
    else:  # somebody may play it in real time
        assert post(client, utc_now(), 50).json()["accepted"] == 1
        assert post(client, utc_now() + timedelta(minutes=9), 51).status_code == 400


def test_an_acknowledged_event_is_known_to_whoever_asks_next(serving):
    """Nobody is told before the answers from before are dropped."""
    client = serving()
    worker = client.app.state.service.worker
    responder, told = worker.responder, []
    forget = responder.forget

    def forget_and_look(users):
        told.append(client.post and future.done())
        forget(users)

    responder.forget = forget_and_look
    gate = worker.call(lambda: None)
    gate.result(20)
    future = worker.post([{"user_id": "u01", "type": "search", "query": "lamp"}])
    assert future.result(20).accepted == 1 and told == [False]
