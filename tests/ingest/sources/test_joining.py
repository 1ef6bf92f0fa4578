"""Two files whose rows belong together by a key."""

import pytest
from source_files import as_csv, log, put, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.columns import parse_mapping
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.options import ReadOptions
from qagent_mlx.ingest.sources.joining import stage_location
from qagent_mlx.ingest.sources.locations import locate

QUERIES = [
    {"query_id": "ab-1", "time": "2026-01-05 10:00", "user_id": "u1", "query": "lamp"},
    {"query_id": "AB-2", "time": "2026-01-05 11:00", "user_id": "u2", "query": "tent"},
]
CLICKS = [
    {"query_id": "AB1", "time": "2026-01-05 10:01", "type": "click", "product_id": "p1"},
    {"query_id": "ab1", "time": "2026-01-05 10:02", "type": "purchase", "product_id": "p1"},
    {"query_id": "ab2", "time": "2026-01-05 11:01", "type": "click", "product_id": "p2"},
    {"query_id": "zz", "time": "2026-01-05 11:02", "type": "click", "product_id": "p2"},
]
JOINED = [
    ("u1", "2026-01-05 10:00:00", "search", "lamp", None),
    ("u1", "2026-01-05 10:01:00", "click", "lamp", "p1"),
    ("u1", "2026-01-05 10:02:00", "purchase", "lamp", "p1"),
    ("u2", "2026-01-05 11:00:00", "search", "tent", None),
    ("u2", "2026-01-05 11:01:00", "click", "tent", "p2"),
]


def files(folder, queries, clicks):
    put(folder / "queries.csv", as_csv(queries))
    put(folder / "clicks.csv", as_csv(clicks))
    return [folder / "queries.csv"], str(folder / "clicks.csv")


def notes(shop, names, options):
    """What is said of each file."""
    said = []
    for location in locate(names, options.join):
        with shop.transaction() as connection:
            staged = stage_location(connection, "events", location, options)
            connection.execute("DROP TABLE IF EXISTS stage")
        said.append(None if staged is None else staged.notes)
    return said


def test_clicks_take_user_and_query_from_their_search(stocked, tmp_path):
    names, clicks = files(tmp_path, QUERIES, CLICKS)
    options = ReadOptions(join=clicks, on="query_id")
    report = ingest_files(stocked, "events", names, options)
    assert (report.accepted, report.reasons) == (5, {"no user": 1})
    assert log(stocked) == JOINED
    assert notes(stocked, names, options) == [
        (),
        ("1 of 4 rows lack a partner in queries.csv by query_id",),
    ]
    rejected = stocked.connection.execute("SELECT file, row FROM rejects").fetchall()
    assert rejected == [("clicks.csv", 4)]
    assert ingest_files(stocked, "events", names, options).duplicates == 5


def test_columns_may_be_called_otherwise_in_each_file(stocked, tmp_path):
    queries = [
        {"id": r["query_id"], "at": r["time"], "who": r["user_id"], "q": r["query"]}
        for r in QUERIES
    ]
    clicks = [
        {
            "ref": f'{{"search": "{r["query_id"]}"}}',
            "at": r["time"],
            "what": r["type"],
            "sku": r["product_id"],
        }
        for r in CLICKS
    ]
    names, joined = files(tmp_path, queries, clicks)
    pairs = ["user_id=who", "time=at", "query=q", "type=what"]
    options = ReadOptions(mapping=parse_mapping(pairs, "events"), join=joined, on="id=ref.search")
    assert ingest_files(stocked, "events", names, options).accepted == 5
    assert log(stocked) == JOINED


def test_products_without_a_type_are_clicked_and_that_is_said(stocked, tmp_path):
    clicks = [{k: v for k, v in row.items() if k != "type"} for row in CLICKS[:1]]
    names, joined = files(tmp_path, QUERIES, clicks)
    options = ReadOptions(join=joined, on="query_id")
    assert ingest_files(stocked, "events", names, options).accepted == 3
    assert [row[2] for row in log(stocked)] == ["search", "click", "search"]
    assert "clicks.csv has no column for the type" in notes(stocked, names, options)[1][0]
    cart = ReadOptions(join=joined, on="query_id", event_type="cart")
    assert ingest_files(stocked, "events", names, cart).accepted == 1
    assert [row[2] for row in log(stocked)] == ["search", "cart", "click", "search"]


def test_clicks_without_a_time_have_that_of_their_search(stocked, tmp_path):
    clicks = [{k: v for k, v in row.items() if k != "time"} for row in CLICKS[:1]]
    names, joined = files(tmp_path, QUERIES, clicks)
    ingest_files(stocked, "events", names, ReadOptions(join=joined, on="query_id"))
    assert ("u1", "2026-01-05 10:00:00", "click", "lamp", "p1") in log(stocked)


@pytest.mark.parametrize("sessions_first", [True, False])
def test_a_file_without_events_of_its_own_only_serves_the_other(stocked, tmp_path, sessions_first):
    sessions = [{"session": "s1", "user_id": "u1"}, {"session": "s2", "user_id": "u2"}]
    events = [
        {"session": "S1", "time": "2026-01-05", "type": "search", "query": "lamp"},
        {"session": "s3", "time": "2026-01-05", "type": "search", "query": "tent"},
    ]
    pair = (sessions, events) if sessions_first else (events, sessions)
    names, joined = files(tmp_path, *pair)
    options = ReadOptions(join=joined, on="session")
    report = ingest_files(stocked, "events", names, options)
    assert (report.accepted, report.reasons) == (1, {"no user": 1})
    assert log(stocked) == [("u1", "2026-01-05 00:00:00", "search", "lamp", None)]
    said = notes(stocked, names, options)
    assert said[0 if sessions_first else 1] is None


def test_products_take_what_they_lack_from_the_joined_file(shop, tmp_path):
    catalog = [{"id": 1, "title": "Lamp", "brand": "Acme"}, {"id": 2, "title": "Tent", "brand": ""}]
    prices = [
        {"id": 1, "price": 5, "brand": "No"},
        {"id": 2, "price": 7, "brand": "Yes"},
        {"id": 3},
    ]
    names, joined = files(
        tmp_path, catalog, [{"id": 3, "price": None, "brand": None} | p for p in prices]
    )
    report = ingest_files(shop, "products", names, ReadOptions(join=joined, on="id"))
    assert (report.accepted, report.rejected) == (2, 0)
    assert titles(shop) == [("1", "Lamp", "Acme", 5.0), ("2", "Tent", "Yes", 7.0)]


def test_several_files_share_the_joined_one(stocked, tmp_path):
    put(tmp_path / "q1.csv", as_csv(QUERIES[:1]))
    put(tmp_path / "q2.csv", as_csv(QUERIES[1:]))
    put(tmp_path / "clicks.csv", as_csv(CLICKS))
    options = ReadOptions(join=str(tmp_path / "clicks.csv"), on="query_id")
    assert ingest_files(stocked, "events", [f"{tmp_path}/q?.csv"], options).accepted == 5
    assert log(stocked) == JOINED


def test_what_is_missing_is_named(stocked, tmp_path):
    names, joined = files(tmp_path, QUERIES, CLICKS)
    for options, says in (
        (ReadOptions(join=joined), "on must name the column"),
        (ReadOptions(join=joined, on="qid"), "on 'qid': .*queries.csv has no such column, only"),
        (ReadOptions(join=joined, on="query_id=q"), "on 'q': .*clicks.csv has no such column"),
        (ReadOptions(join=joined, on="query_id", mapping=(("type", "x"),)), "no column 'x'"),
    ):
        with pytest.raises(QAgentError, match=says):
            ingest_files(stocked, "events", names, options)
    names, joined = files(tmp_path, [{"k": 1, "query": "a"}], [{"k": 1, "product_id": "p1"}])
    with pytest.raises(
        QAgentError, match="user_id=COLUMN is missing: .* have no column for user_id"
    ):
        ingest_files(stocked, "events", names, ReadOptions(join=joined, on="k"))
    assert stocked.counts()["events"] == 0


def test_a_complete_join_is_said_too(stocked, tmp_path):
    names, clicks = files(tmp_path, QUERIES, CLICKS[:3])
    said = notes(stocked, names, ReadOptions(join=clicks, on="query_id"))
    assert said[1] == ("all 3 rows have a partner in queries.csv by query_id",)


def test_a_dry_run_goes_through_both_files_and_stores_nothing(shop, tmp_path):
    names, clicks = files(tmp_path, QUERIES, CLICKS[:3])
    options = ReadOptions(join=clicks, on="query_id", dry_run=True, max_rejects=1.0)
    put(tmp_path / "p.csv", "id,title\np1,Lamp\np2,Tent\n")
    products = ingest_files(shop, "products", [tmp_path / "p.csv"], ReadOptions(dry_run=True))
    assert (products.accepted, shop.counts()["products"]) == (2, 0)
    ingest_files(shop, "products", [tmp_path / "p.csv"])
    assert ingest_files(shop, "events", names, options).accepted == 5
    assert shop.counts()["events"] == 0
