import json
import math
from datetime import datetime, timedelta

import numpy as np
import pytest
from scipy import sparse

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.candidates import Candidates
from qagent_mlx.memory.loader import MemoryLoader
from qagent_mlx.memory.ranker import (
    AMONG_TEN,
    FIRST,
    NOTHING_FOUND,
    Choices,
    MemoryRanker,
    RankerWeights,
    fit_ranker,
    fit_weights,
    session_weights,
)
from qagent_mlx.memory.ranking_features import FEATURES, features
from qagent_mlx.memory.sessions import SuccessfulSession
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 12)


def rows(*lines):
    """Candidates of some lines, of which all that is not named is unknown."""
    table = Candidates.unknown(len(lines))
    table.success[:] = 0.5
    table.coverage[:] = table.return_rate[:] = 1.0
    table.focus[:] = table.wording[:] = table.taste[:] = table.typed[:] = 0.0
    table.query_key[:] = table.query[:] = "a"
    table.kind[:] = "plain"
    for i, line in enumerate(lines):
        for name, value in line.items():
            getattr(table, name)[i] = value
    return table


OWN = {"searches": 2, "last_outcome": 3, "age": 5.0, "recency_rank": 2}
TREND = {"trend_share": 0.1, "longer_share": 0.05, "short_share": 0.01}
NEXT = {"neighbour_score": 0.01, "source": "q:b", "timing": 0.0, "bought_age": 0.05}


def test_features_by_hand():
    made = [dict(zip(FEATURES, x, strict=True)) for x in features(rows(OWN, TREND, NEXT)).tolist()]
    common = {n: v for n, v in made[0].items() if v and v == made[1][n] == made[2][n]}
    own, trend, after = ({n: v for n, v in x.items() if v and n not in common} for x in made)
    assert common == {
        "success": pytest.approx(math.log(0.5)),
        "kind plain": 1,
        "wording": pytest.approx(math.log(0.1)),
    }
    assert own == {
        "own": 1,
        "back": pytest.approx(math.log(2)),
        "times": pytest.approx(math.log(2)),
        "bought": 1,
        "bought week": 1,
        "own week": 1,
        "bought long ago": pytest.approx(math.log(6)),
        "own wording": pytest.approx(math.log(0.1)),
    }
    assert trend == {
        "trend": 1,
        "trend share": pytest.approx(1),
        "long share": pytest.approx(math.log10(0.05) + 2),
        "trend weight": pytest.approx(1),
        "short weight": pytest.approx(0.1),
        "growth": pytest.approx(math.log(2)),
    }
    # A score of 0.01 is the middle of its scale.
    assert after == {
        "next": 1,
        "had": 1,
        "had now": 1,
        "again": pytest.approx(math.log(0.02)),
        "query in time": 1,
    }


def test_a_purchase_that_comes_round_again_is_due_by_the_shops_own_rhythm():
    early, due, late = features(
        rows(
            *(
                {"bought_age": age, "repurchase_pace": age / 20, "repurchase": 0.5}
                for age in (5.0, 20.0, 60.0)
            )
        )
    ).tolist()
    word = {name: i for i, name in enumerate(FEATURES)}
    assert (early[word["early"]], due[word["due"]], late[word["over"]]) == (1, 1, 1)
    assert due[word["due again"]] == 0.5 and not due[word["early"]]


def test_chances_are_a_softmax_beside_the_outside_option():
    values = np.zeros(len(FEATURES))
    values[FEATURES.index("own")] = 2.0
    table = features(rows(OWN, TREND))
    chances = RankerWeights(values, 1.0).probabilities(table)
    total = math.exp(2) + 1 + math.exp(1)
    assert chances == pytest.approx([math.exp(2) / total, 1 / total])
    assert RankerWeights.default().probabilities(table[:0]).shape == (0,)
    huge = RankerWeights(values * 1e3, 1.0).probabilities(table)
    assert huge == pytest.approx([1, 0])


def test_nothing_to_learn_from_gives_the_defaults(tmp_path):
    default = RankerWeights.default()
    with Shop.create(tmp_path / "shop") as shop:
        for since in (None, START):
            learned = fit_ranker(shop, since)
            assert (learned.steps[-1].values.tolist(), learned.moments) == (
                default.values.tolist(),
                0,
            )
        assert MemoryRanker.of_shop(shop).at(START).values.tolist() == default.values.tolist()


def always(user):
    return True


def never(user):
    return False


def shop_of(path, repeats):
    """12 users search once a day, with success: what they always do, or what is new."""
    shop = Shop.create(path)
    shop.connection.execute(
        "INSERT INTO products VALUES ('p', 'thing', NULL, NULL, 1, true, NULL, 1)"
    )
    rows = []
    for day in range(10):
        for user in range(12):
            query = f"habit {user}" if repeats(user) else f"fashion {day} {user % 3}"
            time = START + timedelta(days=day, minutes=user)
            row = {"user_id": f"u{user}", "time": time, "query": query}
            rows += [{**row, "type": "search"}, {**row, "type": "click", "product_id": "p"}]
    append_events(shop, rows)
    return shop


def test_a_shop_of_regulars_learns_that_habits_come_back(tmp_path):
    since = START + timedelta(days=8)
    with shop_of(tmp_path / "same", always) as same, shop_of(tmp_path / "new", never) as new:
        regulars, fashion = fit_ranker(same, since), fit_ranker(new, since)
        assert regulars.moments == fashion.moments == 7 * 12  # all but each user's first
        own = features(rows({"searches": 3, "last_outcome": 1, "age": 1.0, "recency_rank": 1}))
        assert regulars.at(since).probabilities(own)[0] > 0.6
        assert fashion.at(since).probabilities(own)[0] < 0.3
        again = MemoryRanker.of_shop(same)
        assert again.at(since).values == pytest.approx(regulars.at(since).values)
        assert again.at(since).outside == pytest.approx(regulars.at(since).outside)
        stored = json.loads(same.meta("line_worth"))
        assert [(s["moments"], s["until"]) for s in stored["steps"]] == [(84, since.isoformat())]

        # Learned before there was a feature: it has no say, all else has.
        fewer = {**stored, "features": stored["features"][:-1]}
        fewer["steps"] = [{**s, "weights": s["weights"][:-1]} for s in stored["steps"]]
        same.set_meta("line_worth", json.dumps(fewer))
        older = MemoryRanker.of_shop(same).at(since).values
        assert older[:-1].tolist() == again.at(since).values[:-1].tolist() and older[-1] == 0

        same.set_meta("line_worth", json.dumps({**stored, "features": ["of", "before"]}))
        assert (
            MemoryRanker.of_shop(same).at(since).values.tolist()
            == RankerWeights.default().values.tolist()
        )


def test_a_moment_counts_by_what_its_query_retrieves():
    def session(*products):
        return SuccessfulSession("u", START, "query", "query", products, 1)

    sessions = [session("a", "b"), session("a"), session("z"), session("k")]
    retrieved = [["b", "c"], ["b", "a"], ["b", "a"], list("abcdefghijk")]
    asked = []

    def retrieve(queries, moments):
        asked.extend(zip(queries, moments, strict=True))
        return retrieved

    assert session_weights(sessions, retrieve) == [
        FIRST,
        AMONG_TEN,
        NOTHING_FOUND,
        NOTHING_FOUND,
    ]  # k is the eleventh
    assert asked == [("query", START)] * 4
    assert session_weights(sessions, None) == [FIRST] * 4


def test_a_moment_that_counts_twice_is_two_moments():
    table = sparse.csr_matrix(features(rows(OWN, TREND, NEXT, OWN)))
    choices = Choices(table, np.array(["a", "b", "c", "a"]), np.array([0, 3, 4]))
    default = RankerWeights.default()
    twice = fit_weights(choices, [0, 1], ["b", "z"], [2.0, 1.0], default)
    again = fit_weights(choices, [0, 0, 1], ["b", "b", "z"], [1.0] * 3, default)
    assert twice.values == pytest.approx(again.values, abs=1e-4)
    assert twice.outside == pytest.approx(again.outside, abs=1e-4)
    once = fit_weights(choices, [0, 1], ["b", "z"], [1.0, 1.0], default)
    trend = FEATURES.index("trend")
    assert twice.values[trend] > once.values[trend] + 1e-2 > default.values[trend]


def test_what_leads_to_something_teaches_most(tmp_path):
    """Half of the users repeat a habit, half follow fashions; search serves one half only."""
    since = START + timedelta(days=8)
    shop = shop_of(tmp_path / "shop", lambda user: user % 2 == 0)

    def learned(*served):
        found = [["p"] if kind in served else [] for kind in ("habit", "fashion")]
        worth = fit_ranker(
            shop,
            since,
            lambda queries, moments: [found[query.startswith("fashion")] for query in queries],
        )
        return worth.at(since).probabilities(own)[0]

    own = features(rows({"searches": 1, "last_outcome": 1, "age": 1.0, "recency_rank": 1}))
    with shop:
        plain = fit_ranker(shop, since).at(since).probabilities(own)[0]
        assert learned("habit", "fashion") == pytest.approx(plain)
        assert learned("fashion") < learned("habit") - 0.05


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
    table = features(
        rows(
            {"need": 0.15, "need_pace": -1.5, "need_bought": 1.0, **TREND},
            {"need": 0.05, "need_pace": 3.0, "need_bought": 0.0, **OWN},
        )
    )
    first, second = [{n for n, v in zip(FEATURES, row, strict=True) if v} for row in table.tolist()]
    assert {"need fair", "after bought too early"} <= first and "pressing own" not in first
    assert {"need some", "after liked far too late"} <= second and "pressing own" not in second


def test_a_moment_is_served_by_what_was_learned_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("qagent_mlx.memory.ranker.MIN_STEP", timedelta(days=2))
    with shop_of(tmp_path / "shop", always) as shop:
        whole = fit_ranker(shop, START + timedelta(days=3))
        cuts = [w.until for w in whole.steps[1:]]
        assert cuts == [START + timedelta(days=d) for d in (3, 5, 7, 9)]
        assert whole.at(START).moments == 0
        for cut in cuts:
            assert whole.at(cut).until == cut
            assert whole.at(cut - timedelta(seconds=1)).until < cut
        # What came later changes nothing of what was learned before.
        shop.connection.execute("DELETE FROM events WHERE ts >= ?", [cuts[1]])
        part = fit_ranker(shop, START + timedelta(days=3))
        first = whole.steps[1]
        assert part.steps[1].values == pytest.approx(first.values, abs=1e-9)
        assert part.steps[1].moments == first.moments


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
