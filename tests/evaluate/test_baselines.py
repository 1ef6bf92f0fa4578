from collections import Counter, defaultdict
from datetime import datetime, timedelta

import numpy as np
import pytest

from qagent_mlx.environment.environment import Example
from qagent_mlx.evaluate.baselines.popularity import Popular, RepeatLast, Trending
from qagent_mlx.evaluate.baselines.registry import (
    BASELINES,
    OF_PRODUCTS,
    UNTRAINED,
    BaselineData,
    MemoryRankerBaseline,
)
from qagent_mlx.evaluate.baselines.search_log import SearchLog
from qagent_mlx.evaluate.baselines.transitions import FADE, NEXT, PRIOR, SOURCES, CoOccurrence
from qagent_mlx.evaluate.metrics import Ranking
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.profile import Memory
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.shop import Shop
from qagent_mlx.types import Case, Line, Profile
from qagent_mlx.utils.text import query_key

START = datetime(2026, 1, 1)
WORDS = [f"thing{i}" for i in range(12)]


def search(user, hours, query):
    time = (START + timedelta(hours=hours)).isoformat()
    return {"user_id": user, "time": time, "type": "search", "query": query}


def an_example(user, hours, references=()):
    as_of = START + timedelta(hours=hours)
    case = Case(0, user, as_of, "x", "x", (), 1, "test")
    lines = tuple(Line("latest", q, 0.1, q) for q in references)
    return Example(case, Profile(user, as_of, "", lines, tuple(references)))


def with_profiles(shop, examples):
    """The examples with their profiles made anew from the shop."""
    memory = Memory(shop.connection, shop.config.memory, lambda texts: [len(t) for t in texts])
    moments = [Moment(e.case.user_id, e.case.as_of) for e in examples]
    profiles = memory.profiles(moments, budget=400)
    return [Example(e.case, p) for e, p in zip(examples, profiles, strict=True)]


@pytest.fixture
def shop(tmp_path):
    """30 users search 12 things in 10 days, at whole and half hours, so many at once."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(700):
        word = WORDS[min(int(random.exponential(4)), 11)]
        spelled = [word, word.upper(), f"{word[:3]} {word[3:]}"][random.integers(3)]
        rows.append(search(f"u{random.integers(30)}", random.integers(480) / 2, spelled))
    with Shop.create(tmp_path / "shop") as made:
        append_events(made, rows)
        yield made


@pytest.fixture
def examples():
    """Not in order of time; most moments fall on a search, one before all, one after all."""
    random = np.random.default_rng(1)
    made = [an_example(f"u{random.integers(32)}", random.integers(480) / 2) for _ in range(60)]
    return [*made, an_example("u1", -1), an_example("u2", 500)]


def rows_before(shop, example):
    """(user, ts, query, key, session) of the searches before a moment, in order of time."""
    return shop.connection.execute(
        """SELECT user_id, ts, query, query_key, session_id FROM events
        WHERE type = 'search' AND ts < ? ORDER BY ts, event_id""",
        [example.case.as_of],
    ).fetchall()


def by_count(rows):
    counts = Counter(key for _, _, _, key, _ in rows)
    return sorted(counts, key=lambda key: (-counts[key], key))


def first_spellings(rows):
    found: dict[str, str] = {}
    for _, _, query, key, _ in rows:
        found.setdefault(key, query)
    return found


def filled(rows, keys, k):
    """The keys as they were first typed, filled up with the most popular."""
    spelled = first_spellings(rows)
    return tuple(spelled[key] for key in [*keys, *(q for q in by_count(rows) if q not in keys)][:k])


def baselines(shop):
    """All that need neither training nor the shop's index, on the log as it is now."""
    data = BaselineData(shop)
    others = {"dense", "in-stock", *OF_PRODUCTS}  # which have tests of their own
    return [BASELINES[name](data) for name in UNTRAINED if name not in others]


def answers(system, examples, k=5):
    return [ranking.queries for ranking in system.rank(examples, k)]


def test_popular_equals_counting(shop, examples):
    expected = [filled(rows_before(shop, e), [], 5) for e in examples]
    assert answers(Popular(SearchLog.of_shop(shop)), examples) == expected
    assert expected[-2] == () and len(expected[-1]) == 5


def test_trending_equals_counting_two_days_and_falls_back(shop, examples):
    expected = []
    for example in examples:
        rows = rows_before(shop, example)
        since = example.case.as_of - timedelta(days=2)
        recent = Counter(key for _, ts, _, key, _ in rows if ts >= since)
        ever = by_count(rows)
        expected.append(filled(rows, sorted(recent, key=lambda q: (-recent[q], ever.index(q))), 5))
    found = answers(Trending(SearchLog.of_shop(shop)), examples)
    assert found == expected
    assert found != answers(Popular(SearchLog.of_shop(shop)), examples)
    assert found[-1] == answers(Popular(SearchLog.of_shop(shop)), examples)[-1]


def test_repeat_last_shows_own_queries_as_typed_and_latest_first(shop, examples):
    expected = []
    for example in examples:
        rows = rows_before(shop, example)
        own: dict[str, str] = {}
        for user, _, query, key, _ in reversed(rows):
            if user == example.case.user_id:
                own.setdefault(key, query)
        fill = [q for q in filled(rows, [], 100) if query_key(q) not in own]
        expected.append((*own.values(), *fill)[:5])
    assert answers(RepeatLast(SearchLog.of_shop(shop)), examples) == expected


def test_co_occurrence_equals_walking_through_every_other_user(shop, examples):
    expected = []
    for example in examples:
        rows, as_of = rows_before(shop, example), example.case.as_of
        paths: dict[str, list] = {}
        for user, ts, _, key, session in rows:
            paths.setdefault(user, []).append((ts, key, session))
        mine = [key for _, key, _ in reversed(paths.pop(example.case.user_id, []))]
        scores: defaultdict[str, float] = defaultdict(float)
        for place, source in enumerate(list(dict.fromkeys(mine))[:SOURCES]):
            steps: defaultdict[str, float] = defaultdict(float)
            for path in paths.values():
                for i, (_, key, session) in enumerate(path):
                    if key != source:
                        continue
                    for distance, (ts, to, later) in enumerate(path[i + 1 : i + 1 + NEXT], 1):
                        if to != source and later != session:
                            age = (as_of - ts) / timedelta(days=1)
                            steps[to] += 0.5 ** (age / 14) / distance
            for to, weight in steps.items():
                scores[to] += FADE**place * weight / (sum(steps.values()) + PRIOR)
        ever = by_count(rows)
        order = sorted(scores, key=lambda q: (-round(scores[q], 9), ever.index(q)))
        expected.append(filled(rows, order, 5))
    found = answers(CoOccurrence(SearchLog.of_shop(shop)), examples)
    assert found == expected
    assert found != answers(Popular(SearchLog.of_shop(shop)), examples)


def test_co_occurrence_learns_from_others_only_and_across_sessions(tmp_path):
    rows = [search("me", 1, "tent"), search("me", 30, "own next"), search("me", 60, "tent")]
    rows += [search("b", 2, "tent"), search("b", 2.1, "reworded"), search("b", 40, "stove")]
    rows += [search(f"p{i}", 3, "popular") for i in range(5)]
    with Shop.create(tmp_path / "camping") as shop:
        append_events(shop, rows)
        ranked = answers(CoOccurrence(SearchLog.of_shop(shop)), [an_example("me", 90)], 2)
    # "reworded" came in the same session as "tent", "own next" from nobody else.
    assert ranked == [("stove", "popular")]


def test_top_line_is_the_profile_without_what_comes_twice():
    example = an_example("u", 1, ("Red shoe", "hat", "red-shoe", "boot"))
    assert MemoryRankerBaseline().rank([example], 2) == [Ranking(("Red shoe", "hat"))]
    assert answers(MemoryRankerBaseline(), [example]) == [("Red shoe", "hat", "boot")]
    assert answers(MemoryRankerBaseline(), [an_example("u", 1)]) == [()]


def test_all_answer_in_the_order_asked_without_repeats(shop, examples):
    examples = with_profiles(shop, examples)
    for system in baselines(shop):
        found = answers(system, examples)
        assert answers(system, examples[::-1]) == found[::-1], system.name
        for queries in found:
            keys = [query_key(q) for q in queries]
            assert len(keys) == len(set(keys)) <= 5
    names = [system.name for system in baselines(shop)]
    assert len(names) == len(set(names)) == len(BASELINES) - len(OF_PRODUCTS) - 3  # sasrec


@pytest.mark.parametrize("hours_later", [0, 0.5, 50])
def test_no_baseline_sees_anything_at_or_after_the_moment(shop, hours_later):
    hours = 150
    examples = [an_example(f"u{i}", hours) for i in range(32)]
    before = [answers(s, with_profiles(shop, examples)) for s in baselines(shop)]
    later = []
    for i in range(32):
        for step, query in enumerate(("aaa new", "zzz new", "THING-11", "thing 10", "thing9")):
            later.append(search(f"u{i}", hours + hours_later + step * 0.6, query))
    append_events(shop, later * 2)
    after = [answers(s, with_profiles(shop, examples)) for s in baselines(shop)]
    assert after == before


def test_every_baseline_sees_what_came_just_before_the_moment(shop):
    hours = 150
    examples = [an_example(f"u{i}", hours) for i in range(32)]
    before = [answers(s, with_profiles(shop, examples)) for s in baselines(shop)]
    earlier = []
    for i in range(32):
        for step, query in enumerate(("aaa new", "zzz new", "aaa new", "zzz new") * 40):
            earlier.append(search(f"u{i}", hours - 1e-6 - step * 0.6, query))
    append_events(shop, earlier)
    after = [answers(s, with_profiles(shop, examples)) for s in baselines(shop)]
    for system, old, new in zip(baselines(shop), before, after, strict=True):
        assert old != new, system.name


def test_a_shop_without_searches_recommends_nothing(tmp_path):
    with Shop.create(tmp_path / "empty") as shop:
        for system in baselines(shop):
            assert system.rank([an_example("u", 1)], 5) == [Ranking(())], system.name
            assert system.rank([], 5) == []
