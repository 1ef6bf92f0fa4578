"""OpenSearch UBI: queries and events, plain, as _bulk and as elasticdump wrote them."""

import json

import pytest

from qagent_mlx.ingest.presets.loading import load_preset

QUERY = {
    "application": "web",
    "query_id": "q1",
    "client_id": "c1",
    "user_query": "red shoes",
    "timestamp": "2026-01-05T10:00:00.250Z",
    "query_response_hit_ids": ["p9"],
}


def event(action, time, product=None, **fields):
    attributes = {"object": {"object_id": product}} if product else None
    return {
        "application": "web",
        "action_name": action,
        "query_id": "q1",
        "client_id": "c1",
        "timestamp": f"2026-01-05T{time}",
        "event_attributes": attributes,
        **fields,
    }


EVENTS = (
    event("click", "10:00:05Z", "p1"),
    event("item_view", "11:00:06.000+0100", "p1", user_id="anna"),
    event("add_to_cart", "10:00:07Z", "p1", query_id=None),
    event("purchase", "10:00:08Z", "p2", user_query="own words"),
    event("page_exit", "10:00:09Z"),
    event("page_exit", "10:00:10Z"),
)
STORED = [
    ("c1", "2026-01-05 10:00:00.250000", "search", "red shoes", None),
    ("c1", "2026-01-05 10:00:05", "click", "red shoes", "p1"),
    ("anna", "2026-01-05 10:00:06", "view", "red shoes", "p1"),
    ("c1", "2026-01-05 10:00:07", "cart", None, "p1"),
    ("c1", "2026-01-05 10:00:08", "purchase", "own words", "p2"),
]


def bulk(documents):
    lines = []
    for number, document in enumerate(documents):
        index = "ubi_events" if "action_name" in document else "ubi_queries"
        lines += [{"index": {"_index": index, "_id": str(number)}}, document]
    return lines


def dumped(documents):
    return [{"_index": "ubi", "_id": str(n), "_source": d} for n, d in enumerate(documents)]


@pytest.mark.parametrize("form", ["plain", "bulk", "dump", "hits", "array"])
def test_each_form_gives_the_same_events(shop, raw, catalog, stored, write_json, form):
    catalog("p1", "p2")
    documents = [QUERY, *EVENTS]
    if form == "plain":
        write_json("a/ubi_queries.ndjson", QUERY)
        write_json("b/ubi_events.ndjson", *EVENTS)
    elif form == "bulk":
        write_json("bulk.ndjson", *bulk(documents))
    elif form == "dump":
        write_json("dump.json", *dumped(documents))
    elif form == "hits":
        (raw / "answer.json").write_text(json.dumps({"hits": {"hits": dumped(documents)}}))
    else:
        (raw / "array.json").write_text(json.dumps(documents, indent=1))
    report = load_preset(shop, "ubi", raw)
    assert stored() == STORED
    assert report.total.ignored == {"page_exit": 2}
    assert report.events.rejected == 0
    again = load_preset(shop, "auto", raw)
    assert (again.preset, again.events.accepted, again.events.duplicates) == ("ubi", 0, 5)


def test_of_documents_with_one_query_id_the_one_with_hits_counts(shop, raw, stored, write_json):
    aggregation = {**QUERY, "query_response_hit_ids": [], "timestamp": "2026-01-05T09:59:59Z"}
    write_json("q.ndjson", aggregation, QUERY)
    report = load_preset(shop, "ubi", raw)
    assert stored() == STORED[:1]
    assert report.total.ignored == {"further document of a query_id": 1}


def test_what_was_typed_on_is_no_search_unless_it_was_clicked(
    shop, raw, catalog, stored, write_json
):
    catalog("p1")
    typed = ["g", "go", "gold"]
    queries = [
        {**QUERY, "query_id": text, "user_query": text, "timestamp": f"2026-01-05T10:00:0{n}Z"}
        for n, text in enumerate(typed)
    ]
    repeated = {**queries[-1], "query_id": "again", "timestamp": "2026-01-05T10:00:20Z"}
    write_json("u.ndjson", *queries, repeated, event("click", "10:00:09Z", "p1", query_id="go"))
    report = load_preset(shop, "ubi", raw)
    assert [(kind, query) for _, _, kind, query, _ in stored()] == [
        ("search", "go"),
        ("search", "gold"),
        ("click", "go"),
    ]
    assert report.total.ignored == {"search while typing": 1, "repeated search": 1}


def test_without_a_queries_file_searches_come_from_the_events_and_that_is_said(
    shop, raw, catalog, stored, write_json
):
    catalog("p1")
    write_json(
        "u.ndjson",
        event("click", "10:00:09Z", "p1", user_query="red shoes"),
        event("add_to_cart", "10:00:20Z", "p1", user_query="red shoes"),
    )
    report = load_preset(shop, "ubi", raw)
    assert [kind for _, _, kind, *_ in stored()] == ["search", "click", "cart"]
    assert "no ubi_queries file" in report.total.notes[0]


def test_a_shop_without_a_catalog_gets_products_from_the_events_until_there_is_one(
    shop, raw, catalog, products, write_json
):
    named = event("click", "10:00:05Z", "p1")
    named["event_attributes"]["object"]["description"] = "Red Shoe"
    write_json("day1.ndjson", QUERY, named, event("click", "10:00:06Z", "p2"))
    report = load_preset(shop, "ubi", raw)
    assert {i: title for i, (title, *_) in products().items()} == {
        "p1": "Red Shoe",
        "p2": "item p2",
    }
    (note,) = report.total.notes
    assert "2 products are made of what the events tell; 1 have no title" in note
    (raw / "day1.ndjson").unlink()
    write_json("day2.ndjson", event("click", "10:00:05Z", "p2"), event("click", "12:00:06Z", "p3"))
    load_preset(shop, "ubi", raw)
    assert products()["p3"][0] == "item p3"
    catalog("p1", "p2")
    write_json("day2.ndjson", *(event("click", "13:00:05Z", p) for p in ("p2", "p4")))
    report = load_preset(shop, "ubi", raw)
    assert "p4" not in products() and products()["p2"][0] == "Title p2"
    assert report.events.reasons == {"unknown product": 1}
    assert "ingest its products first" in report.events.examples[0]


def test_nobody_is_not_a_user(shop, raw, write_json):
    write_json("q.ndjson", QUERY, {**QUERY, "client_id": "(not set)", "query_id": "q2"})
    assert load_preset(shop, "ubi", raw).events.reasons == {"no user": 1}


def test_a_time_that_is_none_is_rejected_as_such(shop, raw, write_json):
    write_json("q.ndjson", QUERY, {**QUERY, "timestamp": "yesterday", "query_id": "q2"})
    assert load_preset(shop, "ubi", raw).events.reasons == {"unparseable time": 1}


@pytest.mark.parametrize(("ordinal", "stored"), [(0, 1), (1, 1), ({"index": 1}, 1)])
def test_impressions_are_kept_with_their_position(
    shop, raw, catalog, impressions, write_json, ordinal, stored
):
    catalog("p1", "p2")
    second = {"index": 3} if isinstance(ordinal, dict) else ordinal + 2
    shown = [event("impression", "10:00:01Z", f"p{n}") for n in (1, 2)]
    for document, place in zip(shown, (ordinal, second), strict=True):
        document["event_attributes"]["position"] = {"ordinal": place}
    write_json("ubi.ndjson", QUERY, *shown)
    report = load_preset(shop, "ubi", raw)
    time = "2026-01-05 10:00:01"
    assert impressions() == [
        ("c1", time, "red shoes", "p1", stored, "q1"),
        ("c1", time, "red shoes", "p2", stored + 2, "q1"),
    ]
    assert report.impressions.accepted == 2
    assert load_preset(shop, "ubi", raw).impressions.duplicates == 2
