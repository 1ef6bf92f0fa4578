"""Compressed files that are not what they say, or too much."""

import bz2
import sys
import zipfile

import pytest
from source_files import put, write, write_workbook

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.sources import archives

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"id,title\n" + b"1,A\n" * 50_000


def packed(name, data):
    if name.endswith(".zip"):
        import io

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.csv", data)
        return buffer.getvalue()
    return {".bz2": bz2.compress, ".zst": zstd.compress}[name[-4:]](data)


@pytest.mark.parametrize("name", ["x.csv.bz2", "x.csv.zst", "x.zip"])
def test_an_archive_cut_short_or_of_another_kind_is_named(shop, tmp_path, name):
    path = put(tmp_path / name, packed(name, TEXT)[:-40])
    with pytest.raises(QAgentError, match="cut short or damaged"):
        ingest_files(shop, "products", [path])
    path = put(tmp_path / name, b"plain,text\n1,2\n")
    with pytest.raises(QAgentError, match="rename it without|damaged"):
        ingest_files(shop, "products", [path])
    assert shop.counts()["products"] == 0


@pytest.mark.parametrize("name", ["x.csv.bz2", "x.csv.zst", "x.zip"])
def test_a_bomb_is_refused(shop, tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1 << 20)
    path = put(tmp_path / name, packed(name, b"id,title\n" + b"1,A\n" * 1_000_000))
    with pytest.raises(QAgentError, match="unpacks to over 200 times its size"):
        ingest_files(shop, "products", [path])


def test_a_workbook_that_is_a_bomb_is_refused(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1 << 20)
    path = write_workbook(tmp_path / "x.xlsx", {"S": [["id", "title"], *[["1", "A"]] * 100_000]})
    with pytest.raises(QAgentError, match="unpacks to over 200 times its size"):
        ingest_files(shop, "products", [path])


def test_what_is_unpacked_does_not_stay_behind(shop, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows = [{"id": "1", "title": "A"}]
    for form in ("csv.bz2", "csv.zip", "sqlite", "duckdb", "xlsx"):
        ingest_files(shop, "products", [write(tmp_path / f"p.{form}", rows)])
    assert list((tmp_path / "temporary").iterdir()) == []
