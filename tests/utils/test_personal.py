from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.utils.personal import LONG_DIGITS, looks_personal, luhn


@pytest.mark.parametrize(
    "text",
    [
        *("anna.muster@gmail.com", "anna@gm", "anna.muster@", "mail anna (at) web de"),
        *("anna muster gmail com", "annamuster gmx.de", "ＡＮＮＡ＠example.org"),
        *("0171 234 5678", "+49 171 2345678", "(030) 12345-67", "call 555-010-9999"),
        *("+1 (555) 010-9999", "0043/1/5887", "٠١٧١٢٣٤٥٦٧٨"),
        *("4111 1111 1111 1111", "5500-0000-0000-0004", "visa 378282246310005"),
        *("customer 12345678", "4006381333931"),
    ],
)
def test_what_is_somebodys_own_is_seen(text):
    assert looks_personal(text)


@pytest.mark.parametrize(
    "text",
    [
        *("usb cable", "iphone 15 pro 256", "calendar 2026", "levis 501", "gears of war 3"),
        *("lego 75192", "ryzen 9 7950x3d", "shelf 100 200 40", "1000 watt 230 v", "", "@"),
        *("canon 24-105 f4", "225/45 r17", "m4x20 10.9", "size 9-10", "bosch 2.608.577.142"[:12]),
        *("web design", "outlook calendar", "yahoo answers", "9 x 13 x 2 inch pan", "12-24-36"),
        *("1234 5678 1234 5678", "dimm 3200 16 32"),
    ],
)
def test_what_a_shop_sells_is_not(text):
    assert not looks_personal(text)


@given(st.text(max_size=60))
def test_any_text_can_be_looked_at(text):
    assert looks_personal(text) in (True, False)


@given(st.text("0123456789", min_size=LONG_DIGITS, max_size=20), st.sampled_from(["", "x ", "nr."]))
def test_long_digits_are_seen_whatever_stands_before(digits, before):
    assert looks_personal(before + digits)


@given(st.text("0123456789", min_size=12, max_size=18))
def test_of_the_ten_last_digits_one_makes_a_card_number(digits):
    assert sum(luhn(digits + last) for last in "0123456789") == 1
