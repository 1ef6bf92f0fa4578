"""Segment and RudderStack: track calls as JSON lines and as tables of a warehouse."""

import gzip
import json

from qagent_mlx.ingest.presets.loading import load_preset


def call(event, second, properties=None, user=None, device="a1", **fields):
    time = f"2026-01-05T10:00:{second:02}.000Z"
    return {
        "type": "track",
        "event": event,
        "messageId": f"m{second}{event}",
        "anonymousId": device,
        "userId": user,
        "timestamp": time,
        "receivedAt": "2026-02-01T00:00:00Z",
        "properties": properties or {},
        **fields,
    }


CALLS = (
    call("Products Searched", 1, {"query": "red shoes"}),
    call("Products Searched", 2, {"query": {"text": "blue shoes"}}),
    call("Product List Viewed", 3, {"products": [{"product_id": "p1", "position": 4}]}),
    call(
        "Product Clicked",
        4,
        {
            "product_id": "p1",
            "sku": "s1",
            "name": "One",
            "brand": "Acme",
            "category": "Shoes",
            "price": "12.5",
        },
    ),
    call("product_viewed", 5, {"productId": "p2"}),
    call("Product Added", 6, {"product_id": 77}),
    call(
        "Order Completed",
        7,
        {"order_id": "o1", "products": [{"product_id": "p1"}, {"product_id": "p2"}]},
    ),
    call("Order Completed", 8, {"order_id": "o2", "products": json.dumps([{"product_id": "p1"}])}),
    call("Order Cancelled", 9, {"order_id": "o2"}),
    call("Coupon Applied", 10),
    call(None, 11, type="page"),
    call(None, 12, type="identify", user="anna"),
)
STORED = [
    ("anna", "2026-01-05 10:00:01", "search", "red shoes", None),
    ("anna", "2026-01-05 10:00:02", "search", "blue shoes", None),
    ("anna", "2026-01-05 10:00:04", "click", None, "p1"),
    ("anna", "2026-01-05 10:00:05", "view", None, "p2"),
    ("anna", "2026-01-05 10:00:06", "cart", None, "77"),
    ("anna", "2026-01-05 10:00:07", "purchase", None, "p1"),
    ("anna", "2026-01-05 10:00:07", "purchase", None, "p2"),
]


def test_track_calls_become_events_of_whom_the_device_belongs_to(
    shop, raw, catalog, stored, impressions, write_json
):
    catalog("p1", "p2", "77")
    write_json("calls.jsonl", *CALLS, CALLS[3])
    report = load_preset(shop, "auto", raw)
    assert impressions() == [("anna", "2026-01-05 10:00:03", None, "p1", 4, None)]
    assert report.preset == "segment" and stored() == STORED
    assert report.total.ignored == {
        "message delivered again": 1,
        "Coupon Applied": 1,
        "identify call": 1,
        "page call": 1,
        "purchase that was refunded": 1,
    }


def test_other_events_have_the_type_that_the_user_gives(shop, raw, catalog, stored, write_json):
    catalog("p1")
    write_json("c.jsonl", call("Product Reviewed", 1, {"product_id": "p1"}))
    load_preset(shop, "segment", raw, values={"product reviewed": "view"})
    assert [(kind, product) for _, _, kind, _, product in stored()] == [("view", "p1")]


def test_gzipped_folders_of_a_bucket_are_read(shop, raw, catalog, stored):
    catalog("p1", "p2", "77")
    for number, part in enumerate((CALLS[:5], CALLS[5:])):
        folder = raw / "segment-logs" / "src" / f"17676{number}"
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(value) + "\n" for value in part)
        (folder / "part.gz").write_bytes(gzip.compress(lines.encode()))
    load_preset(shop, "segment", raw)
    assert stored() == STORED


def test_an_alias_joins_two_devices(shop, raw, catalog, stored, write_json):
    catalog("p1")
    alias = call(None, 3, type="alias", user="anna", previousId="a1", device=None)
    write_json("calls.jsonl", call("Product Viewed", 1, {"product_id": "p1"}), alias)
    load_preset(shop, "segment", raw)
    assert [user for user, *_ in stored()] == ["anna"]


def test_warehouse_tables_become_the_same_events(shop, raw, catalog, stored, write_csv):
    catalog("p1", "p2")
    head = ("id", "anonymous_id", "user_id", "event", "event_text", "timestamp", "received_at")
    late = "2026-02-01 00:00:00"
    write_csv(
        "products_searched.csv",
        (*head, "query"),
        (
            "1",
            "a1",
            "",
            "products_searched",
            "Products Searched",
            "2026-01-05 10:00:01",
            late,
            "red shoes",
        ),
    )
    write_csv(
        "order_completed.csv",
        (*head, "order_id", "products"),
        (
            "2",
            "a1",
            "anna",
            "order_completed",
            "Order Completed",
            "2026-01-05 10:00:07",
            late,
            "o1",
            '[{"product_id":"p1"},{"product_id":"p2"}]',
        ),
    )
    load_preset(shop, "auto", raw)
    assert stored() == [STORED[0], *STORED[5:]]


def test_products_go_by_the_id_that_the_catalog_knows(shop, raw, catalog, stored, write_json):
    catalog("s1", "s2")
    write_json("c.jsonl", call("Product Clicked", 1, {"product_id": "507f1", "sku": "s1"}))
    report = load_preset(shop, "segment", raw)
    assert [product for *_, product in stored()] == ["s1"]
    assert "products go by sku, which the catalog knows" in report.total.notes


def test_properties_make_a_catalog_for_a_shop_that_has_none(shop, raw, products, write_json):
    write_json("c.jsonl", CALLS[3])
    load_preset(shop, "segment", raw)
    assert products() == {"p1": ("One", "Acme", "Shoes", 12.5, True, {})}
