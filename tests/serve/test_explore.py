"""A small share of answers is shuffled, and each place's probability is recorded."""

import pytest

from qagent_mlx.live.off_policy import propensities
from qagent_mlx.live.outcomes import shown_answers
from qagent_mlx.shop.shop import Shop
from qagent_mlx.utils.settings import SettingError


def queries(client, user="u01"):
    reply = client.post("/recommend", json={"user_id": user, "k": 5}).json()
    return [r["query"] for r in reply["recommendations"]]


def test_answers_are_shuffled_now_and_then_with_their_propensities(serving, own_folder):
    client = serving()
    ranked = queries(client)
    client.__exit__(None, None, None)
    client = serving(explore=0.2)
    shown = [queries(client) for _ in range(120)]
    client.__exit__(None, None, None)
    shuffled = [row for row in shown if row != ranked]
    assert 5 <= len(shuffled) <= 50 and all(sorted(row) == sorted(ranked) for row in shown)
    with Shop.open(own_folder) as shop:
        answers = shown_answers(shop, limit=1000)
    explored = 0
    for answer in answers:
        order = [ranked.index(q["query"]) for q in answer["queries"]]
        said = tuple(q["propensity"] for q in answer["queries"])
        explored += said == propensities(order, 0.2)
    assert explored == 120


def test_more_than_a_fifth_is_refused(serving):
    with pytest.raises(SettingError, match="explore"):
        serving(explore=0.5)
