"""Prices and titles as shops and exporters write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.ingest.parse_fields import category, plain, price


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cheap",
        "-1",
        "1,2,3",
        "1.2.3",
        "1,299,00",
        "12 99",
        "5-10",
        "12.50 per 100g",
        "1/2",
        "0x1",
    ],
)
def test_what_is_no_price_or_can_be_read_in_two_ways_is_none(text):
    assert price(text) is None and price(text, comma=True) is None


@given(
    st.integers(0, 10**9),
    st.integers(0, 99),
    st.sampled_from([",.", ".,", " ,", "',", "'.", ",", "."]),
    st.sampled_from(["{}", "{} €", "$ {}", "US${}", "{} zł", "Rs. {}", "{}\u00a0kr"]),
)
def test_a_price_with_cents_is_the_same_however_it_is_written(whole, cents, marks, form):
    thousands, point = marks[:-1], marks[-1]
    text = form.format(f"{whole:,}".replace(",", thousands) + f"{point}{cents:02}")
    assert price(text) == price(text, comma=True) == pytest.approx(whole + cents / 100)


@given(st.text("0123456789., '-€$azł", max_size=12), st.booleans())
def test_a_price_is_never_negative_and_no_text_is_an_error(text, comma):
    found = price(text, comma)
    assert found is None or (found >= 0 and not math.isnan(found))


@given(st.text("ab <>/&;#x39", max_size=30))
def test_html_goes_and_what_has_none_stays(text):
    assert len(plain(text)) <= len(text)
    if "&" not in text and "<" not in text:
        assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('["Office", "Paper"]', "Office > Paper"),
        ('[["Office", "Paper"], ["Gifts"]]', "Office > Paper"),
        ("['Office', \"Men's\"]", "Office > Men's"),
        ("Office|Paper", "Office > Paper"),
        ("[Office", "[Office"),
        ("[]", ""),
        ("[" * 5000, "[" * 2000),
        ("['a\\d']", "['a\\d']"),
    ],
)
def test_a_category_is_a_path_however_its_levels_are_listed(text, path):
    assert category(text) == path
