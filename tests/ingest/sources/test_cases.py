"""Exports that failed once, where they are at hand: each goes in with one command."""

from pathlib import Path

import pytest
from source_files import titles

from qagent_mlx.ingest.columns import parse_mapping
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.mapping import parse_values
from qagent_mlx.ingest.options import ReadOptions

_PLACES = [folder / "shared" / "cases" / "formats" for folder in Path(__file__).parents]
FORMATS = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
pytestmark = pytest.mark.skipif(not FORMATS.is_dir(), reason="the cases are not here")


def counts(shop):
    rows = shop.connection.execute(
        "SELECT type::VARCHAR, count(*) FROM events GROUP BY type"
    ).fetchall()
    ((users,),) = shop.connection.execute("SELECT count(DISTINCT user_id) FROM events").fetchall()
    return {**dict(rows), "users": users}


@pytest.fixture
def catalog(shop):
    ingest_files(shop, "products", [FORMATS / "products.csv"])
    return shop


@pytest.mark.parametrize(
    "name", ["events.csv", "events.csv.zst", "events_array.json", "shop.sqlite"]
)
def test_the_same_log_in_other_forms(catalog, name):
    assert ingest_files(catalog, "events", [FORMATS / "odd" / name]).accepted == 1077
    expected = {"search": 558, "click": 159, "view": 84, "cart": 143, "purchase": 133, "users": 30}
    assert counts(catalog) == expected


@pytest.mark.parametrize("name", ["products.xlsx", "shop.sqlite"])
def test_the_same_catalog_in_other_forms(catalog, name):
    report = ingest_files(catalog, "products", [FORMATS / "odd" / name])
    assert report.accepted + report.duplicates == 201 and report.rejected == 0


def test_prices_in_windows_1252(shop):
    options = ReadOptions(mapping=(("price", "preis"), ("title", "name")))
    assert ingest_files(shop, "products", [FORMATS / "odd" / "euro.csv"], options).accepted == 2
    assert [(title, price) for _, title, _, price in titles(shop)] == [
        ("Größe M – Hemd", 12.99),
        ("Hose „blau“", 1299.0),
    ]


def test_queries_and_clicks_of_two_logs(catalog):
    options = ReadOptions(
        mapping=parse_mapping(["user_id=user_token", "product_id=object_id"], "events"),
        values=parse_values(["type:conversion=purchase"], "events"),
        join=str(FORMATS / "logs" / "clicks.csv"),
        on="query_id",
    )
    report = ingest_files(catalog, "events", [FORMATS / "logs" / "queries.csv"], options)
    assert (report.accepted, report.rejected) == (850, 0)
    assert counts(catalog) == {"search": 558, "click": 159, "purchase": 133, "users": 30}
    ((without,),) = catalog.connection.execute(
        "SELECT count(*) FROM events WHERE query IS NULL"
    ).fetchall()
    assert without == 0


def test_insights_by_a_mapping(catalog):
    options = ReadOptions(
        mapping=parse_mapping(
            ["user_id=userToken", "product_id=objectIDs[]", "type=eventType"], "events"
        ),
        values=parse_values(["type:conversion=purchase"], "events"),
    )
    report = ingest_files(catalog, "events", [FORMATS / "logs" / "insights.jsonl"], options)
    assert (report.accepted, report.rejected) == (519, 0)
    assert counts(catalog) == {"click": 159, "view": 84, "purchase": 276, "users": 30}


def test_ubi_by_a_mapping(catalog):
    pairs = ["user_id=client_id", "product_id=event_attributes.object.object_id"]
    pairs += ["type=action_name", "query=user_query"]
    options = ReadOptions(
        mapping=parse_mapping(pairs, "events"),
        join=str(FORMATS / "ubi" / "ubi_events_10.ndjson"),
        on="query_id",
    )
    report = ingest_files(catalog, "events", [FORMATS / "ubi" / "ubi_queries.ndjson"], options)
    assert (report.accepted, report.reasons) == (1077, {"unknown event type": 99})
