"""What a group of chains recommends, and what fills the slate behind it."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.agent.recommend import ProfileRecommender, RecommendRequest
from qagent_mlx.agent.rollout import RolloutRunner
from qagent_mlx.agent.slate import (
    COVERING_SHARE,
    SlateFiller,
    SlateRequest,
    aggregate_group,
    aggregate_rollouts,
    with_lines,
)
from qagent_mlx.agent.types import Group, Rollout, Task, Turn
from qagent_mlx.environment.environment import Environment, Example
from qagent_mlx.evaluate.policy_system import PolicySystem
from qagent_mlx.inventory.catalog import Catalog, ProductHistory
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.types import Evidence, Hit, Line, Profile, Recommendation, UserContext

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

    def __init__(self, found, sold_out=(), categories=None):
        ids = sorted({p for products in found.values() for p in products} | set(sold_out))
        blank = [None] * len(ids)
        self.catalog = Catalog(
            ids,
            ids,
            blank,
            [(categories or {}).get(i) for i in ids],
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


def test_what_was_only_searched_has_no_answer_to_be_sure_of():
    rollouts = [chain(("mug", ["b"]), ("tea", ["a"]), answer="tea", logprob=-0.2)]
    tea, mug = aggregate_rollouts(rollouts, profile())
    assert tea.evidence == Evidence(chains=1, votes=1, logprob=-0.2)
    assert mug.evidence == Evidence(chains=1, votes=0, logprob=0.0)


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


def item(query, *products, votes=0):
    return Recommendation(query, 0.0, products, "", votes)


def fill(shelf, *requests):
    return SlateFiller(shelf).fill(requests)


def test_what_is_sold_out_comes_behind_what_can_be_had_also_where_the_agent_chose_it():
    shelf = Shelf({"q1": ["gone"], "q2": ["here"], "q3": [], "q4": ["too"]}, sold_out=["gone"])
    ranked = [item("q0", "gone", votes=3), *(item(f"q{i}") for i in (1, 2, 3, 4))]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 4))
    assert queries(slate) == ["q2", "q4", "q0", "q1"]
    assert [r.products for r in slate] == [("here",), ("too",), ("gone",), ("gone",)]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 2))
    assert queries(slate) == ["q2", "q4"]  # filled without them
    (slate,) = fill(shelf, SlateRequest(ranked[:2], NOW, 2))
    assert queries(slate) == ["q0", "q1"]  # there is nothing else
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 4, check_stock=False))
    assert queries(slate) == ["q0", "q1", "q2", "q4"]


def test_a_query_that_leads_to_some_stock_comes_before_one_that_leads_to_none():
    shelf = Shelf({"q0": ["gone"], "q1": ["gone", "here"], "q2": ["here"]}, sold_out=["gone"])
    (slate,) = fill(shelf, SlateRequest([item("q0"), item("q1"), item("q2")], NOW, 3))
    assert queries(slate) == ["q2", "q1", "q0"]


def test_what_was_bought_just_now_comes_behind_all_that_can_be_had():
    categories = {"tent1": "Garden > Tents", "tent2": "Camping > Tents", "rope1": "Camping > Ropes"}
    found = {"tent": ["tent1", "rope1"], "rope": ["rope1", "tent1"], "camp": ["rope1", "tent1"]}
    found["camp"] += ["tent2"]
    shelf = Shelf(found, categories=categories)
    ranked = [item("tent", votes=2), item("camp"), item("rope")]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 3, UserContext(just_bought=("Tents",))))
    # The first product, or most of the first, are of the category.
    assert queries(slate) == ["rope", "tent", "camp"]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 1, UserContext(just_bought=("Tents",))))
    assert queries(slate) == ["rope"]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 3, UserContext(just_bought=("Stoves",))))
    assert queries(slate) == ["tent", "camp", "rope"]


def test_a_product_without_a_category_stands_for_itself():
    shelf = Shelf({"q0": ["a"], "q1": ["b"], "q2": ["c"]}, categories={"c": "Camping > Tents"})
    context = UserContext(just_bought_products=("a", "c"))
    ranked = [item("q0"), item("q1"), item("q2")]
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 3, context))
    assert queries(slate) == ["q1", "q2", "q0"]  # people buy another tent at once


def test_what_others_search_for_fills_up_what_a_user_s_own_queries_cannot():
    shelf = Shelf({"old": ["gone"], "new": ["here"], "Old!": ["here"]}, sold_out=["gone"])
    lines = [Line("trending", q, 0.1, query=q, reason="trend") for q in ("Old!", "new")]
    lines.append(Line("graph", "likes tea", 0.1))
    ranked = with_lines([item("old")], lines)
    assert queries(ranked) == ["old", "new"]  # equal words are one query
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 1))
    assert [(r.query, r.reason) for r in slate] == [("new", "trend")]


def test_a_line_that_fills_up_says_that_none_of_the_chains_recommends_it():
    ranked = aggregate_rollouts([chain(("tea", ["a"]), answer="tea")] * 3, profile("tea"))
    (_, added) = with_lines(ranked, [Line("trending", "mug", 0.1, query="mug")])
    assert added.evidence == Evidence(chains=3, line=0.1)
    assert with_lines([], [Line("trending", "mug", 0.1, query="mug")])[0].evidence.chains == 0


def test_no_more_is_searched_than_the_slate_needs():
    found = {f"q{i}": [f"p{i}"] for i in range(16)}
    shelf = Shelf(found, sold_out=["p0", "p2"])
    (slate,) = fill(shelf, SlateRequest([item(q) for q in found], NOW, 2))
    assert queries(slate) == ["q1", "q3"]
    assert shelf.asked == [("q0", "q1"), ("q2",), ("q3",)]
    shelf.asked.clear()
    # The last place of three goes to the best of as many more.
    (slate,) = fill(shelf, SlateRequest([item(q) for q in found], NOW, 3))
    assert queries(slate) == ["q1", "q3", "q4"]
    assert shelf.asked == [tuple(f"q{i}" for i in range(6)), ("q6", "q7")]


def test_the_last_places_of_a_row_go_to_what_adds_most_products_to_it():
    found = {"tea": "ab", "green tea": "ac", "black tea": "ad", "teas": "ab", "the tea": "ba",
             "cup": "xyz", "pot": "pq"}  # fmt: skip
    lines = [Line("trending", q, 0.1, query=q, reason="trend") for q in found]
    likely = replace(lines[-1], score=0.4)
    ranked = with_lines([], [*lines[:-1], likely])
    slates = fill(Shelf(found), *(SlateRequest(ranked, NOW, size) for size in (1, 2, 3, 5)))
    assert [queries(slate) for slate in slates] == [
        ["tea"],
        ["tea", "green tea"],
        ["tea", "green tea", "cup"],  # of the first six
        ["tea", "green tea", "black tea", "pot", "cup"],  # a likelier one counts for more
    ]


def test_users_are_asked_about_at_once():
    shelf = Shelf({"q0": ["a"], "q1": ["b"]}, sold_out=["b"])
    items = [item("q0"), item("q1")]
    turned = items[::-1]
    slates = fill(
        shelf,
        SlateRequest(items, NOW, 2),
        SlateRequest(items[:1], NOW, 5),
        SlateRequest([], NOW, 5),
        SlateRequest(turned, NOW, 2),
        SlateRequest(turned, NOW, 2, check_stock=False),
    )
    assert [queries(slate) for slate in slates] == [
        ["q0", "q1"],
        ["q0"],
        [],
        ["q0", "q1"],
        ["q1", "q0"],
    ]
    assert shelf.asked == [("q0", "q1")]


KINDS = {"in": ["here"], "first out": ["gone", "here"], "bought": ["had"], "out": ["gone"]}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*KINDS, "nothing"]), st.booleans(), st.integers(0, 2)),
        max_size=9,
    ),
    st.integers(1, 6),
    st.booleans(),
)
def test_the_slate_is_the_ranking_parted_by_what_is_fit_to_show(kinds, k, look):
    """As if all had been searched; no unfit query is shown while a fit one is left, votes or not."""
    found = {f"q{i}": KINDS.get(kind, []) for i, (kind, *_) in enumerate(kinds)}
    shelf = Shelf(found, sold_out=["gone"], categories={"had": "Tents"})
    ranked = [
        item(f"q{i}", *(found[f"q{i}"] if known else ()), votes=votes)
        for i, (_, known, votes) in enumerate(kinds)
    ]
    context = UserContext(just_bought=("Tents",))
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, k, context, look))
    levels = list(KINDS) if look else ["in", "bought"]
    level = {f"q{i}": kind for i, (kind, *_) in enumerate(kinds) if kind != "nothing"}
    if not look:
        level = {query: "bought" if kind == "bought" else "in" for query, kind in level.items()}
    expected = sorted(level, key=lambda query: levels.index(level[query]))
    shown = queries(slate)
    kept = k - int(COVERING_SHARE * k)
    assert shown[:kept] == expected[:kept]
    assert [level[query] for query in shown] == [level[query] for query in expected[:k]]
    assert len(set(shown)) == len(shown)
    assert all(r.products == tuple(found[r.query]) for r in slate)


@pytest.mark.parametrize(
    ("search", "followed"), [(True, 1.0), (False, 1.0), (True, 0.0), (True, 4e9)]
)
def test_a_policy_is_measured_by_the_slates_that_it_serves(
    nano_policy, tiny_shop, monkeypatch, search, followed
):
    """But not by stock of a later day: what is sold out now says nothing of a case's moment.

    A policy whose search is off is measured by its own ranking, and served by what can be had.
    """
    agent = AgentConfig(search=search)
    environment = Environment.of_shop(tiny_shop, nano_policy.codec, agent)
    examples = [
        Example(e.case, replace(e.profile, context=UserContext()))  # nothing was bought just now
        for e in environment.of_split("test")
        if len(e.profile.references) > 5
    ][:6]
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
    assert all(flags == sorted(flags, reverse=True) for flags in in_stock)
    if not search:  # what it says itself, without looking
        assert [slate[0] for slate in measured] == [e.profile.references[2] for e in examples]
        assert measured != shown
    elif followed == 1.0:
        assert measured == shown
    else:
        # The last of four places goes to what adds most products.
        assert [row[:3] for row in measured] == [tuple(line[:3]) for line in lines]
        assert measured != shown


def written(*named):
    """Chains that recommend (query, products) and a group of them, by an agent that writes."""
    chains = tuple(chain((query, products), answer=query) for query, products in named)
    return Group(Task(profile("a line"), NOW), chains)


def test_a_row_of_an_agent_that_writes_does_not_say_one_need_five_times():
    lens, bag, card = ("l1", "l2", "l3"), ("b1", "b2"), ("c1",)
    group = written(
        *[("acme lens", lens)] * 4, *[("lens", lens)] * 3, ("zoom lens", ("l1", "l4")),
        *[("camera bag", bag)] * 2, ("card", card),
    )  # fmt: skip
    by_votes = [r.query for r in aggregate_group(AgentConfig(), group)]
    assert by_votes[:3] == ["acme lens", "lens", "camera bag"]
    row = [r.query for r in aggregate_group(AgentConfig(writes=True), group)]
    assert row == ["acme lens", "camera bag", "card", "zoom lens", "lens", "a line"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("pqrstu"), min_size=1)),
        max_size=12,
    )
)
def test_covering_loses_no_query_and_leaves_the_first_where_it_is(named):
    ranked = aggregate_group(AgentConfig(), written(*named))
    row = aggregate_group(AgentConfig(writes=True), written(*named))
    assert sorted(r.query for r in row) == sorted(r.query for r in ranked)
    assert row[0] == ranked[0]


def test_what_an_agent_wrote_must_be_answered_in_all_its_words():
    found = {
        "black dog food": ("dog food 4kg",),
        "dog foods": ("dog food 4kg", "cat tree"),
        "cat tree": ("cat tree",),
    }
    shelf = Shelf({**found, "a line": (), "4 kg tree": ("dog food 4kg", "cat tree")})
    group = written(
        *[("black dog food", found["black dog food"])] * 3, ("dog foods", found["dog foods"]),
        ("4 kg tree", ("dog food 4kg", "cat tree")),
    )  # fmt: skip
    ranked = aggregate_group(AgentConfig(writes=True), group)
    # Each word is in some product, but no product has all; plurals and units are one word.
    (slate,) = fill(shelf, SlateRequest(ranked, NOW, 5))
    assert queries(slate) == ["dog foods", "black dog food", "4 kg tree"]
    # What memory names may be a word that the titles lack.
    line = [replace(r, evidence=Evidence(5, r.votes, line=0.1)) for r in ranked]
    (slate,) = fill(shelf, SlateRequest(line, NOW, 5))
    assert queries(slate)[0] == "black dog food"
