import itertools
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest

from qagent_mlx.agent.recommend import (
    GROUP,
    GRPO_GROUP,
    ProfileRecommender,
    Recommender,
    RecommendRequest,
    UserRecommendations,
    agent_answer,
    default_group_size,
)
from qagent_mlx.agent.types import Rollout, Turn
from qagent_mlx.errors import QAgentError
from qagent_mlx.policy.calibration import Calibration
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.protocol.marks import Mark
from qagent_mlx.types import Line, Profile, Recommendation, UserContext

NOW = datetime(2026, 2, 1)


def profile(user, *queries):
    lines = tuple(Line("latest", q, 0.1, query=q, reason=f"because {q}") for q in queries)
    text = "\n".join(f"{q} <r{i}>" for i, q in enumerate(queries))
    return Profile(user, NOW, text, lines, tuple(queries))


@pytest.fixture
def recommender(nano_policy, tiny_search):
    return ProfileRecommender(tiny_search, nano_policy, AgentConfig(max_searches=2))


@pytest.mark.parametrize("values", [{"k": 0}, {"group": 0}])
def test_a_request_asks_for_something(values):
    with pytest.raises(QAgentError, match="at least one query and one chain"):
        RecommendRequest(profile("u"), NOW, **values)


def test_a_policy_of_grpo_needs_fewer_chains():
    def policy(*stages):
        return SimpleNamespace(info=SimpleNamespace(trained=[{"stage": s} for s in stages]))

    assert default_group_size(policy()) == default_group_size(policy("grpo", "sft")) == GROUP
    assert default_group_size(policy("sft", "grpo")) == GRPO_GROUP


def test_an_answer_does_not_depend_on_who_else_asks(recommender):
    requests = [
        RecommendRequest(profile(f"u{i}", f"usb {i}", "usb cable"), NOW, 3, 1 + i) for i in range(4)
    ]
    together = recommender.answer(requests, seed=5)
    assert [len(answer.chains) for answer in together] == [1, 2, 3, 4]
    for request, answer in zip(requests, together, strict=True):
        (alone,) = recommender.answer([request], seed=5)
        assert [c.tokens for c in alone.chains] == [c.tokens for c in answer.chains]
        assert alone.recommendations == answer.recommendations


def test_memory_alone_recommends_the_queries_of_the_profile_in_order(recommender):
    request = RecommendRequest(profile("u", "usb cable", "phone case", "desk lamp"), NOW, k=2)
    (slate,) = recommender.recommend_from_memory([request])
    assert [r.query for r in slate] == ["usb cable", "phone case"]
    assert all(r.votes == 0 and r.products and r.reason == f"because {r.query}" for r in slate)


def test_who_has_just_bought_a_thing_is_not_sent_there_first_by_an_agent_with_memory(
    recommender, monkeypatch
):
    context = UserContext(just_bought=("Cables",))
    bought = replace(profile("u", "usb cable", "desk lamp"), context=context)
    for memory, expected in ((True, ["desk lamp", "usb cable"]), (False, ["usb cable"])):
        monkeypatch.setattr(recommender, "agent", AgentConfig(memory=memory))
        (slate,) = recommender.recommend_from_memory([RecommendRequest(bought, NOW, 2)])
        assert [r.query for r in slate][: len(expected)] == expected


@pytest.fixture
def sold_out_cables(recommender, monkeypatch):
    """The recommender, while no cable can be had."""
    catalog = recommender.search.catalog
    stock = np.array(["Cables" not in (category or "") for category in catalog.categories])
    monkeypatch.setattr(catalog, "history", None)
    monkeypatch.setattr(catalog, "in_stock", stock)
    return recommender


@pytest.mark.parametrize("search", [True, False])
def test_what_is_sold_out_is_not_first_whoever_chose_it(sold_out_cables, monkeypatch, search):
    """The agent's slate, the one of a policy without search, and the fallback without a chain."""
    recommender = sold_out_cables
    agent = AgentConfig(search=search)
    monkeypatch.setattr(recommender, "agent", agent)
    turn = Turn("search", "usb cable", products=("p000",))
    chosen = Rollout(0, 0, (1, 2), 1, (True,), (0.0,), (turn,), "usb cable", "recommended")
    monkeypatch.setattr(recommender.runner, "run", lambda *a, **k: [chosen])
    request = RecommendRequest(profile("u", "usb cable", "desk lamp"), NOW, 2, 1)
    (answer,) = recommender.answer([request])
    assert [(r.query, r.votes) for r in answer.recommendations] == [
        ("desk lamp", 0),
        ("usb cable", 1),
    ]
    (fallback,) = recommender.recommend_from_memory([request])
    assert [r.query for r in fallback] == ["desk lamp", "usb cable"]


def test_what_others_search_for_fills_rows_except_of_agents_without_memory(
    sold_out_cables, monkeypatch
):
    recommender = sold_out_cables
    others = profile("", "usb cable", "desk lamp").lines
    request = RecommendRequest(profile("u", "usb cable"), NOW, 1, 1, others)
    (slate,) = recommender.recommend_from_memory([request])
    assert [r.query for r in slate] == ["desk lamp"]
    monkeypatch.setattr(recommender, "agent", AgentConfig(memory=False))
    (slate,) = recommender.recommend_from_memory([request])
    assert [r.query for r in slate] == ["usb cable"]


def test_no_chance_is_stated_of_a_new_user(sold_out_cables, monkeypatch):
    recommender = sold_out_cables
    curve = (1.0, 0.0, 0.0, 0.0, 0.0)
    learned = Calibration(
        cases=50, error=0.1, learned="", curves=dict.fromkeys(("chosen", "others", "memory"), curve)
    )
    monkeypatch.setattr(type(recommender.policy), "calibration_of", lambda self, agent: learned)
    known = profile("u", "desk lamp")
    new = replace(known, lines=(*known.lines, Line("identity", str(Mark.NEW_USER), 0.2)))
    slates = recommender.recommend_from_memory(
        [RecommendRequest(p, NOW, 1, 1) for p in (known, new)]
    )
    assert [[r.query for r in slate] for slate in slates] == [["desk lamp"]] * 2
    assert slates[0][0].chance is not None and slates[1][0].chance is None


def test_recommendations_as_plain_values():
    item = Recommendation("tent", 0.5, ("p1", "p2"), "because", 1)
    answer = UserRecommendations("u", NOW, (item,), 12.345, (), profile("u"))
    assert answer.to_dict({"p1": "Tent"}) == {
        "user": "u",
        "as_of": "2026-02-01T00:00:00",
        "recommendations": [
            {
                "query": "tent",
                "score": 0.5,
                "chance": None,
                "products": [
                    {"product_id": "p1", "title": "Tent"},
                    {"product_id": "p2", "title": ""},
                ],
                "reason": "because",
                "votes": 1,
            }
        ],
        "latency_ms": 12.3,
    }


def test_the_time_of_an_answer_is_its_share_of_the_time_that_the_batch_took(
    recommender, monkeypatch
):
    """By a clock that goes on by a second whenever it is read."""
    clock = SimpleNamespace(perf_counter=itertools.count(start=100).__next__)
    monkeypatch.setattr("qagent_mlx.agent.recommend.time", clock)
    requests = [RecommendRequest(profile(f"u{i}", "usb cable"), NOW, 1, 1) for i in range(4)]
    answers = recommender.answer(requests)
    assert [answer.latency_ms for answer in answers] == [1000.0] * 4  # of four seconds
    spent = recommender.spent
    assert spent["searches"] == recommender.runner.tools.seconds
    assert spent["chains"] + spent["searches"] == pytest.approx(1) and spent["slates"] == 1


def test_what_an_agent_shows_is_placed_there_for_certain(nano_policy):
    shown = agent_answer(nano_policy, "r1", "u1", NOW, ["usb cable", "desk lamp"])
    assert shown.queries == ("usb cable", "desk lamp") and shown.propensities == (1.0, 1.0)
    assert (shown.recommendation_id, shown.user_id, shown.ts) == ("r1", "u1", NOW)
    assert (shown.source, shown.policy) == ("agent", nano_policy.info.name)


def test_the_next_memory_of_a_shop_knows_what_the_last_one_read(tiny_shop, own_shop, nano_policy):
    recommender = Recommender(tiny_shop, nano_policy)
    statistics = recommender.memory.loader.statistics
    again = recommender.open_memory(tiny_shop, recommender.memory)
    assert again.loader.statistics is statistics
    # A shop that was closed and opened meanwhile may say otherwise.
    for shop, previous in ((own_shop, recommender.memory), (tiny_shop, None)):
        assert recommender.open_memory(shop, previous).loader.statistics is not statistics
