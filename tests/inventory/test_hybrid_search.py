"""The three rankings together, on a catalog whose products are easily confused."""

from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory.click_log import ClickLog
from qagent_mlx.inventory.search import HybridSearch, open_search
from qagent_mlx.inventory.types import Filters
from qagent_mlx.inventory.vector_index import VectorIndex
from qagent_mlx.shop.shop import Shop

PRODUCTS = (
    ("gow1", "Gears of War", "Games > Shooter", 20, 1),
    ("gow2", "Gears of War 2", "Games > Shooter", 25, 1),
    ("gow3", "Gears of War 3 - Xbox 360", "Games > Shooter", 60, 0),
    ("halo", "Halo: Reach - Xbox 360", "Games > Shooter", 60, 1),
    ("pad", "Wireless Controller for Xbox 360", "Games > Controllers", 45, 1),
    ("tv", "Dynex 32 inch LCD HDTV", "Home > TVs", 250, 1),
    ("tv2", "Insignia 32 inch LED HDTV", "Home > TVs", "", 1),
    ("case", "Phone Case red", "Phones > Cases", 15, 1),
    ("case2", "Phone Case red", "Phones > Cases", 15, 1),
    ("case3", "Phone Case red", "Phones > Cases", 15, 1),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """People who typed "red thing" bought a television first and a game later."""
    folder = tmp_path_factory.mktemp("games")
    rows = [",".join(map(str, product)) for product in PRODUCTS]
    (folder / "p.csv").write_text("\n".join(["product_id,title,category,price,stock", *rows]))
    events = []
    for day, product in ((5, "tv"), (20, "halo")):
        for user in range(4):
            row = {"user_id": f"u{user}", "time": f"2026-01-{day:02}T10:00", "query": "red thing"}
            events.append({**row, "type": "search"})
            events.append({**row, "type": "purchase", "product_id": product})
    with Shop.create(folder / "shop") as shop:
        ingest_files(shop, "products", [folder / "p.csv"])
        append_events(shop, events)
        yield shop


@pytest.fixture(scope="module")
def search(shop):
    return open_search(shop)


def found(search, query, k=10, as_of=None, **filters):
    hits = search.search([query], k, [as_of], Filters(**filters))[0]
    assert all(a.score >= b.score for a, b in pairwise(hits))
    assert len({hit.product_id for hit in hits}) == len(hits) <= k
    return [hit.product_id for hit in hits]


def test_what_was_typed_is_found(search):
    assert found(search, "gears of war3")[0] == "gow3"
    assert found(search, "XBOX360 controller")[0] == "pad"
    assert set(found(search, "32inch tvs", 2)) == {"tv", "tv2"}


@pytest.mark.parametrize("query", ["gers of war", "geers of war", "gearz of wr", "gearsofwar"])
def test_typos_still_find(search, query):
    assert set(found(search, query, 3)) == {"gow1", "gow2", "gow3"}


def test_equal_products_come_in_the_order_of_the_catalog(search, only):
    assert found(search, "phone case", 3) == ["case", "case2", "case3"]
    assert found(search, "red phone case", 2) == ["case", "case2"]
    for ranking in ("lexical", "dense"):
        assert only(ranking, "phone case")[:3] == ["case", "case2", "case3"]
    tied = only(None, "phone case")
    assert len(tied) > 3 and tied == sorted(tied)


def test_a_batch_with_moments_and_filters_equals_single_questions(shop):
    queries = ["xbox", "phone case", "", "xbox", "gers of war", "!!", "red thing", "red thing"]
    moments = [None, datetime(2026, 1, 10), None, None, None, None, datetime(2026, 1, 10), None]
    for kept in (None, Filters(in_stock=True)):
        batch = open_search(shop).search(queries, 5, moments, kept)
        single = open_search(shop)
        for query, moment, hits in zip(queries, moments, batch, strict=True):
            assert single.search([query], 5, [moment], kept) == [hits]
    assert open_search(shop).search([], 5) == []


def test_thousands_of_queries_are_ranked_some_at_a_time(shop, monkeypatch):
    queries = ["gears", "phone case", "hdtv", "red thing", "", "gears", "xbos"]
    at_once = open_search(shop).search(queries, 3)
    monkeypatch.setattr("qagent_mlx.inventory.search.QUERIES_AT_ONCE", 2)
    sizes, search = [], open_search(shop)
    rank = search._rank_block
    monkeypatch.setattr(search, "_rank_block", lambda q, a: sizes.append(len(q)) or rank(q, a))
    assert search.search(queries, 3) == at_once
    assert sizes == [2, 2, 2]  # "gears" once


def test_nothing_to_search_for_finds_nothing(search):
    assert search.search(["", "  ", "!!!"], 10) == [[], [], []]
    assert found(search, "xbox", 0) == []


def test_filters_fill_up_with_the_next_best(search):
    assert found(search, "gears of war", 2, in_stock=True) == ["gow1", "gow2"]
    assert "gow3" in found(search, "gears of war")
    assert "gow3" not in found(search, "gears of war", in_stock=True)
    assert found(search, "xbox", category="games > controllers") == ["pad"]
    assert set(found(search, "gears", min_price=20, max_price=25)) == {"gow1", "gow2"}
    assert "tv2" not in found(search, "hdtv", max_price=1000)  # its price is unknown
    assert found(search, "hdtv", category="Garden") == []


def test_earlier_clicks_lead_and_later_ones_are_unknown(search):
    """Invariant 8, to the microsecond."""
    assert found(search, "red thing", 1, datetime(2026, 1, 5, 10)) != ["tv"]
    assert found(search, "red thing", 1, datetime(2026, 1, 5, 10, 0, 0, 1)) == ["tv"]
    assert found(search, "red thing", 1, datetime(2026, 1, 20, 10)) == ["tv"]
    assert found(search, "Red-Thing", 1, datetime(2026, 1, 20, 10, 0, 0, 1)) == ["halo"]
    assert found(search, "red thing", 2) == ["halo", "tv"]
    assert "tv" not in found(search, "red thing", category="Games")


@pytest.fixture
def only(shop, search):
    """What is found for a query by one ranking alone; by none, with scores of 0."""
    none = {"weight_lexical": 0.0, "weight_dense": 0.0, "weight_clicks": 0.0, "weight_shares": 0.0}

    def ids(name, query):
        own = {f"weight_{name}": 1.0} if name else {}
        config = replace(shop.config.search, **{**none, **own})
        hits = HybridSearch(search.index, search.clicks, config).search([query], 10)[0]
        return [hit.product_id for hit in hits if not name or hit.score > 0]

    return ids


def test_each_ranking_has_its_weight(only):
    assert only("lexical", "gearzz") == only("clicks", "gearzz") == []
    assert set(only("dense", "gearzz")[:3]) == {"gow1", "gow2", "gow3"}
    assert only("lexical", "red thing") == ["case", "case2", "case3"]
    assert only("clicks", "red thing") == ["halo", "tv"]


def test_what_nearly_all_went_for_leads_over_what_one_did(shop, search):
    """ "case" has the word and one click, "halo" thirty clicks and no word: ranks put case first."""
    columns = {
        "query_key": np.array(["redthing"] * 31, dtype=object),
        "query": np.array(["red thing"] * 31, dtype=object),
        "product_id": np.array(["case"] + ["halo"] * 30, dtype=object),
        "ts": np.arange(31.0),
        "weight": np.ones(31),
    }
    log = ClickLog(columns, search.catalog.row_of, 1e6)

    def first(query, **weights):
        return HybridSearch(search.index, log, replace(shop.config.search, **weights)).search(
            [query], 1
        )[0][0]

    assert first("red thing", weight_shares=0.0).product_id == "case"
    ranks, shares = first("red thing", weight_shares=0.0), first("red thing", weight_shares=2.0)
    assert shares.product_id == "halo"
    # 2 * 30 / (31 + HALF_EVIDENCE), beside the first rank among clicks and its rank among vectors
    assert shares.score > 2 * 30 / 33 > ranks.score
    # Who types it otherwise gets those clicks, too, but not how many they are.
    assert search.index.encoder.is_fast
    borrowed = [first("redthings", weight_shares=w, similar_clicks=0.5) for w in (0.0, 2.0)]
    assert borrowed[0] == borrowed[1]
    found = HybridSearch(search.index, log, replace(shop.config.search, similar_clicks=0.5))
    assert any(why.borrowed for why in found.explain("redthings", 3))


def test_approximate_search_agrees_with_exact_search(tiny_search, monkeypatch):
    queries = ["acme usb cable", "cofee", "red running shoe", "lamp", "dune phone"]
    filters = Filters(category="Sports")
    exact = [tiny_search.search(queries, 5, None, kept) for kept in (None, filters)]
    monkeypatch.setattr("qagent_mlx.inventory.vector_index.EXACT_BELOW", 0)
    index = tiny_search.index
    graph = VectorIndex.build(index.vectors.get(np.arange(len(index.catalog))))
    assert index.vectors.is_exact and not graph.is_exact
    fresh = HybridSearch(replace(index, vectors=graph), tiny_search.clicks, tiny_search.config)
    assert [fresh.search(queries, 5, None, kept) for kept in (None, filters)] == exact


def test_remembered_rankings_are_bounded_and_change_nothing(shop, monkeypatch):
    monkeypatch.setattr("qagent_mlx.inventory.search.CACHED_QUERIES", 3)
    search, fresh = open_search(shop), open_search(shop)
    queries = [f"xbox {i}" for i in range(8)]
    assert search.search(queries, 5) == fresh.search(queries, 5)
    assert search.search(queries[::-1], 5) == fresh.search(queries, 5)[::-1]
    assert len(search._text_rankings) == 3


def test_what_was_found_at_one_moment_is_not_told_of_another(shop, monkeypatch):
    monkeypatch.setattr("qagent_mlx.inventory.search.CACHED_HITS", 5)
    search = open_search(shop)
    moments = [None, datetime(2026, 1, 5, 10), datetime(2026, 1, 5, 10, 0, 0, 1)]
    asked = [
        (query, moment, k, filters)
        for query in ("red thing", "xbox", "gears", "!")
        for moment in moments
        for k in (1, 3)
        for filters in (None, Filters(max_price=25))
    ]
    for query, moment, k, filters in asked + asked[::-1] + asked:
        fresh = open_search(shop).search([query], k, [moment], filters)
        assert search.search([query], k, [moment], filters) == fresh
        assert search.search([query, query], k, [moment, None], filters)[0] == fresh[0]
    assert len(search._hits) == 5


def test_clicks_on_products_that_are_gone_do_no_harm(own_shop):
    query, product = own_shop.connection.execute(
        "SELECT query, product_id FROM events WHERE type = 'click' LIMIT 1"
    ).fetchone()
    for table in ("products", "product_history"):
        own_shop.connection.execute(f"DELETE FROM {table} WHERE product_id = ?", [product])
    own_shop.set_meta("catalog_version", "2")
    hits = open_search(own_shop).search([query], 40)[0]
    assert product not in {hit.product_id for hit in hits}
    assert np.isfinite([hit.score for hit in hits]).all()


def test_past_clicks_may_rank_without_being_told(shop, search):
    log = search.click_log
    plain = HybridSearch(search.index, log, search.config)
    silent = HybridSearch(search.index, log, search.config, tells_clicks=False)
    assert plain.clicks is log and silent.clicks is None
    assert found(plain, "red thing") == found(silent, "red thing") != []
