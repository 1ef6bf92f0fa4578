"""Completions: the user's own first, never somebody else's alone, only what finds products."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.agent.suggest import Completer
from qagent_mlx.ingest.ingest import append_events
from qagent_mlx.inventory.search import open_search
from qagent_mlx.live.limits import Limits
from qagent_mlx.live.rules import ShopRules, new_rule
from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.types import Hit, Line, Profile

NOW = datetime(2026, 4, 10, 12)


class Finds:
    """A search that finds a product for some texts."""

    def __init__(self, *nothing):
        self.nothing, self.asked = nothing, []

    def search(self, queries, k, as_of=None):
        self.asked += queries
        return [[] if query in self.nothing else [Hit("p", 1.0)] for query in queries]


def completer(search=None, **weights):
    queries = {text.replace("_", " "): weight for text, weight in weights.items()}
    return Completer(queries, ["Tent pegs"], search or Finds())


def texts(found):
    return [s.query for s in found]


def profile(*lines):
    lines = tuple(Line(section, q, score, query=q) for section, q, score in lines)
    return Profile("u", NOW, "", lines, tuple(line.query for line in lines))


SHOP = completer(tent=5, tent_pole=9, usb_cable=3, desk_lamp=2, lamp=1)


def test_what_begins_so_comes_by_weight_and_then_later_words_and_names():
    assert texts(SHOP.complete("te")) == ["tent pole", "tent", "Tent pegs"]
    assert texts(SHOP.complete("LA")) == ["lamp", "desk lamp"]
    assert texts(SHOP.complete("tent ")) == ["tent pole", "tent", "Tent pegs"]
    assert texts(SHOP.complete("cab")) == ["usb cable"]
    assert [s.source for s in SHOP.complete("te")] == ["shop", "shop", "catalog"]
    assert SHOP.complete("") == SHOP.complete("zz") == SHOP.complete("  ") == []
    assert len(SHOP.complete("t", k=1)) == 1


@pytest.mark.parametrize(
    ("typed", "meant"), [("tnet p", "tent pole"), ("dekk", "desk lamp"), ("usb cabel", "usb cable")]
)
def test_a_typo_is_seen_through(typed, meant):
    assert texts(SHOP.complete(typed))[0] == meant


def test_only_a_long_word_may_have_two_typos():
    shop = completer(lamp=1, camping_stove=1)
    assert texts(shop.complete("lapm")) == ["lamp"] and shop.complete("lpam") == []
    assert texts(shop.complete("capming stvoe")) == ["camping stove"]
    assert shop.complete("capmnig stvoe") == []


def test_a_typo_costs_no_place():
    shop = Completer({f"tent {n:02}": n for n in range(1, 41)}, [], Finds())
    assert texts(shop.complete("tnet ", k=9)) == [f"tent {n}" for n in range(40, 31, -1)]


def test_the_users_own_come_first_and_say_where_they_are_from():
    mine = profile(("latest", "tepid mug", 0.2), ("neighbours", "tent", 0.9), ("graph", "x", 0.1))
    found = SHOP.complete("te", mine, recommended=["teal sofa"])
    assert [(s.query, s.source) for s in found] == [
        ("tent", "memory"),
        ("teal sofa", "policy"),
        ("tepid mug", "own"),
        ("tent pole", "shop"),
        ("Tent pegs", "catalog"),
    ]


def test_only_what_finds_products_and_may_be_shown_is_suggested():
    search = Finds("tent pole")
    rules = ShopRules.at([new_rule("block", text="tent")], NOW)
    shop = completer(search, tent=5, tent_pole=9, tentacle=1)
    assert texts(shop.complete("te", limits=Limits(rules))) == ["tentacle", "Tent pegs"]
    shop.complete("te")
    assert len(search.asked) == len(set(search.asked))  # asked once


@given(st.text(max_size=30))
def test_any_prefix_can_be_completed(prefix):
    found = SHOP.complete(prefix)
    assert len(found) <= 8 and len(set(texts(found))) == len(found)


def test_nobody_sees_what_one_person_searched_or_what_is_somebodys_own(own_shop):
    def search(user, query):
        return {"user_id": user, "time": NOW, "type": "search", "query": query}

    append_events(
        own_shop,
        [
            *(search(f"u{n:02}", "zebra lamp mail@example.org") for n in range(9)),
            *(search("u03", f"zebra{n}") for n in range(3)),
            *(search(f"u{n:02}", "zebra") for n in range(9)),
            *(search(f"u{n:02}", "zebra rug") for n in range(10)),
            *(search(user, "lamp desk") for user in ("u04", "u05")),
        ],
    )
    memory = Memory(own_shop.connection, own_shop.config.memory, count_words)
    finds = open_search(own_shop)
    shop = Completer.of_shop(memory, finds, NOW + timedelta(hours=1))
    assert texts(shop.complete("zebra")) == ["zebra rug"]  # no word of the catalog: ten people
    assert texts(shop.complete("lamp d")) == ["lamp desk"]
    assert Completer.of_shop(memory, finds, NOW).complete("zebra") == []
    assert "usb cable" in texts(shop.complete("us"))
