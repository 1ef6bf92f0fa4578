"""Servers of several machines that share a lake."""

import shutil
import threading
import time
from concurrent.futures import Future
from contextlib import closing

import pytest
from lakes import require_lakes
from starlette.testclient import TestClient

from qagent_mlx.build import build, build_shop
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.journal import events_entry
from qagent_mlx.inventory.index import open_index
from qagent_mlx.serve.config import ServeConfig
from qagent_mlx.serve.http import create_app
from qagent_mlx.serve.metrics import Metrics
from qagent_mlx.serve.store import SHARED_LOOK_SECONDS, ShopStore
from qagent_mlx.shop.lake import LakeStore
from qagent_mlx.shop.lake_catalog import LakeCatalog
from qagent_mlx.shop.moving import create_in
from qagent_mlx.shop.shop import Shop

EVENT = {"user_id": "u01", "time": "2026-04-02 10:00:00", "type": "search", "query": "desk lamp"}


class Server:
    """The store of a server, with what its worker would answer from."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.store = ShopStore(path, False, Metrics())
        self.store.start(self.use, lambda: None)

    def use(self, shop):
        with self.lock:
            before, self.store.shop = self.store.shop, shop
        future = Future()
        future.set_result(before)  # the store closes it
        return future

    def knows(self):
        with self.lock:
            query = "SELECT count(*) FROM events WHERE user_id = 'u01'"
            ((count,),) = self.store.shop.connection.execute(query).fetchall()
        return count

    def close(self):
        self.store.close()


@pytest.fixture
def machines(tmp_path):
    require_lakes()
    address = f"ducklake:sqlite:{tmp_path.resolve() / 'catalog.sqlite'}"
    create_in(tmp_path / "a", address, str(tmp_path / "data"))
    create_in(tmp_path / "b", address, None)
    return tmp_path / "a", tmp_path / "b"


def test_a_lake_that_is_away_is_said_once_and_asked_at_its_pace(machines, caplog, monkeypatch):
    a, _ = machines
    looks = []
    with closing(Server(a)) as server:
        asked = LakeStore.is_behind

        def look(self, shop):
            looks.append(time.monotonic())
            return asked(self, shop)

        def away(*_):
            raise QAgentError("the lake is away")

        monkeypatch.setattr(LakeStore, "is_behind", look)
        monkeypatch.setattr(LakeCatalog, "call", away)
        monkeypatch.setattr(LakeCatalog, "lock", away)
        began = time.monotonic()
        while time.monotonic() < began + 3 * SHARED_LOOK_SECONDS:
            server.store.append([events_entry([EVENT])])  # which wakes it
            time.sleep(0.02)
        passed = time.monotonic() - began
        lines = [record.getMessage() for record in caplog.records]
        assert sum("as this machine knows it" in line for line in lines) == 1
        # Twice a look: those that open the file to move the journal, and those of posts.
        assert 1 <= len(looks) <= 2 + 2 * passed / SHARED_LOOK_SECONDS
        monkeypatch.undo()


def test_an_event_that_one_server_takes_is_soon_in_anothers_answers(machines):
    a, b = machines
    with closing(Server(a)) as one, closing(Server(b)) as two:
        assert two.knows() == 0
        one.store.append([events_entry([EVENT])])
        until = time.monotonic() + 60
        while not two.knows():
            assert time.monotonic() < until
            time.sleep(0.1)
        two.store.append([events_entry([{**EVENT, "time": "2026-04-02 11:00:00"}])])
    for path in (a, b, a):
        with Shop.open(path) as shop:
            assert shop.counts()["events"] == 2


def test_an_index_that_one_machine_learned_anew_reaches_the_servers_of_others(
    own_folder, tiny_files, machines
):
    a, b = machines
    shutil.copytree(own_folder / "policies", b / "policies")
    with Shop.open(a, read_only=False) as shop:
        for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
            ingest_files(shop, kind, [tiny_files / name])
    for path in machines:
        build(path)
    config = ServeConfig(policy="a", chains=2)
    with TestClient(create_app(b, config), base_url="http://127.0.0.1") as client:
        worker = client.app.state.service.worker

        def generation():
            recommender = worker.responder.recommender
            return worker.call(lambda: recommender.search.index.manifest.published).result(30)

        before = generation()
        with Shop.open(a, read_only=False) as shop:
            build_shop(shop, anew=True)
            published = open_index(shop).manifest.published
        assert published not in ("", before)
        until = time.monotonic() + 60
        while generation() != published:
            assert time.monotonic() < until
            time.sleep(0.1)
