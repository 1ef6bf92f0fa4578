import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.protocol.actions import OBSERVATION_TAGS, parse_action
from qagent_mlx.protocol.grammar import WORDS_TOKENS, Grammar, Moves

# Single characters, pieces that reach over the edges of tags, and what must never be drawn.
TEXTS = [
    "",
    *"<>/rs0123456789abcdefghijklmnopqtuvwxyz_ -.!",
    "<s",
    "search",
    ">",
    "><",
    "><r",
    "</",
    "</s",
    "recommend",
    " usb",
    " cable",
    "fetch_",
    "<fetch",
    "1>",
    "12",
    "\n",
    "<|",
    "<profile>",
    "é",
    "\ufffd",
    "</search>",
    ">\n",
    "",
]
GRAMMAR = Grammar(TEXTS)
moves = st.builds(
    Moves,
    fetch=st.just(False),
    lines=st.lists(st.integers(0, 15), unique=True, max_size=4).map(tuple),
    words=st.booleans(),
    searched=st.integers(0, 3),
).filter(lambda m: m.lines or m.words or m.searched)


def walk(moves, random):
    """A turn drawn at random from what is allowed: (text, tokens)."""
    said, tokens = "", 0
    while not said.endswith((">",)) or parse_action(said).kind == "invalid":
        allowed = np.flatnonzero(GRAMMAR.mask(said, tokens, moves))
        said += TEXTS[allowed[int(random.random() * len(allowed))]]
        tokens += 1
        assert tokens < WORDS_TOKENS + 40
    return said, tokens


@given(moves, st.randoms(use_true_random=False))
def test_every_turn_drawn_from_the_masks_is_an_allowed_action(moves, random):
    said, _ = walk(moves, random)
    action = parse_action(said)
    if action.reference:
        assert said in set(moves.actions())
    else:
        assert action.kind == "search"
        assert moves.words
    assert not any(tag in said for tag in OBSERVATION_TAGS)


def test_memory_is_read_before_anything_else():
    rest = "<fetch_memory/>"
    only = Moves(fetch=True, lines=(), words=False, searched=0)
    for end in range(1, len(rest)):
        allowed = {TEXTS[i] for i in np.flatnonzero(GRAMMAR.mask(rest[:end], end, only))}
        assert allowed
        assert all(rest[end:].startswith(text) for text in allowed)


def test_words_close_when_they_have_become_many():
    free = Moves(fetch=False, lines=(), words=True, searched=0)
    allowed = np.flatnonzero(GRAMMAR.mask("<search>usb", WORDS_TOKENS, free))
    assert {TEXTS[i] for i in allowed} == {"<", "<s", "</", "</s", "</search>"} - {"<s"}


def test_a_query_without_a_letter_is_not_closed():
    free = Moves(fetch=False, lines=(), words=True, searched=0)
    assert not GRAMMAR.mask("<search> -", 5, free)[TEXTS.index("</search>")]
    assert GRAMMAR.mask("<search> -a", 6, free)[TEXTS.index("</search>")]


def test_whatever_was_searched_can_be_recommended_and_nothing_else():
    done = Moves(fetch=False, lines=(), words=False, searched=3)
    assert [parse_action(a).reference for a in done.actions()] == ["s1", "s2", "s3"]
    allowed = np.flatnonzero(GRAMMAR.mask("<recommend><s", 3, done))
    assert {TEXTS[i] for i in allowed} == {"1", "2", "3", "1>"}
