"""`qagent ingest` on small files: what it says, and that what it advises works."""

import csv
import io
import re
import shlex
import zipfile

import pytest

EVENTS = ("user_id", "time", "type", "query", "product_id")
SEARCH = ("u1", "2026-01-05T10:00:00Z", "search", "lamp", "")


@pytest.fixture
def shop(cli, tmp_path):
    cli.run("init", "--shop", tmp_path / "shop")
    path = write(tmp_path / "p.csv", ("id", "title", "price"), [("p1", "Lamp", "5")])
    cli.run("ingest", "products", path, "--shop", tmp_path / "shop")
    return tmp_path / "shop"


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def advice(text):
    """The first option that a message advises, as arguments."""
    (option,) = re.findall(r"(--[a-z-]+(?: '[^']+'| [a-z_]+:[^ )]*| [^ ;,)]+)?)", text)[:1]
    return shlex.split(option)


@pytest.mark.parametrize(
    ("fields", "repair"),
    [
        ({"type": "hover"}, {"NAME": "hover"}),
        ({"type": "", "query": ""}, {"COLUMN": "kind"}),
        ({"time": "13.01.2026 10:00"}, {}),
        ({"time": "2099-01-01"}, {}),
        ({"time": "20260105"}, {}),
        ({"query": "NA"}, {"NAME": "natrium"}),
        ({"user_id": "0"}, {"NAME": "zero"}),
        ({"user_id": "guest"}, {"NAME": "zero"}),
        ({"type": "view", "query": "", "product_id": "-"}, {"NAME": "p1"}),
    ],
)
def test_what_a_message_advises_succeeds(cli, shop, tmp_path, fields, repair):
    row = dict(zip(EVENTS, SEARCH, strict=True)) | fields | {"kind": "cart"}
    row["product_id"] = row["product_id"] or "p1"
    path = write(tmp_path / "e.csv", tuple(row), [tuple(row.values())])
    error = cli.error("ingest", "events", path, "--shop", shop)
    options = advice(error)
    for name, value in repair.items():
        options = [option.replace(name, value) for option in options]
    report = cli.json("ingest", "events", path, *options, "--shop", shop)
    assert (report["accepted"], report["rejected"]) == (1, 0), (error, options)


def test_events_of_a_type_without_a_meaning_are_left_out_and_counted(cli, shop, tmp_path):
    hover = ("u1", "2026-01-05T10:00:00Z", "Hover", "lamp", "p1")
    path = write(tmp_path / "e.csv", EVENTS, [SEARCH, hover])
    arguments = ("ingest", "events", path, "--value", "type:hover=", "--shop", shop)
    report = cli.json(*arguments)
    assert (report["accepted"], report["rejected"]) == (1, 0)
    assert report["ignored"] == {"hover": 1}


def test_rejected_events_of_a_type_can_be_left_out_later(cli, shop, tmp_path):
    path = write(tmp_path / "e.csv", EVENTS, [SEARCH, ("u1", "2026-01-05", "hover", "", "p1")])
    assert "--value type:NAME=" in cli.run("ingest", "events", path, "--shop", shop).output
    assert (
        "--value type:NAME="
        in cli.json("ingest", "rejects", "--shop", shop)["rejects"][0]["remedy"]
    )
    report = cli.json("ingest", "retry", "--value", "type:hover=", "--shop", shop)
    assert report["ignored"] == {"hover": 1}
    assert cli.json("ingest", "rejects", "--shop", shop)["rows"] == 0


def test_a_mapping_that_does_not_help_keeps_the_rejected_row(cli, shop, tmp_path):
    path = write(tmp_path / "e.csv", EVENTS, [SEARCH, ("u1", "2026-01-05", "view", "", "p9")])
    cli.run("ingest", "events", path, "--shop", shop)
    before = cli.json("ingest", "rejects", "--shop", shop)["rejects"]
    cli.run("ingest", "retry", "--map", "product_id=user_id", "--shop", shop)
    assert cli.json("ingest", "rejects", "--shop", shop)["rejects"] == before


def test_of_several_files_it_is_said_which_are_stored_and_which_not_read(cli, shop, tmp_path):
    a = write(tmp_path / "a.csv", EVENTS, [SEARCH])
    b = write(tmp_path / "b.csv", EVENTS, [("u1", "yesterday", "search", "lamp", "")])
    c = write(tmp_path / "c.csv", EVENTS, [("u2", *SEARCH[1:])])
    error = cli.error("ingest", "events", a, b, c, "--dry-run", "--shop", shop)
    assert f"read: {a}; not read: {c}" in error
    error = cli.error("ingest", "events", a, b, c, "--shop", shop)
    assert (
        f"stored before it: {a}; not read: {c}; to leave a file out, name only the others" in error
    )
    # What it says is so, and what it advises works.
    history = cli.json("ingest", "history", "--shop", shop)["ingests"]
    assert [load["file"] for load in history] == ["p.csv", "a.csv"]
    report = cli.json("ingest", "events", a, c, "--shop", shop)
    assert (report["accepted"], report["duplicates"]) == (1, 1)


def test_a_join_that_fails_says_what_is_stored_and_how_many_lack_a_partner(cli, shop, tmp_path):
    searches = [("q1", "u1", "2026-01-05", "lamp")]
    clicks = [("q1", "2026-01-05", "p1"), ("q8", "2026-01-05", "p1"), ("q9", "2026-01-05", "p1")]
    a = write(tmp_path / "s.csv", ("query_id", "user_id", "time", "query"), searches)
    b = write(tmp_path / "c.csv", ("query_id", "time", "product_id"), clicks)
    arguments = ("ingest", "events", a, "--join", b, "--on", "query_id", "--shop", shop)
    error = cli.error(*arguments)
    assert "nothing of it is stored" in error and f"stored before it: {a}" in error
    assert "2 of 3 rows lack a partner in s.csv by query_id" in error
    assert cli.json(*arguments, *advice(error)[:1], "0.9")["accepted"] == 1


def test_a_path_that_no_row_has_is_named(cli, shop, tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text('{"who": {"id": "u1"}, "time": "2026-01-05", "query": "lamp"}\n')
    arguments = ("ingest", "events", path, "--shop", shop, "--map")
    assert "user_id stays empty: no row has who.idd" in cli.error(*arguments, "user_id=who.idd")
    assert cli.json(*arguments, "user_id=who.id")["accepted"] == 1


@pytest.fixture
def archive(tmp_path):
    """A zip archive of two days and a README."""
    path = tmp_path / "logs.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("README.txt", "All days.\n")
        for day in ("a", "b"):
            file.writestr(f"{day}.csv", f"user_id,time,query\n{day},2026-01-05,lamp\n")
    return path


def test_a_readme_is_no_log(cli, shop, archive):
    report = cli.json("ingest", "events", archive, "--shop", shop)
    assert report["accepted"] == 2
    assert [file["file"] for file in report["understood"]] == ["logs.zip::a.csv", "logs.zip::b.csv"]


def test_other_files_of_an_archive_that_fit_not_are_left_out_as_advised(cli, shop, archive):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("about.txt", "All days.\n")
    error = cli.error("ingest", "events", archive, "--shop", shop)
    assert f"stored before it: {archive}::a.csv; not read: {archive}::b.csv" in error
    assert "to leave a file out, name only the others" in error
    named = [f"{archive}::{day}.csv" for day in ("a", "b")]
    assert cli.json("ingest", "events", *named, "--shop", shop)["accepted"] == 1


def test_a_file_of_an_archive_on_standard_input_is_named_as_advised(
    cli, shop, archive, monkeypatch
):
    class Stdin:
        def __init__(self):
            self.buffer = io.BytesIO(archive.read_bytes())

    def pipe():
        monkeypatch.setattr("qagent_mlx.ingest.sources.opening.sys.stdin", Stdin(), raising=False)

    from qagent_mlx.errors import QAgentError
    from qagent_mlx.ingest.ingest import ingest_files
    from qagent_mlx.shop.shop import Shop

    with Shop.open(shop, read_only=False) as opened:
        pipe()
        with pytest.raises(QAgentError, match=r"name the file in it: -::FILE \(of a.csv, b.csv\)"):
            ingest_files(opened, "events", ["-"])
        pipe()
        assert ingest_files(opened, "events", ["-::b.csv"]).accepted == 1
    # On the command line it is no option.
    assert (
        "No such option"
        not in cli.run("ingest", "events", "-::c.csv", "--shop", shop, code=1).output
    )


def test_an_empty_file_is_called_empty(cli, shop, tmp_path):
    path = tmp_path / "e.csv"
    path.touch()
    for arguments in (("--from", path), ("--preset", "ga4", "--from", path), ("events", path)):
        assert f"{path} is empty" in cli.error("ingest", *arguments, "--shop", shop)


def test_a_format_that_does_not_fit_is_named_with_one_that_does(cli, shop, tmp_path):
    path = write(tmp_path / "e.csv", EVENTS, [(*SEARCH[:1], "13.01.2026", *SEARCH[2:])])
    arguments = ("ingest", "events", path, "--shop", shop, "--time-format")
    error = cli.error(*arguments, "%d/%m/%Y")
    assert "the format that was given, '%d/%m/%Y', does not read it: --time-format" in error
    assert cli.json(*arguments, advice(error)[1])["accepted"] == 1
    error = cli.error("ingest", "events", write(path, EVENTS, [SEARCH]), *arguments[3:], "%d/%m/%Y")
    assert "leave out --time-format" in error
    assert cli.json("ingest", "events", path, "--shop", shop)["accepted"] == 1


def test_a_field_of_no_kind_is_named_with_those_of_events(cli, shop):
    error = cli.error("ingest", "retry", "--map", "foo=bar", "--shop", shop)
    assert "events have no field 'foo', only user_id, time" in error


def test_a_file_without_rows_says_so(cli, shop, tmp_path):
    path = tmp_path / "e.csv"
    path.write_text(",".join(EVENTS) + "\n")
    assert "note: e.csv holds no rows" in cli.run("ingest", "events", path, "--shop", shop).output


@pytest.mark.parametrize(
    "line", ["D" * 3000, "a\x01b\x02\x03,c", ",".join(f"c{n}" for n in range(999))]
)
def test_a_line_that_names_no_columns_is_not_printed_whole(cli, shop, tmp_path, line):
    path = tmp_path / "e.csv"
    path.write_text(f"{line}\nx\n")
    error = cli.error("ingest", "events", path, "--shop", shop)
    assert len(error) < 800 and "\x01" not in error


def test_the_text_says_what_json_knows(cli, shop, tmp_path):
    header = ("visitor_id", "customer_id", "time", "query", "colour")
    rows = [
        (f"v{n}", "bot" if n % 2 else f"c{n}", "2026-01-05", f"lamp {n}", "red") for n in range(300)
    ]
    path = write(tmp_path / "e.csv", header, rows)
    arguments = ("ingest", "events", path, "--dry-run", "--shop", shop)
    (understood,) = cli.json(*arguments)["understood"]
    text = cli.run(*arguments).output
    assert understood["unused"] == ["visitor_id", "colour"]
    for line in (*understood["unused"], *understood["choices"], *understood["warnings"]):
        assert line in text.replace("\n", " ")
    assert "the user 'bot' has 150 of 300 events" in text


def test_a_price_is_cleared_only_where_that_is_said(cli, shop, tmp_path):
    path = write(tmp_path / "p2.csv", ("id", "title", "price"), [("p1", "Lamp", "")])
    assert cli.json("ingest", "products", path, "--shop", shop)["duplicates"] == 1
    arguments = ("ingest", "products", path, "--clear", "price", "--shop", shop)
    assert cli.json(*arguments)["accepted"] == 1
    assert cli.run("ingest", "products", path, "--clear", "title", "--shop", shop, code=2)


def test_what_stands_in_the_way_of_an_undo_is_undone_as_advised(cli, shop, tmp_path):
    for number, price in ((2, "6"), (3, "7")):
        path = write(tmp_path / f"p{number}.csv", ("id", "price"), [("p1", price)])
        cli.run("ingest", "products", path, "--shop", shop)
    undone = []
    while True:
        number = 1
        while True:
            try:
                cli.run("ingest", "undo", number, "--shop", shop)
                break
            except AssertionError as error:
                number = int(re.findall(r"qagent ingest undo (\d+)", str(error))[0])
        undone.append(number)
        if number == 1:
            break
    assert undone == [3, 2, 1]
    text = cli.run("ingest", "history", "--shop", shop).output
    assert text.count("undone") == 3


def test_rejects_are_written_and_forgotten(cli, shop, tmp_path):
    path = write(tmp_path / "e.csv", EVENTS, [SEARCH, ("u1", "2026-01-05", "view", "", "p9")])
    cli.run("ingest", "events", path, "--shop", shop)
    out = tmp_path / "rejects.csv"
    text = cli.run("ingest", "rejects", "--out", out, "--clear", "--shop", shop).output
    assert f"1 rows written to {out}" in text.replace("\n", "")
    assert out.read_text().count("unknown product") == 1
    assert "no rejected rows" in cli.run("ingest", "rejects", "--shop", shop).output
