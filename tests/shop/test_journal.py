"""The journal's files: what is appended is read back, and what a crash tears is not."""

import multiprocessing
import os

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.shop.journal import (
    JournalWriter,
    Position,
    has_entries,
    is_served,
    pending,
    remove_stored,
)


def entries(shop, stored=None):
    return [record.entry for record in pending(shop, stored or {})]


def files(shop):
    return sorted(path.name for path in (shop / "journal").glob("*.log"))


def test_what_was_appended_is_read_back_from_every_position(tmp_path):
    writer = JournalWriter(tmp_path)
    assert not has_entries(tmp_path)
    ends = [writer.append([{"events": [{"query": "Lämp\n☃"}]}, {"n": n}]) for n in range(3)]
    assert has_entries(tmp_path) and writer.position == ends[-1]
    assert len(entries(tmp_path)) == 6
    assert entries(tmp_path)[0] == {"events": [{"query": "Lämp\n☃"}]}
    for number, end in enumerate(ends):
        rest = entries(tmp_path, {writer.server: end})
        assert rest[1::2] == [{"n": n} for n in range(number + 1, 3)]
    assert Position.parse(str(ends[1])) == ends[1]


def test_a_shop_is_served_as_long_as_a_server_keeps_its_journal(tmp_path):
    assert not is_served(tmp_path)
    writer = JournalWriter(tmp_path)
    writer.append([{"n": 1}])
    assert is_served(tmp_path)
    writer.close()
    assert has_entries(tmp_path) and not is_served(tmp_path)


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_tail_is_no_entry_and_its_file_goes_once_the_rest_is_stored(tmp_path, cut):
    process = multiprocessing.get_context("forkserver").Process(
        target=_append_two, args=(tmp_path,)
    )
    process.start()
    process.join()
    (path,) = (tmp_path / "journal").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    (record,) = pending(tmp_path, {})
    assert record.entry == {"n": 1}
    assert remove_stored(tmp_path, {}) == [] and path.exists()
    assert remove_stored(tmp_path, {record.server: record.end}) == [record.server]
    assert not path.exists()


def _append_two(shop):
    writer = JournalWriter(shop)
    writer.append([{"n": 1}])
    writer.append([{"n": 2}])


def test_a_damaged_entry_is_left_out_and_those_behind_it_are_not(tmp_path, caplog):
    writer = JournalWriter(tmp_path)
    for n in range(3):
        writer.append([{"n": n}])
    (path,) = (tmp_path / "journal").glob("*.log")
    path.write_bytes(path.read_bytes().replace(b'"n":1', b'"n":7'))
    assert entries(tmp_path) == [{"n": 0}, {}, {"n": 2}]
    assert "damaged" in caplog.text


def test_a_new_file_begins_only_when_all_is_stored(tmp_path):
    writer = JournalWriter(tmp_path)
    first = writer.append([{"n": 0}])
    second = writer.append([{"n": 1}])
    writer.start_again(first)
    assert len(files(tmp_path)) == 1 and writer.position == second
    writer.start_again(second)
    assert writer.position == Position(2, 0) and len(files(tmp_path)) == 1
    writer.append([{"n": 2}])
    assert entries(tmp_path, {writer.server: second}) == [{"n": 2}]


def test_a_living_servers_files_stay(tmp_path):
    writer = JournalWriter(tmp_path)
    end = writer.append([{"n": 0}])
    assert remove_stored(tmp_path, {writer.server: end}) == []
    assert len(files(tmp_path)) == 1
    writer.close()
    assert remove_stored(tmp_path, {writer.server: end}) == [writer.server]
    assert files(tmp_path) == []


def test_a_full_disk_keeps_nothing_of_what_was_refused(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path)
    writer.append([{"n": 0}])
    write = os.write

    def half(descriptor, data):
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("os.write", half)
        with pytest.raises(QAgentError, match="free some space"):
            writer.append([{"text": "x" * 50}])
    writer.append([{"n": 1}])
    assert entries(tmp_path) == [{"n": 0}, {"n": 1}]
