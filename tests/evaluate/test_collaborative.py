"""Baselines on the small shop, where people choose products too."""

from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pytest

from qagent_mlx.environment.environment import Example
from qagent_mlx.evaluate.baselines.collaborative import ALPHA, Swing
from qagent_mlx.evaluate.baselines.registry import BASELINES, BaselineData
from qagent_mlx.evaluate.baselines.sasrec import SasRec, SasRecConfig
from qagent_mlx.evaluate.baselines.search_log import EngagementLog, SearchLog
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.types import Case, Profile
from qagent_mlx.utils.text import query_key

NEW = ("category-popular", "markov", "item-cf", "swing", "bm25", "dense", "sasrec")
MOMENT = datetime(2026, 3, 20, 12)
SMALL = SasRecConfig(width=16, blocks=1, heads=1, epochs=3)


def example(user, as_of=MOMENT):
    case = Case(0, user, as_of, "x", "x", (), 1, "test")
    return Example(case, Profile(user, as_of, "", (), ()))


def made(name, shop):
    if name == "sasrec":
        return SasRec(SearchLog.of_shop(shop), SMALL)
    return BASELINES[name](BaselineData(shop))


def answers(name, shop, examples, k=5):
    return [r.queries for r in made(name, shop).rank(examples, k)]


@pytest.fixture
def examples():
    return [
        *(example(f"u{i:02}") for i in range(0, 30, 2)),
        example("nobody"),
        example("u03", MOMENT - timedelta(days=8)),
        example("u03", MOMENT - timedelta(days=90)),
    ]


@pytest.mark.parametrize("name", NEW)
def test_nothing_at_or_after_the_moment_changes_an_answer(own_shop, examples, name):
    before = answers(name, own_shop, examples)
    later = []
    for i in range(30):
        for hours in (0, 1, 30, 31):
            time = MOMENT + timedelta(hours=hours)
            query = f"acme later {i % 3}" if hours % 2 else "usb cable"
            row = {"user_id": f"u{i:02}", "time": time, "query": query}
            later.append({**row, "type": "search"})
            product = f"p{i % 5}{hours % 4}1"
            later.append(
                {
                    **row,
                    "time": time + timedelta(seconds=1),
                    "type": "purchase",
                    "product_id": product,
                }
            )
    assert append_events(own_shop, later).rejected == 0
    assert answers(name, own_shop, examples) == before


@pytest.mark.parametrize("name", NEW)
def test_what_came_just_before_the_moment_counts(own_shop, examples, name):
    before = answers(name, own_shop, examples)
    rows = []
    for i in range(30):
        for step in range(6):
            time = MOMENT - timedelta(minutes=200 - 30 * step - i % 7)
            query = ("dune desk lamp lamp", "castor coffee beans roast")[step % 2]
            row = {"user_id": f"u{i:02}", "time": time, "query": query}
            rows.append({**row, "type": "search"})
            rows.append(
                {
                    **row,
                    "time": time + timedelta(seconds=1),
                    "type": "purchase",
                    "product_id": ("p431", "p221")[step % 2],
                }
            )
    append_events(own_shop, rows)
    assert answers(name, own_shop, examples) != before


@pytest.mark.parametrize("name", NEW)
def test_answers_keep_the_order_asked_and_do_not_repeat(tiny_shop, examples, name):
    found = answers(name, tiny_shop, examples)
    assert answers(name, tiny_shop, examples[::-1]) == found[::-1]
    for queries in found[:-1]:
        keys = [query_key(q) for q in queries]
        assert len(keys) == len(set(keys)) == 5
    assert found[-1] == ()  # before the log


def test_a_stranger_gets_what_is_popular(tiny_shop):
    popular = answers("popular", tiny_shop, [example("nobody")])
    for name in NEW:
        assert answers(name, tiny_shop, [example("nobody")]) == popular, name


def test_markov_follows_the_last_query(own_shop):
    rows = []
    for i in range(9):
        for step, query in enumerate(("zebra one", "zebra two")):
            time = MOMENT - timedelta(hours=30 - step - i / 10)
            rows.append({"user_id": f"z{i}", "time": time, "type": "search", "query": query})
    rows.append(
        {
            "user_id": "me",
            "time": MOMENT - timedelta(hours=1),
            "type": "search",
            "query": "Zebra One",
        }
    )
    append_events(own_shop, rows)
    assert answers("markov", own_shop, [example("me")])[0][0] == "zebra two"


def test_the_top_category_is_the_one_with_most_weight(own_shop):
    rows = [
        {
            "user_id": "me",
            "time": MOMENT - timedelta(hours=3),
            "type": "click",
            "product_id": "p000",
        },
        {
            "user_id": "me",
            "time": MOMENT - timedelta(hours=2),
            "type": "purchase",
            "product_id": "p400",
        },
    ]
    append_events(own_shop, rows)
    top = answers("category-popular", own_shop, [example("me")])[0]
    assert "desk lamp" in top[0].lower()


def test_products_bought_together_lead_to_each_others_queries(own_shop):
    """Lamps (p4..) and shoes (p3..) by the same new users; one more user has only the lamp."""
    rows = []
    for i in range(8):
        for step, (query, product) in enumerate((("lamp zz", "p401"), ("shoe zz", "p301"))):
            time = MOMENT - timedelta(days=3, hours=30 - step - i / 10)
            row = {"user_id": f"z{i}", "time": time, "query": query, "product_id": product}
            rows += [
                {**row, "type": "search", "product_id": None},
                {**row, "time": time + timedelta(seconds=1), "type": "click"},
            ]
    rows.append(
        {
            "user_id": "me",
            "time": MOMENT - timedelta(hours=1),
            "type": "click",
            "product_id": "p401",
        }
    )
    append_events(own_shop, rows)
    for name in ("item-cf", "swing"):
        assert answers(name, own_shop, [example("me")])[0][0] == "shoe zz", name


def test_swing_equals_its_formula(tiny_shop):
    log = SearchLog.of_shop(tiny_shop)
    engaged = EngagementLog.of_shop(tiny_shop, log)
    swing = Swing(log, engaged)
    swing.rank([example("u03", datetime(2026, 5, 1))], 5)
    baskets = {}
    for user, product in zip(engaged.users, engaged.products.tolist(), strict=True):
        baskets.setdefault(user, set()).add(product)
    product = Counter(p for b in baskets.values() if len(b) > 1 for p in b).most_common(1)[0][0]
    expected = {}
    users = sorted(u for u, b in baskets.items() if product in b)
    for i, u in enumerate(users):
        for v in users[i + 1 :]:
            common = baskets[u] & baskets[v]
            weight = 1 / np.sqrt(len(baskets[u]) * len(baskets[v])) / (ALPHA + len(common))
            for other in common - {product}:
                expected[other] = expected.get(other, 0) + weight
    assert dict(swing._similar(product)) == pytest.approx(expected)


def test_text_baselines_find_queries_like_the_history(own_shop):
    rows = [
        {"user_id": "a", "time": MOMENT - timedelta(days=2), "type": "search", "query": q}
        for q in ("quartz kettle blue", "walnut shelf")
    ] + [
        {
            "user_id": "me",
            "time": MOMENT - timedelta(hours=1),
            "type": "search",
            "query": "quartz kettle",
        }
    ]
    append_events(own_shop, rows)
    found = answers("bm25", own_shop, [example("me")])[0]
    assert set(found[:2]) == {"quartz kettle", "quartz kettle blue"}
    assert "walnut shelf" not in found[:2]
    for queries in (answers("dense", own_shop, [example("me")])[0],):
        assert "quartz kettle" in queries


def test_sasrec_learns_a_fixed_order(own_shop):
    rows = []
    for i in range(60):
        for step in range(5):
            time = MOMENT - timedelta(days=15, hours=-step * 5, minutes=i)
            query = f"chain {'abcdef'[(i + step) % 6]}"
            rows.append({"user_id": f"s{i}", "time": time, "type": "search", "query": query})
    append_events(own_shop, rows)
    people = [example(f"s{i}") for i in range(60)]
    system = SasRec(SearchLog.of_shop(own_shop), SasRecConfig(width=32, epochs=16, batch=16))
    found = [r.queries[0] for r in system.rank(people, 5)]
    wanted = [f"chain {'abcdef'[(i + 5) % 6]}" for i in range(60)]
    assert np.mean([a == b for a, b in zip(found, wanted, strict=True)]) > 0.8
    assert [r.queries[0] for r in system.rank(people, 5)] == found
