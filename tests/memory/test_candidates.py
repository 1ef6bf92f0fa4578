import math
from datetime import datetime, timedelta

import numpy as np
import pytest
from candidate_rows import OWN, TREND, rows

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.candidates import COLUMNS, TEXTS, Candidates
from qagent_mlx.memory.loader import MemoryLoader
from qagent_mlx.memory.shop_tables import query_wording
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 12)


def test_nothing_is_known_of_unknown_candidates():
    table = Candidates.unknown(2)
    assert len(table) == 2
    for name in COLUMNS:
        column = getattr(table, name).tolist()
        assert column == [None, None] if name in TEXTS else all(map(math.isnan, column)), name


def test_candidates_are_selected_and_joined_by_row():
    a, b = rows(OWN, TREND), rows({"age": 7.0})
    whole = Candidates.concatenate([a, b])
    assert whole.age.tolist()[::2] == [5.0, 7.0] and len(whole) == 3
    assert whole[1:].age.tolist()[1:] == [7.0]
    assert whole[np.array([True, False, True])].age.tolist() == [5.0, 7.0]
    assert len(Candidates.concatenate([])) == 0


def test_a_query_is_known_by_how_often_people_come_back_to_it(tmp_path):
    shop = Shop.create(tmp_path / "shop")
    shop.connection.execute(
        "INSERT INTO products SELECT 'p' || i, 'thing', NULL, NULL, 1, true, "
        "NULL, 1 FROM range(12) t(i)"
    )
    plan = {
        "a": ["milk", "milk", "milk", "tea"],  # came back twice of three times
        "b": ["tea", "milk", "tea"],
        "c": ["tea"],  # not followed by anything yet
    }
    made = []
    for user, queries in plan.items():
        for day, query in enumerate(queries):
            row = {"user_id": user, "time": START + timedelta(days=day), "query": query}
            made += [{**row, "type": "search"}, {**row, "type": "click", "product_id": f"p{day}"}]
    # Of twelve products under one query, each taken once, ten count.
    made += [
        {
            "user_id": "d",
            "time": START + timedelta(minutes=i),
            "query": "much",
            "type": kind,
            **more,
        }
        for i in range(12)
        for kind, more in (("search", {}), ("click", {"product_id": f"p{i}"}))
    ]
    with shop:
        append_events(shop, made)
        loader = MemoryLoader(shop.connection, shop.config.memory)

        def at(day):
            (found,) = loader.compute([Moment("a", START + timedelta(days=day))])
            c = found.candidates
            return {
                query: rates
                for query, *rates in zip(c.query, c.coverage, c.return_rate, strict=True)
            }

        soon, before, later = at(1), at(2), at(5)
    assert later["milk"] == pytest.approx(((4 + 1) / (4 + 1.5), (2 + 0.2) / (4 + 2)))
    assert later["tea"] == pytest.approx(((4 + 1) / (4 + 1.5), (0 + 0.2) / (1 + 2)))
    assert soon["much"] == pytest.approx(((10 + 1) / (12 + 1.5), 0.2 / 2))
    # At the start of day 2: one step from milk to milk, one from tea to milk.
    assert before["milk"][1] == pytest.approx((1 + 0.2) / (1 + 2))
    assert before["tea"][1] == pytest.approx((0 + 0.2) / (1 + 2))


def test_what_is_needed_hangs_on_what_was_taken_and_when(tmp_path):
    """Who buys a kettle wants tea some ten days later; who only looks at one buys it the next day."""
    shop = Shop.create(tmp_path / "shop")
    for product in ("kettle", "tea", "cup"):
        shop.connection.execute(
            "INSERT INTO products VALUES (?, ?, NULL, ?, 1, true, NULL, 1)",
            [product, product, f"home > {product}"],
        )
    asked = [  # day, user, query, outcome
        (0, "a", "kettle", "purchase"),
        (8, "a", "tea", "click"),
        (1, "b", "kettle", "purchase"),
        (13.5, "b", "tea", "click"),
        (2, "c", "kettle", "click"),
        (3, "c", "a kettle", "purchase"),
        (4, "d", "kettle", "purchase"),
        (5, "d", "cup", "click"),
        (20, "e", "kettle", "purchase"),
        (20, "f", "kettle", "click"),
        (31, "d", "kettle", "click"),  # too late for anybody to have known it
    ]
    made = []
    for day, user, query, outcome in asked:
        row = {"user_id": user, "time": START + timedelta(days=day), "query": query}
        made += [
            {**row, "type": "search"},
            {**row, "type": outcome, "product_id": query.split()[-1]},
        ]
    with shop:
        append_events(shop, made)
        loader = MemoryLoader(shop.connection, shop.config.memory)

        def at(user, day):
            (found,) = loader.compute([Moment(user, START + timedelta(days=day))])
            c = found.candidates
            return {
                leaf: row
                for leaf, *row in zip(c.leaf, c.need, c.need_pace, c.need_bought, strict=True)
            }

        bought, liked, soon = at("e", 30), at("f", 21), at("e", 20.5)
    # Two of three came back for tea, after 8 and 12.5 days; the third for a cup after one.
    pace = (math.log(8) + math.log(12.5)) / 2
    spread = math.sqrt((2 * ((math.log(12.5) - math.log(8)) / 2) ** 2 + 2 * 0.6**2) / 4)
    off = (math.log(10) - pace) / spread
    assert bought["tea"] == pytest.approx(
        [2 / 6 * math.exp(-0.5 * off**2) / spread, off, 1], abs=1e-8
    )
    assert soon["tea"][0] < bought["tea"][0] / 50 and soon["tea"][1] < -4
    off = math.log(10) / math.sqrt(2 * 0.6**2 / 3)
    assert bought["cup"][1] == pytest.approx(off, abs=1e-8)
    assert liked["kettle"] == pytest.approx([1 / 4 / math.sqrt(2 * 0.6**2 / 3), 0, 0], abs=1e-6)
    assert np.isnan(liked["tea"][0])


def test_a_query_is_known_by_the_words_that_the_user_searched_before(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        asked = [
            (0, "a", "red gel pen"),
            (1, "a", "desk lamp"),
            (2, "b", "blue gel pen"),
            (2, "b", "lamp"),
            (2, "b", "stapler"),
        ]
        append_events(
            shop,
            [
                {
                    "user_id": user,
                    "time": START + timedelta(days=day),
                    "type": "search",
                    "query": query,
                }
                for day, user, query in asked
            ],
        )
        loader = MemoryLoader(shop.connection, shop.config.memory)
        found = loader.compute([Moment("a", START + timedelta(days=4))])[0].candidates
    echo = dict(zip(found.query, zip(found.echo_last, found.echo_most, strict=True), strict=True))
    assert echo["lamp"] == (1 / 2, 1 / 2)
    assert echo["blue gel pen"] == (0, 2 / 4)
    assert echo["stapler"] == (0, 0)
    assert echo["desk lamp"] == (0, 0)  # not because of itself


def test_scripts_without_spaces_share_words_and_name_brands(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        shop.connection.execute(
            "INSERT INTO products VALUES ('p', '阿迪达斯 跑鞋', '阿迪达斯', NULL, 1, true, NULL, 1)"
        )
        append_events(
            shop,
            [
                {
                    "user_id": user,
                    "time": START + timedelta(days=day),
                    "type": "search",
                    "query": query,
                }
                for day, user, query in (
                    (1, "a", "跑鞋"),
                    (2, "b", "阿迪达斯跑鞋"),
                    (2, "b", "雨伞"),
                )
            ],
        )
        loader = MemoryLoader(shop.connection, shop.config.memory)
        found = loader.compute([Moment("a", START + timedelta(days=4))])[0].candidates
    at = {query: i for i, query in enumerate(found.query)}
    assert found.echo_last[at["阿迪达斯跑鞋"]] == pytest.approx(2 / 6)
    assert found.echo_last[at["雨伞"]] == 0
    assert found.kind[[at["阿迪达斯跑鞋"], at["雨伞"]]].tolist() == ["brand", "plain"]


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("tent", ("plain", None)),
        ("acme", ("brand", "Acme")),
        ("red tent acme", ("brand", "Acme")),
        ("acme outdoor tent", ("brand", "Acme Outdoor")),  # the longest name
        ("tent of acme outdoor", ("brand", "Acme Outdoor")),
        ("tent red", ("attribute", "red")),
        ("red acme", ("brand", "Acme")),  # a brand before an attribute
    ],
)
def test_a_query_names_a_brand_or_an_attribute_wherever_it_stands(text, wording):
    names = {"brand": ("Acme", "Acme Outdoor"), "attribute": ("red",)}
    modifiers = {
        tuple(name.lower().split()): (kind, name) for kind, these in names.items() for name in these
    }
    assert query_wording(text, modifiers) == wording
