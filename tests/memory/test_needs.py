"""What memory says of a shop where nobody searches: which kinds of products people come back for."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.memory.buckets import build_memory
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.sections import MAX_FILLED, need_lines, popular_lines, product_lines
from qagent_mlx.memory.shop_tables import create
from qagent_mlx.memory.store import MemoryStore
from qagent_mlx.memory.title_kinds import TitleKinds
from qagent_mlx.memory.types import Moment
from qagent_mlx.memory.user_state import Interest, RecentProduct
from qagent_mlx.shop.shop import Shop
from qagent_mlx.types import Line

START = datetime(2026, 3, 1)
KINDS = {"camera": "Photo > Camera", "card": "Photo > Memory Card", "tea": "Kitchen > Tea"}
NOW = START + timedelta(days=25)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row, default=str) for row in rows))
    return path


def purchase(user, day, kind):
    return {
        "user_id": user,
        "time": START + timedelta(days=day),
        "type": "purchase",
        "product_id": f"{kind}1",
    }


TITLES = {
    "camera1": ("Acme Camera Duo", "Acme"),
    "camera2": ("Zen Camera", "Zen"),
    "card1": ("Lexo Memory Card, 64 GB", "Lexo"),
    "card2": ("Orbi Memory Card, 8 GB", "Orbi"),
    "tea1": ("Sora Tea Green", "Sora"),
    "tea2": ("Ment Tea", "Ment"),
}  # of a shop that has no categories


@pytest.fixture
def shop(tmp_path):
    """A shop with a category for each kind."""
    products = [{"product_id": f"{k}1", "title": k, "category": c} for k, c in KINDS.items()]
    with Shop.create(tmp_path / "shop") as shop:
        yield stocked(shop, products, tmp_path)


@pytest.fixture
def plain_shop(tmp_path):
    """The same without categories."""
    products = [{"product_id": p, "title": t, "brand": b} for p, (t, b) in TITLES.items()]
    with Shop.create(tmp_path / "plain") as shop:
        yield stocked(shop, products, tmp_path)


def stocked(shop, products, tmp_path):
    """Ten people bought a camera and five days later a memory card; two, tea after a camera."""
    events = [
        purchase(f"u{i}", day, k) for i in range(10) for day, k in ((1, "camera"), (6, "card"))
    ]
    events += [
        purchase(f"v{i}", day, k) for i in range(2) for day, k in ((1, "camera"), (6, "tea"))
    ]
    events += [purchase("new", 20, "camera"), purchase("later", 24, "tea")]
    ingest_files(shop, "products", [write(tmp_path / "products.jsonl", products)])
    report = ingest_files(shop, "events", [write(tmp_path / "events.jsonl", events)])
    assert report.accepted == len(events)
    return shop


def profile(shop, user, as_of=NOW):
    (profile,) = Memory(shop.connection, shop.config.memory, count_words).profiles(
        [Moment(user, as_of)]
    )
    return profile


def test_a_log_without_searches_says_what_people_came_back_for(shop):
    found = profile(shop, "new")
    assert found.references[:2] == ("memory card", "tea")
    assert "memory card next <r0>" in found.text
    assert {line.query: line.reason for line in found.lines if line.query} == {
        "memory card": "what people like you came back for",
        "tea": "what people like you came back for",
        "camera": "what people go for in this shop of late",
    }


def test_nothing_of_it_was_known_before_they_came_back(shop):
    found = profile(shop, "u0", START + timedelta(days=5))
    assert found.references == ("camera",) and "next" not in found.text


def test_of_whom_nothing_is_known_what_people_go_for_is_named(shop):
    found = profile(shop, "nobody")
    assert found.references == ("camera", "memory card", "tea")  # 13, 10 and 3 people
    assert "camera <r0>" in found.text
    assert {line.section for line in found.lines if line.query} == {"trending"}
    assert profile(shop, "nobody", START).references == ()  # nobody had been there


def test_under_own_only_the_users_own_queries_come_before_kinds_of_products(shop, tmp_path):
    search = {"user_id": "new", "time": NOW - timedelta(days=1), "type": "search", "query": "bag"}
    ingest_files(shop, "events", [write(tmp_path / "more.jsonl", [search])])
    config = replace(shop.config.memory, own_only=True)
    (found,) = Memory(shop.connection, config, count_words).profiles([Moment("new", NOW)])
    assert found.references[0] == "bag"


def test_who_searches_is_told_of_queries(shop, tmp_path):
    """The lines of needs stand where a profile has no queries of others."""
    search = {"user_id": "new", "time": NOW - timedelta(days=1), "type": "search", "query": "bag"}
    ingest_files(shop, "events", [write(tmp_path / "more.jsonl", [search])])
    found = profile(shop, "new")
    assert "bag" in found.references
    assert "next" not in found.text


def test_the_first_kinds_are_named_with_the_brands_that_the_user_likes(shop):
    shop.connection.execute("UPDATE products SET brand = 'Acme' WHERE product_id = 'camera1'")
    shop.connection.execute("UPDATE products SET brand = 'Tea' WHERE product_id = 'tea1'")
    found = profile(shop, "new")
    assert found.references == ("acme memory card", "acme tea", "memory card", "tea", "camera")
    assert "acme memory card next <r0>" in found.text


def test_without_categories_titles_say_what_kind_of_thing_people_came_back_for(plain_shop):
    """Nobody is told the same as everybody else only because a shop has no categories."""
    found = profile(plain_shop, "new")
    assert found.references == ("acme memory card", "acme tea", "memory card", "tea", "camera")
    assert profile(plain_shop, "later").references[0] != "acme memory card"
    assert profile(plain_shop, "nobody").references == ("camera", "memory card", "tea")


def test_titles_make_no_kinds_where_queries_of_others_may_be_named(plain_shop, tmp_path):
    search = {"user_id": "u1", "time": NOW - timedelta(days=1), "type": "search", "query": "bag"}
    ingest_files(plain_shop, "events", [write(tmp_path / "more.jsonl", [search])])
    connection = plain_shop.connection

    def kinds(**changes):
        config = replace(plain_shop.config.memory, **changes)
        create(connection, "goods", config, "TEMP TABLE")
        rows = connection.execute("SELECT DISTINCT leaf FROM temp.goods").fetchall()
        return {leaf for (leaf,) in rows}

    assert kinds() == {None}
    assert kinds(own_only=True) == {"camera", "memory card", "tea"}


def test_a_catalog_whose_titles_are_names_has_no_kinds(plain_shop):
    plain_shop.connection.execute("UPDATE products SET brand = NULL")
    assert profile(plain_shop, "new").references == (
        *("acme camera duo", "lexo memory card", "sora tea green"),
    )


def test_what_was_taken_from_titles_is_told(shop, plain_shop, tmp_path):
    assert build_memory(shop).title_kinds is None  # each product has a category
    products = len(TITLES)
    told = build_memory(plain_shop).title_kinds
    assert told == TitleKinds(products, products, 3, ("camera", "memory card", "tea"))
    plain_shop.connection.execute("UPDATE products SET category = 'Tea' WHERE product_id = 'tea1'")
    assert build_memory(plain_shop).title_kinds.products == products - 1
    plain_shop.connection.execute("UPDATE products SET brand = NULL")
    assert build_memory(plain_shop).title_kinds == TitleKinds(products - 1, 0, 0, ())
    search = {"user_id": "u1", "time": NOW - timedelta(days=1), "type": "search", "query": "bag"}
    ingest_files(plain_shop, "events", [write(tmp_path / "more.jsonl", [search])])
    assert build_memory(plain_shop).title_kinds is None  # memory names queries


def test_new_prices_leave_a_memory_of_kinds_from_titles_as_it_is(plain_shop, tmp_path):
    store = MemoryStore(plain_shop.connection, plain_shop.config.memory)
    store.build()
    title, brand = TITLES["tea2"]
    dearer = {"product_id": "tea2", "title": title, "brand": brand, "stock": 0}
    ingest_files(plain_shop, "products", [write(tmp_path / "dearer.jsonl", [dearer])])
    assert store.is_current()
    renamed = {**dearer, "title": "Ment Tea Caddy"}
    ingest_files(plain_shop, "products", [write(tmp_path / "renamed.jsonl", [renamed])])
    assert not store.is_current()


def test_a_row_holds_two_brands_and_three_kinds():
    interests = [Interest("brand", name, 1.0, 0.5) for name in ("Acme", "Tea", "Third")]
    interests.insert(1, Interest("category", "Kitchen", 1.0, 0.9))
    kinds = ["Memory Card", "Tea", "Lamp", "Bag"]
    queries = [line.query for line in need_lines(kinds, interests, has_queries=False)]
    assert queries == [
        "acme memory card",
        "acme tea",
        "tea memory card",
        "acme lamp",  # the brand Tea before Tea says nothing
        *("memory card", "tea", "lamp", "bag"),
    ]
    scores = [line.score for line in need_lines(kinds, interests, has_queries=False)]
    assert scores == sorted(scores, reverse=True)
    # Behind whatever a user looked at last where they have queries, else before all of it.
    looked_at = product_lines([RecentProduct("p1", "Lamp", 0.0)])[0].score
    behind = need_lines(kinds, interests, has_queries=True)
    assert max(line.score for line in behind) < looked_at < min(scores)
    assert need_lines(kinds, [], False)[0].query == "memory card"


def test_what_has_no_category_is_named_by_its_title(shop):
    title = "Gears of War 3: Epic Edition - Xbox 360"
    shop.connection.execute(f"UPDATE products SET category = NULL, title = '{title}'")
    assert profile(shop, "nobody").references == ("gears of war 3",)
    shop.connection.execute("UPDATE products SET title = '?!'")
    assert profile(shop, "nobody").references == ()


def popular(shop, days):
    loader = Memory(shop.connection, shop.config.memory, count_words).loader
    loader.prepare()
    return loader.statistics.popular(days)


def test_what_people_go_for_counts_users_and_not_events(shop, tmp_path):
    days = [NOW.replace(hour=0), NOW.replace(hour=0) + timedelta(days=1)]
    before = popular(shop, days)
    one = [
        purchase("one", 24, "tea") | {"time": START + timedelta(days=24, minutes=n)}
        for n in range(300)
    ]
    ingest_files(shop, "events", [write(tmp_path / "bot.jsonl", one)])
    assert popular(shop, days) == before
    assert set(before) == set(days) and before[days[0]][0] == "camera"


def test_a_profile_with_enough_queries_is_not_filled_up(shop):
    few = [Line("latest", f"q{n}", 0.1 * n, query=f"q{n}") for n in range(1, MAX_FILLED - 1)]
    kinds = ["q1", "tea", "camera", "card"]
    filled = popular_lines(kinds, [Line("graph", "likes tea", 0.3), *few])
    assert [line.query for line in filled] == ["tea", "camera"]  # up to eight; q1 is there
    assert all(line.score < 0.1 for line in filled)
    enough = [*few, *(Line("latest", q, 0.1, query=q) for q in ("x", "y"))]
    assert popular_lines(kinds, enough) == []
