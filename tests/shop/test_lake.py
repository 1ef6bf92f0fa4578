"""A shop in a lake: several machines share its rows, and each answers as if it were alone."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import pytest
from lakes import lakes, object_store, require_lakes

from qagent_mlx.build import build
from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.suite import evaluate_policies
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.buckets import build_memory
from qagent_mlx.memory.profile import Memory
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop import lake as lake_module
from qagent_mlx.shop.journal import JournalWriter
from qagent_mlx.shop.lake_data import open_lake_data
from qagent_mlx.shop.moving import FILE, create_at, create_in, move
from qagent_mlx.shop.row_changes import fingerprint
from qagent_mlx.shop.schema import OF_THIS_MACHINE
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils import trust

EVENT = {"user_id": "u01", "time": "2026-04-02 10:00:00", "type": "search", "query": "desk lamp"}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def new_lake(request):
    with lakes(request.param) as address:
        yield address


@pytest.fixture
def sqlite_lake(tmp_path):
    require_lakes()
    return f"ducklake:sqlite:{tmp_path.resolve() / 'catalog.sqlite'}"


def fill(shop, files):
    for kind, name in (("products", "products.csv"), ("events", "events.jsonl")):
        ingest_files(shop, kind, [files / name])


def store_memory(shop):
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).build()


def rows(shop):
    tables = lake_module.shared_tables(shop.connection)
    return {t.name: fingerprint(shop.connection, t.name, t) for t in tables}


def told(path):
    """What is remembered of all users, and whether it is read from what is stored."""
    with Shop.open(path) as shop:
        memory = Memory(
            shop.connection, shop.config.memory, lambda texts: [len(text.split()) for text in texts]
        )
        users = [f"u{u:02}" for u in range(30)]
        profiles = memory.profiles([Moment(user, shop.end_of_log()) for user in users])
        is_stored = MemoryStore(shop.connection, shop.config.memory).is_current()
        return [profile.text for profile in profiles], is_stored


def two_machines(tmp_path, address, files):
    """A shop in a lake, and a second machine that shares it; both have stored memory."""
    with Shop.create(tmp_path / "a") as shop:
        fill(shop, files)
        store_memory(shop)
        move(shop, address, str(tmp_path / "data"))
    create_in(tmp_path / "b", address, None)
    with Shop.open(tmp_path / "b", read_only=False) as shop:
        store_memory(shop)
    return tmp_path / "a", tmp_path / "b"


def with_half_life(config, days):
    return replace(config, memory=replace(config.memory, half_life_days=days))


def append(path, *events):
    with Shop.open(path, read_only=False) as shop:
        return append_events(shop, events)


def test_a_shop_moves_to_a_lake_and_back_with_all_its_rows(tmp_path, new_lake, tiny_files):
    address = new_lake(tmp_path)
    with Shop.create(tmp_path / "a") as shop:
        fill(shop, tiny_files)
        store_memory(shop)
        before, text = rows(shop), (tmp_path / "a" / "shop.json").read_text()
        there = move(shop, address, str(tmp_path / "data"))
    assert not there.joined
    assert {t.table: t.rows for t in there.tables} == {name: n for name, (n, _) in before.items()}
    with Shop.open(tmp_path / "a", read_only=False) as shop:
        assert rows(shop) == before
        assert MemoryStore(shop.connection, shop.config.memory).is_current()
        again = move(shop, address)
        assert (again.tables, again.joined) == (there.tables, True)
        back = move(shop, FILE)
        assert back.tables == there.tables
        assert rows(shop) == before
    assert (tmp_path / "a" / "shop.json").read_text() == text
    append(tmp_path / "a", EVENT)  # the lake is left alone from now on
    create_in(tmp_path / "b", address, None)
    with Shop.open(tmp_path / "b") as shop:
        assert rows(shop) == before


def test_machines_that_share_a_lake_answer_as_one_shop_does(tmp_path, new_lake, tiny_files):
    a, b = two_machines(tmp_path, new_lake(tmp_path), tiny_files)
    with Shop.create(tmp_path / "alone") as shop:
        fill(shop, tiny_files)
        store_memory(shop)
    late = {**EVENT, "user_id": "u02", "time": "2026-03-10 09:00:00", "query": "acme phone case"}
    click = {**EVENT, "type": "click", "product_id": "p400", "time": "2026-04-02 10:00:05"}
    for path, event in ((a, EVENT), (b, click), (a, late), (b, {**EVENT, "user_id": "new"})):
        for place in (path, tmp_path / "alone"):
            assert append(place, event).accepted == 1
    cheaper = tmp_path / "prices.csv"
    cheaper.write_text("product_id,price\np000,1.5\np001,2.5\n")
    for place in (b, tmp_path / "alone"):
        with Shop.open(place, read_only=False) as shop:
            ingest_files(shop, "products", [cheaper])
    found = [told(path) for path in (a, b, tmp_path / "alone")]
    assert found[0] == found[1] == found[2]
    assert found[0][1]  # prices of now touch nothing that is stored
    with Shop.open(a) as one, Shop.open(b) as two, Shop.open(tmp_path / "alone") as alone:
        assert rows(one) == rows(two)
        assert one.counts() == two.counts() == alone.counts()
        events = "SELECT * FROM events ORDER BY event_id"
        assert (
            one.connection.execute(events).fetchall() == alone.connection.execute(events).fetchall()
        )


def test_an_event_that_was_posted_is_stored_once_whoever_dies(
    tmp_path, sqlite_lake, tiny_files, monkeypatch
):
    a, b = two_machines(tmp_path, sqlite_lake, tiny_files)

    def dies(self, connection, is_elsewhere):
        assert is_elsewhere
        raise KeyboardInterrupt  # after the lake's commit, before the file's

    writer = JournalWriter(a)
    writer.append([{"events": [EVENT]}])
    with monkeypatch.context() as patch:
        patch.setattr(Shop, "_commit", dies)
        shop = Shop.open(a, read_only=False)
        with pytest.raises(KeyboardInterrupt):
            shop.connection  # noqa: B018
        shop.close()  # without a commit, as a process that ends does
    for path in (b, a, b, a):
        with Shop.open(path, read_only=False) as shop:
            count = shop.connection.execute(
                "SELECT count(*) FROM events WHERE ts > TIMESTAMP '2026-04-02'"
            ).fetchone()
            assert count == (1,)
    writer.close()


def test_who_lost_the_lock_changes_nothing(tmp_path, sqlite_lake, tiny_files, monkeypatch):
    a, b = two_machines(tmp_path, sqlite_lake, tiny_files)
    push = lake_module.LakeStore.push

    def too_late(self, shop):
        if shop.path == a:
            with monkeypatch.context() as patch:
                patch.setattr(lake_module.LakeCatalog, "lock", lambda *_: nullcontext())
                append(b, {**EVENT, "user_id": "u03"})
        return push(self, shop)

    with monkeypatch.context() as patch:
        patch.setattr(lake_module.LakeStore, "push", too_late)
        with pytest.raises(QAgentError, match="changed by another machine meanwhile"):
            append(a, EVENT)
    with Shop.open(a) as one, Shop.open(b) as two:
        assert rows(one) == rows(two)
        assert not one.connection.execute(
            "SELECT 1 FROM events WHERE user_id = 'u01' AND ts > TIMESTAMP '2026-04-02'"
        ).fetchall()


def test_a_lake_must_have_been_named_by_its_user(tmp_path, sqlite_lake, tiny_files):
    a, _ = two_machines(tmp_path, sqlite_lake, tiny_files)
    trust.distrust(sqlite_lake)
    for read_only in (True, False):
        with pytest.raises(QAgentError, match=f"qagent trust {sqlite_lake}"):
            Shop.open(a, read_only=read_only).counts()
    with pytest.raises(QAgentError, match="qagent trust"):
        Shop.snapshot(a)


@pytest.mark.parametrize(
    "address",
    ["ducklake:postgres:host=db password=geheim", "ducklake:postgres:postgresql://me:geheim@db/x"],
)
def test_no_password_is_written_into_a_shop(tmp_path, address):
    with pytest.raises(QAgentError, match="PGPASSWORD") as error:
        create_in(tmp_path / "a", address, str(tmp_path / "data"))
    assert "geheim" not in str(error.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("address", ["lake.duckdb", "ducklake:", "ducklake:mysql:x", "postgres:x"])
def test_what_names_no_lake_is_refused(tmp_path, address):
    with pytest.raises(QAgentError, match="names no lake"):
        create_in(tmp_path / "a", address, None)


def test_a_lake_that_is_gone_keeps_nobody_from_reading(tmp_path, sqlite_lake, tiny_files, caplog):
    a, _ = two_machines(tmp_path, sqlite_lake, tiny_files)
    with Shop.open(a) as shop:
        counts = shop.counts()
    lake_module.LakeCatalog(sqlite_lake, "test").unreachable(lake_module.duckdb.Error("gone"))
    for path in tmp_path.glob("catalog.sqlite*"):
        path.unlink()
    with Shop.open(a) as shop:
        assert shop.counts() == counts
    assert "as this machine knows it" in caplog.text
    with pytest.raises(QAgentError, match="cannot be used"):
        append(a, EVENT)


def test_a_lake_of_other_rows_is_not_taken_over(tmp_path, sqlite_lake, tiny_files):
    two_machines(tmp_path, sqlite_lake, tiny_files)
    with Shop.create(tmp_path / "c") as shop:
        fill(shop, tiny_files)
        append_events(shop, [EVENT])
        with pytest.raises(QAgentError, match="holds other rows"):
            move(shop, sqlite_lake)
    assert "store" not in json.loads((tmp_path / "c" / "shop.json").read_text())


def test_who_was_away_while_old_snapshots_went_catches_up(tmp_path, sqlite_lake, tiny_files):
    a, b = two_machines(tmp_path, sqlite_lake, tiny_files)
    append(b, {**EVENT, "user_id": "u03"})
    with Shop.open(b, read_only=False) as shop:
        shop.store.forget_old()
        expected = rows(shop)
    with Shop.open(a) as shop:
        assert rows(shop) == expected
    assert told(a)[1]


def test_what_was_deleted_leaves_the_lakes_files(tmp_path, sqlite_lake, tiny_files):
    a, _ = two_machines(tmp_path, sqlite_lake, tiny_files)
    append(a, {**EVENT, "user_id": "someone-to-forget"})
    with Shop.open(a, read_only=False) as shop:
        shop.store.forget_old()  # her row goes into a file of the lake's data
        with shop.transaction() as connection:
            connection.execute("DELETE FROM events WHERE user_id = 'someone-to-forget'")
        shop.store.forget_old()
    left = [p for p in (tmp_path / "data").rglob("*") if p.is_file()]
    left += [*tmp_path.glob("catalog.sqlite*")]
    connection = lake_module.LakeCatalog(sqlite_lake, "test").cursor()
    assert connection.execute("SELECT count(*) FROM lake.main.events").fetchone()[0] > 100
    assert left
    assert not [p for p in left if b"someone-to-forget" in p.read_bytes()]


def test_a_copied_folder_is_another_machine(tmp_path, sqlite_lake, tiny_files):
    a, _ = two_machines(tmp_path, sqlite_lake, tiny_files)
    shutil.copytree(a, tmp_path / "copy")
    append(tmp_path / "copy", EVENT)
    append(a, {**EVENT, "user_id": "u05"})
    with Shop.open(a) as one, Shop.open(tmp_path / "copy") as two:
        assert rows(one) == rows(two)
        assert one.end_of_log() == datetime(2026, 4, 2, 10, 0, 1)


def test_a_copy_to_try_things_on_changes_no_lake(tmp_path, sqlite_lake, tiny_files):
    a, b = two_machines(tmp_path, sqlite_lake, tiny_files)
    with Shop.open(b) as shop:
        before, config = rows(shop), shop.config
    shutil.copytree(a, tmp_path / "copy")
    with Shop.open_copy(tmp_path / "copy") as shop:
        assert append_events(shop, [EVENT]).accepted == 1
    with Shop.create(tmp_path / "made", config) as shop:
        assert shop.config.store is None
    with Shop.open(b) as shop:
        assert rows(shop) == before


def test_settings_reach_the_other_machines(tmp_path, sqlite_lake, tiny_files):
    a, b = two_machines(tmp_path, sqlite_lake, tiny_files)
    with Shop.open(a, read_only=False) as shop:
        shop.config = replace(shop.config, derived_queries="titles")
        shop.save_config()
    with Shop.open(b) as shop:
        shop.counts()
    with Shop.open(b) as shop:
        assert (shop.config.derived_queries, shop.config.store) == ("titles", sqlite_lake)


def test_stored_memory_is_a_machines_own():
    from qagent_mlx.memory import store

    assert set(store._META) < set(OF_THIS_MACHINE)


def test_a_shop_of_a_snapshot_has_the_rows_and_settings_of_then(tmp_path, new_lake, tiny_files):
    address = new_lake(tmp_path)
    a, _ = two_machines(tmp_path, address, tiny_files)
    with Shop.open(a, read_only=False) as shop:
        shop.config = with_half_life(shop.config, 11.0)
        shop.save_config()
    with Shop.open(a) as shop:
        snapshot, before = shop.lake_snapshot, rows(shop)
    append(a, EVENT, {**EVENT, "user_id": "new"})
    (tmp_path / "p.csv").write_text("product_id,title,price\np000,Another title,1.5\n")
    with Shop.open(a, read_only=False) as shop:
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        shop.config = with_half_life(shop.config, 12.0)
        shop.save_config()
        assert shop.lake_snapshot > snapshot
    create_at(tmp_path / "then", address, snapshot)
    with Shop.open(tmp_path / "then") as shop:
        assert rows(shop) == before
        assert (shop.config.store, shop.config.memory.half_life_days) == (None, 11.0)
        assert shop.lake_snapshot == snapshot
    append(tmp_path / "then", EVENT)
    with Shop.open(tmp_path / "then") as shop:
        assert shop.lake_snapshot is None  # its rows are those of no snapshot any longer
    with pytest.raises(QAgentError, match=r"has no snapshot 999: its newest is \d+"):
        create_at(tmp_path / "never", address, 999)
    assert not (tmp_path / "never").exists()


def test_the_rows_may_lie_in_a_store_of_objects(tmp_path, sqlite_lake, tiny_files, monkeypatch):
    with object_store(tmp_path, monkeypatch) as place:
        with Shop.create(tmp_path / "a") as shop:
            fill(shop, tiny_files)
            move(shop, sqlite_lake, place)
            refused = lake_module.duckdb.HTTPException("403")
            assert "CREATE PERSISTENT SECRET" in str(shop.store.catalog.unreachable(refused))
        create_in(tmp_path / "b", sqlite_lake, None)
        with Shop.open(tmp_path / "b", read_only=False) as shop:
            built = build_memory(shop)
            assert (built.computed, built.published) == (built.users, built.buckets)
        with Shop.open(tmp_path / "a", read_only=False) as shop:
            assert build_memory(shop).computed == 0  # it has what b has published
        append(tmp_path / "b", EVENT)
        with Shop.open(tmp_path / "a", read_only=False) as shop, Shop.open(tmp_path / "b") as other:
            assert rows(shop) == rows(other)
            shop.store.forget_old()
            assert open_lake_data(shop.store.catalog, "memory").sizes() == {}
            assert move(shop, FILE).store == FILE


def test_an_evaluation_names_its_snapshot_and_is_repeated_on_it(tmp_path, sqlite_lake, tiny_files):
    with Shop.create(tmp_path / "a") as shop:
        fill(shop, tiny_files)
        move(shop, sqlite_lake, str(tmp_path / "data"))
        assert shop.lake_snapshot is not None

    def evaluated(path):
        build(path)
        with Shop.snapshot(path) as shop:
            report = evaluate_policies(shop, [], EvaluationConfig(baselines=("trending", "swing")))
        systems = [(s.name, s.metrics) for s in report.systems]
        return report.to_dict()["snapshot"], systems

    snapshot, systems = evaluated(tmp_path / "a")
    append(tmp_path / "a", *({**EVENT, "user_id": f"u{n:02}", "query": "mat"} for n in range(9)))
    create_at(tmp_path / "then", sqlite_lake, snapshot)
    assert evaluated(tmp_path / "then") == (snapshot, systems)
    assert evaluated(tmp_path / "a")[0] > snapshot
