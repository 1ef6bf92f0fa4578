import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.protocol.actions import (
    ACTION_TAGS,
    MAX_SEARCHES,
    OBSERVATION_TAGS,
    REFERENCES,
    SLOTS,
    STOPS,
    Action,
    Stopper,
    expand,
    parse_action,
    product_line,
    results_text,
)
from qagent_mlx.protocol.escape import safe


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<fetch_memory/>", Action("fetch")),
        ("<search>usb cable</search>", Action("search", "usb cable")),
        ("<search><r3></search>", Action("search", reference="r3")),
        (" <search> <r12> </search>", Action("search", reference="r12")),
        ("<search>nipper <r3></search>", Action("search", "nipper <r3>")),
        ("<recommend><s2></recommend>", Action("recommend", reference="s2")),
        ("<think>hm</think><recommend>tv</recommend>", Action("recommend", "tv", think="hm")),
    ],
)
def test_actions_are_read(text, action):
    assert parse_action(text) == action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "<search>a",
        "<search>a</recommend>",
        "<search>a</search> and more",
        "<search>a</search><recommend>a</recommend>",
        "<search><profile></search>",
        "<results>1 x</results>",
        "<search><r1><r2></search>",
        "<recommend>",
        "<fetch_memory>",
    ],
)
def test_anything_else_is_invalid(text):
    assert parse_action(text).kind == "invalid"


def test_references_expand_to_lines_and_searches():
    lines, searched = ("a", "b"), ("b",)
    assert expand(Action("search", reference="r1"), lines, searched) == "b"
    assert expand(Action("recommend", reference="s1"), lines, searched) == "b"
    assert expand(Action("search", reference="r2"), lines, searched) is None
    assert expand(Action("recommend", reference="s2"), lines, searched) is None
    assert expand(Action("recommend", reference="s0"), lines, searched) is None
    assert expand(Action("search", "  "), lines, searched) is None
    assert expand(Action("search", "red <r1> xl"), lines, searched) == "red b xl"
    assert expand(Action("search", "red <r2>"), lines, searched) is None


@given(st.text(max_size=200))
def test_reading_any_text_ends_in_an_action(text):
    assert parse_action(text).kind in ("fetch", "search", "recommend", "invalid")


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(
            [*ACTION_TAGS, *OBSERVATION_TAGS, *REFERENCES[:2], *SLOTS[:2], "\n", "<", ">"]
        ),
        st.text(max_size=5),
    )
).map("".join)


@given(HOSTILE)
def test_text_from_data_never_forms_a_tag(text):
    written = results_text(1, [product_line(1, text, ["$"])])
    inner = written[len("<results><s1>") : -len("</results>")]
    assert "<" not in inner
    assert ">" not in inner
    assert "\n" not in safe(text)


class Letters:
    """A codec with a token for each character; 0 ends an answer."""

    eos_ids = frozenset({0})

    def decode(self, ids):
        return "".join(map(chr, ids))


def fed(stopper, text):
    """How much of a text is taken until the stopper stops; None where it never does."""
    return next((i for i, letter in enumerate(text, 1) if stopper.feed(ord(letter))), None)


@pytest.mark.parametrize("tag", [*STOPS, *OBSERVATION_TAGS])
def test_a_turn_stops_where_an_action_ends_or_a_tool_s_tag_is_written(tag):
    for before in ("", "<search>" + "so many words " * 9):
        assert fed(Stopper(Letters(), None), f"{before}{tag} and on") == len(before + tag)
    assert fed(Stopper(Letters(), None), f"a < b > {tag[:-1]} <search>x</searc> <r3>") is None


def test_a_turn_stops_where_the_model_ends_its_answer():
    assert fed(Stopper(Letters(), None), "words\0more") == 6
    assert fed(Stopper(Letters(), frozenset({7, 9})), "words\0more") == 6


def test_where_tags_are_tokens_the_tokens_decide():
    stopper = Stopper(Letters(), frozenset({7, 9}))
    assert [stopper.feed(token) for token in (8, ord(">"), 9)] == [False, False, True]
    assert fed(Stopper(Letters(), frozenset({7})), "<search>x</search>") is None


def test_each_search_of_a_chain_has_a_name_of_its_own():
    assert SLOTS[0] == "<s1>" and len(set(SLOTS)) == len(SLOTS) == MAX_SEARCHES
