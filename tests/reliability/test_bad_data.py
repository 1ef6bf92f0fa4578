"""Bad files, bodies and settings: a clear line, and nothing left behind, whatever they hold."""

import gzip
import json
import random
import resource
import shutil
import tracemalloc

import pytest
from fuzzing import trained
from targets import TARGETS, Place

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.sources import archives
from qagent_mlx.ingest.sources.archives import MAX_RATIO
from qagent_mlx.ingest.sources.source import MAX_LINE
from qagent_mlx.shop.shop import Shop

EXAMPLES = {
    "HTTP bodies": 500,
    "config files": 200,
    "ingested rows": 3,
    "model folders": 20,
    "run folders": 30,
    "indexes": 20,
}


@pytest.fixture(scope="module")
def place(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return Place(trained(shutil.copytree(base_folder, folder / "shop")), folder / "scratch")


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_comes_is_taken_or_refused_in_one_line(name, place):
    for number in range(EXAMPLES[name]):
        TARGETS[name][0](random.Random(f"{name} {number}"), place)


# ---------------------------------------------------------------- files


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        (tmp_path / "p.csv").write_text("product_id,title\np1,Lamp\n")
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        yield shop


def refused(shop, path, match, kind="events"):
    before = shop.counts()
    with pytest.raises(QAgentError, match=match) as caught:
        ingest_files(shop, kind, [path])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert shop.counts() == before


def grown(run):
    """Bytes that Python held more at the most, and that the process grew by."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    run()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_without_an_end_is_refused_early(shop, tmp_path, zipped):
    path = tmp_path / ("e.jsonl.gz" if zipped else "e.jsonl")
    if zipped:
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(40):
                file.write(b"x" * (1 << 20))
    else:
        with path.open("wb") as file:  # 2 GB, that no disk holds
            file.truncate(2 << 30)
    held, rss = grown(lambda: refused(shop, path, "a line of over 16 MiB; is this the right file"))
    assert held < 2 * MAX_LINE and rss < 300 << 20


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 8 << 20)
    path = tmp_path / "e.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"user_id,time,type,query\n")
        block = b"u,2026-01-01,search,a\n" * 50_000
        for _ in range(40):
            file.write(block)
    assert path.stat().st_size < 3 << 20
    held, rss = grown(lambda: refused(shop, path, f"unpacks to over {MAX_RATIO} times its size"))
    assert held < 32 << 20 and rss < 300 << 20


def test_deep_json_is_kept_as_a_reject(shop, tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    lines = [
        '{"user_id": "u", "time": "2026-01-01", "type": "search", "query": "lamp"}',
        '{"user_id": "u", "time": "2026-01-01", "type": "search", "query": ' + deep + "}",
        '{"a":' * 50_000 + "1" + "}" * 50_000,
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    options = ReadOptions(max_rejects=1)
    report = ingest_files(shop, "events", [tmp_path / "e.jsonl"], options)
    assert (report.accepted, report.rejected) == (1, 2)
    product = {"product_id": "p2", "title": "x", "attributes": "{" + '"a":{' * 50_000}
    good = {"product_id": "p3", "title": "x"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(product)}")
    report = ingest_files(shop, "products", [tmp_path / "p.jsonl"])
    assert report.reasons == {"bad attributes": 1}


@pytest.mark.parametrize("price", ["inf", "-inf", "1e999", "-1", "9" * 400, "0x1"])
def test_a_price_is_a_number(shop, tmp_path, price):
    (tmp_path / "p.csv").write_text(f"product_id,title,price\np8,x,\np9,x,{price}\n")
    assert ingest_files(shop, "products", [tmp_path / "p.csv"]).reasons == {"bad price": 1}


def test_a_price_that_is_not_a_number_is_none(shop, tmp_path):
    (tmp_path / "p.csv").write_text("product_id,title,price\np9,x,NaN\n")
    assert ingest_files(shop, "products", [tmp_path / "p.csv"]).accepted == 1
    (price,) = shop.connection.execute(
        "SELECT price FROM products WHERE product_id = 'p9'"
    ).fetchone()
    assert price is None


@pytest.mark.parametrize(
    "text",
    [
        "0000-01-01",
        "0001-01-01",
        "9999-12-31T23:59:59",
        "1989-12-31",
        "2100-01-01",
        "1e300",
        "-1e300",
        "NaN",
        "infinity",
        "epoch",
        "2026-02-30",
    ],
)
def test_times_lie_within_reason(shop, text):
    row = {"user_id": "u", "time": text, "type": "search", "query": "a"}
    report = append_events(shop, [row])
    assert report.accepted == 0 and report.reasons.keys() <= {
        "unparseable time",
        "time out of range",
        "no time",
    }


def test_zones_and_the_nights_of_a_changed_clock_lose_no_hour(shop):
    # Berlin's clocks went from 2:00 to 3:00 (CET to CEST), New York's go from 2:00 back to 1:00.
    times = {
        "2026-03-29T01:59:59+01:00": "2026-03-29 00:59:59",
        "2026-03-29T03:00:00+02:00": "2026-03-29 01:00:00",
        "2026-11-01T01:30:00-04:00": "2026-11-01 05:30:00",
        "2026-11-01T01:30:00-05:00": "2026-11-01 06:30:00",
        "2026-01-01T00:00:00+14:00": "2025-12-31 10:00:00",
        "2026-03-29T02:30:00": "2026-03-29 02:30:00",
    }
    rows = [
        {"user_id": f"u{n}", "time": t, "type": "search", "query": "a"} for n, t in enumerate(times)
    ]
    assert append_events(shop, rows).accepted == len(times)
    found = shop.connection.execute("SELECT ts::VARCHAR FROM events ORDER BY user_id").fetchall()
    assert [t for (t,) in found] == list(times.values())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("شاي \u202eدجلة", "شاي دجلة"),
        ("🏴‍☠️ lamp", "🏴 ☠️ lamp"),
        ("a\x00b", "a b"),
        ("ﬁ\u200bx", "ﬁ x"),
        ("\ud83d\ude00", None),
    ],
)
def test_any_script_is_kept_and_what_moves_a_cursor_goes(shop, given, kept):
    row = {"user_id": "u", "time": "2026-01-01", "type": "search", "query": given}
    if kept is None:  # halves of a character: no text at all
        row["query"] = "\ud83d"
    report = append_events(shop, [row])
    found = shop.connection.execute("SELECT query FROM events").fetchall()
    if kept is not None:
        assert report.accepted == 1 and found == [(kept,)]
    else:
        assert report.accepted + report.rejected == 1


def test_ids_have_a_bearable_length_and_the_same_form_everywhere(shop, tmp_path):
    rows = [
        {"user_id": "u" * 10_240, "time": "2026-01-01", "type": "search", "query": "a"},
        {"user_id": "u", "time": "2026-01-01", "type": "click", "product_id": "p" * 10_240},
    ]
    assert append_events(shop, rows).reasons == {"id too long": 2}
    (tmp_path / "p.csv").write_text('product_id,title\n"a\x1b[1m  b",Odd\n')
    assert ingest_files(shop, "products", [tmp_path / "p.csv"]).accepted == 1
    row = {"user_id": "u", "time": "2026-01-01", "type": "click", "product_id": "a\x1b[1m  b"}
    assert append_events(shop, [row]).accepted == 1
