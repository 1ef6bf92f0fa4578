"""JSON in other layouts than one object a line."""

import json

import pytest
from source_files import put, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.sources.documents import json_layout
from qagent_mlx.utils.process_folder import PREFIX

ROWS = [{"id": "p1", "title": 'A "b" ]', "price": 2}, {"id": "p2", "title": "{[", "price": 3}]
COMPLETE = {"id", "title"}


def is_row(keys):
    return set(keys) >= COMPLETE


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff" + json.dumps(ROWS),
        "\n ".join(json.dumps(row) for row in ROWS),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps({"events": ROWS}),
        json.dumps({"page": {"next": None, "of": [1]}, "data": ROWS, "total": 2}, indent=2),
        json.dumps({"hits": {"total": {"value": 2}, "hits": ROWS}}),
        json.dumps({"note": "[{", "rows": ROWS}),
    ],
    ids=range(9),
)
def test_each_layout_gives_its_objects(shop, tmp_path, text):
    report = ingest_files(shop, "products", [put(tmp_path / "x.json", text)])
    assert (report.accepted, report.rejected) == (2, 0)
    assert titles(shop) == [("p1", 'A "b" ]', None, 2.0), ("p2", "{[", None, 3.0)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("around", [{}, {"total": 1, "ends": {"x": None}}])
def test_a_long_list_inside_an_object_is_cut_out(shop, tmp_path, indent, around):
    rows = [{"id": f"p{i}", "title": f"Größe {i} " + "x" * 200} for i in range(9000)]
    document = {"shop": "ü", "list": rows, **around}
    path = put(tmp_path / "x.json", json.dumps(document, indent=indent, ensure_ascii=False))
    assert path.stat().st_size > 1.5 * (1 << 20)
    assert ingest_files(shop, "products", [path]).accepted == 9000
    assert dict(row[:2] for row in titles(shop))["p8999"].startswith("Größe 8999 ")


def test_an_object_that_is_a_product_is_not_taken_for_a_list():
    row = {"id": "p1", "title": "A", "variants": [{"sku": 1}]}
    assert json_layout(json.dumps(row), is_row).form == "lines"
    assert json_layout(json.dumps(row, indent=1), is_row).form == "unstructured"
    broken = '{"id": "p1", "variants": [{"sku": \n' + json.dumps(row) + "\n"
    assert json_layout(broken, is_row).form == "lines"
    assert json_layout("nonsense", is_row).form == "lines"
    assert json_layout("[" * 100_000, is_row).form == "array"


def test_elements_that_are_no_objects_are_rejects_by_their_number(shop, tmp_path):
    path = put(tmp_path / "x.json", '[{"id": 1, "title": "A"}, 5, null, {"id": 2, "title": "B"}]')
    report = ingest_files(shop, "products", [path])
    assert (report.accepted, report.reasons) == (2, {"malformed JSON": 2})
    rows = shop.connection.execute("SELECT row FROM rejects ORDER BY row").fetchall()
    assert rows == [(2,), (3,)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"id": 1, "title": "A"}, {"id": ]', "malformed JSON in object 2"),
        ('[{"id": 1, "title": "A"}, {"id": 2', "malformed JSON"),
        ("[]", "holds no JSON objects"),
        ("[1, 2]", "holds no JSON objects"),
        ("[" * 100_000 + "]" * 100_000, "JSON"),
        ('{"a": 1}', "missing"),
        ("{}", "no line of it is a JSON object"),
    ],
)
def test_what_holds_no_objects_is_refused_in_one_line(shop, tmp_path, text, says):
    path = put(tmp_path / "x.json", text)
    with pytest.raises(QAgentError, match=says) as error:
        ingest_files(shop, "products", [path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert PREFIX not in str(error.value)
