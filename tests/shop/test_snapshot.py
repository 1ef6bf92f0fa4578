import subprocess
import sys

import duckdb
import pytest

from qagent_mlx.shop.shop import Shop

WRITE = 'import duckdb, sys; duckdb.connect(sys.argv[1]).execute("DELETE FROM meta")'


@pytest.fixture
def folder(tmp_path):
    with Shop.create(tmp_path / "shop") as shop, shop.transaction():
        shop.set_meta("colour", "red")
    return tmp_path / "shop"


def database(shop):
    ((name,),) = shop.connection.execute("SELECT current_database()").fetchall()
    return name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_is_a_copy_without_a_name_and_stays_as_it_is(folder):
    before = names(folder)
    with Shop.snapshot(folder) as snapshot:
        assert database(snapshot) == "snapshot" and names(folder) == before
        with Shop.open(folder, read_only=False) as shop, shop.transaction():
            shop.set_meta("colour", "blue")
        assert snapshot.meta("colour") == "red"
        with snapshot.transaction():
            snapshot.set_meta("colour", "green")
        snapshot.connection.execute("CHECKPOINT")
        assert snapshot.meta("colour") == "green"
    with Shop.open(folder) as shop:
        assert shop.meta("colour") == "blue"
    assert names(folder) == before


def test_a_reader_of_the_same_process_keeps_its_lock(folder):
    with Shop.open(folder) as reader:
        assert reader.meta("colour") == "red"
        with Shop.snapshot(folder) as snapshot:
            assert snapshot.meta("colour") == "red"
        command = [sys.executable, "-c", WRITE, str(folder / "shop.duckdb")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Conflicting lock" in done.stderr
        assert reader.meta("colour") == "red"


def test_what_is_not_in_the_file_yet_is_in_the_snapshot(folder):
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("UPDATE meta SET value = 'blue' WHERE key = 'colour'")
    assert (folder / "shop.duckdb.wal").exists()
    with Shop.snapshot(folder) as snapshot:
        assert snapshot.meta("colour") == "blue" and database(snapshot) == "memory"


@pytest.mark.parametrize(
    "program", [None, "#!/bin/sh\nhead -c 5000 $1 > $2\n", "#!/bin/sh\nexit 1\n"]
)
def test_where_the_file_cannot_be_copied_its_rows_are(folder, tmp_path, monkeypatch, program):
    (tmp_path / "bin").mkdir()
    if program is not None:
        (tmp_path / "bin" / "cp").write_text(program)
        (tmp_path / "bin" / "cp").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    else:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    before = names(folder)
    with Shop.snapshot(folder) as snapshot:
        assert snapshot.meta("colour") == "red" and database(snapshot) == "memory"
    assert names(folder) == before
