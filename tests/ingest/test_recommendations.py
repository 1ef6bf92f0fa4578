"""Files of queries that users were shown."""

import csv

import pytest

from qagent_mlx.ingest.history import undo_ingest
from qagent_mlx.ingest.ingest import ingest_files

SHOWN = {
    "recommendation_id": "r-1",
    "user_id": "u1",
    "time": "2026-01-05T10:00:00",
    "query": "Red Lamp",
    "position": "1",
    "propensity": "0.25",
    "policy": "sft",
    "version": "3",
}


@pytest.fixture
def load(own_shop, tmp_path):
    def load(*rows):
        path = tmp_path / "shown.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return ingest_files(own_shop, "recommendations", [path])

    return load


def stored(shop):
    return shop.connection.execute(
        """SELECT recommendation_id, user_id, ts::VARCHAR, position, query, query_key, propensity,
            source, policy, version FROM recommendations ORDER BY ALL"""
    ).fetchall()


def test_each_position_of_an_answer_is_kept_once_and_can_be_undone(own_shop, load):
    second = {**SHOWN, "position": "2", "query": "lamp", "propensity": "", "policy": ""}
    report = load(SHOWN, second, {**SHOWN, "query": "other"})
    assert (report.accepted, report.rejected, report.duplicates) == (2, 0, 1)
    answer = ("r-1", "u1", "2026-01-05 10:00:00")
    assert stored(own_shop) == [
        (*answer, 1, "Red Lamp", "redlamp", 0.25, "imported", "sft", 3),
        (*answer, 2, "lamp", "lamp", 1.0, "imported", "imported", 3),
    ]
    assert load(SHOWN, second).accepted == 0
    assert undo_ingest(own_shop, 3).impressions == 2  # the shop's files were 1 and 2
    assert stored(own_shop) == []


def test_bad_rows_are_rejected_with_their_reasons(own_shop, load):
    changes = {
        "bad position": {"position": "0"},
        "bad propensity": {"propensity": "1.5"},
        "no recommendation id": {"recommendation_id": ""},
        "no user": {"user_id": "guest"},
        "query without letters or digits": {"query": "?!"},
        "unparseable time": {"time": "yesterday"},
    }
    good = [{**SHOWN, "position": str(n)} for n in range(1, 9)]
    report = load(*good, *({**SHOWN, **change} for change in changes.values()))
    assert report.reasons == dict.fromkeys(changes, 1)
    assert len(report.examples) == len(changes) and all("; " in e for e in report.examples)
