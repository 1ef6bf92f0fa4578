"""Memory of a shop in a lake: built by several machines, and the same as one builds alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from lakes import lakes

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory import buckets
from qagent_mlx.memory.buckets import build_memory
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.published import LARGEST_MANIFEST, PublishedMemory
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.privacy import erase_user
from qagent_mlx.shop.lake import LakeStore
from qagent_mlx.shop.lake_data import FilesOfLake
from qagent_mlx.shop.moving import create_in, move
from qagent_mlx.shop.shop import Shop

EVENT = {"user_id": "u01", "time": "2026-04-02 10:00:00", "type": "search", "query": "desk lamp"}
BUCKETS = 4  # of a small shop


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def new_lake(request):
    with lakes(request.param) as address:
        yield address


@pytest.fixture
def machines(tmp_path, new_lake, tiny_files):
    """The folders of two machines that share a shop; neither has stored memory."""
    address = new_lake(tmp_path)
    with Shop.create(tmp_path / "a") as shop:
        for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
            ingest_files(shop, kind, [tiny_files / name])
        move(shop, address, str(tmp_path / "data"))
    create_in(tmp_path / "b", address, None)
    return tmp_path / "a", tmp_path / "b"


def build(path, anew=False):
    with Shop.open(path, read_only=False) as shop:
        return build_memory(shop, anew)


def append(path, *events):
    with Shop.open(path, read_only=False) as shop:
        return append_events(shop, events)


def must_agree(path):
    """What is stored says what the log says, of every user; returns the profiles' texts."""
    with Shop.open(path, read_only=False) as shop:
        store = MemoryStore(shop.connection, shop.config.memory)
        assert store.is_current()
        users = shop.connection.execute("SELECT DISTINCT user_id FROM events ORDER BY 1").fetchall()
        moments = [Moment(user, shop.end_of_log()) for (user,) in users]

        def texts():
            memory = Memory(shop.connection, shop.config.memory, count_words)
            return [profile.text for profile in memory.profiles(moments)]

        stored = texts()
        store.discard()
        assert texts() == stored
        return stored


def test_who_builds_later_computes_nobody_again(machines):
    a, b = machines
    first, second = build(a), build(b)
    assert first.users == first.computed == second.users > 0
    assert (first.buckets, first.published) == (BUCKETS, BUCKETS)
    assert (second.computed, second.published) == (0, 0)
    assert must_agree(a) == must_agree(b)


def test_two_machines_at_once_compute_each_user_once(machines):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from qagent_cli.main import cli; cli()", "memory", "build"]
    started = [
        subprocess.Popen(
            [*command, "--json", "--shop", str(path)], stdout=subprocess.PIPE, env=environment
        )
        for path in machines
    ]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert reports[0]["users"] == reports[1]["users"]
    assert sum(report["computed"] for report in reports) == reports[0]["users"]
    assert sum(report["published"] for report in reports) == BUCKETS
    assert must_agree(machines[0]) == must_agree(machines[1])


def test_only_whom_changes_concern_is_computed_again(machines):
    a, b = machines
    build(a)
    append(a, {**EVENT, "user_id": "u02"}, {**EVENT, "user_id": "new", "query": "zebra carpet"})
    with Shop.open(a) as shop:
        ((query, user),) = shop.connection.execute(
            """SELECT query, any_value(user_id) FROM events WHERE type = 'search' GROUP BY 1
            HAVING count(DISTINCT user_id) = 1 ORDER BY 1 LIMIT 1"""
        ).fetchall()
    # Now somebody else has typed it first, and otherwise.
    early = {**EVENT, "user_id": "u03", "time": "2025-12-01 10:00:00", "query": query.upper()}
    assert append(b, early).accepted == 1
    report = build(b)
    assert report.computed == len({"u02", "u03", "new", user})
    assert report.published > 0
    assert build(a).computed == 0
    assert must_agree(a) == must_agree(b)


def test_a_machine_that_is_behind_takes_what_is_newer(machines):
    a, b = machines
    with Shop.open(b, read_only=False) as behind:
        behind.connection  # noqa: B018
        append(a, {**EVENT, "user_id": "u02"})
        assert build(a).published == BUCKETS
        report = build_memory(behind)
        assert (report.computed, report.published) == (1, 0)  # u02, as it was
    append(a, {**EVENT, "user_id": "u02", "query": "mat"})
    assert must_agree(a) == must_agree(b)


def test_a_cheaper_product_concerns_those_who_touched_it(machines, tmp_path):
    a, b = machines
    build(a)
    (tmp_path / "prices.csv").write_text("product_id,price\np000,1.5\n")
    with Shop.open(a, read_only=False) as shop:
        ingest_files(shop, "products", [tmp_path / "prices.csv"])
    assert build(b).computed < build(b, anew=True).computed
    assert must_agree(a) == must_agree(b)


def test_what_is_damaged_or_of_other_settings_is_built_anew(machines, tmp_path, caplog):
    a, b = machines
    build(a)
    damaged = next(tmp_path.glob("data/memory/of-4/2-*/profiles.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    report = build(b)
    assert report.published == 1
    assert 0 < report.computed < report.users
    assert "2.json" in caplog.text and "is damaged" in caplog.text
    with Shop.open(b, read_only=False) as shop:
        shop.config = replace(shop.config, memory=replace(shop.config.memory, half_life_days=9.0))
        shop.save_config()
    assert build(b).published == BUCKETS
    must_agree(b)


@pytest.mark.parametrize(
    "content", [None, b"[" * 100_000, b'{"snapshot": -1}', b"\xff", b" " * (LARGEST_MANIFEST + 1)]
)
def test_what_others_put_in_its_place_is_built_anew(machines, tmp_path, caplog, content):
    a, b = machines
    build(a)
    manifest = tmp_path / "data" / "memory" / "of-4" / "2.json"
    manifest.unlink()
    if content is None:
        os.mkfifo(manifest)
    else:
        manifest.write_bytes(content)
    assert build(b).published == 1
    assert ("2.json" in caplog.text) == (content is not None)  # what is no file is not there
    caplog.clear()
    assert build(a).computed == 0
    assert not caplog.text


def test_a_manifest_that_names_files_elsewhere_is_built_anew(machines, tmp_path, caplog):
    a, b = machines
    build(a)
    manifest = tmp_path / "data" / "memory" / "of-4" / "2.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "folder": "../of-4/2-00000000"}))
    assert build(b).published == 1
    assert "names files elsewhere" in caplog.text


def test_a_bucket_that_somebody_keeps_is_built_without_publishing(machines, monkeypatch):
    a, _ = machines
    monkeypatch.setattr(buckets, "PATIENCE_SECONDS", 0.2)
    with Shop.open(a, read_only=False) as shop:
        store = shop.store
        assert isinstance(store, LakeStore)
        with store.catalog.lock(0.0, 1):
            report = build_memory(shop)
        assert report.published == BUCKETS - 1
        assert report.computed == report.users
        assert build_memory(shop).published == 1
    must_agree(a)


def test_who_is_forgotten_leaves_what_was_published(machines, tmp_path):
    a, b = machines
    append(a, {**EVENT, "user_id": "someone-to-forget"})
    build(a)
    with Shop.open(a, read_only=False) as shop:
        erase_user(shop, "someone-to-forget")
    assert not (tmp_path / "data" / "memory").exists()
    report = build(b)
    assert report.computed == report.users
    left = [p for p in (tmp_path / "data").rglob("*") if p.is_file()]
    assert not [p for p in left if b"someone-to-forget" in p.read_bytes()]


def test_a_folder_that_cannot_be_written_is_named(machines, tmp_path):
    a, _ = machines
    (tmp_path / "data" / "memory").write_text("in the way")
    with pytest.raises(QAgentError, match=r"cannot write .*memory"):
        build(a)
    (tmp_path / "data" / "memory").unlink()
    assert build(a).published == BUCKETS


def test_a_shop_that_is_a_file_builds_alone(own_shop):
    report = build_memory(own_shop)
    assert report.users == report.computed == own_shop.counts()["users"]
    assert (report.buckets, report.snapshot) == (0, None)


def test_buckets_grow_with_the_users_and_are_about_as_large(tmp_path, own_shop):
    data = FilesOfLake(tmp_path)
    numbers = [PublishedMemory(data, users).buckets for users in (0, 30_000, 10**9)]
    assert numbers == [4, 8, 1024]
    published = PublishedMemory(data, 0)
    counts = own_shop.connection.execute(
        f"""SELECT count(*) FROM (SELECT {published.bucket_sql("'u' || range")} AS bucket
        FROM range(4000)) GROUP BY bucket"""
    ).fetchall()
    assert len(counts) == 4
    assert all(900 < count < 1100 for (count,) in counts)


def test_what_was_published_of_fewer_users_goes(tmp_path):
    data = FilesOfLake(tmp_path)
    few, many = PublishedMemory(data, 0), PublishedMemory(data, 10**6)
    for published in (few, many):
        data.write(f"of-{published.buckets}/2-00000000/profiles.parquet", b"rows")
    few.drop_smaller()
    assert len(data.sizes()) == 2
    many.drop_smaller()
    assert [*data.sizes()] == [f"of-{many.buckets}/2-00000000/profiles.parquet"]
