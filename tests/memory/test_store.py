"""What is stored says the same as what is computed, and follows the log."""

import csv
import shutil
from dataclasses import asdict
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.memory import loader as loader_module
from qagent_mlx.memory import shop_tables, transitions
from qagent_mlx.memory import store as store_module
from qagent_mlx.memory.candidates import COLUMNS, TEXTS
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop

DAY = datetime(2026, 1, 10)
USERS = ("u0", "u1", "u2", "u3", "nobody")
QUERIES = ("red thing", "thing x", "acme thing", "Acme Thing", "blue y", "zork", "thing", "ZORK")
PRODUCTS = [
    {
        "product_id": f"p{i}",
        "title": f"thing {i}",
        "brand": ("acme", "zork", "")[i % 3],
        "category": ("A > x", "A > y", "B > z")[i % 3],
        "price": 5 * (i + 1),
        "stock": 1,
        "attributes": ('{"colour": "red"}', '{"colour": "blue"}', "")[i % 3],
        "time": DAY,
    }
    for i in range(6)
]


def load_products(shop, folder, rows):
    path = folder / f"products-{shop.catalog_version}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert ingest_files(shop, "products", [path]).rejected == 0


def event(user, minutes, kind, query, product):
    row = {"user_id": user, "time": DAY + timedelta(minutes=minutes), "type": kind, "query": query}
    return {**row, "product_id": product} if kind != "search" else row


minute = st.one_of(st.integers(0, 60), st.integers(0, 3 * 24 * 60), st.just(24 * 60))
one = st.builds(
    event,
    st.sampled_from(USERS[:4]),
    minute,
    st.sampled_from(["search", "search", "click", "click", "view", "cart", "purchase"]),
    st.sampled_from(QUERIES),
    st.sampled_from([f"p{i}" for i in range(6)]),
)
searched_and_clicked = st.builds(
    lambda e, kind, product: [
        {**e, "type": "search", "product_id": None},
        {**e, "time": e["time"] + timedelta(seconds=20), "type": kind, "product_id": product},
    ],
    one,
    st.sampled_from(["click", "purchase"]),
    st.sampled_from(["p0", "p1", "p2"]),
)
batch = st.lists(st.one_of(one.map(lambda e: [e]), searched_and_clicked), min_size=1, max_size=25)


def flat(parts):
    return [e for part in parts for e in part]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with Shop.create(folder / "shop") as shop:
        load_products(shop, folder, PRODUCTS)
    return folder / "shop"


def comparable(profile):
    def rounded(value):
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in sorted(value.items())}
        return round(value, 3) if isinstance(value, float) else value

    lines = [(x.section, x.text, round(x.score, 9), x.reason) for x in profile.lines]
    return profile.text, profile.references, profile.tokens, lines, rounded(asdict(profile.context))


def stored(shop):
    """All rows of all stored tables, in an order of their own."""
    found = {}
    for table in shop_tables.SHOP_TABLES:
        query = f"SELECT * FROM {table} ORDER BY ALL"
        if table == "hourly":  # kept as sums to add up
            query = "SELECT hour, query_key, sum(n) AS n FROM hourly GROUP BY ALL ORDER BY ALL"
        found[table] = shop.connection.execute(query).fetchall()
    return found


def read(shop, as_of):
    """The states that are stored for the moment, every user's; None where none stands."""
    loader = Memory(shop.connection, shop.config.memory, count_words).loader
    return loader._stored_states([Moment(user, as_of) for user in USERS])


def profiles(shop, as_of, memory=None):
    memory = memory or Memory(shop.connection, shop.config.memory, count_words)
    return [comparable(p) for p in memory.profiles([Moment(u, as_of) for u in USERS], budget=400)]


def end_of(shop):
    return shop.connection.execute("SELECT max(ts) FROM events").fetchone()[0]


@settings(max_examples=8)
@given(
    batches=st.lists(batch, min_size=2, max_size=4),
    later=st.sampled_from([1, 7200, 40000, 90000]),
    whole=st.booleans(),
)
def test_what_grew_with_the_log_equals_what_is_built_at_once(
    batches, later, whole, empty, tmp_path_factory
):
    """Also as a server sees it, which keeps what it has read while events come in."""
    folder = tmp_path_factory.mktemp("grown")
    for name in ("grown", "plain"):
        shutil.copytree(empty, folder / name)
    with (
        Shop.open(folder / "grown", read_only=False) as grown,
        Shop.open(folder / "plain", read_only=False) as plain,
    ):
        MemoryStore(grown.connection, grown.config.memory).build()
        memory = Memory(grown.connection, grown.config.memory, count_words)  # of a server
        for part in batches:
            for shop in (grown, plain):
                append_events(shop, flat(part))
            as_of = end_of(plain) + timedelta(seconds=later)
            assert MemoryStore(grown.connection, grown.config.memory).is_current()
            if whole:
                memory.read_all(as_of)
            assert profiles(grown, as_of, memory) == profiles(plain, as_of)
        MemoryStore(plain.connection, plain.config.memory).build()
        assert stored(grown) == stored(plain)


@pytest.mark.parametrize("later", [timedelta(seconds=1), timedelta(hours=30), timedelta(days=9)])
def test_what_is_stored_says_what_the_log_says_at_any_later_time(later, own_shop, monkeypatch):
    MemoryStore(own_shop.connection, own_shop.config.memory).build()
    as_of = end_of(own_shop) + later
    people = [
        u for (u,) in own_shop.connection.execute("SELECT DISTINCT user_id FROM events").fetchall()
    ]
    loader = Memory(own_shop.connection, own_shop.config.memory, count_words).loader
    computed = loader.compute([Moment(u, as_of) for u in people])
    monkeypatch.setattr(loader_module, "StateBuilder", lambda *_: pytest.fail("computed"))
    loaded = loader.load([Moment(u, as_of) for u in people])
    for actual, expected in zip(loaded, computed, strict=True):
        for name in COLUMNS:
            column = getattr(expected.candidates, name)
            if name in TEXTS:
                assert getattr(actual.candidates, name).tolist() == column.tolist(), name
            else:
                np.testing.assert_allclose(
                    getattr(actual.candidates, name), column, rtol=1e-9, err_msg=name
                )
        for name, value in msgspec.to_builtins(expected.state).items():
            assert msgspec.to_builtins(actual.state)[name] == close_to(value), name


def close_to(value):
    """A nested value that equals others whose numbers differ in their last digits."""
    if isinstance(value, dict):
        return {key: close_to(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [close_to(part) for part in value]
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def test_a_price_of_now_leaves_what_is_stored_and_one_of_then_follows(empty, tmp_path):
    """Also a price that was known only later reaches the bands of what was bought under it."""
    for name in ("grown", "plain"):
        shutil.copytree(empty, tmp_path / name)
    log = [
        event("u0", 60, "search", "thing", None),
        event("u0", 61, "purchase", "thing", "p1"),
        event("u1", 70, "search", "thing", None),
        event("u1", 71, "click", "thing", "p2"),
    ]
    with (
        Shop.open(tmp_path / "grown", read_only=False) as grown,
        Shop.open(tmp_path / "plain", read_only=False) as plain,
    ):
        for shop in (grown, plain):
            append_events(shop, log)
        MemoryStore(grown.connection, grown.config.memory).build()
        as_of = end_of(plain) + timedelta(hours=1)
        for minutes, price in ((61, 1), (500, 99), (None, 3)):
            time = None if minutes is None else DAY + timedelta(minutes=minutes)
            for shop in (grown, plain):
                load_products(
                    shop, tmp_path, [{**PRODUCTS[1], "time": time, "price": price, "stock": 0}]
                )
            assert MemoryStore(grown.connection, grown.config.memory).is_current()
            assert profiles(grown, as_of) == profiles(plain, as_of)
        for shop in (grown, plain):
            load_products(shop, tmp_path, [{**PRODUCTS[1], "time": None, "brand": "new"}])
        assert not MemoryStore(grown.connection, grown.config.memory).is_current()
        assert profiles(grown, as_of) == profiles(plain, as_of)


def test_late_events_of_an_earlier_day_are_known_to_all(empty, tmp_path):
    for name in ("grown", "plain"):
        shutil.copytree(empty, tmp_path / name)
    with (
        Shop.open(tmp_path / "grown", read_only=False) as grown,
        Shop.open(tmp_path / "plain", read_only=False) as plain,
    ):
        first = [
            event("u0", 2000, "search", "thing", None),
            event("u0", 2001, "click", "thing", "p1"),
        ]
        late = [
            event(u, m, "search", q, None) for u, m, q in (("u1", 10, "thing"), ("u1", 60, "zork"))
        ]
        late += [event("u1", 11, "click", "thing", "p1"), event("u1", 61, "click", "zork", "p2")]
        for shop in (grown, plain):
            append_events(shop, first)
        MemoryStore(grown.connection, grown.config.memory).build()
        for shop in (grown, plain):
            append_events(shop, late)
        as_of = end_of(plain) + timedelta(hours=1)
        assert profiles(grown, as_of) == profiles(plain, as_of)
        assert None not in read(grown, as_of)  # a state hangs on nobody else


def test_a_server_over_midnight_reads_each_day_once(own_shop, monkeypatch):
    """Stored states stand on any day; what the shop knew is read when the day begins."""
    MemoryStore(own_shop.connection, own_shop.config.memory).build()
    memory = Memory(own_shop.connection, own_shop.config.memory, count_words)
    people = [Moment(user, end_of(own_shop) + timedelta(seconds=1)) for user in ("u00", "u01", "x")]
    for days in range(6):
        moments = [Moment(m.user_id, m.as_of + timedelta(days=days)) for m in people]
        fresh = Memory(own_shop.connection, own_shop.config.memory, count_words)
        expected = fresh.profiles(moments)
        memory.read_all(moments[0].as_of)
        with monkeypatch.context() as nothing_more:
            statistics = memory.loader.statistics
            nothing_more.setattr(statistics, "_read", lambda *_: pytest.fail("read again"))
            nothing_more.setattr(loader_module, "StateBuilder", lambda *_: pytest.fail("computed"))
            assert memory.profiles(moments) == expected
    assert sum(day.whole for day in memory.loader.statistics._days.values()) <= 3


def test_settings_that_change_no_stored_row_leave_the_fingerprint_as_it_is():
    """Hours in which a user is new count only where trends count users."""

    def of(**changes):
        return store_module.fingerprint(MemoryConfig(**changes))

    assert of(trends_by="searches", new_user_hours=1) == of(trends_by="searches", new_user_hours=9)
    assert of(trends_by="users", new_user_hours=1) != of(trends_by="users", new_user_hours=9)
    assert of(budget=100) == of(budget=900)
    assert of(half_life_days=3) != of(half_life_days=9)


def test_who_changes_what_stored_rows_mean_raises_the_format():
    """A shop's stored transitions are of these numbers: with others, `MEMORY_FORMAT` is another."""
    meaning = (transitions.MAX_STEPS, transitions.MAX_RETRIES, transitions.WITHIN_DAYS)
    assert (store_module.MEMORY_FORMAT, *meaning) == (6, 3, 12, 45)
