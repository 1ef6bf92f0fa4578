import json
import os
import shutil
import subprocess
import sys
import time

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.protocol.actions import MAX_REFERENCES
from qagent_mlx.shop.config import MemoryConfig, SearchConfig, ShopConfig
from qagent_mlx.shop.shop import Shop, check_name
from qagent_mlx.utils.settings import SettingError, describe


@pytest.fixture
def folder(tmp_path):
    """A closed shop."""
    Shop.create(tmp_path / "shop").close()
    return tmp_path / "shop"


def refused(path, *, read_only=True):
    """The one line that says why a shop cannot be used."""
    with pytest.raises(QAgentError) as error, Shop.open(path, read_only=read_only) as shop:
        shop.counts()
    line = str(error.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_new_shop_is_empty_and_keeps_its_settings(tmp_path):
    config = ShopConfig(
        name="größe",
        currency="€",
        memory=MemoryConfig(budget=64),
        search=SearchConfig(rrf_k=30),
        simulated={"seed": 1},
    )
    with Shop.create(tmp_path / "deep" / "shop", config) as shop:
        assert set(shop.counts().values()) == {0}
        assert shop.catalog_version == 0
    with Shop.open(tmp_path / "deep" / "shop") as shop:
        assert shop.config == config


def test_a_shop_is_made_in_a_new_or_empty_folder_only(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    Shop.create(tmp_path / "empty").close()
    with pytest.raises(QAgentError, match="already holds a shop"):
        Shop.create(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(QAgentError, match="is not empty"):
        Shop.create(tmp_path / "full")
    with pytest.raises(QAgentError, match="is a file"):
        Shop.create(tmp_path / "full" / "thesis.txt")
    with pytest.raises(QAgentError, match="cannot make"):
        Shop.create(tmp_path / "full" / "thesis.txt" / "shop")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_no_shop_says_how_to_make_one(tmp_path):
    assert "qagent init" in refused(tmp_path / "none")


def test_a_shop_of_another_version_is_refused(folder):
    values = json.loads((folder / "shop.json").read_text())
    for version, remedy in (
        (99, "pip install --upgrade"),
        (0, "qagent init"),
        (True, "qagent init"),
    ):
        (folder / "shop.json").write_text(json.dumps({**values, "version": version}))
        line = refused(folder)
        assert f"version {version}" in line and remedy in line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "damaged"),
        ("[1]", "holds no object"),
        ({"colour": 1}, "unknown setting 'colour'; known are name, currency, "),
        ({"memory": {"budgte": 3}}, "memory: unknown setting 'budgte'; did you mean budget?"),
        ({"memory": {"budget": "x"}}, "memory.budget must be a whole number, not 'x'"),
        ({"memory": {"budget": True}}, "memory.budget must be a whole number, not True"),
        ({"memory": {"budget": 1.5}}, "memory.budget must be a whole number, not 1.5"),
        ({"memory": {"half_life_days": 0}}, "memory.half_life_days must be a number above 0"),
        ({"memory": {"trend_days": 1e300}}, "memory.trend_days must be a number of at most 36500"),
        ({"memory": {"weight_view": float("nan")}}, "memory.weight_view must be a number of at"),
        ({"memory": {"swing": -1}}, "memory.swing must be a number of at least 0, not -1"),
        ({"search": {"click_half_life_days": float("inf")}}, "must be a number of at most 36500"),
        ({"search": {"dimensions": 10**9}}, "search.dimensions must be a whole number of at most"),
        ({"search": {"pool": 0}}, "search.pool must be a whole number of at least 1, not 0"),
        ({"search": {"engine": "x"}}, "search.engine must be a table or nothing, not 'x'"),
        ({"memory": []}, "memory must be a table of settings"),
        ({"search": None}, "search must be a table of settings"),
    ],
)
def test_damaged_settings_are_named(folder, settings, says):
    text = settings if isinstance(settings, str) else json.dumps({"version": 1, **settings})
    (folder / "shop.json").write_text(text)
    assert says in refused(folder)


def test_every_setting_says_what_it_is_and_none_allows_more_references_than_the_protocol():
    settings = {setting.name: setting for setting in describe(ShopConfig)}
    assert all(setting.description.endswith(".") for setting in settings.values())
    assert settings["memory.references"].bounds["le"] == MAX_REFERENCES
    assert settings["memory.half_life_days"].unit == "days"


def test_a_shop_is_not_made_with_settings_that_it_would_refuse(tmp_path):
    with pytest.raises(SettingError, match=r"memory\.budget must be a whole number of at least 0"):
        Shop.create(tmp_path / "shop", ShopConfig(memory=MemoryConfig(budget=-1)))
    assert not (tmp_path / "shop").exists()


def test_whole_numbers_stand_for_fractions(folder):
    (folder / "shop.json").write_text('{"version": 1, "memory": {"half_life_days": 7}}')
    with Shop.open(folder) as shop:
        assert shop.config.memory.half_life_days == 7.0


def test_a_lost_database_is_named(folder):
    (folder / "shop.duckdb").unlink()
    assert "lost its shop.duckdb" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 1000, None])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_database_is_named_and_left_as_it_is(folder, content, read_only):
    path = folder / "shop.duckdb"
    if content is None:  # a bad block behind a good header
        content = bytearray(path.read_bytes())
        content[9000:12000] = bytes(b ^ 0xFF for b in content[9000:12000])
        content = bytes(content)
    path.write_bytes(content)
    line = refused(folder, read_only=read_only)
    assert "shop.duckdb" in line and "make the shop again" in line
    assert path.read_bytes() == content


def test_a_transaction_is_all_or_nothing(folder):
    with Shop.open(folder, read_only=False) as shop:
        with pytest.raises(ZeroDivisionError), shop.transaction():
            shop.set_meta("a", "1")
            raise ZeroDivisionError
        assert shop.meta("a", "none") == "none"
        with shop.transaction():
            shop.set_meta("a", "1")
            shop.set_meta("a", "2")
    with Shop.open(folder) as shop:
        assert shop.meta("a") == "2"


def test_reading_cannot_write(folder):
    with Shop.open(folder) as shop, pytest.raises(duckdb.Error):
        shop.set_meta("a", "1")


def holding(folder, read_only):
    """A process that keeps the shop open until its input closes."""
    code = (
        "import sys; from qagent_mlx.shop.shop import Shop\n"
        f"shop = Shop.open({str(folder)!r}, read_only={read_only}); shop.counts()\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "open\n"
    return process


def test_who_writes_is_named_and_nobody_else_may(folder):
    with holding(folder, read_only=False) as process:
        for read_only, doing in ((True, "being written to"), (False, "in use")):
            line = refused(folder, read_only=read_only)
            assert f"is {doing} by process {process.pid} (" in line
            assert "wait until it ends" in line
        process.stdin.close()
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with Shop.open(folder, read_only=False) as shop:
        shop.set_meta("a", "1")


def test_many_may_read_and_then_nobody_may_write(folder):
    with holding(folder, read_only=True) as process:
        with Shop.open(folder) as shop:
            assert shop.counts()["products"] == 0
        assert f"process {process.pid} (" in refused(folder, read_only=False)
        process.stdin.close()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", ".hidden", "a b", "x" * 101, "a\n"]
)
def test_names_stay_inside_their_folder(name, folder):
    with Shop.open(folder) as shop, pytest.raises(QAgentError, match="cannot name a policy"):
        shop.folder("policies", name)


def test_names_are_listed_oldest_first(folder):
    assert check_name("A-1.b_c", "run") == "A-1.b_c"
    with Shop.open(folder) as shop:
        assert shop.names("runs") == []
        for age, name in enumerate(("b", "c", "a")):
            shop.folder("runs", name).mkdir(parents=True)
            os.utime(shop.folder("runs", name), (1000 - age, 1000 - age))
        (folder / "runs" / ".half").mkdir()
        assert shop.names("runs") == ["a", "c", "b"]


def test_times_are_utc_wherever_the_machine_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with Shop.create(tmp_path / "west") as shop:
            rows = [
                {"user_id": "u", "time": text, "type": "search", "query": text}
                for text in ("2026-01-01T10:00", "2026-01-01T12:00+02:00", "1767261600")
            ]
            assert append_events(shop, rows).accepted == 3
            found = shop.connection.execute("SELECT DISTINCT ts::VARCHAR FROM events").fetchall()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == [("2026-01-01 10:00:00",)]


def test_removing_deletes_the_folder_and_nothing_beside_it(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "other")
    with Shop.open(folder) as shop:
        shop.delete()
    assert not folder.exists()
    assert (tmp_path / "other" / "shop.json").exists()
