"""Encodings: what is surely one is decoded and said, anything else is asked for."""

import gzip

import pytest
from source_files import put, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.sources.text import read_text

EURO = "sku;name;price\n1;Größe M – Hemd;12,99 €\n2;Hose „blau“;1.299,00 €\n"


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_windows_1252_is_recognised_and_said(shop, tmp_path, packed):
    path = put(
        tmp_path / f"x.csv{'.gz' if packed is gzip.compress else ''}", packed(EURO.encode("cp1252"))
    )
    text = read_text(
        path, "gzip" if path.suffix == ".gz" else "none", "x", "utf-8", tmp_path, lines=True
    )
    assert text.head == EURO
    (note,) = text.notes
    assert note.startswith("x line 2: not utf-8 text (byte 0xf6); read as Windows-1252")
    assert ingest_files(shop, "products", [path]).accepted == 2
    assert titles(shop) == [
        ("1", "Größe M – Hemd", None, 12.99),
        ("2", "Hose „blau“", None, 1299.0),
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "windows-1252", "latin-1", "utf-16"])
def test_what_the_remedy_says_works(shop, tmp_path, encoding):
    codec = "cp1252" if encoding == "latin-1" else encoding  # as the euro sign shows
    path = put(tmp_path / "x.csv", EURO.encode(codec))
    assert ingest_files(shop, "products", [path], ReadOptions(encoding=encoding)).accepted == 2
    assert titles(shop)[1][1] == "Hose „blau“"


def test_utf_16_is_known_by_its_mark(shop, tmp_path):
    path = put(tmp_path / "x.csv", EURO.encode("utf-16"))
    assert read_text(path, "none", "x", "utf-8", tmp_path, lines=True).notes == (
        "x: read as UTF-16, as its first bytes say",
    )
    assert ingest_files(shop, "products", [path]).accepted == 2
    json = put(tmp_path / "x.json", '[{"id": "3", "title": "Größe"}]'.encode("utf-16"))
    assert ingest_files(shop, "products", [json]).accepted == 1


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Стол и стул"),
        ("cp1253", "Τραπέζι κήπου"),
        ("cp1250", "Krzesło żółte"),
        ("shift_jis", "赤い椅子 テーブル"),
        ("gb18030", "红色的椅子"),
        ("cp1254", "ışık şık"),
    ],
)
def test_another_alphabet_is_asked_for_and_then_read(shop, tmp_path, encoding, text):
    path = put(tmp_path / "x.csv", f"id,title\n1,{text}\n".encode(encoding))
    with pytest.raises(QAgentError, match="line 2: not utf-8 text .*; give the `encoding`"):
        ingest_files(shop, "products", [path])
    assert ingest_files(shop, "products", [path], ReadOptions(encoding=encoding)).accepted == 1
    assert titles(shop)[0][1] == text


def test_utf_8_with_a_broken_byte_is_not_guessed_to_be_something_else(shop, tmp_path):
    text = "id,title\n" + "".join(f"{i},Größe Käse\n" for i in range(9))
    path = put(tmp_path / "x.csv", text.encode().replace(b"8,Gr\xc3\xb6", b"8,Gr\xf6"))
    with pytest.raises(QAgentError, match="line 10: not utf-8 text"):
        ingest_files(shop, "products", [path])


def test_a_character_over_two_chunks_is_one(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("qagent_mlx.ingest.sources.archives.CHUNK", 19)
    for number, codec in enumerate(["utf-8", "utf-16"]):
        path = put(tmp_path / f"{number}.csv", f"id,title\n{number},ääää€€€€😀\n".encode(codec))
        assert ingest_files(shop, "products", [path], ReadOptions(encoding=codec)).accepted == 1
    assert [row[1] for row in titles(shop)] == ["ääää€€€€😀"] * 2


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(shop, tmp_path, codec):
    path = put(tmp_path / "x.csv", EURO.encode(codec))
    assert ingest_files(shop, "products", [path]).accepted == 2
    assert titles(shop)[1][1] == "Hose „blau“"
    lines = put(tmp_path / "x.jsonl", '{"id": "3", "title": "Größe"}\n'.encode(codec) * 2)
    assert ingest_files(shop, "products", [lines]).accepted == 1


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "sep=;\r"])
def test_the_line_that_tells_excel_the_separator_is_none_of_the_columns(shop, tmp_path, first):
    path = put(tmp_path / "x.csv", f"{first}\n{EURO}4;short\n")
    report = ingest_files(shop, "products", [path])
    assert (report.accepted, report.rejected) == (2, 1)
    assert shop.connection.execute("SELECT row FROM rejects").fetchall() == [(3,)]
