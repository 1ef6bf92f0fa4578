import pytest
from hypothesis import given
from hypothesis import strategies as st

from qagent_mlx.inventory.terms import product_terms


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("Gears of War 3", "gears of war3", {"war", "3", "war3"}),
        ("64 GB Memory Cards", "64gb memory card", {"64", "gb", "64gb", "memory", "card"}),
        ("Watches", "watch", {"watch"}),
        ("Batteries", "battery", {"battery"}),
        ("Boxes", "box", {"box"}),
        ("Dresses", "dress", {"dress"}),
        ("usb-c", "USB C", {"usb", "c"}),
    ],
)
def test_ways_of_writing_a_thing_share_its_terms(one, other, shared):
    assert shared <= set(product_terms(one)) & set(product_terms(other))


@pytest.mark.parametrize("word", ["bus", "glass", "tennis", "gas"])
def test_words_that_only_look_like_plurals_stay(word):
    assert product_terms(word) == [word]


@given(st.text(max_size=40))
def test_terms_do_not_depend_on_case(text):
    assert product_terms(text.casefold()) == product_terms(text)
    assert all(term for term in product_terms(text))
