"""Paths into columns, elements of lists, and renamed values, in every form of file."""

import json

import duckdb
import pytest
from source_files import as_csv, log, put, titles, write_sqlite

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.columns import parse_mapping
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.mapping import parse_values
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.sources.joining import stage_location
from qagent_mlx.ingest.sources.locations import locate

ROWS = [
    {
        "who": {"id": "u1", "a.b": {"c": ["x", "y"]}},
        "at": "2026-01-05T10:00:00",
        "name": "View-Item",
        "items": [{"item_id": "p1", "q": "1"}, {"item_id": "p2", "q": "2"}],
    },
    {"who": {"id": "u2"}, "at": "2026-01-05T11:00:00", "name": "find", "items": []},
    {"who": {"id": "u3"}, "at": "2026-01-05T12:00:00", "name": "find", "items": None},
    {
        "who": {"id": "u4"},
        "at": "2026-01-05T13:00:00",
        "name": "VIEW ITEM",
        "items": [{"item_id": "p1"}],
    },
]
OPTIONS = ReadOptions(
    mapping=parse_mapping(
        ["user_id=who.id", "time=at", "type=name", "product_id=items[].item_id", "query=items[].q"],
        "events",
    ),
    values=parse_values(["type:view_item=view", "type:FIND=search"], "events"),
)
EXPECTED = [
    ("u1", "2026-01-05 10:00:00", "view", "1", "p1"),
    ("u1", "2026-01-05 10:00:00", "view", "2", "p2"),
    ("u4", "2026-01-05 13:00:00", "view", None, "p1"),
]


def write(folder, form):
    path = folder / f"e.{form}"
    cells = [
        {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in r.items()} for r in ROWS
    ]
    if form == "jsonl":
        return put(path, "\n".join(map(json.dumps, ROWS)))
    if form == "json":
        return put(path, json.dumps({"events": ROWS}, indent=1))
    if form == "strings.jsonl":  # JSON that holds JSON as text, as some exporters write it
        return put(path, "\n".join(map(json.dumps, cells)))
    if form == "csv":
        return put(path, as_csv(cells))
    if form == "sqlite":
        return write_sqlite(path, {"log": cells})
    source = put(folder / "source.json", json.dumps(ROWS))
    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM '{source}') TO '{path}' (FORMAT parquet)")
    return path


@pytest.mark.parametrize("form", ["jsonl", "json", "strings.jsonl", "csv", "sqlite", "parquet"])
def test_nested_fields_are_read_in_every_form(stocked, tmp_path, form):
    report = ingest_files(stocked, "events", [write(tmp_path, form)], OPTIONS)
    assert (report.accepted, report.duplicates) == (3, 0)
    assert report.reasons == {"search without a query": 2}  # a null and an empty list give a row
    assert log(stocked) == EXPECTED
    again = ingest_files(stocked, "events", [tmp_path / f"e.{form}"], OPTIONS)
    assert (again.accepted, again.duplicates) == (0, 3)


def staged(shop, path, *pairs):
    options = ReadOptions(mapping=(("time", "at"), ("user_id", "who.id"), *pairs))
    with shop.transaction() as connection:
        result = stage_location(connection, "events", locate([path])[0], options)
        rows = connection.execute(
            "SELECT row, query, product_id FROM stage ORDER BY ALL"
        ).fetchall()
        connection.execute("DROP TABLE stage")
    return result, rows


def test_rows_of_elements_keep_the_number_of_their_line(stocked, tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    path = put(tmp_path / "e.jsonl", "\n".join([lines[0], "", "broken", *lines[1:]]))
    _, rows = staged(stocked, path, ("product_id", "items[].item_id"))
    assert [(row, product) for row, _, product in rows] == [
        (1, "p1"),
        (1, "p2"),
        (3, None),
        (4, None),
        (5, None),
        (6, "p1"),
    ]
    cells = (
        "who,at,items\n"
        + '"{""id"": 1}",2026-01-01,"[1,2]"\nshort\n"{""id"": 1}",2026-01-01,"[3]"\n'
    )
    _, rows = staged(stocked, put(tmp_path / "e.csv", cells), ("product_id", "items[]"))
    assert [(row, product) for row, _, product in rows] == [(1, "1"), (1, "2"), (2, None), (3, "3")]


def test_one_element_a_quoted_key_and_a_plain_value(stocked, tmp_path):
    path = write(tmp_path, "jsonl")
    pairs = (("product_id", "items[1].item_id"), ("query", 'who."a.b".c[0]'))
    result, rows = staged(stocked, path, *pairs)
    assert rows[0] == (1, "x", "p2") and len(rows) == 4
    # What is only reached into is no column that was left aside.
    assert set(result.columns) - set(result.chosen.values()) == {"name"}
    path = put(tmp_path / "o.jsonl", '{"who": {"id": 1}, "at": 5, "items": {"item_id": "p1"}}')
    _, rows = staged(stocked, path, ("product_id", "items[].item_id"))
    assert rows == [(1, None, "p1")]


def test_lists_in_lists_are_spread_together(stocked, tmp_path):
    row = {
        "who": {"id": 1},
        "at": "2026-01-01",
        "orders": [{"n": "a", "lines": [{"sku": "p1"}, {"sku": "p2"}]}, {"n": "b", "lines": []}],
    }
    path = put(tmp_path / "o.jsonl", json.dumps(row))
    _, rows = staged(stocked, path, ("product_id", "orders[].lines[].sku"), ("query", "orders[].n"))
    assert [row[1:] for row in rows] == [("a", "p1"), ("a", "p2"), ("b", None)]


def test_two_lists_beside_each_other_are_refused_and_the_remedy_works(stocked, tmp_path):
    row = {"who": {"id": 1}, "at": "2026-01-01", "a": [{"x": 1}], "b": [{"y": 2}]}
    path = put(tmp_path / "o.jsonl", json.dumps(row))
    with pytest.raises(QAgentError, match=r"lie in two lists.*take one element.*\[0\]"):
        staged(stocked, path, ("product_id", "a[].x"), ("query", "b[].y"))
    assert staged(stocked, path, ("product_id", "a[].x"), ("query", "b[0].y"))[1] == [(1, "2", "1")]


def test_a_column_whose_own_name_has_dots_wins(stocked, tmp_path):
    row = {"who.id": "dotted", "who": {"id": "nested"}, "at": "2026-01-01", "query": "a"}
    path = put(tmp_path / "o.jsonl", json.dumps({**row, "type": "search"}))
    options = ReadOptions(mapping=(("user_id", "who.id"), ("time", "at")))
    assert ingest_files(stocked, "events", [path], options).accepted == 1
    assert log(stocked)[0][0] == "dotted"


def test_a_path_that_leads_nowhere_is_said(stocked, tmp_path):
    result, _ = staged(stocked, write(tmp_path, "jsonl"), ("product_id", "items[].itm_id"))
    assert "product_id stays empty: no row has items[].itm_id" in result.notes
    with pytest.raises(QAgentError, match="has no column 'itms.*; its columns are at, items"):
        staged(stocked, tmp_path / "e.jsonl", ("product_id", "itms[].item_id"))


def test_products_take_attributes_and_categories_from_paths(shop, tmp_path):
    row = {"id": 1, "t": {"de": "Zelt"}, "cat": {"path": ["Out", "Tents"]}, "d": {"colour": "rot"}}
    path = put(tmp_path / "p.jsonl", json.dumps(row))
    pairs = ["product_id=id", "title=t.de", "category=cat.path", "attributes.colour=d.colour"]
    options = ReadOptions(
        mapping=parse_mapping(pairs, "products"),
        values=parse_values(["attributes.colour:Rot=red"], "products"),
    )
    assert ingest_files(shop, "products", [path], options).accepted == 1
    assert titles(shop)[0][:2] == ("1", "Zelt")
    stored = shop.connection.execute("SELECT category, attributes FROM products").fetchall()
    assert stored == [("Out > Tents", '{"colour": "red"}')]


def test_a_value_may_mean_nobody(stocked, tmp_path):
    text = "user_id,time,type,query\nWeb Anon,2026-01-01,search,a\nu,2026-01-01,search,b\n"
    options = ReadOptions(values=parse_values(["user_id:web-anon="], "events"))
    report = ingest_files(stocked, "events", [put(tmp_path / "e.csv", text)], options)
    assert (report.accepted, log(stocked)[0][0]) == (1, "u")


def test_event_types_that_mean_nothing_are_left_out_and_counted(stocked, tmp_path):
    rows = ["u,2026-01-01,impression,a,p1", "u,2026-01-01,Page-Hide,,", "u,2026-01-01,click,a,p1"]
    text = "\n".join(["user_id,time,type,query,product_id", rows[0], *rows])
    options = ReadOptions(values=parse_values(["type:impression=", "type:page hide="], "events"))
    report = ingest_files(stocked, "events", [put(tmp_path / "e.csv", text)], options)
    assert (report.accepted, report.rejected) == (1, 0)
    assert report.ignored == {"impression": 2, "page_hide": 1}
    assert [row[2] for row in log(stocked)] == ["click"]
