import json
import math
import weakref
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from candidate_rows import NEXT, OWN, TREND, rows
from scipy import sparse

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory import ranker
from qagent_mlx.memory.ranker import (
    AMONG_TEN,
    FIRST,
    NOTHING_FOUND,
    Choices,
    MemoryRanker,
    RankerWeights,
    choices_of_parts,
    fit_ranker,
    fit_weights,
    session_weights,
)
from qagent_mlx.memory.ranking_features import FEATURES, features
from qagent_mlx.memory.sessions import SuccessfulSession
from qagent_mlx.memory.store import fingerprint
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 12)


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
    keys, starts, ends = np.array(["a", "b", "c", "a"]), np.array([0, 3]), np.array([3, 4])
    choices = Choices(table, keys, starts, ends)
    of_three = Choices(table, keys, starts[[0, 0, 1]], ends[[0, 0, 1]])
    default = RankerWeights.default()
    twice = fit_weights(choices, ["b", "z"], [2.0, 1.0], default)
    again = fit_weights(of_three, ["b", "b", "z"], [1.0] * 3, default)
    assert twice.values == pytest.approx(again.values, abs=1e-4)
    assert twice.outside == pytest.approx(again.outside, abs=1e-4)
    once = fit_weights(choices, ["b", "z"], [1.0, 1.0], default)
    trend = FEATURES.index("trend")
    assert twice.values[trend] > once.values[trend] + 1e-2 > default.values[trend]


def test_choices_of_a_part_are_those_of_its_moments_and_blocks_are_held_while_needed():
    kinds = {0: [OWN], 1: [TREND, NEXT], 2: [], 3: [NEXT, OWN, TREND], 4: [OWN, OWN], 5: [TREND]}
    numbers_of_blocks, keys, read = [[1, 0], [2, 3], [5, 4]], [], []

    def blocks():
        for numbers in numbers_of_blocks:
            candidates = rows(*(kind for n in numbers for kind in kinds[n]))
            named = [f"{n} {i}" for n in numbers for i in range(len(kinds[n]))]
            candidates = replace(candidates, query_key=np.array(named, dtype=object))
            keys.append(weakref.ref(candidates.query_key))
            read.append(numbers)
            yield numbers, candidates, np.cumsum([0, *(len(kinds[n]) for n in numbers)])
            del candidates

    parts = [[], [0, 1], [3, 1, 2], [4, 3], [5]]
    expected_reads, held = [0, 1, 2, 3, 3], [[], [0], [0, 1], [1, 2], [2]]
    for part, reads, alive, choices in zip(
        parts, expected_reads, held, choices_of_parts(blocks(), parts), strict=True
    ):
        assert len(read) == reads
        assert len(choices.starts) == len(choices.ends) == len(part)
        for moment, start, end in zip(part, choices.starts, choices.ends, strict=True):
            names = [f"{moment} {i}" for i in range(len(kinds[moment]))]
            assert choices.keys[start:end].tolist() == names
            if names:
                assert np.array_equal(
                    choices.table[start:end].toarray(), features(rows(*kinds[moment]))
                )
        del choices
        assert [n for n, key in enumerate(keys) if key() is not None] == alive


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


def test_only_another_way_of_learning_makes_shops_learn_again(monkeypatch):
    """Shops whose weights were learned before there was a number keep them."""
    config = MemoryConfig()
    monkeypatch.setattr(ranker, "LEARNING", 1)
    first = ranker.learning_of(config)
    assert first == f"{fingerprint(config)} {FEATURES} {ranker._DEFAULTS}"
    monkeypatch.setattr(ranker, "LEARNING", 2)
    assert ranker.learning_of(config) not in ("", first)
