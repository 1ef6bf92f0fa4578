from dataclasses import replace
from datetime import timedelta

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.types import Moment
from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.utils.text import query_key


@pytest.fixture(scope="module")
def memory(tiny_shop):
    return Memory(tiny_shop.connection, tiny_shop.config.memory, count_words)


@pytest.fixture(scope="module")
def moments(tiny_shop):
    rows = tiny_shop.connection.execute(
        "SELECT user_id, max(ts) + INTERVAL 1 SECOND FROM events GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return [*(Moment(*row) for row in rows), Moment("nobody", rows[0][1])]


def log(shop, moment):
    return shop.connection.execute(
        """SELECT type, query, query_key FROM events WHERE user_id = ? AND ts < ?
        ORDER BY ts DESC, event_id DESC""",
        [moment.user_id, moment.as_of],
    ).fetchall()


@pytest.mark.parametrize("budget", [0, 7, 40, 128, 10_000])
def test_the_newest_events_that_fit_are_shown_the_newest_first(memory, moments, tiny_shop, budget):
    for moment, profile in zip(moments, memory.profiles(moments, ("raw",), budget), strict=True):
        events = log(tiny_shop, moment)
        assert profile.tokens <= budget
        assert profile.tokens == sum(count_words([w + "\n" for w in profile.text.split("\n") if w]))
        assert [line.text.split()[0] for line in profile.lines] == [e[0] for e in events][
            : len(profile.lines)
        ]
        if budget == 10_000:
            assert len(profile.lines) == len(events)


def test_a_searched_query_can_be_named_once_by_its_newest_line(memory, moments, tiny_shop):
    for moment, profile in zip(moments, memory.profiles(moments, ("raw",), 10_000), strict=True):
        expected = list(
            dict.fromkeys(k for kind, _, k in log(tiny_shop, moment) if kind == "search")
        )
        assert [query_key(q) for q in profile.references] == expected[: memory.config.references]
        assert tuple(x.query for x in profile.lines if x.query is not None) == profile.references


def test_no_more_queries_are_named_than_there_are_references_and_all_are_shown(moments, tiny_shop):
    config = replace(tiny_shop.config.memory, references=2)
    few = Memory(tiny_shop.connection, config, count_words)
    longest = []
    for moment, profile in zip(moments, few.profiles(moments, ("raw",), 10_000), strict=True):
        typed = dict.fromkeys(k for kind, _, k in log(tiny_shop, moment) if kind == "search")
        assert [query_key(q) for q in profile.references] == list(typed)[:2]
        assert len(profile.lines) == len(log(tiny_shop, moment))
        assert profile.text.count("<r") == len(profile.references)
        longest.append(len(typed))
    assert max(longest) > 2


def test_nothing_at_or_after_the_moment_is_shown(memory, moments):
    early = [Moment(m.user_id, m.as_of - timedelta(seconds=1)) for m in moments]
    late, less = (memory.profiles(m, ("raw",), 10_000) for m in (moments, early))
    assert all(len(a.lines) < len(b.lines) for a, b in zip(less[:-1], late[:-1], strict=True))
    assert late[-1].text == ""


def test_raw_stands_alone_and_sections_are_checked(memory, moments):
    with pytest.raises(QAgentError, match="section raw is the whole profile"):
        memory.profiles(moments, ("raw", "graph"))
    with pytest.raises(QAgentError, match="no section grpah"):
        memory.profiles(moments, ("grpah",))


def test_a_policy_can_be_set_to_read_the_raw_history(tiny_shop, nano_policy):
    from qagent_mlx.agent.recommend import Recommender

    agent = AgentConfig(sections=("raw",), profile_budget=60)
    recommender = Recommender(tiny_shop, nano_policy, agent, group=2)
    found = recommender.recommend(["u01"], 2)[0]
    assert {line.section for line in found.profile.lines} == {"raw"}
    assert found.chains
