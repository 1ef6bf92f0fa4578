"""Lines of memory say what a user's state says, and nothing on too little."""

from datetime import timedelta

import pytest

from qagent_mlx.memory.profile import Memory, count_words
from qagent_mlx.memory.sections import _ago, identity_lines
from qagent_mlx.memory.state_builder import _taste
from qagent_mlx.memory.summarizer import _about
from qagent_mlx.memory.types import Moment
from qagent_mlx.memory.user_state import Activity, Interest, UserState


def identity(purchases, share, kind="brand"):
    activity = Activity(9, 3, purchases, 2.0, None, 0)
    interests = [Interest(kind, "Acme", 1.0, share), Interest(kind, "Brite", 0.5, 1 - share)]
    (line,) = identity_lines(UserState(activity=activity, interests=interests))
    return line.text


def test_who_bought_twice_and_mostly_of_one_brand_is_loyal_to_it():
    assert "loyal acme" in identity(purchases=2, share=0.6)
    assert "brite" not in identity(purchases=2, share=0.6)
    for other in (identity(1, 0.9), identity(5, 0.59), identity(5, 0.9, "category")):
        assert "loyal" not in other


def test_a_brand_written_in_two_ways_is_one_taste():
    weights = {"brand": {"Acme": 2.0, "acme": 1.0, "Brite": 1.0}, "attribute": {"red": 4.0}}
    assert _taste(weights) == {"acme": 0.75, "brite": 0.25, "red": 1.0}


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0"), (9, "9"), (12, "about 10"), (38, "about 40"), (712, "about 700")]
)
def test_a_model_is_told_numbers_to_one_digit(number, told):
    assert _about(number) == told


@pytest.mark.parametrize(
    ("days", "told"),
    [
        *((0.0, "just now"), (0.04, "just now"), (0.05, "an hour ago"), (0.5, "12 hours ago")),
        *((1.4, "34 hours ago"), (1.6, "2 days ago"), (30.0, "30 days ago")),
    ],
)
def test_a_reason_says_how_long_ago(days, told):
    assert _ago(days) == told


def test_who_has_events_is_no_new_user(tiny_shop):
    end = tiny_shop.connection.execute("SELECT max(ts) FROM events").fetchone()[0]
    moments = [Moment(user, end + timedelta(seconds=1)) for user in ("u01", "nobody")]
    memory = Memory(tiny_shop.connection, tiny_shop.config.memory, count_words)
    known, new = (
        [line.text for line in profile.lines if line.section == "identity"]
        for profile in memory.profiles(moments, budget=400)
    )
    assert new == ["new user"]
    assert len(known) == 1 and known != new
