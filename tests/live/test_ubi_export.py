"""A shop's log and what it showed survive the way through UBI's format."""

import json
import shutil

import pytest
from showing import after, did, show

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.ingest.presets.loading import load_preset
from qagent_mlx.live.outcomes import outcomes
from qagent_mlx.live.ubi_export import export_ubi
from qagent_mlx.privacy import erase_user, export_user
from qagent_mlx.shop.shop import Shop


def events(shop):
    return shop.connection.execute(
        """SELECT user_id, ts, type, query, product_id, recommendation_id, position
        FROM events ORDER BY ALL"""
    ).fetchall()


def shown(shop):
    return shop.connection.execute(
        "SELECT * EXCLUDE ingest_id FROM recommendations ORDER BY ALL"
    ).fetchall()


@pytest.fixture
def told(own_shop):
    """A shop with a recommendation that was taken, one that was not, and half a word."""
    answer = show(own_shop, "desk lamp", "usb cable", version=3, experiment="x", arm="b")
    show(own_shop, "phone case", user="u02", policy="typed")
    named = {"recommendation_id": answer, "position": 2}
    did(
        own_shop,
        {"time": after(seconds=10), "type": "search", "query": "usb c"},
        {"time": after(seconds=11), "type": "search", "query": "usb cable", **named},
        {"time": after(seconds=12.5), "type": "click", "product_id": "p000", **named},
        {"time": after(seconds=14), "type": "purchase", "product_id": "p000"},
    )
    own_shop.close()
    return own_shop


def test_an_export_that_is_read_again_gives_the_same_shop(told, tiny_files, tmp_path):
    written = export_ubi(told, tmp_path / "ubi")
    lines = (tmp_path / "ubi" / "ubi_events.jsonl").read_text().splitlines()
    assert len(lines) == written.events
    documents = [json.loads(line) for line in lines]
    (click,) = [
        d
        for d in documents
        if d["action_name"] == "click"
        and d["event_attributes"]["object"]["object_id_field"] == "recommended_query"
    ]
    assert click["event_attributes"]["object"]["object_id"] == "usb cable"
    assert click["event_attributes"]["position"]["ordinal"] == 2
    with Shop.create(tmp_path / "again") as again:
        ingest_files(again, "products", [tiny_files / "products.csv"])
        report = load_preset(again, "ubi", tmp_path / "ubi")
        assert report.total.rejected == report.total.duplicates == 0, report.total
        assert report.total.ignored == {}
        assert events(again) == events(told)
        assert shown(again) == shown(told)
        assert outcomes(again) == outcomes(told)
        twice = load_preset(again, "auto", tmp_path / "ubi")
        assert twice.total.accepted == 0
        assert shown(again) == shown(told)


def test_clicks_on_recommended_queries_of_other_exporters_are_searches(own_shop, tmp_path):
    answer = {"query_id": "r1", "client_id": "u01", "application": "web"}
    objects = {"object_id": "usb cable", "object_id_field": "recommended_query"}
    documents = [
        {
            **answer,
            "action_name": action,
            "timestamp": f"2026-05-01T12:00:0{second}Z",
            "event_attributes": {"object": objects, "position": {"ordinal": 0}},
        }
        for second, action in enumerate(("impression", "click"))
    ]
    path = tmp_path / "ubi.jsonl"
    path.write_text("\n".join(map(json.dumps, documents)))
    load_preset(own_shop, "ubi", path)
    (row,) = shown(own_shop)
    assert row[:6] == ("r1", "u01", row[2], 1, "usb cable", "usbcable")
    (outcome,) = outcomes(own_shop)
    assert (outcome.group, outcome.taken, outcome.attributed) == ("imported", 1, 0)


def test_what_a_user_was_shown_is_exported_and_erased(told):
    path = told.path
    with Shop.open(path, read_only=False) as shop:
        data = export_user(shop, "u01")
        assert [r["query"] for r in data.recommendations] == ["desk lamp", "usb cable"]
        assert erase_user(shop, "u01").recommendations == 2
        assert {row[1] for row in shown(shop)} == {"u02"}
    assert b"usb cable" in (path / "shop.duckdb").read_bytes()  # of others
    answer = data.recommendations[0]["recommendation_id"].encode()
    assert not any(answer in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_events_before_there_was_a_column_and_after_lie_in_one_log(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        shop.connection.execute(
            """ALTER TABLE events DROP COLUMN recommendation_id;
            ALTER TABLE events DROP COLUMN position; DROP TABLE recommendations"""
        )
    with Shop.open(tmp_path / "shop") as old:
        assert outcomes(old) == []
        before = old.counts()["events"]
        assert export_ubi(old, tmp_path / "ubi").events > 0
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        row = {"user_id": "u01", "time": after(days=1), "type": "search", "query": "lamp"}
        append_events(shop, [{**row, "recommendation_id": "r1", "position": 1}])
        assert shop.counts()["events"] == before + 1
        assert outcomes(shop) == []
