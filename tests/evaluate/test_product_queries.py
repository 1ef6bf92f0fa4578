"""Baselines that write queries from products, and what is left of the others without a log."""

from collections import defaultdict
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from qagent_mlx.environment.config import SplitConfig
from qagent_mlx.environment.environment import Environment
from qagent_mlx.environment.scenarios import open_scenario
from qagent_mlx.errors import QAgentError
from qagent_mlx.evaluate.baselines.product_log import ProductLog, kind_queries
from qagent_mlx.evaluate.baselines.product_queries import (
    HALF_LIFE,
    BrandCategory,
    Category,
    LastViewed,
    NextCategory,
    NextProduct,
)
from qagent_mlx.evaluate.baselines.registry import (
    BASELINES,
    OF_PRODUCTS,
    OF_QUERIES,
    BaselineData,
    open_baseline,
    untrained,
)
from qagent_mlx.evaluate.config import EvaluationConfig
from qagent_mlx.evaluate.suite import evaluation_suite
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.utils.text import query_key

WEIGHTS = {"view": 0.3, "click": 1.0, "cart": 2.0, "purchase": 4.0}
SPLIT = SplitConfig(test_share=0.3, validation_share=0.1)


@pytest.fixture(scope="module")
def examples(tiny_shop, nano_policy):
    environment = Environment.of_shop(tiny_shop, nano_policy.codec, split=SPLIT)
    return environment.examples[::-1]  # not in order of time


def engaged(shop, example):
    """(product, type, age in days, session) of the user's events with products, latest first."""
    case = example.case
    rows = shop.connection.execute(
        """SELECT product_id, type::VARCHAR, ts, session_id FROM events
        WHERE user_id = ? AND ts < ? AND type <> 'search' ORDER BY ts DESC, event_id DESC""",
        [case.user_id, case.as_of],
    ).fetchall()
    return [(p, t, (case.as_of - ts) / timedelta(days=1), s) for p, t, ts, s in rows]


@pytest.fixture(scope="module")
def facts(tiny_shop):
    rows = tiny_shop.connection.execute("SELECT product_id, brand, category FROM products")
    return {p: (b.lower(), c.rpartition("> ")[2].lower()) for p, b, c in rows.fetchall()}


@pytest.mark.parametrize(
    ("system", "name"), [(Category, lambda b, c: c), (BrandCategory, lambda b, c: f"{b} {c}")]
)
def test_a_users_interests_fade_by_half_lives(tiny_shop, examples, facts, system, name):
    rankings = system(ProductLog.of_shop(tiny_shop)).rank(examples, 5)
    several = 0
    for example, ranking in zip(examples, rankings, strict=True):
        interests = defaultdict(float)
        for product, kind, age, _ in engaged(tiny_shop, example):
            interests[name(*facts[product])] += WEIGHTS[kind] * 2 ** (-age / HALF_LIFE)
        expected = sorted(interests, key=lambda q: (-round(interests[q], 9), q))[:5]
        assert list(ranking.queries[: len(expected)]) == expected
        several += len(expected) > 1
    assert several > 10


def test_the_last_products_come_first(tiny_shop, examples, facts):
    for example, ranking in zip(
        examples, LastViewed(ProductLog.of_shop(tiny_shop)).rank(examples, 5), strict=True
    ):
        seen = engaged(tiny_shop, example)
        names = list(dict.fromkeys(" ".join(facts[product]) for product, *_ in seen))[:5]
        assert list(ranking.queries[: len(names)]) == names


@pytest.mark.parametrize("system", [NextProduct, NextCategory])
def test_what_follows_is_learned_from_everybodys_later_sessions(own_shop, examples, system):
    own_shop.connection.execute("DELETE FROM events")
    rows = []
    for u in range(12):  # who took a cable comes back for a lamp of Dune
        for minute, product in ((0, "p000"), (3000, "p431")):
            time = examples[0].case.as_of - timedelta(days=20) + timedelta(minutes=minute + u)
            rows.append({"user_id": f"n{u}", "time": time, "type": "view", "product_id": product})
    me = replace(examples[0].case, user_id="me")
    rows.append({**rows[0], "user_id": "me", "time": me.as_of - timedelta(hours=2)})
    append_events(own_shop, rows)
    example = replace(examples[0], case=me)
    (ranking,) = system(ProductLog.of_shop(own_shop)).rank([example], 3)
    lamp = "dune lamps" if system is NextProduct else "lamps"
    assert ranking.queries[0] == lamp
    stranger = replace(example, case=replace(me, user_id="stranger"))
    (ranking,) = system(ProductLog.of_shop(own_shop)).rank([stranger], 3)
    assert set(ranking.queries) == {"lamps", "cables"}  # what all go for


@pytest.mark.parametrize("name", OF_PRODUCTS)
def test_what_comes_later_changes_no_answer(own_shop, examples, name):
    """Invariant 8."""
    before = OF_PRODUCTS[name](BaselineData(own_shop)).rank(examples, 5)
    case = sorted((e.case for e in examples), key=lambda c: c.as_of)[len(examples) // 2]
    users = {e.case.user_id for e in examples}
    rows = [
        {"user_id": user, "time": case.as_of, "type": "purchase", "product_id": "p331"}
        for user in users
    ]
    append_events(own_shop, rows)
    after = OF_PRODUCTS[name](BaselineData(own_shop)).rank(examples, 5)
    changed = [
        e.case for e, a, b in zip(examples, before, after, strict=True) if a.queries != b.queries
    ]
    assert changed and min(c.as_of for c in changed) > case.as_of


@pytest.mark.parametrize("name", OF_PRODUCTS)
def test_rows_are_full_distinct_and_the_same_in_any_order(tiny_shop, examples, name):
    system = BASELINES[name](BaselineData(tiny_shop))
    rankings = system.rank(examples, 5)
    assert [r.queries for r in system.rank(examples[::-1], 5)] == [
        r.queries for r in rankings[::-1]
    ]
    for ranking in rankings:
        keys = [query_key(q) for q in ranking.queries]
        assert len(set(keys)) == len(keys) == 5 and "" not in keys
    assert all(len(r.queries) == 2 for r in system.rank(examples, 2))
    assert system.name == name


def test_kinds_are_worded_as_a_shopper_would():
    catalog = {
        "a": ["Elmora EB12 1kg Coffee Beans, dark", "Elmora", "Kitchen > Coffee Beans"],
        "b": ["Elmora EB99 Coffee Mill", "Elmora", None],
        "c": ["Brio Coffee Mill, large", "Brio", "!"],
    }
    kinds = kind_queries(catalog)
    assert kinds == {"a": "coffee beans", "b": "coffee mill", "c": "coffee mill"}
    names = {
        "d": ["Gears of War 3: Game of the Year Edition", None, None],
        "e": ["(?)", None, None],
    }
    assert kind_queries(names) == {"d": "gears of war 3", "e": "(?)"}


def test_a_brand_is_not_said_twice(own_shop):
    own_shop.connection.execute(
        "UPDATE products SET brand = 'Cables', category = 'x > Cables' WHERE product_id = 'p000'"
    )
    log = ProductLog.of_shop(own_shop)
    assert {"cables", "acme cables"} <= set(log.names)
    assert "cables cables" not in log.names


def test_a_shop_without_a_query_log_has_the_baselines_that_need_none(own_shop):
    config = EvaluationConfig(with_baselines=True, limit=10)
    split = replace(SPLIT, scenario="no_query_log")
    suite = evaluation_suite(own_shop, [], config, split)
    assert [s.name for s in suite.systems] == [
        *OF_PRODUCTS,
        "top-line",
        "in-stock",
        "mixed",
        "brand-lines",
    ]
    report = suite.evaluate()
    assert report.scenario == "no_query_log" and report.answers.candidates.mean == 0
    assert report.answers.typed.mean == 0  # nobody knows of any
    assert report.system("category").metrics["row_hit@10"].mean > 0.2
    # Memory's lines are kinds of products, too, and those of a brand.
    assert 0 < report.system("brand-category").metrics["own_words"].mean < 0.5
    with pytest.raises(QAgentError, match="baseline markov names queries of the log.*category"):
        evaluation_suite(own_shop, [], replace(config, baselines=("markov",)), split)


def test_a_shop_that_never_had_one_is_judged_by_what_was_engaged_with(own_shop):
    own_shop.connection.execute("DELETE FROM events WHERE type = 'search'")
    own_shop.connection.execute("UPDATE events SET query = NULL, query_key = NULL")
    config = EvaluationConfig(baselines=("category", "top-line"), by=("tail", "own", "line"))
    suite = evaluation_suite(own_shop, [], config, replace(SPLIT, scenario="no_query_log"))
    report = suite.evaluate()
    category = report.system("category").metrics
    assert category["row_hit@10"].mean > 0.2 and category["i_hit@10"].mean > 0
    assert category["q_em"].mean == category["cons@1"].mean == 0
    assert report.answers.lines is report.answers.typed is None
    assert {r.slice for r in report.slices} == {"unseen", "new to the user", "no line"}


def test_own_only_leaves_of_every_baseline_what_the_user_typed(own_shop, examples):
    split = replace(SPLIT, scenario="own_only")
    data = BaselineData(open_scenario(own_shop, split).shop)
    assert set(untrained(data)) == set(untrained(BaselineData(own_shop)))
    typed = own_shop.connection.execute(
        "SELECT user_id, ts, query_key FROM events WHERE type = 'search'"
    ).fetchall()
    named = 0
    for name in [n for n in OF_QUERIES if n != "sasrec"]:
        others = 0
        usual = BASELINES[name](data).rank(examples, 5)
        for example, ranking, before in zip(
            examples, open_baseline(name, data).rank(examples, 5), usual, strict=True
        ):
            case = example.case
            own = {k for u, ts, k in typed if u == case.user_id and ts < case.as_of}
            found = [query_key(q) for q in ranking.queries]
            assert set(found) <= own and len(found) == min(5, len(own)), name
            others += not {query_key(q) for q in before.queries} <= own
            kept = [key for q in before.queries if (key := query_key(q)) in own]
            assert found[: len(kept)] == kept
            named += len(found)
        assert others, name
    assert named


def test_lines_that_lead_to_what_is_sold_out_come_behind(simulated_shop, nano_policy):
    agent = AgentConfig(profile_budget=1000)
    environment = Environment.of_shop(simulated_shop, nano_policy.codec, agent, SPLIT)
    data, examples = BaselineData(simulated_shop, environment), environment.of_split("test")
    catalog, moved = environment.search.catalog, 0
    lines, shown = (BASELINES[name](data).rank(examples, 99) for name in ("top-line", "in-stock"))
    for example, line, fit in zip(examples, lines, shown, strict=True):
        assert set(fit.queries) <= set(line.queries)
        moved += fit.queries[:1] != line.queries[:1]
        as_of = example.case.as_of

        def is_there(query, as_of=as_of):
            found = environment.retrieve(query, as_of)
            return catalog.state_at(catalog.row_of[found[0]], as_of).in_stock

        if not example.profile.context.just_bought and fit.queries:
            there = [is_there(query) for query in fit.queries]
            assert there[0] or not any(there)
    assert moved


def test_memorys_lines_and_queries_of_products_take_turns(tiny_shop, examples):
    data = BaselineData(tiny_shop)
    lines, products, mixed = (
        BASELINES[name](data).rank(examples, 5) for name in ("top-line", "item-cf-title", "mixed")
    )
    several = 0
    for a, b, both in zip(lines, products, mixed, strict=True):
        assert both.queries[0] == (a.queries or b.queries)[0]
        keys = [query_key(q) for q in both.queries]
        assert len(set(keys)) == len(keys) == 5
        assert set(keys) <= {query_key(q) for q in (*a.queries, *b.queries)}
        if len(a.queries) > 1 and query_key(b.queries[0]) not in map(query_key, a.queries):
            assert both.queries[1:3] == (b.queries[0], a.queries[1])
            several += 1
    assert several > 10


def test_a_log_without_products_is_answered_with_nothing(own_shop, examples):
    own_shop.connection.execute("DELETE FROM events WHERE type <> 'search'")
    for name in OF_PRODUCTS:
        rankings = OF_PRODUCTS[name](BaselineData(own_shop)).rank(examples[:3], 5)
        assert [r.queries for r in rankings] == [()] * 3
    assert np.size(ProductLog.of_shop(own_shop).times) == 0


def test_a_users_brands_stand_before_memorys_first_lines(tiny_shop, nano_policy):
    environment = Environment.of_shop(tiny_shop, nano_policy.codec, AgentConfig(), SPLIT)
    example = environment.of_split("test")[0]
    queries = ("cable", "Acme case", "lamp", "bag", "pen")
    brands = {"castor": 0.2, "acme": 0.7, "dull": 0.1}

    def row(brands, k=5):
        context = replace(example.profile.context, brands=brands)
        profile = replace(example.profile, references=queries, context=context)
        system = BASELINES["brand-lines"](None)
        return system.rank([replace(example, profile=profile)], k)[0].queries

    first = ("acme cable", "Acme case", "acme lamp")
    assert row(brands) == (*first, "castor cable", "castor Acme case")
    assert row({"acme": 1.0}) == (*first, "cable", "lamp")
    assert row({}, 2) == ("cable", "Acme case")
