"""What a group of chains recommends, and what fills the slate behind it."""

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.agent.recommend import ProfileRecommender, RecommendRequest
from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.slate import SlateFiller, aggregate_group, aggregate_rollouts
from qagent_mlx.agent.types import Group, Rollout, Task, Turn
from qagent_mlx.environment.environment import Environment
from qagent_mlx.evaluate.policy_system import PolicySystem
from qagent_mlx.inventory.catalog import Catalog, ProductHistory
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.types import Hit, Line, Profile, Recommendation

NOW = datetime(2026, 2, 1)


def profile(*queries):
    lines = [Line("identity", "likes tea", 0.0)]
    lines += [Line("latest", q, 0.1, query=q, reason=f"because {q}") for q in queries]
    return Profile("u", NOW, "", tuple(lines), tuple(queries))


def chain(*searched, answer="", logprob=-1.0):
    """A chain that searched (query, products) pairs and recommended ``answer``."""
    turns = tuple(Turn("search", query, products=tuple(products)) for query, products in searched)
    return Rollout(
        0, 0, (1, 2), 1, (True,), (logprob,), turns, answer, "recommended" if answer else "invalid"
    )


class Shelf:
    """A search that finds what it is told to, and counts what it is asked."""

    def __init__(self, found, sold_out=()):
        ids = sorted({p for products in found.values() for p in products} | set(sold_out))
        blank = [None] * len(ids)
        self.catalog = Catalog(
            ids,
            ids,
            blank,
            blank,
            np.full(len(ids), np.nan),
            np.array([i not in sold_out for i in ids], bool),
            blank,
        )
        self.found, self.asked = found, []

    def search(self, queries, k=10, as_of=None, filters=None):
        self.asked.append(tuple(queries))
        assert len(set(zip(queries, as_of, strict=True))) == len(queries) > 0
        return [[Hit(p, 1.0) for p in self.found[q][:k]] for q in queries]


def queries(slate):
    return [r.query for r in slate]


def test_votes_come_first_then_what_was_searched_then_memory():
    chains = [
        chain(("tent", ["a"]), ("stove", ["b"]), answer="stove", logprob=-0.5),
        chain(("tent", ["a"]), ("lamp", ["c"]), answer="lamp", logprob=-0.1),
        chain(("tent", ["a"]), ("stove", ["b"]), answer="stove", logprob=-2.0),
        chain(("rope", []), answer="rope"),  # it finds nothing
        chain(answer="boots"),  # nobody searched it
    ]
    ranked = aggregate_rollouts(
        chains, profile("boots", "rope", "tent", "Tents lamp", "lamp  tents", "stove")
    )
    assert queries(ranked) == ["stove", "lamp", "tent", "boots", "Tents lamp"]
    assert [r.votes for r in ranked] == [2, 1, 0, 0, 0] and ranked[0].score == 0.4
    assert ranked[0].products == ("b",) and ranked[3].products == ()
    assert ranked[1].reason == "composed from your memory" and ranked[2].reason == "because tent"


def test_of_equal_votes_the_surest_answer_leads():
    tied = [
        chain(("tent", ["a"]), answer="tent", logprob=-0.7),
        chain(("lamp", ["c"]), answer="lamp", logprob=-0.2),
    ]
    assert queries(aggregate_rollouts(tied, profile())) == ["lamp", "tent"]


def test_without_memory_no_line_fills_the_slate():
    group = Group(Task(profile("lamp"), NOW), (chain(("tent", ["a"]), answer="tent"),))
    assert queries(aggregate_group(AgentConfig(memory=False), group)) == ["tent"]
    assert queries(aggregate_group(AgentConfig(), group)) == ["tent", "lamp"]


def test_what_is_sold_out_comes_behind_what_can_be_had():
    shelf = Shelf({"q1": ["gone"], "q2": ["here"], "q3": [], "q4": ["too"]}, sold_out=["gone"])
    first = Recommendation("q0", 1.0, ("gone",), "", votes=3)  # the agent chose it all the same
    rest = [Recommendation(f"q{i}", 0.0, (), "") for i in (1, 2, 3, 4)]
    filler = SlateFiller(shelf)
    (slate,) = filler.fill([[first, *rest]], [NOW], [4], [True])
    assert queries(slate) == ["q0", "q2", "q4", "q1"]
    assert [r.products for r in slate] == [("gone",), ("here",), ("too",), ("gone",)]
    (slate,) = filler.fill([[first, *rest]], [NOW], [4], [False])
    assert queries(slate) == ["q0", "q1", "q2", "q4"]
    (slate,) = filler.fill([rest], [NOW], [1], [True])  # nobody chose: the first that can be had
    assert queries(slate) == ["q2"]


def test_no_more_is_searched_than_the_slate_needs():
    found = {f"q{i}": [f"p{i}"] for i in range(16)}
    shelf = Shelf(found, sold_out=["p0", "p2"])
    asked = [Recommendation(q, 0.0, (), "") for q in found]
    (slate,) = SlateFiller(shelf).fill([asked], [NOW], [3], [True])
    assert queries(slate) == ["q1", "q3", "q4"]
    assert shelf.asked == [("q0", "q1", "q2"), ("q3", "q4")]


def test_users_are_asked_about_at_once():
    shelf = Shelf({"q0": ["a"], "q1": ["b"]}, sold_out=["b"])
    items = [Recommendation("q0", 0.0, (), ""), Recommendation("q1", 0.0, (), "")]
    turned = items[::-1]
    slates = SlateFiller(shelf).fill(
        [items, items[:1], [], turned, turned], [NOW] * 5, [2, 5, 5, 2, 2], [True] * 4 + [False]
    )
    assert [queries(slate) for slate in slates] == [
        ["q0", "q1"],
        ["q0"],
        [],
        ["q0", "q1"],
        ["q1", "q0"],
    ]
    assert shelf.asked == [("q0", "q1")]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["in", "out", "nothing"]), st.booleans()), max_size=8),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_the_slate_is_the_ranking_parted_by_stock(kinds, k, look, voted):
    """As if everything had been searched: the agent's choice, what is in stock, what is not."""
    found = {f"q{i}": [] if kind == "nothing" else [f"p{i}"] for i, (kind, _) in enumerate(kinds)}
    shelf = Shelf(found, sold_out=[f"p{i}" for i, (kind, _) in enumerate(kinds) if kind == "out"])
    items = [
        Recommendation(f"q{i}", 0.0, (f"p{i}",) if known and kind != "nothing" else (), "")
        for i, (kind, known) in enumerate(kinds)
    ]
    if voted and items and kinds[0][0] != "nothing":
        items[0] = Recommendation("q0", 1.0, ("p0",), "", votes=1)
    (slate,) = SlateFiller(shelf).fill([items], [NOW], [k], [look])
    some = [i for i in items if found[i.query]]
    if look:
        place = {f"q{i}": kind == "out" for i, (kind, _) in enumerate(kinds)}
        some.sort(key=lambda i: bool(not i.votes and place[i.query]))
    assert queries(slate) == queries(some[:k])
    assert all(r.products == tuple(found[r.query]) for r in slate)


@pytest.mark.parametrize(
    ("search", "followed"), [(True, 1.0), (False, 1.0), (True, 0.0), (True, 4e9)]
)
def test_a_policy_is_measured_by_the_slates_that_it_serves(
    nano_policy, tiny_shop, monkeypatch, search, followed
):
    """But not by stock of a later day: what is sold out now says nothing of a case's moment."""
    agent = AgentConfig(search=search)
    environment = Environment.of_shop(tiny_shop, nano_policy.codec, agent)
    examples = [e for e in environment.of_split("test") if len(e.profile.references) > 5][:6]
    catalog = environment.search.catalog
    stock = np.arange(len(catalog)) % 2 == 0
    times = np.full(len(catalog), followed)  # one state each, from then on
    history = ProductHistory(np.arange(len(catalog)), times, catalog.prices, stock)
    monkeypatch.setattr(catalog, "history", history)

    def run(self, tasks, group, *rest, **options):
        """Every chain recommends the third line of its memory without looking."""
        return [chain(answer=task.profile.references[2]) for task in tasks for _ in range(group)]

    monkeypatch.setattr(RolloutRunner, "run", run)
    ranked = PolicySystem("p", nano_policy, environment, agent, group=2).rank(examples, 4)
    recommender = ProfileRecommender(environment.search, nano_policy, agent)
    served = recommender.answer([RecommendRequest(e.profile, e.case.as_of, 4, 2) for e in examples])
    measured = [ranking.queries for ranking in ranked]
    place = catalog.row_of
    lines = [[q for q in e.profile.references if q] for e in examples]
    in_stock = [
        [bool(stock[place[r.products[0]]]) for r in answer.recommendations] for answer in served
    ]
    shown = [tuple(queries(answer.recommendations)) for answer in served]
    if search:  # nothing was looked at, so nothing is chosen: what can be had leads
        assert all(flags == sorted(flags, reverse=True) for flags in in_stock)
    else:  # the choice stands, and so does memory's order
        assert [slate[0] for slate in shown] == [e.profile.references[2] for e in examples]
        assert any(flags != sorted(flags, reverse=True) for flags in in_stock)
    if followed == 1.0:
        assert measured == shown
    else:
        assert measured == [tuple(line[:4]) for line in lines] != shown
