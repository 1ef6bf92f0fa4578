import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.protocol.codec import ShopCodec
from qagent_mlx.protocol.query_automaton import (
    LEAST_READ,
    MOST_WORDS,
    QueryAutomaton,
    ReadableWords,
)
from qagent_mlx.utils.text import words

TITLES = ("Acme USB-C Cable, black", "Borealis Phone Case", "Office > Desk Lamps", None)
CATALOG = {word for title in TITLES if title for word in words(title)}
PROFILE = (
    "<task><fetch_memory/><profile>likes lamps cable, borealis, $, black red\n"
    "telly stand unmet week likely<r0>\nviewed borealis phone case, red days</profile>"
)
READ = {"lamps", "cable", "borealis", "black", "red", "telly", "stand", "phone", "case"}
RESULTS = "<results><s1>1 castor desk lamp $ fits out</results>"
TURN = 24


@pytest.fixture(scope="module")
def codec(tiny_tokenizer):
    return ShopCodec(tiny_tokenizer)


@pytest.fixture(scope="module")
def automaton(codec):
    return QueryAutomaton(codec, ReadableWords(CATALOG), TURN)


def written(automaton, codec, choose, read=PROFILE, references=0):
    """A turn that takes, of the allowed ids, the one that `choose` picks, until it ends."""
    before, turn = codec.encode(read), codec.encode("<search>")
    while (mask := automaton.next_mask(before, turn, references)) is not None:
        turn.append(int(choose(np.flatnonzero(mask))))
    return turn


def test_the_words_that_were_read_are_told_from_marks_numbers_and_tags():
    readable = ReadableWords(CATALOG)
    assert readable.available(PROFILE) == READ
    assert readable.available(PROFILE + RESULTS) == READ | {"castor", "desk", "lamp"}


def test_a_mark_that_is_a_word_of_the_catalog_counts():
    readable = ReadableWords(words("Top Brand Shirt, often 5"))
    assert {"top", "often", "5"} <= readable.available(PROFILE + "top often fits 5 6")
    assert not {"fits", "6"} & readable.available(PROFILE + "top often fits 5 6")


def test_who_has_read_next_to_nothing_may_write_the_words_of_the_catalog():
    readable = ReadableWords(CATALOG)
    few = " ".join(list("abcdefgh")) + " new user telly"  # single letters name no product
    assert readable.available(few) == CATALOG | {"telly"}
    many = " ".join(f"word{i}" for i in range(LEAST_READ))
    assert not readable.available(many) & CATALOG


def test_only_words_that_were_read_can_be_written(automaton):
    for query in ("telly stand", "red borealis lamps", "case", "Black, red!"):
        assert automaton.accepts(query, frozenset(READ)), query
    for query in ("desk lamp", "tell", "", "?!", "jane@example.com"):
        assert not automaton.accepts(query, frozenset(READ)), query


def test_no_query_is_longer_than_the_most_words(automaton):
    assert automaton.accepts(" ".join(["cable"] * MOST_WORDS), frozenset(READ))
    assert not automaton.accepts(" ".join(["cable"] * (MOST_WORDS + 1)), frozenset(READ))


def test_one_line_of_memory_may_stand_wherever_a_word_may(automaton, codec):
    (r0,), (r2,), (end,) = (codec.encode(tag) for tag in ("<r0>", "<r2>", "</search>"))
    before, start = codec.encode(PROFILE), codec.encode("<search>")
    for turn in (start, [*start, *codec.encode("cable")]):
        mask = automaton.next_mask(before, turn, 2)
        assert mask[r0] and not mask[r2]
        assert mask[end] == (len(turn) > 1)
        assert not automaton.next_mask(before, turn, 0)[r0]
    mask = automaton.next_mask(before, [*start, r0], 2)
    assert mask[end] and mask[codec.encode("cable")[0]] and not mask[r0]
    assert automaton.next_mask(before, [*start, r0, end], 2) is None


def test_only_a_search_is_constrained(automaton, codec):
    before = codec.encode(PROFILE)
    for text in ("", "<fetch_memory/>", "<recommend>", "<recommend><s1>", "<think>cable"):
        assert automaton.next_mask(before, codec.encode(text), 2) is None, text


@given(st.randoms(use_true_random=False))
def test_whatever_is_drawn_is_a_query_of_read_words_within_the_turn(automaton, codec, random):
    turn = written(automaton, codec, lambda ids: random.choice(list(ids)), references=1)
    turn = [i for i in turn if i not in codec.encode("<r0>")]
    if len(turn) == len(codec.encode("<search></search>")):
        return  # nothing but references
    assert len(turn) <= TURN
    text = codec.decode(turn)
    assert text.startswith("<search>") and text.endswith("</search>")
    query = text[len("<search>") : -len("</search>")].strip()
    assert query and set(query.split()) <= READ
    assert automaton.accepts(query, frozenset(READ))


def test_a_new_user_may_write_words_of_both_kinds_also_where_one_begins_like_another(codec):
    """What was read and the catalog lie in two tries; a query walks both."""
    automaton = QueryAutomaton(codec, ReadableWords(CATALOG | {"cab", "cables"}), TURN)
    before = codec.encode("<task><fetch_memory/><profile>new user telly</profile>")
    for query in ("telly cable", "cab telly", "cables cable", "lamps"):
        ids = codec.encode(f"<search>{query}</search>")
        for end in range(1, len(ids)):
            assert automaton.next_mask(before, ids[:end], 0)[ids[end]], (query, end)
    first = automaton.next_mask(before, codec.encode("<search>"), 0)
    known = {codec.encode(word)[0] for word in (*CATALOG, "cab", "cables", "telly")}
    assert set(np.flatnonzero(first).tolist()) == known


@given(st.sampled_from(sorted(READ)), st.sampled_from(sorted(READ)))
def test_whatever_is_accepted_can_be_drawn(automaton, codec, first, second):
    ids = codec.encode(f"<search>{first} {second}</search>")
    before = codec.encode(PROFILE)
    for end in range(1, len(ids)):
        assert automaton.next_mask(before, ids[:end], 0)[ids[end]]


@given(st.randoms(use_true_random=False))
def test_a_chain_is_scored_under_the_masks_that_it_was_drawn_under(automaton, codec, random):
    drawn = []

    def choose(ids):
        drawn.append(set(ids.tolist()))
        return random.choice(list(ids))

    first = written(automaton, codec, choose, references=2)
    read = codec.encode(RESULTS)
    text = PROFILE + codec.decode(first) + RESULTS
    second = written(automaton, codec, choose, read=text, references=2)
    before = codec.encode(PROFILE)
    tokens = [*before, *first, *read, *second]
    chosen = [False] * len(before) + [True] * len(first) + [False] * len(read)
    masks = automaton.masks(tokens, chosen + [True] * len(second), 2)
    assert [set(np.flatnonzero(masks[i]).tolist()) for i in sorted(masks)] == drawn
    assert all(masks[i][tokens[i]] for i in masks)
