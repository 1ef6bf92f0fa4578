"""Google Analytics 4: JSON lines with numbers as text, and Parquet of nested lists."""

import duckdb
import pytest

from qagent_mlx.ingest.presets.loading import load_preset

START = 1767639455_000_000  # 2026-01-05 18:57:35


def parameter(key, text=None, number=None):
    return {"key": key, "value": {"string_value": text, "int_value": number, "double_value": None}}


def event(name, second, items=(), user=None, cookie="c1", parameters=(), **fields):
    return {
        "event_date": "20260105",
        "event_timestamp": str(START + second * 1_000_000),
        "event_name": name,
        "event_params": [parameter("ga_session_id", None, "7"), *parameters],
        "user_id": user,
        "user_pseudo_id": cookie,
        "items": list(items),
        **fields,
    }


def item(product, **fields):
    return {"item_id": product, "item_name": f"Name {product}", **fields}


def bought(second, transaction, *products, **fields):
    return event(
        "purchase",
        second,
        [item(product) for product in products],
        ecommerce={"transaction_id": transaction},
        **fields,
    )


EVENTS = (
    event("session_start", 0),
    event("view_search_results", 1, parameters=[parameter("search_term", "red shoes")]),
    event("search", 2, parameters=[parameter("search_term", "red shoes")]),
    event("search", 60, parameters=[parameter("search_term", None, "2024")]),
    event("view_search_results", 61),
    event("view_item_list", 62, [item("p1"), item("p2", item_list_index="7")]),
    event(
        "select_item",
        63,
        [item("p1", item_brand="Acme", item_category="Shoes", item_category2="Red", price="12.5")],
    ),
    event(
        "select_content",
        64,
        parameters=[parameter("content_type", "product"), parameter("item_id", "p2")],
    ),
    event("select_content", 65, parameters=[parameter("content_type", "banner")]),
    event("view_item", 66, [item("p1")], user="anna"),
    event("add_to_cart", 67, [item("p1"), item("p2")]),
    event("view_item", 68, [item("(not set)")]),
    event("view_item", 69, [item("p1")], cookie=None),
    bought(70, "T1", "p1", "p2"),
    bought(90, "T1", "p1", "p2"),
    bought(91, "(not set)", "p1"),
    bought(92, "T2", "p2"),
    event("refund", 93, ecommerce={"transaction_id": "T2"}),
    event("scroll", 94),
    event("scroll", 95),
)
STORED = [
    (1, "search", "red shoes", None),
    (60, "search", "2024", None),
    (63, "click", None, "p1"),
    (64, "click", None, "p2"),
    (66, "view", None, "p1"),
    (67, "cart", None, "p1"),
    (67, "cart", None, "p2"),
    (70, "purchase", None, "p1"),
    (70, "purchase", None, "p2"),
    (91, "purchase", None, "p1"),
]
IGNORED = {
    "scroll": 2,
    "select_content of no product": 1,
    "session_start": 1,
    "view_search_results without search_term": 1,
    "repeated search": 1,
    "repeated line of a transaction": 2,
    "purchase that was refunded": 1,
}


def check(report, stored):
    minutes = [(f"2026-01-05 18:{57 + (35 + s) // 60}:{(35 + s) % 60:02}", *e) for s, *e in STORED]
    assert {user for user, *_ in stored} == {"anna"}
    assert [rest for _, *rest in stored] == [list(e) for e in minutes]
    assert report.total.ignored == IGNORED
    assert report.events.reasons == {"no product": 1, "no user": 1}


def test_json_lines_of_the_export_become_events(
    shop, raw, catalog, stored, impressions, write_json
):
    catalog("p1", "p2")
    write_json("events_20260105.json", *EVENTS)
    report = load_preset(shop, "auto", raw)
    assert [(product, place) for *_, product, place, _ in impressions()] == [("p1", 1), ("p2", 7)]
    assert report.preset == "ga4"
    check(report, stored())


@pytest.mark.parametrize("annotated", [True, False])
def test_parquet_becomes_the_same_events(shop, raw, catalog, stored, write_json, annotated):
    catalog("p1", "p2")
    source = write_json("events.json", *EVENTS)
    lists = {"event_params": "event_params", "items": "items"}
    if not annotated:
        for name in lists:
            lists[name] = f"{{'list': list_transform({name}, lambda x: {{'element': x}})}}"
    duckdb.execute(
        f"""COPY (SELECT event_date, event_timestamp::BIGINT AS event_timestamp, event_name,
            user_id, user_pseudo_id, {lists["event_params"]} AS event_params,
            {lists["items"]} AS items, ecommerce
        FROM read_json('{source}', sample_size=-1)) TO '{raw}/events_20260105-000.parquet'"""
    )
    source.unlink()
    check(load_preset(shop, "ga4", raw), stored())


def test_other_events_have_the_type_that_the_user_gives(shop, raw, catalog, stored, write_json):
    catalog("p1")
    write_json("e.json", event("add_to_wishlist", 1, [item("p1")]))
    load_preset(shop, "ga4", raw, values={"add_to_wishlist": "view"})
    assert [(kind, product) for _, _, kind, _, product in stored()] == [("view", "p1")]


def test_items_make_a_catalog_for_a_shop_that_has_none(shop, raw, products, write_json):
    write_json("events_20260105.json", *EVENTS)
    load_preset(shop, "ga4", raw)
    assert products() == {
        "p1": ("Name p1", "Acme", "Shoes > Red", 12.5, True, {}),
        "p2": ("Name p2", None, None, None, True, {}),
    }


def test_the_next_days_items_add_to_such_a_catalog(shop, raw, products, write_json):
    path = write_json("events_20260105.json", *EVENTS)
    load_preset(shop, "ga4", raw)
    path.unlink()
    later = [
        event("view_item", 90000, [item("p1", price="13.5")]),
        event("view_item", 90001, [{"item_id": "p3"}]),
    ]
    write_json("events_20260106.json", *later)
    load_preset(shop, "ga4", raw)
    assert products()["p1"] == ("Name p1", "Acme", "Shoes > Red", 13.5, True, {})
    assert products()["p3"][0] == "item p3"


def test_a_shared_device_belongs_to_the_last_one_seen_on_it(shop, raw, catalog, stored, write_json):
    catalog("p1")
    seen = [(0, None), (1, "anna"), (2, None), (3, "ben"), (4, None)]
    write_json("e.json", *(event("view_item", s, [item("p1")], user=u) for s, u in seen))
    load_preset(shop, "ga4", raw)
    assert [user for user, *_ in stored()] == ["anna", "anna", "anna", "ben", "ben"]


def test_an_intraday_table_counts_only_until_the_days_table_is_there(
    shop, raw, catalog, stored, write_json
):
    catalog("p1")
    write_json("events_intraday_20260105.json", event("view_item", 0, [item("p1")]))
    write_json("events_20260105.json", event("view_item", 1, [item("p1")]))
    write_json("events_intraday_20260106.json", event("view_item", 2, [item("p1")]))
    report = load_preset(shop, "ga4", raw)
    assert [time[-2:] for _, time, *_ in stored()] == ["36", "37"]
    assert "events_intraday_20260105.json: not read" in report.total.notes[0]
