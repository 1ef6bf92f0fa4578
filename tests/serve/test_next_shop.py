"""What a server searches with when another process has changed the shop, or its encoder."""

import time
from concurrent.futures import Future
from contextlib import closing

import pytest

from qagent_mlx.build import build
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.inventory.updates import set_encoder
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.serve.store import ShopStore
from qagent_mlx.shop.shop import Shop

ENCODER = """import numpy as np
def encode(texts):
    return np.array([[len(t), t.count("a") + 1, t.count("e")] for t in texts], dtype=np.float32)
"""
CARPET = "product_id,title,price\np900,Zebra carpet,1.5\n"


def wait_for(client, what):
    worker = client.app.state.service.worker
    until = time.monotonic() + 60
    while not worker.call(lambda: what(worker.responder)).result(30):
        assert time.monotonic() < until
        time.sleep(0.1)


def encoder_of(responder):
    return responder.recommender.search.index.manifest.encoder.place


def change(path, tmp_path, kind, text):
    (tmp_path / "change.csv").write_text(text)
    with Shop.open(path, read_only=False) as shop:
        ingest_files(shop, kind, [tmp_path / "change.csv"])


def choose(path, encoder):
    with Shop.open(path, read_only=False) as shop:
        set_encoder(shop, encoder)


@pytest.fixture
def encoder(tmp_path):
    (tmp_path / "mine.py").write_text(ENCODER)
    return f"{tmp_path.resolve() / 'mine.py'}:encode"


def test_another_encoder_is_taken_up_once_its_index_is_built(
    serving, own_folder, encoder, tmp_path, caplog
):
    client = serving()
    choose(own_folder, encoder)
    change(own_folder, tmp_path, "products", CARPET)
    wait_for(client, lambda responder: "p900" in responder.recommender.search.catalog.row_of)
    # Nobody waits for a server that builds an index.
    worker = client.app.state.service.worker
    assert encoder_of(worker.responder) == "subword"
    health = client.get("/healthz")
    assert health.status_code == 200 and "run: qagent index" in health.json()["problem"]
    assert sum("searches as before" in record.getMessage() for record in caplog.records) == 1
    (hit, *_) = client.get("/search", params={"q": "zebra carpet"}).json()["results"]
    assert hit["product_id"] == "p900"
    build(own_folder)
    wait_for(client, lambda responder: encoder_of(responder) == encoder)
    assert client.get("/healthz").json()["problem"] == ""
    assert client.post("/recommend", json={"user": "u01"}).json()["source"] == "agent"


def test_a_server_whose_encoder_is_gone_goes_on_and_follows_what_users_do(
    serving, own_folder, encoder, tmp_path
):
    choose(own_folder, encoder)
    build(own_folder)
    client = serving()
    assert encoder_of(client.app.state.service.worker.responder) == encoder
    (tmp_path / "mine.py").rename(tmp_path / "kept.py")
    late = "user_id,time,type,query\nlate,2026-04-02 10:00:00,search,desk lamp\n"
    change(own_folder, tmp_path, "events", late)
    wait_for(client, lambda responder: responder.shop.has_events("late"))
    assert "mine.py is not there" in client.get("/healthz").json()["problem"]
    assert client.get("/search", params={"q": "desk lamp"}).json()["results"]
    assert client.post("/recommend", json={"user": "late"}).json()["source"] == "agent"
    (tmp_path / "kept.py").rename(tmp_path / "mine.py")
    change(own_folder, tmp_path, "events", late.replace("late", "later"))
    wait_for(client, lambda responder: responder.shop.has_events("later"))
    assert client.get("/healthz").json()["problem"] == ""


def test_a_snapshot_that_fails_is_tried_again(own_folder, tmp_path, caplog):
    with closing(ShopStore(own_folder, False, Metrics())) as store:
        asked = []

        def use(shop):
            asked.append(shop)
            if len(asked) < 3:
                raise QAgentError("no space left")
            before, store.shop = store.shop, shop
            future = Future()
            future.set_result(before)
            return future

        store.start(use, lambda: None)
        change(own_folder, tmp_path, "products", CARPET)
        until = time.monotonic() + 60
        while len(asked) < 3:
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2.5)  # two more looks
    assert len(asked) == 3
    said = [record.getMessage() for record in caplog.records]
    assert said.count("no space left; trying again") == 1
