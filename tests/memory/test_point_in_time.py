"""Invariant 8: nothing at or after a moment changes what is known at that moment.

Each test looks at a shop, adds what comes at the moment or later, and looks again.
"""

import csv
import random
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from open_memory import OPEN_MEMORY, OPEN_SHOP

from qagent_mlx.ingest.ingest import append_events, ingest_files
from qagent_mlx.inventory.catalog import read_catalog
from qagent_mlx.inventory.click_log import ClickLog, read_clicks
from qagent_mlx.memory import shop_tables
from qagent_mlx.memory.profile import Memory, count_words, raw_history
from qagent_mlx.memory.ranker import fit_ranker
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.text import query_key

DAY = datetime(2026, 1, 10)
QUERIES = ("red thing", "thing x", "Acme thing", "blue y", "zork", "thing")
USERS = ("u0", "u1", "u2", "u3", "nobody")


def products(shop, folder, rows):
    path = folder / f"products{shop.catalog_version}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert ingest_files(shop, "products", [path]).rejected == 0


def events(shop, rows):
    assert append_events(shop, rows).rejected == 0


def known(shop, as_of, swing=0.0):
    """All that anything may know at a moment."""
    memory = Memory(shop.connection, replace(shop.config.memory, swing=swing), count_words)
    moments = [Moment(user, as_of) for user in USERS]
    profiles = [
        (
            p.text,
            p.references,
            p.tokens,
            p.context,
            [(x.section, x.text, round(x.score, 9), x.reason) for x in p.lines],
        )
        for p in memory.profiles(moments, budget=400)
    ]
    catalog = read_catalog(shop)
    clicks = ClickLog(
        read_clicks(shop.connection), catalog.row_of, shop.config.search.click_half_life_days
    )
    rankings = [clicks.ranking(query_key(q), as_of) for q in QUERIES]
    just_before = as_of - timedelta(microseconds=1)
    worth = fit_ranker(
        shop,
        as_of,
        lambda queries, moments: [
            [catalog.ids[row] for row in clicks.ranking(query_key(query), moment).rows]
            for query, moment in zip(queries, moments, strict=True)
        ],
    )
    return {
        "profiles": profiles,
        "history": [raw_history(shop.connection, moment) for moment in moments],
        "trends": memory.loader.statistics.trends([as_of]),
        "states": [repr(catalog.state_at(row, just_before)) for row in range(len(catalog))],
        "clicks": [(r.rows.tolist(), np.round(r.scores, 9).tolist()) for r in rankings],
        "worth": [
            (w.until, w.moments, np.round(w.values, 6).tolist(), round(w.outside, 6))
            for w in worth.steps
            if w.until <= as_of
        ],
    }


# ---------------------------------------------------------------- random logs


def catalog_of(r):
    """Eight products, and changes of their prices and stock, some from before the log."""
    start = [
        {
            "product_id": f"p{i}",
            "title": f"thing {i}",
            "brand": r.choice(["acme", "zork", None]),
            "category": r.choice(["A > x", "A > y", "B > z"]),
            "price": r.choice([None, 5, 10, 20, 40]),
            "stock": r.choice([0, 1]),
            "attributes": r.choice([None, '{"colour": "red"}', '{"colour": "blue"}']),
            "time": r.choice([None, DAY - timedelta(days=5)]),
        }
        for i in range(8)
    ]
    changes = [
        {
            **r.choice(start),
            "price": r.choice([None, 5, 10, 20, 40, 80]),
            "stock": r.choice([0, 1]),
            "time": DAY + timedelta(hours=r.randrange(96)),
        }
        for _ in range(12)
    ]
    return start, changes


def log_of(r):
    """Sessions of four users on four days; many go on beyond midnight."""
    spell = (str, str.upper, str.title, lambda text: text.replace(" ", "-"))
    made = []
    for user in USERS[:4]:
        for _ in range(r.randrange(1, 5)):
            minute = r.choice([0, 10, 15, 600, 23 * 60 + 40, 23 * 60 + 50])
            clock, last = DAY + timedelta(days=r.randrange(4), minutes=minute), None
            for _ in range(r.randrange(1, 9)):
                query = r.choice(spell)(r.choice(QUERIES))
                row = {"user_id": user, "time": clock, "type": "search", "query": query}
                if last and r.random() > 0.45:
                    row["type"] = r.choice(["click", "click", "cart", "purchase", "view"])
                    row["query"] = r.choice([None, last, query])
                    row["product_id"] = f"p{r.randrange(8)}"
                else:
                    last = query
                made.append(row)
                clock += timedelta(minutes=r.choice([0, 1, 5, 10, 29, 30]))
    return sorted(made, key=lambda row: row["time"])


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty") / "shop"
    Shop.create(folder, OPEN_SHOP).close()
    return folder


@pytest.mark.parametrize("seed", range(8))
def test_nothing_at_or_after_a_moment_is_seen(seed, empty, tmp_path):
    r = random.Random(seed)
    (start, changes), log = catalog_of(r), log_of(r)
    as_of = r.choice(
        [
            r.choice(log)["time"],
            DAY + timedelta(days=r.randrange(1, 4)),
            DAY + timedelta(hours=r.randrange(24, 96)),
        ]
    )
    past = [row for row in log if row["time"] < as_of]
    later = [row for row in log if row["time"] >= as_of]
    later += [{**row, "time": as_of} for row in r.sample(log, 4)]  # at the very moment
    found = []
    for name, order in (("late", (past, later)), ("early", (later, past))):
        shutil.copytree(empty, tmp_path / name)
        with Shop.open(tmp_path / name, read_only=False) as shop:
            products(shop, tmp_path, start)
            products(shop, tmp_path, [*start, *(c for c in changes if c["time"] < as_of)])
            events(shop, order[0])
            if name == "late":
                found.append((known(shop, as_of), known(shop, as_of, swing=1.0)))
            products(shop, tmp_path, [c for c in changes if c["time"] >= as_of] or start)
            events(shop, order[1])
            found.append((known(shop, as_of), known(shop, as_of, swing=1.0)))
        # The log may also come in the wrong order.
    for before, after, mixed in zip(*found, strict=True):
        for what, value in before.items():
            assert after[what] == value, what
            assert mixed[what] == value, what


def test_two_users_vouch_for_a_step_and_more_so_the_less_they_share(empty, tmp_path):
    shutil.copytree(empty, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        products(shop, tmp_path, STOCK)
        rows = []
        for user, queries in (
            ("a", ("thing", "zork")),
            ("b", ("thing", "zork")),
            ("c", ("red", "blue", "green")),
            ("d", ("red", "blue", "green")),
        ):
            for i, query in enumerate(queries):
                start = 100 * i - 9000
                rows += [
                    event(start, user, "search", query),
                    event(start + 1, user, "click", query, "mat"),
                ]
        events(shop, rows)
        shop_tables.create_shop_tables(
            shop.connection, "TEMP TABLE", replace(OPEN_MEMORY, swing=1.0)
        )
        found = dict(
            shop.connection.execute(
                "SELECT source || '>' || query_key, sum(vouched) FROM swing GROUP BY 1"
            ).fetchall()
        )
    assert found["q:thing>zork"] > found["q:blue>green"] > 0
    assert "q:zork>thing" not in found


def test_what_comes_just_before_the_moment_is_seen(empty, tmp_path):
    """The looks of the other tests are not blind."""
    r = random.Random(1)
    (start, changes), log = catalog_of(r), log_of(r)
    as_of = DAY + timedelta(days=3)
    shutil.copytree(empty, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        products(shop, tmp_path, start)
        events(shop, [row for row in log if row["time"] < as_of - timedelta(days=1)])
        before = known(shop, as_of)
        just = as_of - timedelta(microseconds=1)
        products(
            shop,
            tmp_path,
            [{**c, "time": just} for c in {c["product_id"]: c for c in changes}.values()],
        )
        events(shop, [row for row in log if row["time"] < as_of])
        events(
            shop,
            [
                {
                    "user_id": user,
                    "time": just - timedelta(hours=1, seconds=i),
                    "type": kind,
                    "query": "Zork",
                    "product_id": "p1",
                }
                for user in USERS[:4]
                for i, kind in ((2, "search"), (1, "click"))
            ],
        )
        after = known(shop, as_of)
    assert [what for what in before if before[what] == after[what]] == []


# ---------------------------------------------------------------- sessions beyond midnight


def event(minutes, user, kind, query=None, product=None):
    """An event some minutes from midnight."""
    return {
        "user_id": user,
        "time": DAY + timedelta(minutes=minutes),
        "type": kind,
        "query": query,
        "product_id": product,
    }


STOCK = [
    {"product_id": "tent", "title": "Tent", "category": "Camping > Tent", "price": 100},
    {"product_id": "stove", "title": "Stove", "category": "Camping > Stove", "price": None},
    {"product_id": "mat", "title": "Mat", "category": "Camping > Tent", "price": 10},
]
LOG = [
    event(-3000, "u0", "search", "thing"),
    event(-2999, "u0", "click", "thing", "tent"),
    event(-3000, "u1", "search", "thing"),
    event(-2999, "u1", "purchase", "thing", "tent"),
    event(-40, "u0", "search", "zork"),
    event(-20, "u0", "search", "blue y"),
    event(-19, "u0", "click", "blue y", "tent"),
    event(-10, "u1", "search", "zork"),
]


@pytest.mark.parametrize(
    "later",
    [
        event(0, "u0", "click", "zork", "mat"),
        event(0, "u0", "purchase", "blue y", "stove"),
        event(5, "u0", "purchase", "thing", "stove"),
        event(0, "u1", "search", "ZORK"),
        event(0, "u1", "purchase", "zork", "stove"),
        event(0, "nobody", "view", None, "mat"),
    ],
    ids=lambda e: f"{e['user_id']}-{e['type']}-{e['query']}",
)
def test_how_a_session_goes_on_changes_nothing_before(later, empty, tmp_path):
    shutil.copytree(empty, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        products(shop, tmp_path, STOCK)
        events(shop, LOG)
        before = known(shop, DAY)
        events(shop, [later])
        after = known(shop, DAY)
        assert before == after
        assert "blue y" in before["profiles"][1][1]  # what worked for the one who had failed


@pytest.mark.parametrize("price", [None, 1, 500])
@pytest.mark.parametrize("first", [None, DAY - timedelta(days=9)])
def test_a_later_price_changes_nothing_before(price, first, empty, tmp_path):
    shutil.copytree(empty, tmp_path / "shop")
    with Shop.open(tmp_path / "shop", read_only=False) as shop:
        products(shop, tmp_path, [{**row, "time": first} for row in STOCK])
        events(shop, [*LOG, event(-5, "u1", "click", "zork", "stove")])
        before = known(shop, DAY)
        products(
            shop, tmp_path, [{**row, "price": price, "stock": 0, "time": DAY} for row in STOCK]
        )
        assert known(shop, DAY) == before
        products(shop, tmp_path, [{**row, "price": 7, "time": None} for row in STOCK])
        assert known(shop, DAY) == before
