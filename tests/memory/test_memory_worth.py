import json
import math
from datetime import datetime, timedelta

import numpy as np
import pytest

from qagent_mlx.ingest import append_events
from qagent_mlx.memory.worth import FEATURES, Worth, age_word, features, learn
from qagent_mlx.shop import Shop

START = datetime(2026, 1, 1, 12)

# As `tables.candidate_rows` gives them, without the moment.
COLUMNS = (
    "key", "query", "times", "best", "last", "age", "back", "next_score", "next_place", "source",
    "share", "longer", "trend_place", "recent", "had", "leaf", "success",
)  # fmt: skip
NEUTRAL = dict.fromkeys(COLUMNS) | {"key": "a", "query": "a", "success": 0.5}


def row(**values):
    return tuple((NEUTRAL | values)[name] for name in COLUMNS)


OWN = row(times=2, best=3, last=3, age=5.0, back=2)
TREND = row(share=0.1, longer=0.05, trend_place=1, recent=9)
NEXT = row(next_score=0.01, next_place=1, source="q:b", had=0.05)


@pytest.mark.parametrize(
    ("days", "word"),
    [(0, "now"), (0.1, "today"), (1.49, "today"), (1.5, "days"), (4, "week"), (9, "weeks"),
     (18, "month"), (45, "old"), (9999, "old")],
)  # fmt: skip
def test_ages_are_words(days, word):
    assert age_word(days) == word


def test_features_by_hand():
    made = [dict(zip(FEATURES, x, strict=True)) for x in features([OWN, TREND, NEXT])]
    own, trend, after = ({n: v for n, v in x.items() if v} for x in made)
    half = pytest.approx(math.log(0.5))
    assert own == {
        "own": 1, "back": pytest.approx(math.log(2)), "times": pytest.approx(math.log(2)),
        "bought": 1, "own week": 1, "bought long ago": pytest.approx(math.log(6)), "success": half,
    }  # fmt: skip
    assert trend == {
        "trend": 1, "trend share": pytest.approx(1.0), "growth": pytest.approx(math.log(2)),
        "success": half,
    }  # fmt: skip
    # A score of 0.01 is the middle of its scale.
    assert after == {"next": 1, "had": 1, "had now": 1, "success": half}


def test_chances_are_a_softmax_beside_the_outside_option():
    weights = np.zeros(len(FEATURES))
    weights[FEATURES.index("own")] = 2.0
    chances = Worth(weights, 1.0).score([OWN, TREND])
    total = math.exp(2) + 1 + math.exp(1)
    assert chances == pytest.approx([math.exp(2) / total, 1 / total])
    assert Worth.default().score([]).shape == (0,)
    huge = Worth(weights * 1e3, 1.0).score([OWN, TREND])
    assert huge == pytest.approx([1, 0])


def test_nothing_to_learn_from_gives_the_defaults(tmp_path):
    default = Worth.default()
    with Shop.create(tmp_path / "shop") as shop:
        for until in (None, START):
            learned = learn(shop, until)
            assert (learned.weights.tolist(), learned.moments) == (default.weights.tolist(), 0)
        assert Worth.of_shop(shop).weights.tolist() == default.weights.tolist()


def shop_of(path, repeats):
    """12 users search once a day, with success: always the same, or always what is new."""
    shop = Shop.create(path)
    shop.connection.execute(
        "INSERT INTO products VALUES ('p', 'thing', NULL, NULL, 1, true, NULL, 1)"
    )
    rows = []
    for day in range(10):
        for user in range(12):
            query = f"habit {user}" if repeats else f"fashion {day} {user % 3}"
            time = START + timedelta(days=day, minutes=user)
            row = {"user_id": f"u{user}", "time": time, "query": query}
            rows += [{**row, "type": "search"}, {**row, "type": "click", "product_id": "p"}]
    append_events(shop, rows)
    return shop


def test_a_shop_of_regulars_learns_that_habits_come_back(tmp_path):
    until = START + timedelta(days=8)
    with shop_of(tmp_path / "same", True) as same, shop_of(tmp_path / "new", False) as new:
        regulars, fashion = learn(same, until), learn(new, until)
        assert regulars.moments == fashion.moments == 7 * 12  # all but each user's first
        own = row(times=3, best=1, last=1, age=1.0, back=1)
        assert regulars.score([own])[0] > 0.6
        assert fashion.score([own])[0] < 0.3
        assert Worth.of_shop(same).weights == pytest.approx(regulars.weights)
        assert Worth.of_shop(same).outside == pytest.approx(regulars.outside)
        stored = json.loads(same.meta("line_worth"))
        assert (stored["moments"], stored["until"]) == (84, until.isoformat())

        same.set_meta("line_worth", json.dumps({**stored, "features": ["of", "before"]}))
        assert Worth.of_shop(same).weights.tolist() == Worth.default().weights.tolist()
