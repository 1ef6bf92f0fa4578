"""Queries that nobody typed: derived from what was clicked, carted or bought."""

import pytest

from qagent_mlx.environment.cases import build_cases
from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.derived_queries import category_queries, derive_queries
from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.title_words import title_queries

PRODUCTS = """product_id,title,category
t1,Acme Tent 2,Camping > Tents
t2,Brio Tent 4,Camping > Tents
s1,Acme Stove,Camping > Stoves
x,Odd Thing,
"""


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "products.csv").write_text(PRODUCTS)
    with Shop.create(tmp_path / "shop") as made:
        ingest_files(made, "products", [tmp_path / "products.csv"])
        yield made


def bought(user, day, *products, kind="purchase"):
    return [
        {"user_id": user, "time": f"2026-01-{day:02}", "type": kind, "product_id": p}
        for p in products
    ]


def found_by(shop):
    """(product, the query of the search that it belongs to), by time."""
    return shop.connection.execute(
        """SELECT e.product_id, s.query FROM events e LEFT JOIN events s ON s.event_id = e.search_id
        WHERE e.type <> 'search' ORDER BY e.ts, e.event_id"""
    ).fetchall()


def test_what_is_bought_at_one_moment_is_found_by_its_own_search_each(shop):
    append_events(shop, bought("u", 3, "t1", "s1", "t2", "x"))
    assert derive_queries(shop).accepted == 2  # two tents, one search of tents
    assert found_by(shop) == [("t1", "tents"), ("s1", "stoves"), ("t2", "tents"), ("x", "stoves")]
    assert shop.config.derived_queries == "from category paths"
    with Shop.open(shop.path) as again:
        assert again.config.derived_queries == "from category paths"


def test_new_events_get_theirs_and_old_ones_are_still_known(shop):
    append_events(shop, bought("u", 3, "t1", "s1"))
    derive_queries(shop)
    assert append_events(shop, bought("u", 3, "t1", "s1")).duplicates == 2
    append_events(shop, [*bought("u", 9, "s1"), *bought("v", 9, "t1", kind="click")])
    assert derive_queries(shop).accepted == 2
    assert derive_queries(shop).accepted == 0
    assert found_by(shop)[2:] == [("s1", "stoves"), ("t1", "tents")]
    assert [(c.user_id, c.query) for c in _cases(shop)] == [("u", "stoves")]


def _cases(shop):
    append_events(shop, [*bought("u", 12, "t1"), *bought("u", 15, "t1")])
    derive_queries(shop)
    return build_cases(shop.connection)[:1]


def test_memory_is_put_off_until_it_is_built_again(shop):
    append_events(shop, bought("u", 3, "t1"))
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).build()
    derive_queries(shop)
    assert not MemoryStore(shop.connection, shop.config.memory).is_current()


def test_the_source_can_be_chosen_once(shop):
    append_events(shop, bought("u", 3, "t1", "x"))
    derive_queries(shop, "titles")
    assert found_by(shop) == [("t1", "acme tent"), ("x", "odd thing")]
    append_events(shop, bought("u", 5, "t2"))
    assert derive_queries(shop).accepted == 1  # as before
    with pytest.raises(QAgentError, match="derived from titles; .* make a new shop"):
        derive_queries(shop, "categories")


def test_typed_queries_and_logs_of_views_are_refused(shop):
    append_events(shop, bought("u", 3, "t1", kind="view"))
    with pytest.raises(QAgentError, match="no click, cart or purchase"):
        derive_queries(shop)
    with pytest.raises(QAgentError, match="no search by a known user"):
        build_cases(shop.connection)
    append_events(shop, bought("u", 4, "t1"))
    with pytest.raises(QAgentError, match="it has no searches; .* qagent ingest derive"):
        build_cases(shop.connection)
    append_events(shop, [{"user_id": "u", "time": "2026-01-05", "type": "search", "query": "tent"}])
    with pytest.raises(QAgentError, match="only for a log without searches, and this one has 1"):
        derive_queries(shop)


def test_category_queries_name_the_lower_levels_once():
    found = category_queries(
        {"a": "Office > Paper > Copy Paper", "b": "Toys", "c": None, "d": "Home > Bed & Bath"}
    )
    assert found == {"a": "paper copy", "b": "toys", "d": "bed bath"}


def test_title_queries_are_shared_by_products_of_a_kind():
    titles = {"1": "Acme Gel Pens, Blue, 12 Count", "2": "Zed Gel Pen (Red)", "3": "1234 - 99"}
    found = title_queries(titles, {"1": "Acme", "2": None, "3": None})
    assert found["1"] == found["2"] == "gel pen"
    assert "3" not in found


def test_title_queries_are_made_of_pairs_where_there_are_no_spaces():
    titles = {
        "1": "苹果手机壳 硅胶",
        "2": "小米手机壳",
        "3": "手机膜",
        "4": "टेंट नीला",
        "5": "टेंट बड़ा",
    }
    found = title_queries(titles, {"1": "苹果"})
    assert found["1"] == found["2"] == "手机 机壳" and "手机" in found["3"]
    assert found["4"] == "टेंट" == found["5"]
