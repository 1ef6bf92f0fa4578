"""Searches that are logged at each keystroke become the query that they were typed into."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from qagent_mlx.ingest.ingest import append_event_batches, append_events
from qagent_mlx.memory.store import MemoryStore

NOW = datetime(2026, 4, 10, 12)


def typed(*texts, step=0.6, user="u01", at=NOW):
    return [
        {"user_id": user, "time": at + timedelta(seconds=n * step), "type": "search", "query": text}
        for n, text in enumerate(texts)
    ]


def searches(shop, user="u01"):
    rows = shop.connection.execute(
        "SELECT query FROM events WHERE user_id = ? AND ts >= ? AND type = 'search' ORDER BY ts",
        [user, NOW],
    ).fetchall()
    return [query for (query,) in rows]


WORD = typed("d", "de", "desk", "desk l", "desk lamp")


@pytest.mark.parametrize("batches", [[WORD], [WORD[:2], WORD[2:]], [[event] for event in WORD]])
def test_only_the_whole_query_is_kept_however_the_events_come(own_shop, batches):
    reports = [append_events(own_shop, batch) for batch in batches]
    assert searches(own_shop) == ["desk lamp"]
    assert sum(report.ignored.get("search while typing", 0) for report in reports) == 4
    assert not own_shop.connection.execute(
        "SELECT * FROM events WHERE session_id NOT IN (SELECT event_id FROM events)"
    ).fetchall()


def test_stored_memory_follows_as_if_half_words_had_never_been(own_shop):
    store = MemoryStore(own_shop.connection, own_shop.config.memory)
    store.build()
    for event in WORD:
        append_events(own_shop, [event])
    assert store.is_current()

    def stored():
        return [
            own_shop.connection.execute(query).fetchall()
            for query in (
                "SELECT hour, query_key, sum(n) FROM hourly GROUP BY ALL ORDER BY ALL",
                "SELECT query_key, query FROM spellings ORDER BY ALL",
                "SELECT user_id, events, state FROM profiles ORDER BY ALL",
            )
        ]

    followed = stored()
    store.build()
    assert followed == stored()


@pytest.mark.parametrize(
    "events",
    [
        typed("usb", "usb cable", step=3.5),
        typed("usb", "desk lamp"),
        typed("usb cable", "usb"),
        typed("usb", "usb"),
        [*typed("usb"), *typed("usb cable", user="u02", at=NOW + timedelta(seconds=1))],
        [
            *typed("usb"),
            {**typed("usb")[0], "type": "click", "product_id": "p000"},
            *typed("usb cable", at=NOW + timedelta(seconds=2)),
        ],
        [
            {**typed("usb")[0], "recommendation_id": "r"},
            *typed("usb cable", at=NOW + timedelta(seconds=1)),
        ],
    ],
    ids=["slow", "another", "shorter", "again", "two users", "engaged", "recommended"],
)
def test_other_searches_stay(own_shop, events):
    expected = sum(event["type"] == "search" for event in events)
    append_events(own_shop, events)
    assert len(searches(own_shop) + searches(own_shop, "u02")) == expected


def test_posts_of_several_clients_report_what_was_dropped_and_a_setting_keeps_all(own_shop):
    reports = append_event_batches(own_shop, [WORD, typed("lamp", user="u02")])
    assert [report.accepted for report in reports] == [5, 1]
    own_shop.config = replace(
        own_shop.config, memory=replace(own_shop.config.memory, typing_seconds=0.0)
    )
    append_events(own_shop, typed("us", "usb", user="u03"))
    assert searches(own_shop, "u03") == ["us", "usb"] and searches(own_shop) == ["desk lamp"]
