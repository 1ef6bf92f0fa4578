"""What a later export says of events that the shop has: users, queries, and orders taken back."""

import itertools
import json

import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.presets.loading import load_preset
from qagent_mlx.memory import shop_tables
from qagent_mlx.memory.store import MemoryStore

START = 1767607200  # 2026-01-05 10:00:00


def ga4(second, name="view_item", user=None, product="p1", order=None):
    return {
        "event_timestamp": str((START + second) * 1_000_000),
        "event_name": name,
        "event_params": [],
        "user_pseudo_id": "cookie",
        "user_id": user,
        "items": [{"item_id": product}] if product else [],
        "ecommerce": {"transaction_id": order},
    }


def segment(second, name="Product Viewed", user=None, product="p1", order=None):
    properties = {"product_id": product, "order_id": order}
    return {
        "type": "track",
        "event": name,
        "messageId": f"m{second}{name}",
        "anonymousId": "cookie",
        "userId": user,
        "timestamp": f"2026-01-05T10:00:{second:02}Z",
        "properties": {key: value for key, value in properties.items() if value},
    }


def algolia(second, user=None, product="p1", **fields):
    return {
        "eventType": "view",
        "eventName": "Product",
        "index": "i",
        "userToken": "cookie",
        "authenticatedUserToken": user,
        "timestamp": (START + second) * 1000,
        "objectIDs": [product],
        **fields,
    }


def matomo(second, user=None, product="p1"):
    action = {"type": "action", "timestamp": START + second, "productViewSku": product}
    return {"idVisit": second, "visitorId": "cookie", "userId": user, "actionDetails": [action]}


def stored_memory(shop):
    """The stored memory, table by table."""
    return {
        table: sorted(map(str, shop.connection.execute(f"FROM {table}").fetchall()))
        for table in (*shop_tables.TRANSITIONS, "profiles")
    }


@pytest.mark.parametrize("call", [ga4, segment, algolia, matomo])
def test_a_later_login_moves_the_devices_events_to_the_user(
    shop, raw, catalog, stored, write_json, call
):
    catalog("p1", "p2")
    name = "visits{}.jsonl"
    write_json(name.format(1), call(1), call(2, product="p2"))
    load_preset(shop, "auto", raw)
    assert {user for user, *_ in stored()} == {"cookie"}
    MemoryStore(shop.connection, shop.config.memory).build()
    second = write_json(name.format(2), call(3, user="anna"))
    report = load_preset(shop, "auto", second)
    events = [("anna", second) for second in "123"]
    assert [(user, time[-1]) for user, time, *_ in stored()] == events
    note = "2 events of the shop, anonymous until now, are moved to users"
    assert note in report.total.notes
    kept = stored_memory(shop)
    MemoryStore(shop.connection, shop.config.memory).build()
    assert stored_memory(shop) == kept
    report = load_preset(shop, "auto", raw)
    assert (report.events.accepted, report.events.duplicates) == (0, 3)
    assert [(user, time[-1]) for user, time, *_ in stored()] == events


def test_a_folder_read_again_after_a_login_doubles_nothing(shop, raw, catalog, stored, write_json):
    catalog("p1", "p2")
    write_json("d1.jsonl", segment(1), segment(2, product="p2"))
    load_preset(shop, "auto", raw)
    write_json("d2.jsonl", segment(3, user="anna"))
    load_preset(shop, "auto", raw)
    assert [(user, time[-1]) for user, time, *_ in stored()] == [("anna", s) for s in "123"]


def test_of_several_users_of_a_device_the_last_one_before_has_its_events(
    shop, raw, catalog, stored, write_json
):
    catalog("p1")
    write_json("d1.jsonl", *(ga4(second) for second in (1, 3, 5)))
    load_preset(shop, "ga4", raw)
    write_json("d2.jsonl", ga4(2, user="anna"), ga4(4, user="ben"))
    load_preset(shop, "ga4", raw / "d2.jsonl")
    users = ["anna", "anna", "anna", "ben", "ben"]
    assert [user for user, *_ in stored()] == users
    assert load_preset(shop, "ga4", raw).events.accepted == 0
    assert [user for user, *_ in stored()] == users


def test_events_that_were_doubled_already_become_one(shop, raw, catalog, stored, write_json):
    catalog("p1")
    write_json("d1.jsonl", segment(1))
    load_preset(shop, "auto", raw)
    shop.connection.execute(
        """INSERT INTO events BY NAME SELECT * REPLACE (
            nextval('event_ids') AS event_id, 'anna' AS user_id, NULL AS session_id,
            NULL AS search_id) FROM events"""
    )
    write_json("d2.jsonl", segment(3, user="anna"))
    load_preset(shop, "auto", raw)
    assert [(user, time[-1]) for user, time, *_ in stored()] == [("anna", s) for s in "13"]


@pytest.mark.parametrize("order", itertools.permutations(("events", "queries", "all")))
def test_queries_that_come_later_are_filled_in(shop, raw, catalog, stored, write_json, order):
    catalog("p1", "p2")
    paths = {
        "all": raw,
        "queries": write_json(
            "ubi_queries.jsonl",
            {
                "query_id": "q1",
                "client_id": "c",
                "user_query": "red shoes",
                "timestamp": "2026-01-05T10:00:00Z",
            },
        ),
        "events": write_json(
            "ubi_events.jsonl",
            *(
                {
                    "action_name": action,
                    "query_id": "q1",
                    "client_id": "c",
                    "timestamp": f"2026-01-05T10:00:0{second}Z",
                    "event_attributes": {"object": {"object_id": "p1"}, "position": {"ordinal": 1}},
                }
                for second, action in ((1, "impression"), (2, "click"), (3, "add_to_cart"))
            ),
        ),
    }
    MemoryStore(shop.connection, shop.config.memory).build()
    for name in order:
        report = load_preset(shop, "ubi", paths[name])
        if name == "all" and "events" in order[: order.index("all")]:
            assert "2 events of the shop got the query that they lacked" in report.total.notes
    assert [(kind, query) for _, _, kind, query, _ in stored()] == [
        (kind, "red shoes") for kind in ("search", "click", "cart")
    ]
    shown = shop.connection.execute("SELECT query, position FROM impressions").fetchall()
    assert shown == [("red shoes", 1)]
    kept = stored_memory(shop)
    MemoryStore(shop.connection, shop.config.memory).build()
    assert stored_memory(shop) == kept


def test_the_log_of_queries_of_algolia_may_come_later(
    shop, raw, catalog, stored, write_json, write_csv
):
    catalog("p1")
    write_json("insights.jsonl", *(algolia(n, eventType="click", queryID="ab") for n in (1, 2)))
    report = load_preset(shop, "algolia", raw)
    assert not any("derive" in note for note in report.total.notes)  # the queries are elsewhere
    write_csv(
        "q.csv", ("query_id", "timestamp", "user_token", "query"), ("ab", START, "cookie", "shoes")
    )
    load_preset(shop, "algolia", raw)
    assert [(kind, query) for _, _, kind, query, _ in stored()] == [
        (kind, "shoes") for kind in ("search", "click", "click")
    ]


@pytest.mark.parametrize("is_query_first", [False, True])
def test_plain_files_fill_queries_in_too_and_double_nothing(
    shop, catalog, stored, write_csv, is_query_first
):
    catalog("p1")
    row = ("u", "2026-01-05T10:00:01Z", "click", "p1")
    plain = write_csv("plain.csv", ("user_id", "time", "type", "product_id"), row)
    full = write_csv(
        "full.csv", ("user_id", "time", "type", "product_id", "query"), (*row, "shoes")
    )
    first, second = (full, plain) if is_query_first else (plain, full)
    ingest_files(shop, "events", [first])
    report = ingest_files(shop, "events", [second])
    assert (report.accepted, report.duplicates) == (0, 1)
    assert [query for *_, query, _ in stored()] == ["shoes"]


CANCELLED = {
    "segment": (
        segment(1, "Order Completed", "anna", order="O1"),
        segment(2, "Order Cancelled", "anna", product=None, order="O1"),
    ),
    "ga4": (ga4(1, "purchase", "anna", order="O1"), ga4(2, "refund", "anna", None, "O1")),
}


@pytest.mark.parametrize("name", CANCELLED)
def test_an_order_that_is_taken_back_later_is_counted_and_with_its_purchase_undone(
    shop, raw, catalog, stored, write_json, name
):
    catalog("p1", "p2")
    bought, cancelled = CANCELLED[name]
    other = {"segment": segment, "ga4": ga4}[name](3, user="ben", product="p2")
    write_json("d1.jsonl", bought, other)
    load_preset(shop, name, raw)
    MemoryStore(shop.connection, shop.config.memory).build()
    later = write_json("d2.jsonl", cancelled, {**other, "messageId": "m4"})
    report = load_preset(shop, name, later)
    assert report.total.ignored["refund of an order that is not in these files"] == 1
    assert len(stored()) == 2
    report = load_preset(shop, name, raw)
    assert [kind for _, _, kind, *_ in stored()] == ["view"]
    assert "1 purchases of the shop were taken back since: deleted" in report.total.notes
    kept = stored_memory(shop)
    MemoryStore(shop.connection, shop.config.memory).build()
    assert stored_memory(shop) == kept


def test_a_shops_order_that_is_cancelled_in_a_later_export_is_taken_back(
    shop, raw, catalog, stored
):
    catalog("7", "8")

    def write(status):
        orders = [
            {
                "id": number,
                "status": state,
                "customer_id": 3,
                "billing": {},
                "date_created_gmt": f"2026-01-05T10:00:0{number}",
                "line_items": [{"product_id": product, "sku": ""}] * 2,
            }
            for number, state, product in ((1, status, 7), (2, "completed", 8))
        ]
        (raw / "orders.json").write_text(json.dumps(orders))

    write("processing")
    load_preset(shop, "woocommerce", raw)
    assert [product for *_, product in stored()] == ["7", "7", "8", "8"]
    write("cancelled")
    report = load_preset(shop, "woocommerce", raw)
    assert [product for *_, product in stored()] == ["8", "8"]
    assert "2 purchases of the shop were taken back since: deleted" in report.total.notes
