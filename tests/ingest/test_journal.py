"""Entries of a journal go into the database exactly once."""

import pytest

from qagent_mlx.ingest import journal as applying
from qagent_mlx.ingest.journal import apply_journal, events_entry, stored_positions
from qagent_mlx.shop import journal
from qagent_mlx.shop.journal import JournalWriter
from qagent_mlx.shop.shop import Shop


def search(second, user="newcomer"):
    time = f"2026-05-01T10:00:{second:02}"
    return events_entry([{"user_id": user, "type": "search", "query": "usb cable", "time": time}])


def count(shop, user="newcomer"):
    sql = "SELECT count(*) FROM events WHERE user_id = ?"
    return shop.connection.execute(sql, [user]).fetchone()[0]


@pytest.fixture
def path(own_shop):
    own_shop.close()
    return own_shop.path


def test_whoever_opens_the_shop_knows_the_journal_and_it_is_stored_once(path):
    writer = JournalWriter(path)
    writer.append([search(1), search(2)])
    with Shop.open(path) as shop:
        assert count(shop) == 2
    with Shop.open(path, read_only=False) as shop:
        assert count(shop) == 2
        changes = journal.changes(path)
        writer.append([search(3)])
        assert apply_journal(shop) == {writer.server: writer.position}
        assert apply_journal(shop) == {writer.server: writer.position}
        assert count(shop) == 3 and journal.changes(path) == changes
    writer.close()
    with Shop.open(path, read_only=False) as shop:
        assert count(shop) == 3 and stored_positions(shop) == {}
    assert [file.name for file in (path / "journal").iterdir()] == ["changes"]


def test_a_kill_in_the_middle_of_a_transaction_stores_nothing_of_it(path, monkeypatch):
    writer = JournalWriter(path)
    writer.append([search(n) for n in range(5)])
    monkeypatch.setattr(applying, "AT_ONCE", 2)
    store, batches = applying._store_positions, []

    def stop_at_second(shop, records):
        batches.append(records)
        if len(batches) == 2:
            raise KeyboardInterrupt
        store(shop, records)

    with monkeypatch.context() as patch:
        patch.setattr(applying, "_store_positions", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            Shop.open(path, read_only=False).connection  # noqa: B018
    with Shop.open(path, read_only=False) as shop:
        assert count(shop) == 5


def test_a_snapshot_knows_the_journal_and_leaves_its_files(path):
    writer = JournalWriter(path)
    with Shop.snapshot(path) as shop:
        writer.append([search(1)])
        assert count(shop) == 0
        apply_journal(shop)
        assert count(shop) == 1
        with Shop.open(path, read_only=False) as other:
            assert count(other) == 1
        apply_journal(shop)
        assert count(shop) == 1
    writer.close()


@pytest.mark.parametrize(
    "entry",
    [
        {"unknown": [{}]},
        {"events": {"user_id": "u"}},
        {"events": ["text"]},
        {"products": [{}]},
        {"products": [{"product_id": 7}]},
        {"removed": [{}]},
        {"removed": ["p000"], "events": []},
        {"products": [{"product_id": "p000", "price": {"a": []}, "stock": [], "time": 7}]},
        {"events": [{"user_id": [1], "type": {}, "time": "\ud800"}]},
    ],
)
def test_a_strangers_journal_ends_in_no_traceback(path, entry):
    writer = JournalWriter(path)
    writer.append([entry, search(1)])
    writer.close()
    with Shop.open(path) as shop:
        assert count(shop) == 1 and shop.counts()["products"] == 40


def test_a_rejected_event_is_kept_with_its_reason(path):
    writer = JournalWriter(path)
    event = {"user_id": "u", "type": "click", "product_id": "none", "time": "2026-05-01T10:00:00"}
    writer.append([events_entry([event]), {}, search(1)])
    with Shop.open(path) as shop:
        assert shop.counts()["rejects"] == 1 and count(shop) == 1
    writer.close()
