"""A planted event that gives the answer of a case away must change nothing that the case uses."""

import re
from datetime import timedelta

import pytest

from qagent_mlx.environment.cases import build_cases, of_split
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.index import build_index
from qagent_mlx.inventory.search import open_search
from qagent_mlx.memory.candidates import COLUMNS
from qagent_mlx.memory.event_log import start_of_day
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.ranker import MemoryRanker, fit_ranker
from qagent_mlx.memory.types import Moment
from qagent_mlx.utils.text import query_key

ANSWER = "zebra saddle"  # nobody searches it but in what is planted


def used(shop, case):
    """All that a policy sees of a case, and what that is made of; index and worth built anew."""
    index = build_index(shop)
    fit_ranker(shop, index.clicks_until)
    search = open_search(shop, index)
    memory = Memory(shop.connection, shop.config.memory, count_words, MemoryRanker.of_shop(shop))
    moment = Moment(case.user_id, case.as_of)
    profile = memory.profiles([moment], budget=400)[0]
    (loaded,) = memory.loader.compute([moment])
    known = memory.loader.statistics
    sources = [source.key for source in loaded.state.sources]
    day = start_of_day(case.as_of)
    known.read("followers", {day: set(sources)})
    known.read("facts", {day: {query_key(ANSWER), query_key(case.query)}})
    day = known.day(day)
    texts = [ANSWER, case.query, *index.catalog.titles[:20]]
    weights = MemoryRanker.of_shop(shop).at(case.as_of)
    hits = search.search([ANSWER, case.query], 10, [case.as_of, case.as_of])
    return {
        "profile": (profile.text, profile.lines, profile.references, profile.context),
        "state": loaded.state,
        "neighbours": {
            source: [
                (known.vocabulary.keys[i], p, d)
                for i, p, d in zip(*(a.tolist() for a in day.followers[source]), strict=True)
            ]
            for source in sources
        },
        "candidates": {name: getattr(loaded.candidates, name).tolist() for name in COLUMNS},
        "facts": [day.facts.get(query_key(query)) for query in (ANSWER, case.query)],
        "trends": known.trends([case.as_of])[0],
        "encoder": (index.manifest.clicked_pairs, index.encoder.encode(texts).tolist()),
        "worth": (weights.values.tolist(), weights.outside),
        "search": hits,
    }


def planted(case, time, people):
    """Everybody searches the case's query and one nobody knows, and buys the same product."""
    rows = []
    for n, user in enumerate([case.user_id, *people]):
        for i, query in enumerate((case.query, ANSWER)):
            start = time + timedelta(seconds=40 * i, milliseconds=n)
            row = {"user_id": user, "query": query}
            rows.append({**row, "time": start, "type": "search"})
            bought = {"type": "purchase", "product_id": "p000"}
            rows.append({**row, **bought, "time": start + timedelta(seconds=10)})
    return rows


def rounded(text):
    """Sums differ in their last digits from run to run, and the fit of weights a little more."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.5f}", text)


def same(a, b):
    """Equal but for the last digits, also where a number is missing on both sides."""
    return rounded(repr(a)) == rounded(repr(b))


@pytest.fixture
def shop_and_case(own_shop):
    # A case from the middle of a day: then there is an earlier hour of that day too.
    cases = of_split(
        build_cases(own_shop.connection, after=build_index(own_shop).clicks_until), "test"
    )
    return own_shop, max(cases, key=lambda c: (c.as_of.hour, c.user_id))


def test_what_gives_the_answer_away_later_changes_nothing_that_a_case_uses(shop_and_case):
    shop, case = shop_and_case
    people = [
        u for (u,) in shop.connection.execute("SELECT DISTINCT user_id FROM events").fetchall()
    ]
    before = used(shop, case)
    # At the very moment, and all the time until the log ends: it must not become longer, or
    # another part of it would be the first, from which the encoder learns.
    ((end,),) = shop.connection.execute("SELECT max(ts) FROM events").fetchall()
    late = [case.as_of, case.as_of + (end - case.as_of) / 2]
    assert late[1] + timedelta(minutes=2) < end
    for time in late:
        report = append_events(shop, planted(case, time, people))
        assert report.rejected == 0 and report.accepted > 40
    after = used(shop, case)
    assert [what for what in before if not same(before[what], after[what])] == []


def test_the_same_events_before_the_case_change_all_of_it(shop_and_case):
    """So the test above looks at what it should."""
    shop, case = shop_and_case
    people = [
        u for (u,) in shop.connection.execute("SELECT DISTINCT user_id FROM events").fetchall()
    ]
    before = used(shop, case)
    ((start,),) = shop.connection.execute("SELECT min(ts) FROM events").fetchall()
    early = [start + timedelta(hours=1)]  # the encoder learns from it
    early += [case.as_of - timedelta(hours=30), case.as_of - timedelta(hours=3)]
    for time in early:
        append_events(shop, planted(case, time, people))
    after = used(shop, case)
    assert [what for what in before if same(before[what], after[what])] == []
