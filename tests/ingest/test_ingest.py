import csv
import gzip
import io
import json
import shutil
from datetime import datetime, timezone

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.columns import parse_mapping
from qagent_mlx.ingest.events import _find_fresh
from qagent_mlx.ingest.ingest import (
    append_event_batches,
    append_events,
    ingest_files,
    retry_rejected,
)
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.report import REMEDIES, IngestReport
from qagent_mlx.shop.shop import Shop
from qagent_mlx.types import EVENT_TYPES
from qagent_mlx.utils.settings import describe

PRODUCTS = [
    {
        "product_id": "p1",
        "title": 'Monitor 24", black',
        "brand": "Acme",
        "category": "A > B",
        "price": "1299.5",
        "stock": "3",
        "attributes": '{"colour": "red"}',
        "time": "2026-01-01T00:00:00",
    },
    {
        "product_id": "p2",
        "title": "Käse; grün",
        "brand": None,
        "category": None,
        "price": None,
        "stock": "false",
        "attributes": None,
        "time": "2026-01-02T00:00:00",
    },
]
EVENTS = [
    {
        "user_id": "u1",
        "time": "2026-01-05T10:00:00",
        "type": "search",
        "query": "red, Monitor",
        "product_id": None,
    },
    {
        "user_id": "u1",
        "time": "2026-01-05T10:00:20",
        "type": "click",
        "query": "red, Monitor",
        "product_id": "p1",
    },
    {
        "user_id": "u2",
        "time": "2026-01-05T11:00:00",
        "type": "view",
        "query": None,
        "product_id": "p2",
    },
]


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """An empty shop and a stocked one; copying is faster than making."""
    folder = tmp_path_factory.mktemp("templates")
    Shop.create(folder / "empty").close()
    with Shop.create(folder / "stocked") as shop:
        ingest_files(shop, "products", [write(folder / "p.csv", PRODUCTS)])
        ingest_files(shop, "events", [write(folder / "e.csv", EVENTS)])
    return folder


@pytest.fixture
def shop(templates, tmp_path):
    shutil.copytree(templates / "empty", tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        yield shop


@pytest.fixture
def stocked(templates, tmp_path):
    """A shop with two products and three events."""
    shutil.copytree(templates / "stocked", tmp_path / "stocked")
    with Shop.open(tmp_path / "stocked", read_only=False) as shop:
        yield shop


def as_text(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(path, rows):
    """Rows in the form that the file's name says."""
    suffixes = path.name.partition(".")[2]
    plain = suffixes.removesuffix(".gz")
    if plain == "parquet":
        with duckdb.connect() as connection:
            columns = ", ".join(f"{name} VARCHAR" for name in rows[0])
            connection.execute(f"CREATE TABLE t ({columns})")
            for row in rows:
                connection.execute(
                    f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", list(row.values())
                )
            connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
        return path
    if plain == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = as_text(rows, "\t" if plain == "tsv" else ",")
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if suffixes.endswith(".gz") else data)
    return path


def put(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def stored(shop):
    """All that a shop holds, times of rejection aside."""
    return {
        table: shop.connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()
        for table, columns in (
            ("products", "*"),
            ("product_history", "*"),
            ("events", "*"),
            ("meta", "*"),
            ("rejects", "file, row, kind, reason, raw"),
        )
    }


def refused(shop, kind, path, options=None):
    """The one line that says why a file does not go in; nothing of it may be stored."""
    before = stored(shop)
    with pytest.raises(QAgentError) as error:
        ingest_files(shop, kind, [path], options)
    line = str(error.value)
    assert "\n" not in line
    assert str(path) in line or line.startswith(("encoding must", "event_type must"))
    assert stored(shop) == before
    return line


# ---------------------------------------------------------------- forms of files

FORMS = ("csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "parquet")


def test_all_forms_of_file_give_the_same_shop(tmp_path):
    found = []
    for form in FORMS:
        with Shop.create(tmp_path / form.replace(".", "-")) as shop:
            products = ingest_files(shop, "products", [write(tmp_path / f"p.{form}", PRODUCTS)])
            events = ingest_files(shop, "events", [write(tmp_path / f"e.{form}", EVENTS)])
            assert (products.accepted, events.accepted) == (2, 3), form
            assert not products.rejected and not events.rejected
            found.append(stored(shop))
    assert found[0]["products"] == [
        ("p1", 'Monitor 24", black', "Acme", "A > B", 1299.5, True, '{"colour": "red"}', 1),
        ("p2", "Käse; grün", None, None, None, False, None, 1),
    ]
    assert [row[1:7] for row in found[0]["events"]] == [
        ("u1", datetime(2026, 1, 5, 10), "search", "red, Monitor", "redmonitor", None),
        ("u1", datetime(2026, 1, 5, 10, 0, 20), "click", "red, Monitor", "redmonitor", "p1"),
        ("u2", datetime(2026, 1, 5, 11), "view", None, None, "p2"),
    ]
    for form, other in zip(FORMS[1:], found[1:], strict=True):
        assert other == found[0], form


@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16"),
        ("latin-1", "latin-1"),
        ("latin-1", "ISO-8859-1"),
        ("utf-8", "utf8"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_encodings_can_be_named(stocked, tmp_path, encoding, option, form):
    row = {"product_id": "p3", "title": "Größe"}
    text = json.dumps(row, ensure_ascii=False) + "\n" if form == "jsonl" else as_text([row])
    if form == "jsonl" and encoding == "utf-8-sig":
        pytest.skip("JSON has no byte order mark")
    path = put(tmp_path, f"x.{form}", text.encode(encoding))
    assert ingest_files(stocked, "products", [path], ReadOptions(encoding=option)).accepted == 1
    assert ("p3", "Größe") in [row[:2] for row in stored(stocked)["products"]]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_line_ends_and_quoted_line_breaks_do_not_matter(shop, tmp_path, ends):
    lines = ["product_id;title;price", '1;"two', 'lines";3', "2;B;4", ""]
    assert ingest_files(shop, "products", [put(tmp_path, "x.csv", ends.join(lines))]).accepted == 2
    assert [row[1:5] for row in stored(shop)["products"]] == [
        ("two lines", None, None, 3.0),
        ("B", None, None, 4.0),
    ]


def test_a_json_column_may_be_a_list_an_object_or_a_number(shop, tmp_path):
    row = {
        "id": 7,
        "name": "Tent",
        "categories": ["Out", "Tents"],
        "price": 3,
        "in_stock": True,
        "attributes": {"persons": 2, "none": None, "deep": {"a": 1}},
    }
    assert ingest_files(shop, "products", [put(tmp_path, "x.jsonl", json.dumps(row))]).accepted == 1
    assert stored(shop)["products"][0][:7] == (
        "7",
        "Tent",
        None,
        "Out > Tents",
        3.0,
        True,
        '{"persons": "2"}',
    )


def test_a_typed_parquet_file_is_read_as_it_is(shop, tmp_path):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"""COPY (SELECT 5 AS id, 'Tent' AS title, ['Out', 'Tents'] AS category,
            2.5::DECIMAL(9, 2) AS price, 0 AS stock, {{'persons': '2'}} AS attributes)
            TO '{tmp_path}/p.parquet' (FORMAT parquet);
            COPY (SELECT 1 AS user, TIMESTAMPTZ '2026-01-05 12:00:00+02' AS ts, 'view' AS event,
            5 AS item_id) TO '{tmp_path}/e.parquet' (FORMAT parquet)"""
        )
    ingest_files(shop, "products", [tmp_path / "p.parquet"])
    ingest_files(shop, "events", [tmp_path / "e.parquet"])
    found = stored(shop)
    assert found["products"][0][:7] == (
        "5",
        "Tent",
        None,
        "Out > Tents",
        2.5,
        False,
        '{"persons": "2"}',
    )
    assert found["events"][0][1:4] == ("1", datetime(2026, 1, 5, 10), "view")


# ---------------------------------------------------------------- columns


def test_columns_are_found_by_their_usual_names_whatever_their_case(shop, tmp_path):
    path = put(tmp_path, "x.csv", " SKU ,Product_Name,Manufacturer\n1,Tent,Acme\n")
    ingest_files(shop, "products", [path])
    assert stored(shop)["products"][0][:3] == ("1", "Tent", "Acme")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_can_be_mapped_by_hand(shop, tmp_path, form):
    row = {"title": "no title", "Größe \"x\" 'y'": "Tent", "ref": "1", "colour": "red; or blue"}
    path = write(tmp_path / f"x.{form}", [row]) if form != "parquet" else None
    if path is None:
        path = tmp_path / "x.parquet"
        with duckdb.connect() as connection:
            connection.execute(
                f"""COPY (SELECT 'no title' AS title, 'Tent' AS "Größe ""x"" 'y'", '1' AS ref,
                'red; or blue' AS colour) TO '{path}' (FORMAT parquet)"""
            )
    mapping = parse_mapping(
        ["product_id=ref", "title=Größe \"x\" 'y'", "attributes.shade=colour"], "products"
    )
    assert ingest_files(shop, "products", [path], ReadOptions(mapping=mapping)).accepted == 1
    assert stored(shop)["products"][0][:7] == (
        "1",
        "Tent",
        None,
        None,
        None,
        True,
        '{"shade": "red; or blue"}',
    )


def test_mapped_attributes_join_those_of_the_file(shop, tmp_path):
    path = put(
        tmp_path,
        "x.tsv",
        'id\ttitle\tattributes\tc\n1\tA\t{"a": "b"}\tred\n2\tB\ta=b\tblue\n3\tC\t\tgreen\n'
        "4\tD\tnonsense\tred\n5\tE\t{nonsense\tred\n6\tF\ta=b\t\n",
    )
    report = ingest_files(
        shop, "products", [path], ReadOptions(mapping=(("attributes.colour", "c"),))
    )
    assert report.reasons == {"bad attributes": 2}
    assert [row[6] for row in stored(shop)["products"]] == [
        '{"a": "b", "colour": "red"}',
        '{"a": "b", "colour": "blue"}',
        '{"colour": "green"}',
        '{"a": "b"}',
    ]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("title", "mapping 'title' cannot be read: write it as field=column"),
        ("title=", "write it as field=column"),
        ("titel=x", "products have no field 'titel', only product_id, title,"),
        ("attributes.=x", "no field"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(pair, says):
    with pytest.raises(QAgentError, match=says):
        parse_mapping([pair], "products")


def test_a_missing_column_is_named_with_those_that_are_there(stocked, tmp_path):
    path = put(tmp_path, "x.csv", "sku,label\n1,Tent\n")
    line = refused(stocked, "products", path)
    assert line.endswith("no column for title; its columns are sku, label")
    assert line.startswith("mapping title=COLUMN is missing: ")
    line = refused(stocked, "products", path, ReadOptions(mapping=(("title", "lable"),)))
    assert "no column 'lable'" in line and "sku, label" in line
    jsonl = put(tmp_path, "x.jsonl", '{"user": "u"}')
    assert "time=COLUMN is missing" in refused(stocked, "events", jsonl)
    parquet = write(tmp_path / "x.parquet", [{"user": "u"}])
    assert "time=COLUMN is missing" in refused(stocked, "events", parquet)


# ---------------------------------------------------------------- files that cannot be read


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv", "", "is empty"),
        ("x.csv", " \n\n", "is empty"),
        ("x.jsonl", "", "is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("x.csv", "\nproduct_id,title\n1,A\n", "line 1: it is blank"),
        (
            "x.csv",
            "product_id,title\n1,A\n2,Стол\n".encode("cp1251"),
            "line 3: not utf-8 text (byte 0xd1); give the `encoding` that it has, such as cp1252",
        ),
        ("x.jsonl", '{"id": "1", "title": "Стол"}\n'.encode("cp1251"), "line 1: not utf-8"),
        ("x.csv", b"product_id,title\n1,K\xc3", "ends inside a character"),
        ("x.csv.gz", gzip.compress(b"product_id,title\n1,A\n" * 999, mtime=0)[:-20], "cut short"),
        ("x.jsonl.gz", gzip.compress(b"{}", mtime=0)[:5], "cut short"),
        ("x.csv.gz", "product_id,title\n1,A\n", "not a gzip file; rename it without .gz"),
        ("x.csv", "id,title,title\n1,A,B\n", "the column title stands there twice"),
        ("x.jsonl", '[1]\n"a"\nnonsense\n', "no line of it is a JSON object"),
        ("x.parquet", "PAR1 but not really", "not a readable Parquet file"),
        ("x.parquet", "", "not a readable Parquet file"),
        ("x.xlsx", "PK", "not a readable workbook; save it again as .xlsx"),
        ("x", "id,title\n", "use .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_remedy(stocked, tmp_path, name, data, says):
    assert says in refused(stocked, "products", put(tmp_path, name, data))


def test_a_path_without_a_file_is_named(stocked, tmp_path):
    assert "no such file" in refused(stocked, "products", tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "no file in it can be read" in refused(stocked, "products", tmp_path / "folder.csv")


def test_a_parquet_file_cut_short_is_named(stocked, tmp_path):
    path = write(tmp_path / "x.parquet", PRODUCTS)
    path.write_bytes(path.read_bytes()[:-30])
    assert "not a readable Parquet file" in refused(stocked, "products", path)


@pytest.mark.parametrize("encoding", ["klingon", "base64", "rot13"])
def test_an_encoding_that_cannot_be_read_is_refused(stocked, tmp_path, encoding):
    path = put(tmp_path, "x.csv", "product_id,title\n1,A\n")
    line = refused(stocked, "products", path, ReadOptions(encoding=encoding))
    assert line == (
        f"encoding must be one that Python knows, such as utf-8, cp1252 or utf-16, not {encoding!r}"
    )


def test_a_line_of_many_megabytes_is_refused(stocked, tmp_path, monkeypatch):
    monkeypatch.setattr("qagent_mlx.ingest.sources.text.MAX_LINE", 1 << 20)
    path = put(tmp_path, "x.csv", "product_id,title\n1," + "x" * (3 << 20))
    assert "a line of over 1 MiB" in refused(stocked, "products", path)


def test_a_failure_in_a_later_file_keeps_the_files_before_it(stocked, tmp_path):
    good = put(tmp_path, "good.csv", "product_id,title\n8,Good\n")
    with pytest.raises(QAgentError, match="bad.csv is empty"):
        ingest_files(stocked, "products", [good, put(tmp_path, "bad.csv", "")])
    assert "8" in [row[0] for row in stored(stocked)["products"]]


def test_a_failure_while_storing_leaves_nothing_of_the_file(stocked, tmp_path, monkeypatch):
    def fails(*_):
        raise duckdb.Error("the disk is full\nand more")

    monkeypatch.setattr("qagent_mlx.ingest.events.sessions.refresh_sessions", fails)
    path = write(tmp_path / "x.csv", [{**EVENTS[0], "user_id": "new"}])
    assert refused(stocked, "events", path) == f"{path}: the disk is full"


# ---------------------------------------------------------------- rows that do not fit

ANY = ReadOptions(max_rejects=1)  # share of rows that may be bad
BAD_EVENTS = [
    ({"type": "clikc"}, "unknown event type", "'clikc'; use one of search, view, click,"),
    ({"type": None, "query": None}, "no event type", "(`mapping` type=COLUMN), or give all rows"),
    ({"time": "yesterday"}, "unparseable time", "'yesterday'; use ISO 8601"),
    (
        {"time": "2026-02-30T10:00:00"},
        "unparseable time",
        "give the format of the file (`time_format`",
    ),
    ({"time": "nan"}, "no time", "every event needs a time"),
    ({"time": None}, "no time", "every event needs a time"),
    ({"time": "1970-01-02"}, "time out of range", "between 1990 and 2100"),
    ({"time": "2100-01-01"}, "time out of range", "between 1990 and 2100"),
    ({"user_id": " "}, "no user", "every event needs a user"),
    ({"user_id": "x" * 257}, "id too long", "256 characters"),
    ({"product_id": "p9"}, "unknown product", "'p9'; ingest its products first"),
    ({"product_id": None}, "no product", "this type of event needs a product"),
    ({"type": "search", "query": None}, "search without a query", "a search needs a query"),
    ({"type": "search", "query": "!?"}, "query without letters or digits", "nothing to search"),
    ({"type": "search", "query": "x" * 301}, "query too long", "300 characters"),
]


def test_bad_events_are_kept_with_their_reasons_and_the_others_go_in(stocked, tmp_path):
    good = {**EVENTS[1], "time": "2026-02-01T10:00:00", "product_id": "p2"}
    rows = [{**good, **change} for change, *_ in BAD_EVENTS]
    report = ingest_files(stocked, "events", [write(tmp_path / "x.csv", [good, *rows])], ANY)
    assert (report.accepted, report.rejected) == (1, len(rows))
    assert len(stored(stocked)["events"]) == 4
    rejects = {
        row: (file, kind, reason, json.loads(raw))
        for file, row, kind, reason, raw in stored(stocked)["rejects"]
    }
    for number, (row, (_, reason, says)) in enumerate(zip(rows, BAD_EVENTS, strict=True), 2):
        assert rejects[number][:3] == ("x.csv", "events", reason), row
        assert rejects[number][3]["type"] == row["type"]
        assert report.reasons[reason] == sum(r == reason for _, r, _ in BAD_EVENTS)
        (line,) = (e for e in report.examples if f": {reason}" in e)
        assert says in line or report.reasons[reason] > 1
        assert REMEDIES[reason] in line and "\n" not in line
    first = f"x.csv row 4: unparseable time 'yesterday' (2 rows); {REMEDIES['unparseable time']}"
    assert first in report.examples


BAD_PRODUCTS = [
    ({"product_id": ""}, "no product id"),
    ({"product_id": "x" * 257}, "id too long"),
    ({"title": None}, "no title"),
    ({"title": "\u200b \x07"}, "no title"),
    ({"price": "cheap"}, "bad price"),
    ({"price": "-1"}, "bad price"),
    ({"price": "inf"}, "bad price"),
    ({"price": "12 99"}, "bad price"),
    ({"price": "5-10 €"}, "bad price"),
    ({"stock": "maybe"}, "bad stock"),
    ({"attributes": "red"}, "bad attributes"),
    ({"attributes": '{"a": '}, "bad attributes"),
    ({"attributes": "[" * 100_000}, "bad attributes"),
    ({"time": "soon"}, "unparseable time"),
    ({"time": "1066-10-14"}, "time out of range"),
]


def test_bad_products_are_kept_with_their_reasons_and_the_others_go_in(stocked, tmp_path):
    good = {**PRODUCTS[0], "product_id": "p3"}
    rows = [{**good, "product_id": f"x{i}", **c} for i, (c, _) in enumerate(BAD_PRODUCTS)]
    report = ingest_files(stocked, "products", [write(tmp_path / "x.jsonl", [good, *rows])], ANY)
    assert (report.accepted, report.rejected) == (1, len(rows))
    assert [row[0] for row in stored(stocked)["products"]] == ["p1", "p2", "p3"]
    rejects = {row[1]: row[3] for row in stored(stocked)["rejects"]}
    assert rejects == {i: reason for i, (_, reason) in enumerate(BAD_PRODUCTS, 2)}
    assert "x.jsonl row 6: bad price 'cheap' (5 rows); " + REMEDIES["bad price"] in (
        report.examples
    )
    (stock,) = (line for line in report.examples if "bad stock" in line)
    assert "`values` 'stock:maybe=yes'" in stock  # followed, it goes in:
    row = {**good, "product_id": "maybe", "stock": "maybe"}
    options = ReadOptions(values=(("stock", "maybe", "yes"),))
    ingest_files(stocked, "products", [write(tmp_path / "y.jsonl", [row])], options)
    assert "maybe" in [row[0] for row in stored(stocked)["products"]]


def test_a_title_is_all_that_a_product_needs(stocked, tmp_path):
    path = write(tmp_path / "x.csv", [{"id": "p3", "title": ""}, {"id": "p4", "title": "Tent"}])
    report = ingest_files(stocked, "products", [path])
    assert report.examples == ("x.csv row 1: no title; every product needs a title",)
    assert [row[0] for row in stored(stocked)["products"]] == ["p1", "p2", "p4"]


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("$1,299.50", 1299.5),
        ("12.99 €", 12.99),
        ("£1,234,567", 1234567),
        ("0", 0),
        ("1e3", 1000),
        ("12,99", 12.99),
        ("1.299,00 €", 1299),
        ("2 345,00 zł", 2345),
        ("1.299.000", 1299000),
        ("CHF 1'299.-", 1299),
        ("₹1,23,456.00", 123456),
        ("R$ 5,9", 5.9),
        ("￥１２００", 1200),
        ("EUR 12", 12),
        ("1.299", 1.299),
        ("0,508", 0.508),
    ],
)
def test_prices_are_read_as_shops_write_them(shop, tmp_path, text, price):
    path = write(tmp_path / "x.tsv", [{"id": "1", "title": "A", "price": text}])
    assert ingest_files(shop, "products", [path]).rejected == 0
    assert stored(shop)["products"][0][4] == price


def test_a_point_before_three_digits_parts_thousands_where_other_prices_have_decimal_commas(
    shop, tmp_path
):
    rows = [
        {"id": "1", "title": "A", "price": "1.299"},
        {"id": "2", "title": "B", "price": "9,50 €"},
    ]
    assert ingest_files(shop, "products", [write(tmp_path / "x.tsv", rows)]).rejected == 0
    assert [row[4] for row in stored(shop)["products"]] == [1299, 9.5]


def test_titles_brands_and_categories_lose_their_html_and_keep_other_brackets(shop, tmp_path):
    rows = [
        {
            "id": "1",
            "title": "<b>Tom &amp; Jerry&#39;s</b><br/>Mug <recommend>x</recommend> &copy a<b",
            "brand": "A&amp;B",
            "category": "Home &amp; Kitchen > AT&T",
        }
    ]
    ingest_files(shop, "products", [write(tmp_path / "x.jsonl", rows)])
    assert stored(shop)["products"][0][1:4] == (
        "Tom & Jerry's Mug <recommend>x</recommend> &copy a<b",
        "A&B",
        "Home & Kitchen > AT&T",
    )


def test_columns_are_known_however_their_names_are_put_together(stocked, tmp_path):
    (tmp_path / "x.csv").write_text("visitorid,Event Time,eventType,itemId\nu,2026-01-01,view,p1\n")
    assert ingest_files(stocked, "events", [tmp_path / "x.csv"]).accepted == 1
    # A column that is called just so goes before one that is nearly.
    (tmp_path / "y.csv").write_text("UserID,user,time,type,sku\na,b,2026-01-02,view,p1\n")
    ingest_files(stocked, "events", [tmp_path / "y.csv"])
    assert stocked.connection.execute(
        "SELECT user_id FROM events WHERE ts = '2026-01-02'"
    ).fetchall() == [("b",)]


def test_all_missing_columns_are_named_at_once(stocked, tmp_path):
    (tmp_path / "x.csv").write_text("session,when,query\ns,2026-01-01,tent\n")
    with pytest.raises(
        QAgentError, match=r"user_id=COLUMN and time=COLUMN are missing: .* for user_id and time;"
    ):
        ingest_files(stocked, "events", [tmp_path / "x.csv"])


def test_rows_with_too_few_or_many_columns_are_counted_where_they_stand(shop, tmp_path):
    text = "product_id,title,price\n1,A,1\n2,B\n3,C,3\n4,D,4,extra\n5,E,x\n"
    report = ingest_files(shop, "products", [put(tmp_path, "x.csv", text)], ANY)
    assert report.reasons == {"malformed row": 2, "bad price": 1}
    rejects = {row[1]: row[3:] for row in stored(shop)["rejects"]}
    assert {row: reason for row, (reason, _) in rejects.items()} == {
        2: "malformed row",
        4: "malformed row",
        5: "bad price",
    }
    assert "4,D,4,extra" in rejects[4][1]


def test_lines_that_are_no_json_objects_are_counted_where_they_stand(shop, tmp_path):
    text = '{"id": "1", "title": "A"}\n\n[2]\n{"id": "3", "title": "C"\n{"id": "4", "title": "D"}\n'
    report = ingest_files(shop, "products", [put(tmp_path, "x.jsonl", text)])
    assert (report.accepted, report.reasons) == (2, {"malformed JSON": 2})
    assert "each line must be one JSON object" in report.examples[0]
    assert [row[1] for row in stored(shop)["rejects"]] == [3, 4]


def test_many_bad_rows_make_one_line_a_reason(stocked, tmp_path):
    rows = [{**EVENTS[1], "product_id": f"x{i}"} for i in range(50)]
    path = write(tmp_path / "x.csv", [*rows, EVENTS[0]])
    report = ingest_files(stocked, "events", [path], ANY)
    assert report.rejected == 50
    assert report.examples == (
        "x.csv row 1: unknown product 'x0' (50 rows); "
        "ingest its products first, then: qagent ingest retry",
    )


def test_a_bad_value_cannot_break_the_line(stocked, tmp_path):
    row = {**EVENTS[1], "type": "a\nb\x1b[31m" + "c" * 500}
    path = write(tmp_path / "x.jsonl", [row, EVENTS[0]])
    (line,) = ingest_files(stocked, "events", [path]).examples
    assert "\n" not in line and "\x1b" not in line and len(line) < 200


def test_the_same_rejects_are_kept_once(stocked, tmp_path):
    path = write(tmp_path / "x.csv", [{**EVENTS[1], "product_id": "x0"}, EVENTS[0]])
    for _ in range(2):
        assert ingest_files(stocked, "events", [path]).rejected == 1
    assert stocked.counts()["rejects"] == 1


def test_reports_add_up(stocked, tmp_path):
    rows = [{**EVENTS[1], "product_id": "x0"}, {**EVENTS[1], "type": "x"}]
    path = write(tmp_path / "a.csv", [*rows, EVENTS[0]])
    first = ingest_files(stocked, "events", [path], ANY)
    both = first + ingest_files(
        stocked, "events", [write(tmp_path / "b.csv", [*rows[:1], *EVENTS])]
    )
    assert (both.accepted, both.rejected, both.duplicates) == (0, 3, 4)
    assert both.reasons == {"unknown product": 2, "unknown event type": 1}
    assert [line[:5] for line in both.examples] == ["a.csv", "a.csv", "b.csv"]
    assert list(both.to_dict()) == [
        *("accepted", "rejected", "duplicates", "reasons", "examples"),
        *("ignored", "notes", "understood"),
    ]


def test_reports_add_up_what_was_ignored_and_say_each_note_once():
    one = IngestReport(ignored={"page_view": 2}, notes=("times are UTC",))
    both = one + IngestReport(ignored={"page_view": 1, "scroll": 4}, notes=("times are UTC",))
    assert both.ignored == {"page_view": 3, "scroll": 4}
    assert both.notes == ("times are UTC",)


def test_the_options_know_the_types_of_events():
    (choices,) = (s.choices for s in describe(ReadOptions) if s.name == "event_type")
    assert choices == EVENT_TYPES


# ---------------------------------------------------------------- duplicates, retry


class Plans:
    """A connection that keeps the plan of each statement with a join."""

    def __init__(self, connection):
        self.connection, self.kept = connection, []

    def execute(self, query, values=None):
        for statement in duckdb.extract_statements(query):
            if " JOIN " in statement.query or " EXISTS " in statement.query:
                ((_, plan),) = self.connection.execute(f"EXPLAIN {statement.query}").fetchall()
                self.kept.append(plan)
            self.connection.execute(statement.query)
        return self.connection


@pytest.mark.parametrize("is_file", [True, False])
def test_events_are_looked_up_in_the_log_and_not_compared_with_all_of_it(stocked, is_file):
    """Whatever the release of DuckDB: one that does turns minutes into days."""
    stocked.connection.execute(
        """CREATE TEMP TABLE checked AS SELECT row_number() OVER () AS row, user_id AS user_, ts,
            type::VARCHAR AS kind, query AS query_, query_key AS key, product_id AS product_,
            NULL::TIMESTAMP AS click_ts, NULL::VARCHAR AS shown_, NULL::INTEGER AS place_,
            NULL::VARCHAR AS reason FROM events"""
    )
    plans = Plans(stocked.connection)
    _find_fresh(plans, is_file=is_file, queries_are_derived=False)
    assert stocked.connection.execute("SELECT count(*) FROM fresh").fetchone() == (0,)
    assert any("HASH_JOIN" in plan.upper().replace(" ", "_") for plan in plans.kept)
    for plan in plans.kept:
        assert "NL_JOIN" not in plan and "NESTED" not in plan.upper()


def test_a_file_may_be_ingested_twice(stocked, tmp_path):
    before = stored(stocked)
    products = ingest_files(stocked, "products", [write(tmp_path / "p.csv", PRODUCTS)])
    events = ingest_files(stocked, "events", [write(tmp_path / "again.jsonl", EVENTS)])
    assert (products.accepted, products.duplicates) == (0, 2)
    assert (events.accepted, events.duplicates) == (0, 3)
    assert stored(stocked) == before


def test_a_row_that_comes_twice_in_a_file_is_stored_once(stocked, tmp_path):
    new = {**EVENTS[0], "time": "2026-03-01"}
    respelled = {**new, "query": "RED monitor"}
    report = ingest_files(stocked, "events", [write(tmp_path / "x.csv", [new, new, respelled])])
    assert (report.accepted, report.duplicates) == (1, 2)


def test_rejected_rows_can_be_tried_again(stocked, tmp_path):
    rows = [{**EVENTS[1], "product_id": f"new{i}"} for i in range(3)]
    path = write(tmp_path / "late.csv", [EVENTS[0], *rows, {**EVENTS[1], "type": "bogus"}])
    ingest_files(stocked, "events", [path], ANY)
    before = stored(stocked)
    nothing = retry_rejected(stocked)
    assert (nothing.accepted, nothing.rejected) == (0, 4)
    assert "late.csv row 2: unknown product" in nothing.examples[0]
    assert stored(stocked) == before

    catalog = [{"product_id": f"new{i}", "title": "New"} for i in range(2)]
    ingest_files(stocked, "products", [write(tmp_path / "new.csv", catalog)])
    report = retry_rejected(stocked)
    assert (report.accepted, report.reasons) == (2, {"unknown event type": 1, "unknown product": 1})
    assert [row[:4] for row in stored(stocked)["rejects"]] == [
        ("late.csv", 4, "events", "unknown product"),
        ("late.csv", 5, "events", "unknown event type"),
    ]
    # They stand where they belong: in the session of their user, under their search.
    ties = stocked.connection.execute(
        "SELECT DISTINCT session_id, search_id FROM events WHERE user_id = 'u1'"
    ).fetchall()
    assert len(ties) == 1


def test_a_row_tried_again_keeps_what_the_options_said_of_it(stocked, tmp_path):
    path = put(tmp_path, "x.csv", "user,date,sku\nu,30.12.2025 08:30,p1\nu,31.12.2025 08:30,new\n")
    options = ReadOptions(event_type="cart", time_format="%d.%m.%Y %H:%M")
    assert ingest_files(stocked, "events", [path], options).reasons == {"unknown product": 1}
    ingest_files(stocked, "products", [write(tmp_path / "n.csv", [{"id": "new", "title": "New"}])])
    assert retry_rejected(stocked).accepted == 1
    assert (datetime(2025, 12, 31, 8, 30), "cart") in [r[2:4] for r in stored(stocked)["events"]]


def test_rows_that_are_no_rows_stay_rejected(stocked, tmp_path):
    ingest_files(stocked, "products", [put(tmp_path, "x.csv", "id,title\n1\n2,B\n")])
    assert retry_rejected(stocked).rejected == 0
    assert [row[3] for row in stored(stocked)["rejects"]] == ["malformed row"]


# ---------------------------------------------------------------- events


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-05T10:00:00Z",
        "2026-01-05 11:00:00+01:00",
        "2026-01-05 11:00:00 +0100",
        "1767607200",
        "1767607200000",
        "1767607200000000",
        "2026-01-05 10:00",
        "1767607200.0",
    ],
)
def test_times_are_read_as_logs_write_them(stocked, time):
    append_events(stocked, [{"user_id": "t", "time": time, "type": "view", "product_id": "p1"}])
    assert [r[2] for r in stored(stocked)["events"] if r[1] == "t"] == [datetime(2026, 1, 5, 10)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Add to cart", "cart"), ("add-to-cart", "cart"), ("PageView", "view"), ("ORDER", "purchase")],
)
def test_types_are_read_as_logs_write_them(stocked, name, kind):
    row = {"user_id": "t", "time": "2026-02-01", "type": name, "product_id": "p1"}
    assert append_events(stocked, [row]).accepted == 1
    assert [r[3] for r in stored(stocked)["events"] if r[1] == "t"] == [kind]


def test_a_row_with_query_and_product_is_a_search_and_a_click(stocked, tmp_path):
    row = {
        "user": "t",
        "query_time": "2026-02-01 10:00",
        "click_time": "2026-02-01 10:01",
        "query": "red monitor",
        "sku": "p1",
    }
    assert ingest_files(stocked, "events", [write(tmp_path / "x.csv", [row])]).accepted == 1
    found = [r for r in stored(stocked)["events"] if r[1] == "t"]
    assert [(r[2].minute, r[3], r[6]) for r in found] == [(0, "search", None), (1, "click", "p1")]
    assert found[1][8] == found[0][0]


def test_a_type_for_all_rows_must_be_one(stocked, tmp_path):
    path = put(tmp_path, "x.csv", "user,time\n")
    line = refused(stocked, "events", path, ReadOptions(event_type="buy"))
    assert line == "event_type must be one of search, view, click, cart, purchase, not 'buy'"


def test_appended_events_are_those_of_a_file(stocked, tmp_path):
    rows = [{**EVENTS[0], "user_id": "a"}, {**EVENTS[1], "user_id": "a"}]
    with Shop.create(tmp_path / "other") as other:
        ingest_files(other, "products", [write(tmp_path / "p2.csv", PRODUCTS)])
        ingest_files(other, "events", [write(tmp_path / "e2.csv", [*EVENTS, *rows])])
        expected = [row[1:7] for row in stored(other)["events"]]
    moments = [datetime.fromisoformat(row["time"]) for row in rows]
    moments[1] = moments[1].replace(tzinfo=timezone.utc)
    report = append_events(
        stocked, [{**row, "time": moment} for row, moment in zip(rows, moments, strict=True)]
    )
    assert report.accepted == 2
    assert sorted(row[1:7] for row in stored(stocked)["events"]) == sorted(expected)
    bad = append_events(stocked, [{"user_id": "a", "type": "view", "product_id": "p1"}])
    assert bad.reasons == {"no time": 1}


# ---------------------------------------------------------------- products over time


def history(shop, product="p"):
    return shop.connection.execute(
        "SELECT ts, price, in_stock FROM product_history WHERE product_id = ? ORDER BY ts",
        [product],
    ).fetchall()


def states(shop, tmp_path, *rows):
    """Ingest states of one product: (time, price), each in a file of its own."""
    for i, (time, price) in enumerate(rows):
        path = tmp_path / f"s{i}.csv"
        write(path, [{"id": "p", "title": "A", "price": price, "time": time}])
        ingest_files(shop, "products", [path])


def now(shop):
    return shop.connection.execute("SELECT price FROM products WHERE product_id = 'p'").fetchall()


def test_states_with_times_are_kept_in_any_order(shop, tmp_path):
    states(shop, tmp_path, ("2026-02-01", 2), ("2026-03-01", 3), ("2026-01-01", 1))
    assert [(ts.month, price) for ts, price, _ in history(shop)] == [(1, 1), (2, 2), (3, 3)]
    assert now(shop) == [(3.0,)]
    assert shop.catalog_version == 3


def test_a_correction_of_a_state_replaces_it(shop, tmp_path):
    states(shop, tmp_path, ("2026-02-01", 2), ("2026-02-01", 5))
    assert [price for _, price, _ in history(shop)] == [5]
    assert now(shop) == [(5.0,)]


@pytest.mark.parametrize("later", [None, "2026-02-01"])
def test_what_a_change_replaces_stays_known_for_the_time_before_it(shop, tmp_path, later):
    states(shop, tmp_path, (None, 1), (later, 2))
    assert [price for _, price, _ in history(shop)] == [1, 2]
    assert history(shop)[0][0] == datetime(1970, 1, 1)
    assert now(shop) == [(2.0,)]


def test_what_was_known_without_a_time_holds_before_a_history_that_comes_later(shop, tmp_path):
    states(shop, tmp_path, (None, 1))
    rows = [
        {"id": "p", "title": "A", "price": price, "time": f"2026-0{month}-01"}
        for month, price in ((2, 9), (3, 1))
    ]
    ingest_files(shop, "products", [write(tmp_path / "h.csv", rows)])
    assert [price for _, price, _ in history(shop)] == [1, 9, 1]
    assert now(shop) == [(1.0,)]


def test_the_same_state_again_changes_no_version(shop, tmp_path):
    states(shop, tmp_path, (None, 1), (None, 1))
    assert shop.catalog_version == 1
    assert history(shop) == []


def test_lists_that_are_stored_together_are_each_told_their_own(own_shop):
    event = {"user_id": "ann", "time": "2026-05-01T10:00:00", "type": "search", "query": "lamp"}
    later = {**event, "time": "2026-05-01T11:00:00"}
    before = own_shop.counts()["events"]
    reports = append_event_batches(own_shop, [[event], [later, {**later, "query": "cable"}]])
    assert [r.accepted for r in reports] == [1, 2]
    # Now something is known already and something is refused: nothing is stored twice.
    new = {**event, "user_id": "bob"}
    wrong = {**event, "type": "click", "product_id": "none"}
    reports = append_event_batches(own_shop, [[event, new], [wrong], [{**new, "query": "usb"}]])
    assert [(r.accepted, r.duplicates, r.rejected) for r in reports] == [
        (1, 1, 0),
        (0, 0, 1),
        (1, 0, 0),
    ]
    assert own_shop.counts()["events"] == before + 5


def test_a_first_call_that_is_undone_does_not_spoil_the_next(own_shop):
    wrong = {"user_id": "a", "time": "2026-05-01", "type": "click", "product_id": "none"}
    right = {"user_id": "a", "time": "2026-05-01", "type": "search", "query": "lamp"}
    reports = append_event_batches(own_shop, [[wrong], [right]])
    assert [(r.accepted, r.rejected) for r in reports] == [(0, 1), (1, 0)]
