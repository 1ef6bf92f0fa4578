"""Matomo's visits in JSON, and documents that elasticdump wrote."""

import json

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.presets.loading import load_preset

START = 1767607200  # 2026-01-05 10:00:00


def action(kind, second, **fields):
    return {"type": kind, "timestamp": START + second, "serverTimePretty": "5 Jan", **fields}


VISITS = [
    {
        "idVisit": 2,
        "visitorId": "aaaa",
        "userId": "anna",
        "actionDetails": [
            action(
                "ecommerceOrder",
                60,
                orderId="o1",
                itemDetails=[
                    {"itemSKU": "p1", "itemName": "One", "itemCategory": "Shoes", "price": 12.5},
                    {"itemSKU": "", "itemName": "Two"},
                ],
            )
        ],
    },
    {
        "idVisit": "1",
        "visitorId": "aaaa",
        "userId": None,
        "actionDetails": [
            action("search", 0, siteSearchKeyword="Tom &amp; Jerry", siteSearchCount=0),
            action(
                "action",
                1,
                productViewSku="p2",
                productViewName="Two",
                productViewPrice="9.00",
                productViewCategories=["Toys"],
            ),
            action("action", 2, productViewCategories=["Toys"]),
            {
                **action("ecommerceAbandonedCart", 3, itemDetails=[{"itemSKU": "p1"}]),
                "timestamp": str(START + 3),
            },
            action("event", 4, eventCategory="video", eventAction="play"),
        ],
    },
]


def test_actions_of_visits_become_events(shop, raw, stored, products):
    (raw / "visits.json").write_text(json.dumps(VISITS))
    report = load_preset(shop, "auto", raw)
    assert report.preset == "matomo"
    assert stored() == [
        ("anna", "2026-01-05 10:00:00", "search", "Tom & Jerry", None),
        ("anna", "2026-01-05 10:00:01", "view", None, "p2"),
        ("anna", "2026-01-05 10:00:03", "cart", None, "p1"),
        ("anna", "2026-01-05 10:01:00", "purchase", None, "p1"),
    ]
    assert products() == {
        "p1": ("One", None, "Shoes", 12.5, True, {}),
        "p2": ("Two", None, "Toys", 9.0, True, {}),
    }
    assert report.total.ignored == {"action": 1, "event play": 1}
    assert report.events.reasons == {"no product": 1}


def dumped(index, *documents):
    return [{"_index": index, "_id": f"d{n}", "_source": d} for n, d in enumerate(documents)]


def test_documents_of_a_shops_own_form_go_by_their_keys(shop, raw, products, write_json):
    write_json("dump.json", *dumped("items", {"name": "One", "price": 3, "in_stock": False}))
    report = load_preset(shop, "elasticdump", raw)
    assert report.preset == "elasticdump"
    assert products() == {"d0": ("One", None, None, 3.0, False, {})}


def test_nested_keys_are_named_with_a_mapping(shop, raw, write_json):
    write_json("dump.json", *dumped("items", {"name": "One", "price": {"amount": 3}}))
    with pytest.raises(QAgentError, match="--map price=_source.price.amount"):
        load_preset(shop, "auto", raw)
