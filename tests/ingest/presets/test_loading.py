"""Recognising formats, and what is said of files that are none."""

import bz2
import gzip
import json
import zipfile
from random import Random

import duckdb
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.descriptions import DESCRIPTIONS
from qagent_mlx.ingest.presets.loading import load_preset, suggest_command
from qagent_mlx.ingest.presets.raw_files import RawFiles
from qagent_mlx.ingest.presets.registry import PRESETS


def test_every_preset_is_described():
    assert set(DESCRIPTIONS) == set(PRESETS)


def test_unknown_files_are_named_with_what_was_looked_for(shop, raw, write_csv):
    write_csv("x.csv", ("a", "b"), (1, 2))
    with pytest.raises(QAgentError, match="no known format; looked for ubi, ga4, segment"):
        load_preset(shop, "auto", raw)
    with pytest.raises(QAgentError, match="holds nothing of OpenSearch"):
        load_preset(shop, "ubi", raw)
    with pytest.raises(QAgentError, match="no such file or folder"):
        load_preset(shop, "ubi", raw / "gone")
    assert suggest_command(raw / "x.csv") is None


def test_another_presets_file_is_named(shop, write_csv):
    path = write_csv("q.csv", ("query_id", "user_token", "query"), ("1", "u", "shoes"))
    with pytest.raises(QAgentError, match="it looks like the preset algolia"):
        load_preset(shop, "ubi", path)
    suggestion = suggest_command(path)
    assert suggestion is not None
    assert suggestion.command == f"qagent ingest --preset algolia --from {path}"


def test_files_that_are_not_read_are_named(shop, raw, write_csv):
    write_csv("q.csv", ("query_id", "user_token", "query", "timestamp"), ("1", "u", "shoes", 1.7e9))
    (raw / "README.md").write_text("# Read me\n")
    report = load_preset(shop, "auto", raw)
    assert "not read, no files of algolia: README.md" in report.total.notes


def test_what_is_being_read_is_not_in_the_shop(shop, raw, write_csv, monkeypatch):
    """A killed process would leave it there, where `privacy forget` does not look."""
    write_csv("q.csv", ("query_id", "user_token", "query", "timestamp"), ("1", "u", "shoes", 1.7e9))
    before = sorted(shop.path.rglob("*"))
    seen = []
    monkeypatch.setattr(
        "qagent_mlx.ingest.presets.loading._store", lambda *_: seen.extend(shop.path.rglob("*"))
    )
    load_preset(shop, "auto", raw)
    assert sorted(seen) == before


@pytest.mark.parametrize("step", ["looking._look_at_text", "loading._extract"])
def test_what_needs_more_memory_says_how_to_give_it(shop, raw, write_csv, monkeypatch, step):
    write_csv("q.csv", ("query_id", "user_token", "query", "timestamp"), ("1", "u", "shoes", 1.7e9))

    def too_large(*values):
        error = duckdb.OutOfMemoryException("failed to allocate")
        raise values[0].problem(error) if isinstance(values[0], RawFiles) else error

    monkeypatch.setattr(f"qagent_mlx.ingest.presets.{step}", too_large)
    with pytest.raises(QAgentError, match="set QAGENT_DATABASE_MEMORY, which is 1GB, to more"):
        load_preset(shop, "auto", raw)


SEARCHES = ("query_id", "user_token", "query", "timestamp")


def test_archives_are_unpacked_and_windows_text_is_read(shop, raw, write_csv, stored):
    text = write_csv("q.csv", SEARCHES, ("1", "u", "größe 5 €", 1767607200)).read_text("utf-8")
    (raw / "q.csv").unlink()

    def later(minute):
        return text.replace("1,u", f"q{minute},u").replace("7200", f"7{200 + 60 * minute}")

    with zipfile.ZipFile(raw / "a.zip", "w") as archive:
        archive.writestr("export/queries.csv", text)
        archive.writestr("export/about.txt", "about")
    (raw / "b.csv.bz2").write_bytes(bz2.compress(later(1).encode()))
    (raw / "c.csv").write_bytes(later(2).encode("cp1252"))
    (raw / "d.csv").write_text(later(3), encoding="utf-16")
    (raw / "empty.csv").write_text("")
    (raw / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    load_preset(shop, "auto", raw)
    assert [(time[11:16], query) for _, time, _, query, _ in stored()] == [
        (f"10:0{minute}", "größe 5 €") for minute in range(4)
    ]


def test_rejected_rows_name_the_source(shop, write_csv):
    rows = [("1", "u", "boots", 1767607100), ("2", "", "shoes", 1767607200)]
    path = write_csv("q.csv", SEARCHES, *rows)
    report = load_preset(shop, "algolia", path)
    assert report.events.examples[0].startswith(
        "algolia q.csv event at 2026-01-05 10:00:00: no user"
    )  # what a preset makes of a file has no row of it


def test_several_formats_in_one_folder_are_told_apart(shop, raw, write_csv, write_json):
    write_csv("q.csv", SEARCHES, ("1", "u", "shoes", 1767607200))
    write_json("u.json", {"user_query": "shoes", "query_id": "1", "client_id": "u"})
    with pytest.raises(QAgentError) as error:
        load_preset(shop, "auto", raw)
    for command in (f"--preset ubi --from {raw}", f"--preset algolia --from {raw}"):
        assert command in str(error.value)
    with pytest.raises(QAgentError, match="ubi u.json: the only row is rejected"):
        load_preset(shop, "ubi", raw)  # it has no time
    write_csv("catalog.csv", ("sku", "name"), ("1", "Shoes"))
    (note,) = [n for n in load_preset(shop, "algolia", raw).total.notes if "not read" in n]
    assert note.endswith("catalog.csv, u.json; some are of ubi, read them by that preset")
    (raw / "u.json").unlink()
    (note,) = [n for n in load_preset(shop, "algolia", raw).total.notes if "not read" in n]
    assert "catalog.csv; files with columns of their own: qagent ingest products FILE" in note


def lines(texts):
    return "".join(f"{text}\n" for text in texts)


@pytest.mark.parametrize("broken", [0, 1, 3, 400])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_that_are_no_json_are_left_out_and_told(shop, raw, stored, broken, packed):
    """The other lines, and other files, go in: an export that was cut off holds most of a log."""
    searches = [
        json.dumps(
            {
                "user_query": f"shoes {n}",
                "query_id": f"{n}",
                "client_id": "u",
                "timestamp": 10**12 + n * 86_400_000,
            }
        )
        for n in range(500)
    ]
    searches[broken] = searches[broken][:30]
    clicks = [
        json.dumps(
            {
                "action_name": "click",
                "query_id": "7",
                "client_id": "u",
                "timestamp": 10**12 + 7 * 86_400_000 + 5000,
                "event_attributes": {"object": {"object_id": "p1"}},
            }
        )
    ]
    (raw / "e.ndjson").write_text(lines(clicks))
    text = lines(searches).encode()
    (raw / "q.ndjson").write_bytes(gzip.compress(text) if packed else text)
    report = load_preset(shop, "auto", raw)
    assert report.events.accepted == 500 == len(stored())
    assert report.whole.ignored["malformed row"] == 1
    note = f"q.ndjson: 1 line is no JSON, from row {broken + 1} on"
    assert note in report.whole.notes


def test_broken_lines_of_google_analytics_are_no_events_without_a_name(shop, raw, stored):
    event = {
        "event_name": "search",
        "event_timestamp": "1767607200000000",
        "event_params": [{"key": "search_term", "value": {"string_value": "shoes"}}],
        "user_pseudo_id": "u",
        "items": [],
    }
    (raw / "events.json").write_text(lines([json.dumps(event), '{"event_name": "se']))
    report = load_preset(shop, "ga4", raw)
    assert len(stored()) == 1
    assert report.whole.ignored == {"malformed row": 1}


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_packed_file_that_was_cut_short_is_named(shop, raw, kept):
    random = Random(0)
    queries = [random.randbytes(40).hex() for _ in range(30_000)]
    rows = [json.dumps({"user_query": q, "query_id": q, "client_id": "u"}) for q in queries]
    packed = gzip.compress(lines(rows).encode(), 1)
    (raw / "q.ndjson.gz").write_bytes(packed[: int(len(packed) * kept)])
    with pytest.raises(
        QAgentError, match=r"q\.ndjson\.gz: the gzip file is cut short.*get it again"
    ):
        load_preset(shop, "auto", raw)


def test_an_array_that_was_cut_short_is_named(shop, raw):
    events = [{"user_query": "shoes", "query_id": f"{n}", "client_id": "u"} for n in range(300)]
    (raw / "q.json").write_text(json.dumps(events)[:-100])
    with pytest.raises(QAgentError, match=r"q\.json\): malformed JSON in object 2.*cut short"):
        load_preset(shop, "auto", raw)


def test_large_files_are_read_whatever_their_layout(shop, raw, stored, monkeypatch):
    monkeypatch.setattr("qagent_mlx.ingest.presets.raw_files.MAX_LINE", 1 << 20)
    event = {
        "eventType": "view",
        "eventName": "x" * 2000,
        "index": "i",
        "userToken": "u",
        "objectIDs": ["p1"],
    }
    events = [{**event, "timestamp": 1767607200000 + n} for n in range(2500)]
    (raw / "body.json").write_text(json.dumps({"events": events}))
    load_preset(shop, "auto", raw)
    assert len(stored()) == 2500
    (raw / "body.json").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert load_preset(shop, "auto", raw).events.duplicates == 2500
