from datetime import datetime, timedelta

import numpy as np
import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.index import build_index, open_index
from qagent_mlx.inventory.search import open_search
from qagent_mlx.inventory.stored_index import load_index
from qagent_mlx.inventory.types import Filters


def ids(hits):
    return [hit.product_id for hit in hits]


def test_a_plain_query_finds_its_kind_of_product(tiny_search):
    found = ids(tiny_search.search(["usb cable"], 5)[0])
    assert found
    assert all(product.startswith("p0") for product in found)


@pytest.mark.parametrize("query", ["usb cabel", "USB-Cable", "usbcable", "usb cables"])
def test_typos_case_and_plurals_still_find(tiny_search, query):
    assert ids(tiny_search.search([query], 3)[0])[0].startswith("p0")


def test_a_batch_gives_what_single_searches_give(tiny_search):
    queries = ["phone case", "acme desk lamp", "coffee", "phone case", "???"]
    together = tiny_search.search(queries, 5)
    assert [ids(h) for h in together] == [ids(tiny_search.search([q], 5)[0]) for q in queries]
    assert together[-1] == []


def test_the_same_question_gets_the_same_answer(tiny_shop):
    first, second = open_search(tiny_shop), open_search(tiny_shop)
    for query in ("black", "acme", "red running shoes"):
        assert first.search([query], 10) == second.search([query], 10)


def test_filters_hold(tiny_search):
    catalog = tiny_search.catalog
    rows = catalog.row_of
    filters = Filters(in_stock=True, min_price=10, max_price=30, category="Phones")
    found = ids(tiny_search.search(["acme phone case"], 10, filters=filters)[0])
    assert found
    for product in found:
        row = rows[product]
        assert catalog.in_stock[row]
        assert 10 <= catalog.prices[row] <= 30
        assert catalog.categories[row].startswith("Phones")


def test_clicks_after_the_moment_do_not_reach_search(own_shop):
    """Invariant 8."""
    moment = datetime(2026, 3, 20)
    before = open_search(own_shop).search(["phone case", "acme phone case"], 10, [moment] * 2)
    rows = []
    for i in range(30):
        at = (moment + timedelta(seconds=i)).isoformat()
        rows.append({"user_id": "late", "time": at, "type": "search", "query": "phone case"})
        rows.append(
            {
                "user_id": "late",
                "time": at,
                "type": "click",
                "query": "phone case",
                "product_id": "p400",
            }
        )
    append_events(own_shop, rows)
    search = open_search(own_shop)
    assert search.search(["phone case", "acme phone case"], 10, [moment] * 2) == before
    later = search.search(["phone case"], 10, [moment + timedelta(days=1)])[0]
    assert "p400" in ids(later)


def test_price_and_stock_are_those_of_the_moment(tiny_search):
    catalog = tiny_search.catalog
    row = catalog.row_of["p000"]
    price, in_stock = catalog.state_at(row, datetime(2026, 3, 2))
    sale, still = catalog.state_at(row, datetime(2026, 3, 7))
    assert (in_stock, still) == (True, True)
    assert sale == pytest.approx(price / 2, abs=0.01)
    assert not catalog.state_at(row, datetime(2026, 3, 11))[1]


def test_a_stale_index_is_built_again(own_shop):
    assert open_index(own_shop).manifest.products == 40
    with own_shop.transaction() as connection:
        connection.execute(
            "INSERT INTO products SELECT 'new', 'Extra garden hose', brand, category, price, "
            "in_stock, attributes, changed FROM products LIMIT 1"
        )
        own_shop.set_meta("catalog_version", str(own_shop.catalog_version + 1))
    assert open_index(own_shop).manifest.products == 41
    assert ids(open_search(own_shop).search(["garden hose"], 1)[0]) == ["new"]


@pytest.mark.parametrize("name", ["vectors0-*", "encoder-*", "catalog-*"])
def test_a_torn_index_is_noticed_and_built_again(own_shop, name):
    (path,) = (own_shop.path / "inventory").glob(name)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(QAgentError, match="damaged.*qagent index"):
        load_index(own_shop.path / "inventory")
    assert len(open_index(own_shop).catalog) == 40


def test_a_missing_index_says_what_to_run(own_shop):
    with pytest.raises(QAgentError, match="qagent index"):
        load_index(own_shop.path / "nowhere")


def test_the_encoder_sees_no_click_after_its_limit(own_shop):
    until = datetime(2026, 3, 10)
    first = build_index(own_shop, until)
    vectors = first.encoder.encode(["acme usb cable", "phone case"])
    append_events(
        own_shop,
        [
            {"user_id": "late", "time": "2026-03-10T00:00:00", "type": "search", "query": "zebra"},
            {
                "user_id": "late",
                "time": "2026-03-10T00:00:00",
                "type": "click",
                "query": "zebra",
                "product_id": "p000",
            },
        ],
    )
    again = build_index(own_shop, until)
    assert np.array_equal(vectors, again.encoder.encode(["acme usb cable", "phone case"]))


def test_a_new_query_borrows_clicks_of_queries_that_are_written_like_it(own_shop):
    """And, as with its own, only those before its moment (invariant 8)."""
    moment = datetime(2026, 3, 20)

    def clicked(at, query="coffee lamp"):
        base = {"user_id": "late", "time": at.isoformat(), "query": query}
        return [{**base, "type": "search"}, {**base, "type": "click", "product_id": "p330"}]

    before = open_search(own_shop).search(["coffee lampp"], 10, [moment])
    for second in range(5):
        append_events(own_shop, clicked(moment + timedelta(seconds=second)))
    search = open_search(own_shop)
    assert search.search(["coffee lampp"], 10, [moment]) == before
    later = moment + timedelta(days=1)
    reasons = {r.hit.product_id: r for r in search.explain("coffee lampp", 10, later)}
    assert "coffeelamp" in reasons["p330"].borrowed and "clicks" in reasons["p330"].sides
    reasons = {r.hit.product_id: r for r in search.explain("coffee lamp", 10, later)}
    assert "clicks" in reasons["p330"].sides and reasons["p330"].borrowed == ()


def test_what_the_sides_add_is_the_score(tiny_search):
    for query in ("acme usb cable", "cofee beens", "red lamp"):
        explained = tiny_search.explain(query, 10, datetime(2026, 3, 20))
        hits = tiny_search.search([query], 10, [datetime(2026, 3, 20)])[0]
        assert [reason.hit for reason in explained] == hits
        for reason in explained:
            added = sum(side.adds for side in reason.sides.values())
            assert added == pytest.approx(reason.hit.score)
            if "words" in reason.sides:
                told = sum(word.score for word in reason.words)
                assert told == pytest.approx(reason.sides["words"].score, abs=1e-4)
