"""What few have searched, what is somebody's own, and what one person makes a trend of."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from open_memory import OPEN_MEMORY

from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.public_queries import PublicQueries
from qagent_mlx.memory.shop_tables import create_shop_tables
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.types import Moment
from qagent_mlx.shop.config import MemoryConfig
from qagent_mlx.utils.text import query_key

NOW = datetime(2026, 4, 10, 12)
SAFE = MemoryConfig(least_users_unknown=2)  # the texts here need no more people than others


def after(**time):
    return NOW + timedelta(**time)


def search(shop, *searches, clicks=True):
    """Searches (user, query, time), each with a click unless ``clicks`` is off."""
    events = []
    for user, query, at in searches:
        event = {"user_id": user, "time": at, "type": "search", "query": query}
        events.append(event)
        if clicks:
            later = at + timedelta(seconds=9)
            events.append({**event, "type": "click", "product_id": "p400", "time": later})
    append_events(shop, events)


def seen_by(shop, user, moment, config):
    """The queries of a user's profile, which is long enough for all."""
    config = replace(config, budget=4000, references=32)
    memory = Memory(shop.connection, config, count_words)
    (profile,) = memory.profiles([Moment(user, moment)])
    return {line.query.lower() for line in profile.lines if line.query}


STRANGERS = ("nobody", "u02", "u03", "u11")


def seen_by_strangers(shop, moment, config):
    return set().union(*(seen_by(shop, user, moment, config) for user in STRANGERS))


@pytest.mark.parametrize("text", ["anna@example.org", "0171 234 5678", "customer 123456789"])
def test_what_is_somebodys_own_reaches_nobody_else_however_many_type_it(own_shop, text):
    search(own_shop, *((f"u0{n}", text, NOW) for n in range(5, 10)))
    config = SAFE
    assert text in seen_by_strangers(own_shop, after(hours=3), replace(config, hide_personal=False))
    assert text not in seen_by_strangers(own_shop, after(hours=3), config)
    assert text in seen_by(own_shop, "u05", after(hours=3), config)  # it is the user's own


def test_what_one_person_searches_reaches_nobody_until_a_second_one_does(own_shop):
    search(own_shop, *(("u05", "velvet lamp", after(minutes=n)) for n in range(40)))
    moment = after(hours=3)
    assert "velvet lamp" in seen_by_strangers(own_shop, moment, OPEN_MEMORY)
    assert "velvet lamp" not in seen_by_strangers(own_shop, moment, SAFE)
    search(own_shop, ("u06", "velvet lamp", after(hours=2)))
    assert "velvet lamp" in seen_by_strangers(own_shop, moment, SAFE)
    assert "velvet lamp" not in seen_by_strangers(own_shop, after(hours=1), SAFE)


def test_a_memory_that_lives_on_learns_of_the_second_person(own_shop):
    own_shop.config = replace(own_shop.config, memory=SAFE)
    MemoryStore(own_shop.connection, SAFE).build()
    memory = Memory(own_shop.connection, replace(SAFE, budget=4000, references=32), count_words)

    def seen(moment):
        (profile,) = memory.profiles([Moment("u02", moment)])
        return {line.query for line in profile.lines}

    search(own_shop, ("u05", "velvet lamp", NOW))
    assert "velvet lamp" not in seen(after(hours=3))
    search(own_shop, ("u06", "velvet lamp", after(hours=4)))
    assert "velvet lamp" in seen(after(hours=6))


@pytest.mark.parametrize("apart", [timedelta(minutes=7), timedelta(minutes=59)])
def test_new_ids_within_an_hour_of_each_other_count_as_one(own_shop, apart):
    search(own_shop, *((f"bot{n}", "velvet lamp", NOW + n * apart) for n in range(8)))
    moment = after(hours=30)
    assert "velvet lamp" in seen_by_strangers(own_shop, moment, replace(SAFE, new_user_hours=0.0))
    assert "velvet lamp" not in seen_by_strangers(own_shop, moment, SAFE)
    search(own_shop, ("u05", "velvet lamp", after(hours=20)))
    assert "velvet lamp" in seen_by_strangers(own_shop, moment, SAFE)


def trend_shares(shop, moment, config):
    """Each query's share of what the shop searches for."""
    memory = Memory(shop.connection, config, count_words)
    memory.loader.prepare()
    (trends,) = memory.loader.statistics.trends([moment])
    return {key: trend.share for key, trend in trends.items()}


def test_trends_by_users_count_each_person_once_a_day_and_new_ones_of_an_hour_once(own_shop):
    search(
        own_shop,
        *(("u05", "desk lamp", after(seconds=n)) for n in range(50)),
        *((user, "usb cable", NOW) for user in ("u06", "u07", "u08")),
        *((f"bot{n}", "phone case", after(minutes=n)) for n in range(8)),
        clicks=False,
    )
    moment = after(hours=2)
    by_searches = trend_shares(own_shop, moment, OPEN_MEMORY)
    assert by_searches == {"desklamp": 50 / 61, "usbcable": 3 / 61, "phonecase": 8 / 61}
    by_users = trend_shares(own_shop, moment, SAFE)
    assert by_users == {"desklamp": 1 / 5, "usbcable": 3 / 5, "phonecase": 1 / 5}


def test_people_of_an_hour_are_the_same_whether_memory_followed_or_was_built(own_shop):
    own_shop.config = replace(own_shop.config, memory=SAFE)
    store = MemoryStore(own_shop.connection, SAFE)
    store.build()
    for start in range(3):  # late ones, and the same people again on the same day
        search(
            own_shop,
            *((f"n{n % 3}", "desk lamp", after(minutes=17 * n)) for n in range(start, 12, 3)),
            *(("u05", "usb cable", after(hours=5 * n)) for n in range(start, 12, 3)),
        )

    def hours():
        return own_shop.connection.execute(
            """SELECT hour, query_key, sum(n), sum(people), sum(newcomers) FROM hourly
            GROUP BY ALL ORDER BY ALL"""
        ).fetchall()

    followed = hours()
    assert store.is_current() and sum(row[4] for row in followed) > 0
    store.build()
    assert followed == hours()


def test_a_word_that_the_catalog_lacks_takes_more_people(own_shop):
    def searched(text, people, at):
        search(own_shop, *((f"u{n:02}", text, at) for n in range(20, 20 + people)))

    config = MemoryConfig()
    searched("grobian lamp", 9, NOW)
    searched("desk lamps", 2, NOW)  # the catalog's, but for the ending
    seen = seen_by_strangers(own_shop, after(hours=3), config)
    assert "desk lamps" in seen and "grobian lamp" not in seen
    searched("grobian lamp", 10, after(hours=4))
    assert "grobian lamp" in seen_by_strangers(own_shop, after(hours=6), config)


@pytest.mark.parametrize(
    "title, known, unknown",
    [
        ("Crème brûlée pan 28cm", ["brûlée", "creme pans 28cm", "pan 2026 x"], ["crème dupont"]),
        ("台灯护眼", ["护眼", "台灯 28"], ["护灯", "眼台"]),  # one character says little
        ("Lampe", ["lampes", "LAMPE", "lampe 1234"], ["lampenschirm", "lam", "lampe 12345"]),
    ],
)
def test_known_words_are_those_of_the_catalogs_texts(own_shop, title, known, unknown):
    own_shop.connection.execute("UPDATE products SET title = ?", [title])
    create_shop_tables(own_shop.connection, "TEMP TABLE", MemoryConfig())
    public = PublicQueries(own_shop.connection, MemoryConfig())
    assert public.people_needed([title, *known]) == [2] * (1 + len(known))
    assert public.people_needed(unknown) == [10] * len(unknown)


def test_a_query_is_looked_at_again_only_when_somebody_searched_it(own_shop, monkeypatch):
    create_shop_tables(own_shop.connection, "TEMP TABLE", SAFE)
    public = PublicQueries(own_shop.connection, SAFE)
    queries = {query_key(text): text for text in ("velvet lamp", "velvet desk", "usb cable")}
    search(own_shop, ("u05", "velvet lamp", NOW), ("u05", "velvet desk", NOW))
    public.learn(queries)
    asked = []
    monkeypatch.setattr(
        public, "people_needed", lambda texts: asked.extend(texts) or [2] * len(texts)
    )
    public.forget_private()
    public.learn(queries)
    assert asked == []
    search(own_shop, ("u06", "velvet lamp", after(hours=1)), ("u06", "usb cable", after(hours=1)))
    public.forget_private()
    public.learn(queries)
    assert asked == ["velvet lamp"] and public.is_public("velvetlamp", after(hours=2))
    assert not public.is_public("velvetdesk", after(hours=2))
