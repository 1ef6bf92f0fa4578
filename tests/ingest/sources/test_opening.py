"""Every form of file gives the same shop."""

import bz2
import gzip
import io
import json
import sys
import zipfile

import pytest
from source_files import EVENT_FIELDS, EVENTS, PRODUCTS, filled, log, put, titles, write

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files

FORMS = [
    *(f"{form}{packed}" for form in ("csv", "jsonl", "json") for packed in ("", ".gz", ".zst")),
    *("csv.bz2", "json.bz2", "csv.zip", "jsonl.zip", "json.zip", "parquet"),
    *("xlsx", "sqlite", "duckdb"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shop(shop, tmp_path, form):
    products = ingest_files(shop, "products", [write(tmp_path / f"p.{form}", PRODUCTS)])
    rows = filled(EVENTS, EVENT_FIELDS)
    events = ingest_files(shop, "events", [write(tmp_path / f"e.{form}", rows)])
    assert (products.accepted, products.rejected) == (2, 0)
    assert (events.accepted, events.rejected) == (3, 0)
    assert titles(shop) == [
        ("p1", 'Monitor 24", black', "Acme", 1299.5),
        ("p2", "Käse; grün", None, 3.0),
    ]
    assert [row[2:] for row in log(shop)] == [
        ("search", "red, Monitor", None),
        ("click", None, "p1"),
        ("view", None, "p2"),
    ]


@pytest.mark.parametrize(
    ("inner", "packed"), [("parquet", "gz"), ("sqlite", "gz"), ("xlsx", "bz2"), ("xlsx", "zip")]
)
def test_what_duckdb_cannot_unpack_is_unpacked_first(shop, tmp_path, inner, packed):
    plain = write(tmp_path / f"p.{inner}", PRODUCTS)
    path = tmp_path / f"p.{inner}.{packed}"
    if packed == "zip":
        path = tmp_path / "p.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, f"deep/p.{inner}")
    else:
        pack = gzip.compress if packed == "gz" else bz2.compress
        path.write_bytes(pack(plain.read_bytes()))
    assert ingest_files(shop, "products", [path]).accepted == 2


@pytest.mark.parametrize(
    "form", ["csv", "csv.gz", "csv.zst", "csv.bz2", "jsonl", "json", "parquet", "csv.zip"]
)
def test_standard_input_tells_its_form_by_itself(shop, tmp_path, form, monkeypatch):
    data = write(tmp_path / f"p.{form}", PRODUCTS).read_bytes()

    class Stdin:
        buffer = io.BytesIO(data)

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert ingest_files(shop, "products", ["-"]).accepted == 2
    assert len(titles(shop)) == 2


def test_a_name_without_an_ending_is_told_by_its_bytes(shop, tmp_path):
    parquet = write(tmp_path / "p.parquet", PRODUCTS).rename(tmp_path / "part-0000")
    assert ingest_files(shop, "products", [parquet]).accepted == 2
    row = {"id": "p3", "title": "Lamp"}
    shard = put(tmp_path / "events-000000000000", json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert ingest_files(shop, "products", [shard]).accepted == 1
    database = write(tmp_path / "p.duckdb", PRODUCTS).rename(tmp_path / "shop.db")
    assert ingest_files(shop, "products", [database]).duplicates == 2


def test_a_table_of_a_file_without_tables_is_refused(shop, tmp_path):
    write(tmp_path / "p.csv", PRODUCTS)
    with pytest.raises(QAgentError, match="csv files have no tables; leave out ::"):
        ingest_files(shop, "products", [f"{tmp_path}/p.csv::x"])


def test_remedies_of_files_that_cannot_be_read_work_when_followed(shop, tmp_path):
    data = write(tmp_path / "p.csv", PRODUCTS).read_bytes()
    wrong = put(tmp_path / "x.csv.gz", data)
    with pytest.raises(QAgentError, match="rename it without .gz"):
        ingest_files(shop, "products", [wrong])
    assert ingest_files(shop, "products", [wrong.rename(tmp_path / "x.csv")]).accepted == 2
    unnamed = put(tmp_path / "export", data)
    with pytest.raises(QAgentError, match="cannot tell its form from its name; use .csv"):
        ingest_files(shop, "products", [unnamed])
    assert ingest_files(shop, "products", [unnamed.rename(tmp_path / "y.csv")]).duplicates == 2
    with pytest.raises(QAgentError, match="leave out ::") as error:
        ingest_files(shop, "products", [f"{tmp_path}/y.csv::x"])
    assert str(error.value).startswith(f"{tmp_path}/y.csv::x: ")
    assert ingest_files(shop, "products", [f"{tmp_path}/y.csv"]).duplicates == 2
    bomb = zipfile.ZipFile(tmp_path / "z.zip", "w")
    bomb.writestr("a/p.csv", data)
    bomb.close()
    with pytest.raises(QAgentError, match="no file 'p.csv'; it has a/p.csv"):
        ingest_files(shop, "products", [f"{tmp_path}/z.zip::p.csv"])
    assert ingest_files(shop, "products", [f"{tmp_path}/z.zip::a/p.csv"]).duplicates == 2


def test_an_archive_from_elsewhere_tells_its_files(shop, tmp_path, monkeypatch):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "id,title\n1,A\n")
        archive.writestr("b.csv", "id,title\n2,B\n")

    class Stdin:
        buffer = io.BytesIO(path.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    with pytest.raises(QAgentError, match=r"an archive; name the file in it: .*\(of a.csv, b.csv"):
        ingest_files(shop, "products", ["-"])


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("csv.gz", "x.csv"),
        ("csv.zst", "x.txt"),
        ("jsonl.bz2", "x.jsonl"),
        ("parquet", "x.csv"),
        ("sqlite", "x.json"),
        ("csv", "x.xls"),
    ],
)
def test_a_wrong_ending_does_not_matter(shop, tmp_path, form, name):
    path = write(tmp_path / f"p.{form}", PRODUCTS).rename(tmp_path / name)
    assert ingest_files(shop, "products", [path]).accepted == 2
    assert titles(shop)[1][1] == "Käse; grün"


def test_a_workbook_under_the_name_of_text_is_named_and_the_remedy_works(shop, tmp_path):
    path = write(tmp_path / "p.xlsx", PRODUCTS).rename(tmp_path / "p.csv")
    with pytest.raises(QAgentError, match="rename it to .zip or .xlsx"):
        ingest_files(shop, "products", [path])
    assert ingest_files(shop, "products", [path.rename(tmp_path / "q.xlsx")]).accepted == 2
    page = put(tmp_path / "page.xls", "<html><table><tr><td>id, title</td></tr></table></html>")
    with pytest.raises(QAgentError, match="not a readable workbook; save it again as .xlsx"):
        ingest_files(shop, "products", [page])
