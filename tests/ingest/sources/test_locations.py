"""What names stand for: patterns, folders, archives and folders that are columns."""

import zipfile

import pytest
from source_files import as_csv, log, put, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.sources.locations import locate


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "export"
    for part in ("b", "a", "deep/c", "_SUCCESS", ".hidden", "_tmp/d"):
        path = folder / f"{part}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"id,title\n{path.stem},T {path.stem}\n")
    (folder / "README.md").write_text("not data")
    return folder


def names(*given):
    return [location.short for location in locate(given)]


def test_a_folder_stands_for_its_files_in_order(shop, folder):
    assert names(folder) == ["a.csv", "b.csv", "deep/c.csv"]
    assert ingest_files(shop, "products", [folder]).accepted == 3
    assert [row[0] for row in titles(shop)] == ["a", "b", "c"]


def test_a_pattern_is_matched_when_no_shell_did_it(folder, monkeypatch):
    assert names(f"{folder}/[ab].csv") == ["a.csv", "b.csv"]
    assert names(f"{folder}/**/*.csv") == ["a.csv", "b.csv", "c.csv"]
    assert names(f"{folder}/*") == ["a.csv", "b.csv", "c.csv"]
    monkeypatch.chdir(folder)
    assert names("?.csv", "a.csv") == ["a.csv", "b.csv", "a.csv"]
    odd = put(folder / "x[1].csv", "id,title\n1,A\n")
    assert names(odd) == ["x[1].csv"]


@pytest.mark.parametrize("name", ["none.csv", "none*.csv", "none/", "none.sqlite::t"])
def test_nothing_behind_a_name_is_said_before_anything_is_stored(shop, folder, name):
    with pytest.raises(QAgentError, match="no such file|no file matches"):
        ingest_files(shop, "products", [folder, folder / name])
    assert shop.counts()["products"] == 0


def test_an_archive_stands_for_its_files(shop, tmp_path):
    path = tmp_path / "logs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "id,title\n1,A\n,no id\n")
        archive.writestr("sub/b.jsonl", '{"id": 2, "title": "B"}')
        archive.writestr("__MACOSX/._a.csv", "junk")
        archive.writestr("LICENSE.md", "free")
    report = ingest_files(shop, "products", [path])
    assert (report.accepted, report.rejected) == (2, 1)
    assert shop.connection.execute("SELECT file, row FROM rejects").fetchall() == [
        ("logs.zip::a.csv", 2)
    ]
    assert ingest_files(shop, "products", [f"{path}::sub/b.jsonl"]).duplicates == 1
    with pytest.raises(QAgentError, match="the archive has no file 'c.csv'"):
        ingest_files(shop, "products", [f"{path}::c.csv"])


def partition(tmp_path, folders, rows):
    path = tmp_path / "lake" / folders / "part-0.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    return put(path, as_csv(rows))


def test_folders_that_are_columns_serve_fields_that_the_file_lacks(stocked, tmp_path):
    rows = [{"user_id": "u1", "product_id": "p1"}]
    partition(tmp_path, "date=2026-01-05/type=view", rows)
    partition(tmp_path, "date=2026-01-06/type=cart", rows)
    assert ingest_files(stocked, "events", [tmp_path / "lake"]).accepted == 2
    assert [row[1:3] for row in log(stocked)] == [
        ("2026-01-05 00:00:00", "view"),
        ("2026-01-06 00:00:00", "cart"),
    ]


def test_folders_that_are_columns_shadow_nothing(stocked, tmp_path):
    rows = [{"user_id": "u1", "t_dat": "2026-01-05 10:00", "event": "view", "product_id": "p1"}]
    path = partition(tmp_path, "date=2020-01-01/type=cart/event=x/user_id=no", rows)
    assert ingest_files(stocked, "events", [path]).accepted == 1
    assert log(stocked) == [("u1", "2026-01-05 10:00:00", "view", None, "p1")]
    mapped = ReadOptions(mapping=(("time", "date"), ("type", "type")))
    assert ingest_files(stocked, "events", [path], mapped).accepted == 1
    assert ("u1", "2020-01-01 00:00:00", "cart", None, "p1") in log(stocked)


def test_folders_that_are_columns_write_their_values_as_hive_does(stocked, tmp_path):
    rows = [{"user_id": "u1", "time": "2026-01-05", "type": "search"}]
    path = partition(tmp_path, "query=red%20lamp%2Fx", rows)
    assert ingest_files(stocked, "events", [path]).accepted == 1
    assert log(stocked)[0][3] == "red lamp/x"
    path = partition(tmp_path, "query=__HIVE_DEFAULT_PARTITION__", rows)
    with pytest.raises(QAgentError, match="search without a query"):
        ingest_files(stocked, "events", [path])


def test_a_password_is_never_shown():
    (location,) = locate(["postgresql://me:secret@db/shop::events"])
    assert location.name == "postgresql://me:secret@db/shop"
    assert location.table == "events"
    assert location.shown == "postgresql://me:***@db/shop::events"
    assert "secret" not in location.short


def test_a_host_may_be_written_with_colons():
    (location,) = locate(["http://[::1]:8000/my%20log.sqlite::events"])
    assert (location.name, location.table) == ("http://[::1]:8000/my%20log.sqlite", "events")
    assert locate(["http://[::1]/log.csv"])[0].short == "log.csv"


def test_standard_input_is_no_part_of_a_join(folder):
    with pytest.raises(QAgentError, match="standard input can be read only once"):
        locate(["-"], str(folder / "a.csv"))
