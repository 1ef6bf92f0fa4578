"""What was bought just now is not offered again, except where people buy again at once."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.repurchase import (
    DEFAULT_DAYS,
    MAX_DAYS,
    PRODUCT_DAYS,
    just_bought,
    repurchase_interval,
)
from qagent_mlx.memory.statistics_cache import MIN_PURCHASES, Cycle
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 9)
END = START + timedelta(days=60)
DAY = timedelta(days=1)


def purchase(user, time, product):
    query = {"user_id": user, "time": time, "query": product}
    return [
        {**query, "type": "search"},
        {**query, "time": time + timedelta(minutes=1), "type": "purchase", "product_id": product},
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Coffee is bought again at once and tea after hours, tents are not, lamps were bought thrice."""
    folder = tmp_path_factory.mktemp("again")
    lines = ["product_id,title,category", "coffee,Coffee,Kitchen > Coffee", "tent,Tent,Tents"]
    lines += ["lamp,Lamp,Lamps", "pen,Pen,", "tea,Tea,Kitchen > Tea"]
    (folder / "p.csv").write_text("\n".join(lines))
    events = []
    for i in range(MIN_PURCHASES):
        start = START + timedelta(hours=3 * i)
        events += purchase(f"u{i}", start, "coffee")
        events += purchase(f"u{i}", start + timedelta(minutes=2), "coffee")
        events += purchase(f"u{i}", start, "tea")
        events += purchase(f"u{i}", start + timedelta(hours=5), "tea")
        events += purchase(f"u{i}", start + timedelta(hours=10), "tent")
    for i in range(3):
        events += purchase(f"u{i}", START + timedelta(days=20 + i), "lamp")
    for product in ("coffee", "tea", "tent", "lamp", "pen"):
        events += purchase("ann", END, product)
    with Shop.create(folder / "shop") as shop:
        ingest_files(shop, "products", [folder / "p.csv"])
        append_events(shop, events)
        yield shop


def context(shop, moment, user="ann"):
    memory = Memory(shop.connection, shop.config.memory, count_words)
    (profile,) = memory.profiles([Moment(user, moment)])
    return profile.context


def test_minutes_after_a_purchase_only_what_is_bought_again_at_once_is_offered(shop):
    found = context(shop, END + timedelta(minutes=5))
    assert set(found.just_bought) == {"Tea", "Tents", "Lamps"}
    assert "Coffee" not in found.just_bought
    assert "pen" in found.just_bought_products  # it has no category


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0.2, {"Tea", "Tents", "Lamps"}),
        (0.22, {"Tents", "Lamps"}),
        (6.9, {"Tents", "Lamps"}),
        (7.1, {"Tents"}),
        (13.9, {"Tents"}),
        (14.1, set()),
    ],
)
def test_the_interval_is_what_purchases_show_and_else_the_default(shop, days, expected):
    found = context(shop, END + timedelta(minutes=1, days=days))
    assert set(found.just_bought) == expected
    assert ("pen" in found.just_bought_products) == (days < PRODUCT_DAYS)


def test_nothing_later_is_known(shop):
    """On the first day nobody could know that coffee is bought again at once."""
    early = START + timedelta(minutes=2)
    assert context(shop, early, "u0").just_bought == ("Coffee", "Tea")
    assert context(shop, START, "u0").just_bought == ()
    assert context(shop, START + timedelta(minutes=1), "u0").just_bought == ()  # at it, not before


def test_stored_memory_says_the_same(shop):
    moments = [END + timedelta(minutes=5), END + timedelta(days=8)]
    computed = [context(shop, moment) for moment in moments]
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).build()
    assert [context(shop, moment) for moment in moments] == computed
    with shop.transaction() as connection:
        MemoryStore(connection, shop.config.memory).drop()


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 30)),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, float("inf"))),
)
def test_an_interval_ends_and_no_evidence_makes_it_longer_than_the_longest(bought, soonest):
    cycles = {leaf: Cycle(soonest=days) for leaf, days in soonest.items()}
    kept = just_bought(bought, cycles)
    for leaf, days in bought.items():
        interval = repurchase_interval(cycles[leaf]) if leaf in cycles else DEFAULT_DAYS
        assert (leaf in kept) == (days < interval) and interval <= MAX_DAYS
