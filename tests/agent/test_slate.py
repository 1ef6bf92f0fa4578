"""What a group of chains recommends, and what fills the row behind it."""

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.agent.recommend import ProfileRecommender, RecommendRequest
from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.slate import SlateFiller, aggregate_group, aggregate_rollouts
from qagent_mlx.agent.types import Rollout, Turn
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


def names(row):
    return [r.query for r in row]


def test_votes_come_first_then_what_was_searched_then_memory():
    chains = [
        chain(("tent", ["a"]), ("stove", ["b"]), answer="stove", logprob=-0.5),
        chain(("tent", ["a"]), ("lamp", ["c"]), answer="lamp", logprob=-0.1),
        chain(("tent", ["a"]), ("stove", ["b"]), answer="stove", logprob=-2.0),
        chain(("rope", []), answer="rope"),  # it finds nothing
        chain(answer="boots"),  # nobody searched it
    ]
    made = aggregate_rollouts(
        chains, profile("boots", "rope", "tent", "Tents lamp", "lamp  tents", "stove")
    )
    assert names(made) == ["stove", "lamp", "tent", "boots", "Tents lamp"]
    assert [r.votes for r in made] == [2, 1, 0, 0, 0] and made[0].score == 0.4
    assert made[0].products == ("b",) and made[3].products == ()
    assert made[1].reason == "composed from your memory" and made[2].reason == "because tent"


def test_of_equal_votes_the_surest_answer_leads():
    tied = [
        chain(("tent", ["a"]), answer="tent", logprob=-0.7),
        chain(("lamp", ["c"]), answer="lamp", logprob=-0.2),
    ]
    assert names(aggregate_rollouts(tied, profile())) == ["lamp", "tent"]


def test_without_memory_no_line_fills_the_row():
    chains = [chain(("tent", ["a"]), answer="tent")]
    assert names(aggregate_group(AgentConfig(memory=False), chains, profile("lamp"))) == ["tent"]
    assert names(aggregate_group(AgentConfig(), chains, profile("lamp"))) == ["tent", "lamp"]


def test_what_is_sold_out_comes_behind_what_can_be_had():
    shelf = Shelf({"q1": ["gone"], "q2": ["here"], "q3": [], "q4": ["too"]}, sold_out=["gone"])
    first = Recommendation("q0", 1.0, ("gone",), "", votes=3)  # the agent chose it all the same
    rest = [Recommendation(f"q{i}", 0.0, (), "") for i in (1, 2, 3, 4)]
    rows = SlateFiller(shelf)
    (row,) = rows.filled([[first, *rest]], [NOW], [4], [True])
    assert names(row) == ["q0", "q2", "q4", "q1"]
    assert [r.products for r in row] == [("gone",), ("here",), ("too",), ("gone",)]
    (row,) = rows.filled([[first, *rest]], [NOW], [4], [False])
    assert names(row) == ["q0", "q1", "q2", "q4"]
    (row,) = rows.filled([rest], [NOW], [1], [True])  # nobody chose: the first that can be had
    assert names(row) == ["q2"]


def test_no_more_is_searched_than_the_row_needs():
    found = {f"q{i}": [f"p{i}"] for i in range(16)}
    shelf = Shelf(found, sold_out=["p0", "p2"])
    asked = [Recommendation(q, 0.0, (), "") for q in found]
    (row,) = SlateFiller(shelf).filled([asked], [NOW], [3], [True])
    assert names(row) == ["q1", "q3", "q4"]
    assert shelf.asked == [("q0", "q1", "q2"), ("q3", "q4")]


def test_users_are_asked_about_at_once():
    shelf = Shelf({"q0": ["a"], "q1": ["b"]}, sold_out=["b"])
    items = [Recommendation("q0", 0.0, (), ""), Recommendation("q1", 0.0, (), "")]
    turned = items[::-1]
    rows = SlateFiller(shelf).filled(
        [items, items[:1], [], turned, turned], [NOW] * 5, [2, 5, 5, 2, 2], [True] * 4 + [False]
    )
    assert [names(row) for row in rows] == [["q0", "q1"], ["q0"], [], ["q0", "q1"], ["q1", "q0"]]
    assert shelf.asked == [("q0", "q1")]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["in", "out", "nothing"]), st.booleans()), max_size=8),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_the_row_is_the_pool_parted_by_stock(kinds, k, look, voted):
    """As if everything had been searched: the agent's choice, what is in stock, what is not."""
    found = {f"q{i}": [] if kind == "nothing" else [f"p{i}"] for i, (kind, _) in enumerate(kinds)}
    shelf = Shelf(found, sold_out=[f"p{i}" for i, (kind, _) in enumerate(kinds) if kind == "out"])
    items = [
        Recommendation(f"q{i}", 0.0, (f"p{i}",) if known and kind != "nothing" else (), "")
        for i, (kind, known) in enumerate(kinds)
    ]
    if voted and items and kinds[0][0] != "nothing":
        items[0] = Recommendation("q0", 1.0, ("p0",), "", votes=1)
    (row,) = SlateFiller(shelf).filled([items], [NOW], [k], [look])
    some = [i for i in items if found[i.query]]
    if look:
        place = {f"q{i}": kind == "out" for i, (kind, _) in enumerate(kinds)}
        some.sort(key=lambda i: bool(not i.votes and place[i.query]))
    assert names(row) == names(some[:k])
    assert all(r.products == tuple(found[r.query]) for r in row)


@pytest.mark.parametrize(
    ("search", "followed"), [(True, 1.0), (False, 1.0), (True, 0.0), (True, 4e9)]
)
def test_a_policy_is_measured_by_the_rows_that_it_serves(
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
    answerer = ProfileRecommender(environment.search, nano_policy, agent)
    served = answerer.answer([RecommendRequest(e.profile, e.case.as_of, 4, 2) for e in examples])
    measured = [ranking.queries for ranking in ranked]
    place = catalog.row_of
    lines = [[q for q in e.profile.references if q] for e in examples]
    in_stock = [[bool(stock[place[r.products[0]]]) for r in one.recommendations] for one in served]
    shown = [tuple(r.query for r in one.recommendations) for one in served]
    if search:  # nothing was looked at, so nothing is chosen: what can be had leads
        assert all(row == sorted(row, reverse=True) for row in in_stock)
    else:  # the choice stands, and so does memory's order
        assert [queries[0] for queries in shown] == [e.profile.references[2] for e in examples]
        assert any(row != sorted(row, reverse=True) for row in in_stock)
    if followed == 1.0:
        assert measured == shown
    else:
        assert measured == [tuple(queries[:4]) for queries in lines] != shown
