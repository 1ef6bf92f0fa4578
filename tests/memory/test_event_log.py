from datetime import datetime, timedelta

import pytest

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.event_log import BOUGHT, DAY, EventLog, History, microseconds
from qagent_mlx.memory.shop_tables import create_shop_tables
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 12)


@pytest.fixture
def log(tmp_path):
    """A log of one user: a search with a click and a purchase, then a search that led nowhere."""
    (tmp_path / "p.csv").write_text(
        "product_id,title,category,price,time\n"
        "a,A,Camping > Tent,10,2026-01-01\nb,B,Camping > Tent,20,2026-01-01\n"
        "c,C,Camping > Tent,30,2026-01-01\nc,C,Camping > Tent,5,2026-01-02\n"
    )
    with Shop.create(tmp_path / "shop") as shop:
        ingest_files(shop, "products", [tmp_path / "p.csv"])
        rows = [
            (0, "search", "tent", None),
            (1, "click", "tent", "a"),
            (2, "purchase", "tent", "c"),
            (3, "cart", "tent", "b"),
            (1440, "search", "Stove", None),
        ]
        append_events(
            shop,
            [
                {
                    "user_id": "ann",
                    "time": START + timedelta(minutes=minutes),
                    "type": kind,
                    "query": query,
                    "product_id": product,
                }
                for minutes, kind, query, product in rows
            ],
        )
        create_shop_tables(shop.connection, "TEMP TABLE", MemoryConfig())
        yield EventLog(shop.connection)


def test_a_search_knows_its_first_and_its_strongest_engagement(log):
    history = log.read(["ann"])["ann"]
    tent, stove = history.searches
    assert (tent.outcome, tent.product_id, tent.first_product) == (BOUGHT, "c", "a")
    assert tent.known == microseconds(START + timedelta(minutes=1))
    assert (stove.outcome, stove.product_id) == (0, None)
    assert history.category_key(tent) == "b:Tent" and history.category_key(stove) is None
    assert history.age(tent.event) * DAY == history.at - tent.event.at == DAY


def test_a_history_before_a_moment_sees_nothing_at_or_after_it(log):
    history = log.read(["ann"])["ann"]
    early = history.before(microseconds(START + timedelta(minutes=2)))
    assert [event.type for event in early.events] == [0, 2]
    assert [search.outcome for search in early.searches] == [1]
    assert history.before(microseconds(START)).searches == []
    assert log.read(["nobody"]) == {} and History([], log, 0).searches == []


def test_a_price_band_is_that_of_the_price_then(log):
    log.read(["ann"])
    bands = [
        log.products["c"].band(microseconds(datetime(2026, 1, day, hour)))
        for day, hour in ((1, 6), (1, 23), (2, 6))
    ]
    assert bands == ["$$$", "$$$", "$"]


def test_wordings_are_read_when_they_are_wanted(log):
    histories = log.read(["ann"])
    assert log.wordings == {}
    log.read_wordings(histories.values())
    assert {key: w.query for key, w in log.wordings.items()} == {"tent": "tent", "stove": "Stove"}
