"""Algolia: Insights events, and a log of queries and clicks."""

import json

from qagent_mlx.ingest.presets.loading import load_preset

START = 1767607200_000  # 2026-01-05 10:00:00, in milliseconds
QUERIES = ("query_id", "timestamp", "user_token", "query", "nb_hits", "index")
CLICKS = ("query_id", "timestamp", "event_type", "object_id", "position")


def event(kind, second, *products, **fields):
    return {
        "eventType": kind,
        "eventName": "Product",
        "index": "products",
        "userToken": "u1",
        "timestamp": START + second * 1000,
        "queryID": "aabb0011",
        "objectIDs": list(products),
        **fields,
    }


EVENTS = (
    event("click", 5, "p1", positions=[3]),
    event("view", 6, "p1", authenticatedUserToken="anna"),
    event("conversion", 7, "p1", eventSubtype="addToCart"),
    event("conversion", 8, "p1", "p2", eventSubtype="purchase"),
    event("conversion", 9, "p2", eventName="Product added to basket"),
    event("conversion", 10, "p2", eventName="Checkout complete"),
    event("conversion", 11, "p2"),
    event("view", 12, "p1", "p2", eventName="Hits Viewed"),
    event("click", 13, filters=["brand:x"], objectIDs=None, eventName="Filter"),
)


def test_insights_and_the_log_of_queries_join(
    shop, raw, catalog, stored, impressions, write_json, write_csv
):
    catalog("p1", "p2")
    write_json("insights.jsonl", *EVENTS)
    write_csv("queries.csv", QUERIES, ("AABB-0011", START, "u1", "red shoes", 3, "products"))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "algolia"
    assert impressions() == [
        ("anna", "2026-01-05 10:00:12", "red shoes", "p1", 1, "aabb0011"),
        ("anna", "2026-01-05 10:00:12", "red shoes", "p2", 2, "aabb0011"),
    ]
    assert stored() == [
        ("anna", f"2026-01-05 10:00:{second:02}", kind, "red shoes", product)
        for second, kind, product in (
            (0, "search", None),
            (5, "click", "p1"),
            (6, "view", "p1"),
            (7, "cart", "p1"),
            (8, "purchase", "p1"),
            (8, "purchase", "p2"),
            (9, "cart", "p2"),
            (10, "purchase", "p2"),
            (11, "cart", "p2"),
        )
    ]
    (note,) = report.total.notes
    assert note.startswith("1 conversions (Product) do not say which: taken as cart; give another")
    assert report.total.ignored == {"click of filters": 1}


def test_clicks_take_user_and_query_from_the_log_of_queries(shop, raw, catalog, stored, write_csv):
    catalog("p1")
    write_csv("queries.csv", QUERIES, ("a-1", START, "u1", "red shoes", 3, "products"))
    write_csv(
        "clicks.csv",
        CLICKS,
        ("a-1", START + 1000, "click", "p1", 2),
        ("a1", START + 2000, "conversion", "p1", 2),
    )
    report = load_preset(shop, "algolia", raw / "queries.csv", raw / "clicks.csv")
    assert stored() == [
        ("u1", "2026-01-05 10:00:00", "search", "red shoes", None),
        ("u1", "2026-01-05 10:00:01", "click", "red shoes", "p1"),
        ("u1", "2026-01-05 10:00:02", "purchase", "red shoes", "p1"),
    ]
    assert "taken as purchase" in report.total.notes[0]


def test_request_bodies_are_read_and_missing_queries_named(shop, raw, catalog, stored):
    catalog("p1")
    (raw / "body.json").write_text(json.dumps({"events": [EVENTS[0]]}))
    report = load_preset(shop, "algolia", raw)
    assert [kind for _, _, kind, *_ in stored()] == ["click"]
    assert "log of queries" in report.total.notes[0]


def test_conversions_are_what_the_user_says(shop, raw, catalog, stored, write_json, write_csv):
    catalog("p1", "p2")
    write_json(
        "insights.jsonl", event("conversion", 1, "p1"), event("view", 2, "p1", eventName="X")
    )
    write_csv("queries.csv", QUERIES, ("aabb0011", START, "u1", "red shoes", 3, "products"))
    write_csv("clicks.csv", CLICKS, ("aabb0011", START + 3000, "conversion", "p2", 2))
    values = {"product": "purchase", "Conversion": "cart"}
    report = load_preset(shop, "algolia", raw, values=values)
    assert [kind for _, _, kind, *_ in stored()] == ["search", "purchase", "view", "cart"]
    assert report.total.notes == ()


def test_what_both_logs_hold_is_one_event(shop, raw, catalog, stored, write_json, write_csv):
    catalog("p1")
    write_json("insights.jsonl", event("click", 1, "p1"), event("conversion", 2, "p1"))
    write_csv("queries.csv", QUERIES, ("aabb0011", START, "u1", "red shoes", 3, "products"))
    rows = [
        ("aabb0011", START + 1000, "click", "p1", 1),
        ("aabb0011", START + 2000, "conversion", "p1", 1),
    ]
    write_csv("clicks.csv", CLICKS, *rows)
    report = load_preset(shop, "algolia", raw)
    assert [kind for _, _, kind, *_ in stored()] == ["search", "click", "purchase"]
    assert report.events.duplicates == 0


def test_a_catalog_made_of_events_has_the_prices_of_object_data(shop, products, write_json):
    bought = event(
        "conversion",
        1,
        "p1",
        "p2",
        eventSubtype="purchase",
        objectData=[{"price": 12.5, "quantity": 2}, {"price": "7.00"}],
    )
    load_preset(shop, "algolia", write_json("insights.jsonl", bought, event("click", 2, "p1")))
    assert {i: p[3] for i, p in products().items()} == {"p1": 12.5, "p2": 7.0}
