from datetime import datetime, timedelta

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.sessions import refresh_sessions, successful_sessions
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.shop.schema import SCHEMA
from qagent_mlx.shop.shop import Shop

START = datetime(2026, 1, 1, 12)
GAP = timedelta(minutes=30)


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        connection.execute(SCHEMA.format(version=1))
        yield connection


def sessions(connection, users, gap=30.0):
    """Store (user, time) events and return the number of each one's session."""
    connection.execute("DELETE FROM events")
    connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?, 'view', NULL, NULL, 'p', NULL, NULL)",
        [(i, user, time) for i, (user, time) in enumerate(users)],
    )
    refresh_sessions(
        connection, MemoryConfig(session_gap_minutes=gap), "SELECT DISTINCT user_id FROM events"
    )
    found = connection.execute("SELECT session_id FROM events ORDER BY event_id").fetchall()
    return [session for (session,) in found]


MOMENT = timedelta(microseconds=1)
GAPS = st.sampled_from([timedelta(0), MOMENT, GAP / 2, GAP - MOMENT, GAP, GAP + MOMENT, 3 * GAP])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), GAPS), min_size=1, max_size=12), st.randoms())
def test_a_session_ends_exactly_where_the_gap_is_exceeded(connection, steps, shuffler):
    clock, last, events, expected = {}, {}, [], []
    for user, gap in steps:
        clock[user] = clock.get(user, START) + gap
        if user not in last or gap > GAP:
            last[user] = len(events)
        events.append((user, clock[user]))
        expected.append(last[user])
    assert sessions(connection, events) == expected
    # Whatever order the events came in, the same ones share a session.
    order = list(range(len(events)))
    shuffler.shuffle(order)
    mixed = sessions(connection, [events[i] for i in order])
    together = {frozenset(i for i, e in enumerate(expected) if e == s) for s in expected}
    assert {frozenset(order[i] for i, m in enumerate(mixed) if m == s) for s in mixed} == together


def test_the_gap_is_a_setting(connection):
    events = [("a", START), ("a", START + timedelta(minutes=5)), ("a", START + timedelta(hours=1))]
    assert sessions(connection, events, gap=4.5) == [0, 1, 2]
    assert sessions(connection, events, gap=55) == [0, 0, 0]


# ---------------------------------------------------------------- searches and what they led to


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as shop:
        shop.connection.execute(
            "INSERT INTO products SELECT 'p' || i, 'thing', NULL, NULL, 1, true, NULL, 1 "
            "FROM range(9) t(i)"
        )
        yield shop


def event(minutes, kind, query=None, product=None, user="u"):
    return {
        "user_id": user,
        "time": START + timedelta(minutes=minutes),
        "type": kind,
        "query": query,
        "product_id": product,
    }


def log(shop, *events):
    report = append_events(shop, events)
    assert report.accepted == len(events), report


def ties(shop):
    """(minute, query of the search that an event is tied to) for all that is no search."""
    return shop.connection.execute(
        """SELECT date_diff('minute', ?, e.ts), s.query FROM events e
        LEFT JOIN events s ON s.event_id = e.search_id WHERE e.type <> 'search' ORDER BY e.ts""",
        [START],
    ).fetchall()


def test_an_event_belongs_to_the_last_search_of_its_query(shop):
    log(
        shop,
        event(0, "view", product="p0"),
        event(1, "search", "red shoe"),
        event(2, "search", "hat"),
        event(3, "click", "Red-Shoe", "p1"),
        event(4, "cart", product="p1"),
        event(5, "click", "never searched", "p1"),
        event(60, "purchase", product="p1"),
        event(61, "search", "hat", None),
        event(62, "purchase", product="p2"),
    )
    assert ties(shop) == [
        (0, None),
        (3, "red shoe"),
        (4, "hat"),
        (5, None),
        (60, None),
        (62, "hat"),
    ]


def test_late_events_are_put_into_their_session(shop):
    log(shop, event(0, "search", "hat"), event(40, "click", None, "p1"))
    assert ties(shop) == [(40, None)]
    log(shop, event(20, "view", None, "p2"))
    assert ties(shop) == [(20, "hat"), (40, "hat")]
    assert shop.counts()["sessions"] == 1


def test_a_success_is_the_first_search_that_led_to_an_engagement(shop):
    log(
        shop,
        event(-100, "view", product="p0"),
        event(0, "view", product="p0"),
        event(1, "search", "no luck"),
        event(2, "search", "Red Shoe"),
        event(3, "click", "red shoe", "p3"),
        event(4, "click", "red shoe", "p2"),
        event(5, "purchase", "red shoe", "p1"),
        event(6, "cart", "red shoe", "p2"),
        event(7, "search", "hat"),
        event(8, "click", "hat", "p4"),
        event(0, "search", "only a search", user="v"),
        event(0, "click", None, "p1", user="w"),
    )
    (found,) = successful_sessions(shop.connection)
    assert (found.user_id, found.start, found.query) == ("u", START, "Red Shoe")
    assert found.query_key == "redshoe"
    # Bought, then carted, then clicked.
    assert found.products == ("p1", "p2", "p3")
    assert found.history == 1


def test_successes_can_be_limited_to_a_time(shop):
    for day in range(4):
        at = day * 24 * 60
        log(shop, event(at, "search", f"q{day}"), event(at + 1, "click", f"q{day}", "p1"))
    days = [START + timedelta(days=d) for d in range(4)]
    assert [s.query for s in successful_sessions(shop.connection, after=days[1])] == [
        "q1",
        "q2",
        "q3",
    ]
    assert [s.query for s in successful_sessions(shop.connection, before=days[2])] == ["q0", "q1"]
    assert [s.history for s in successful_sessions(shop.connection)] == [0, 2, 4, 6]


def test_what_comes_at_the_limit_or_later_changes_no_success(shop):
    """Invariant 8: a session that goes on beyond the limit counts with its first part."""
    log(shop, event(0, "search", "a"), event(1, "search", "b"), event(2, "click", "b", "p1"))
    limit = START + timedelta(minutes=3)
    (before,) = successful_sessions(shop.connection, before=limit)
    log(
        shop,
        event(3, "purchase", "b", "p2"),
        event(3, "click", "a", "p3"),
        event(4, "search", "c"),
        event(5, "click", "c", "p1"),
    )
    assert successful_sessions(shop.connection, before=limit) == [before]
    assert before.products == ("p1",)
    (whole,) = successful_sessions(shop.connection)
    assert (whole.query, whole.products) == ("a", ("p3",))


@pytest.mark.parametrize(("known", "last"), [(True, 5), (True, 1), (False, 7), (True, 10_000)])
def test_the_last_sessions_are_the_end_of_all(own_shop, known, last):
    connection = own_shop.connection
    moment = own_shop.end_of_log() - timedelta(days=5)
    every = [s for s in successful_sessions(connection, before=moment) if s.history >= known]
    assert len(every) > 7
    found = successful_sessions(connection, before=moment, known=known, last=last)
    assert found == every[-last:]
