from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.click_log import CLICKS_SQL, ClickLog, read_clicks
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key

NOW = datetime(2026, 1, 31)
SECOND = timedelta(seconds=1)


def log(*rows, half_life=10.0):
    """Rows of (query key, product number, days ago, weight)."""
    rows = sorted(rows, key=lambda row: (row[0], -row[2]))
    now = (NOW - datetime(1970, 1, 1)).total_seconds()
    columns = {
        "query_key": np.array([key for key, *_ in rows], dtype=object),
        "product_id": np.array([str(product) for _, product, *_ in rows], dtype=object),
        "ts": np.array([now - days * 86400 for *_, days, _ in rows]),
        "weight": np.array([weight for *_, weight in rows], dtype=float),
    }
    return ClickLog(columns, {str(product): product for product in range(10)}, half_life)


def test_weights_halve_with_age_and_add_up():
    found = log(("a", 1, 10, 2.0), ("a", 1, 20, 4.0), ("a", 2, 30, 8.0), ("b", 3, 1, 9.0))
    ranking = found.ranking("a", NOW)
    assert ranking.rows.tolist() == [1, 2]
    assert ranking.scores == pytest.approx([1 + 1, 1])


def test_ties_go_by_row_and_the_limit_keeps_the_heaviest():
    found = log(("a", 5, 1, 1.0), ("a", 2, 1, 1.0), ("a", 9, 1, 1.0), ("a", 7, 1, 3.0))
    assert found.ranking("a", NOW).rows.tolist() == [7, 2, 5, 9]
    assert found.ranking("a", NOW, limit=2).rows.tolist() == [7, 2]


def test_unknown_queries_and_early_moments_find_nothing():
    found = log(("a", 1, 5, 1.0))
    for key, moment in (("zebra", NOW), ("", NOW), ("a", NOW - timedelta(days=5))):
        ranking = found.ranking(key, moment)
        assert len(ranking.rows) == len(ranking.scores) == len(ranking) == 0
    assert found.ranking("a", NOW - timedelta(days=5) + SECOND).rows.tolist() == [1]
    assert found.ranking("a", None).rows.tolist() == [1]
    assert log().ranking("a", None).rows.tolist() == []


ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(0, 4),
        st.integers(0, 9),
        st.sampled_from([1.0, 2.0, 3.0]),
    ),
    max_size=12,
)


@given(rows=ROWS, days=st.integers(0, 9))
def test_a_moment_sees_only_what_came_before_it(rows, days):
    """Invariant 8."""
    before = [row for row in rows if row[2] > days]
    moment = NOW - timedelta(days=days)
    for key in "ab":
        one, other = (log(*r).ranking(key, moment) for r in (rows, before))
        assert one.rows.tolist() == other.rows.tolist()
        assert one.scores.tolist() == other.scores.tolist()


def test_each_text_of_a_log_is_held_once(own_shop):
    events = [
        {"user_id": "u", "time": "2026-04-02 10:00:00", "type": "search", "query": "Red  LAMP"},
        {"user_id": "u", "time": "2026-04-02 10:00:01", "type": "click", "product_id": "p001"},
        {"user_id": "v", "time": "2026-04-02 11:00:00", "type": "search", "query": "red lamp"},
        {"user_id": "v", "time": "2026-04-02 11:00:01", "type": "click", "product_id": "p001"},
    ]
    assert append_events(own_shop, events).accepted == len(events)
    plain = own_shop.connection.execute(CLICKS_SQL).fetchnumpy()
    columns = read_clicks(own_shop.connection)
    assert list(columns) == list(plain)
    for name, values in columns.items():
        assert values.tolist() == np.asarray(plain[name]).tolist()
        assert values.dtype == np.asarray(plain[name]).dtype
    for name in ("query_key", "product_id"):
        texts = columns[name].tolist()
        assert len(set(map(id, texts))) == len(set(texts))
    typed = columns["query"][columns["query_key"] == query_key("red lamp")].tolist()
    assert typed[-2:] == ["Red LAMP", "red lamp"]


def test_a_log_without_engagements_has_the_same_columns(tmp_path):
    with Shop.create(tmp_path / "empty") as shop:
        columns = read_clicks(shop.connection)
    assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(
        ("query_key", "query", "product_id", "ts", "weight"), 0
    )


def test_a_shops_log_comes_from_engagements_under_a_search(tiny_shop, tiny_search):
    columns = read_clicks(tiny_shop.connection)
    expected = tiny_shop.connection.execute(
        """SELECT count(*) FROM events WHERE type IN ('click', 'cart', 'purchase')
        AND search_id IS NOT NULL"""
    ).fetchone()
    assert (len(columns["ts"]),) == expected
    row_of = tiny_search.catalog.row_of
    whole = ClickLog(columns, row_of, 30.0)
    again = ClickLog(whole.columns(), row_of, 30.0)
    some = {p: row for p, row in row_of.items() if row % 2}
    half = ClickLog(columns, some, 30.0)
    moment = datetime(2026, 3, 20)
    for key in sorted(set(columns["query_key"])):
        ranking = whole.ranking(key, moment)
        rows = ranking.rows.tolist()
        assert again.ranking(key, moment).rows.tolist() == rows
        assert half.ranking(key, moment).rows.tolist() == [r for r in rows if r % 2]
        assert (np.diff(ranking.scores) <= 1e-9).all()


def test_an_empty_log_and_one_without_texts_are_stored_as_they_are():
    nothing = {"query_key": [], "query": [], "product_id": [], "ts": [], "weight": []}
    empty = ClickLog({n: np.array(v, dtype=object) for n, v in nothing.items()}, {}, 30.0)
    assert {name: len(values) for name, values in empty.columns().items()} == dict.fromkeys(
        nothing, 0
    )
    old = ClickLog(
        {
            "query_key": np.array(["a", "a"], dtype=object),
            "product_id": np.array(["p", "q"], dtype=object),
            "ts": np.array([1.0, 2.0]),
            "weight": np.array([1.0, 3.0]),
        },
        {"p": 0, "q": 1},
        30.0,
    )
    assert {name: values.tolist() for name, values in old.columns().items()} == {
        "query_key": ["a", "a"],
        "product_id": ["p", "q"],
        "ts": [1.0, 2.0],
        "weight": [1.0, 3.0],
    }
