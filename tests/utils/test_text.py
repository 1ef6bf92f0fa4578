import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qagent_mlx.utils.text import clean, query_key, rouge_l, share_words, tokens, words

# Letters whose upper case folds back to them; the Turkish dotless i, for one, does not.
LETTERS = st.characters(categories=("L", "N")).filter(
    lambda c: c.upper().casefold() == c.casefold()
)
TEXT = st.lists(st.text(LETTERS | st.sampled_from("aeioußσςİé"), min_size=1, max_size=8)).map(
    " ".join
)
# Marks and letters that compose with what stands before them.
PIECES = st.text(st.sampled_from("ae -,\u0301\u0308\u0323\u0345\u1100\u1161\u11a8ßİ<"), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wi-Fi, 5GHz", ["wi", "fi", "5ghz"]),
        ("  Gears of War3 ", ["gears", "of", "war3"]),
        ("Ｔ－Shirt ½", ["t", "shirt", "1", "2"]),
        ("café crème", ["café", "crème"]),
        ("กางเกง ยีนส์", ["กางเกง", "ยีนส์"]),
        ("$$$ !!!", []),
    ],
)
def test_words_are_lower_case_letters_and_digits(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dior口红 100ml", ["dior", "口", "红", "100ml"]),
        ("กางเกง", ["ก", "า", "ง", "เ", "ก", "ง"]),
        ("ข้าว", ["ข้", "า", "ว"]),
        ("운동화", ["운", "동", "화"]),
        ("café crème", ["café", "crème"]),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text, expected):
    assert tokens(text) == expected


@given(st.text(max_size=40) | TEXT | PIECES)
def test_tokens_are_the_words_cut_further(text):
    assert "".join(tokens(text)) == "".join(words(text))
    assert all(tokens(text))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Gears of War3", "gears of war 3"),
        ("t-shirt", "T SHIRT"),
        ("straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        ("cafe\u0301", "CAFÉ"),
        ("ﬁlter", "FILTER"),
    ],
)
def test_queries_that_differ_in_spelling_only_are_equal(one, other):
    assert query_key(one) == query_key(other)


@given(st.text(max_size=40) | TEXT | PIECES)
@example("a-\u0301")
@example("\u1100 \u1161")
def test_the_key_of_a_key_is_the_key(text):
    assert query_key(query_key(text)) == query_key(text)


@given(TEXT)
def test_the_key_does_not_depend_on_case_or_spaces(text):
    key = query_key(text)
    assert query_key(text.upper()) == key
    assert query_key(text.casefold()) == key
    assert query_key(f"  {text.replace(' ', '   ')}\t") == key
    assert query_key(text.replace(" ", "")) == key


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_plain_text_is_split_as_any_other_text(text):
    assert [*words(text), "é"] == words(text + " é")


@given(st.text(max_size=60))
def test_clean_text_is_one_printable_line(text):
    shown = clean(text)
    assert shown == shown.strip()
    assert "  " not in shown
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(c) == "Cc" for c in shown)
    assert clean(shown) == shown


@given(TEXT, TEXT)
def test_rouge_is_symmetric_and_between_0_and_1(one, other):
    value = rouge_l(one, other)
    assert 0 <= value <= 1
    assert value == rouge_l(other, one)


@given(TEXT)
def test_rouge_of_equal_texts_is_1(text):
    assert rouge_l(text, text) == (1 if words(text) else 0)
    assert rouge_l(text, text.upper()) == (1 if words(text) else 0)


def test_rouge_by_hand():
    assert rouge_l("red running shoes", "red shoes") == pytest.approx(2 * 2 / (3 + 2))
    assert rouge_l("shoes red", "red shoes") == pytest.approx(2 * 1 / 4)
    assert rouge_l("phone case", "usb cable") == 0
    assert rouge_l("折叠帐篷", "帐篷") == pytest.approx(2 * 2 / (4 + 2))


def test_texts_share_a_word_however_it_is_written():
    assert share_words("Acme", "ACME phone case") and share_words("phone-case", "a case")
    assert not share_words("Acme", "acmes phone") and not share_words("", "phone")
