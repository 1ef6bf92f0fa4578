import pytest

from qagent_mlx.protocol.marks import ACTIVITY, AGES, MARK_WORDS, POPULARITY, PROBABILITIES, Mark


@pytest.mark.parametrize(
    ("days", "word"),
    [
        (0, "now"),
        (0.1, "today"),
        (1.49, "today"),
        (1.5, "days"),
        (4, "week"),
        (9, "weeks"),
        (18, "month"),
        (45, "old"),
        (9999, "old"),
    ],
)
def test_ages_are_words(days, word):
    assert AGES.word(days) == word


def test_a_value_at_a_limit_belongs_to_the_bin_above():
    assert [POPULARITY.word(x) for x in (0.003, 0.004, 0.015, 0.04)] == ["", "warm", "hot", "top"]
    assert [PROBABILITIES.word(x) for x in (0.06, 0.07, 0.15, 0.3)] == [
        "",
        "maybe",
        "likely",
        "surely",
    ]
    assert [ACTIVITY.word(x) for x in (1, 12, 59, 60)] == ["light", "regular", "regular", "heavy"]


def test_marks_are_written_as_their_words():
    assert f"{Mark.NOW} {Mark.DEAR}" == " ".join([Mark.NOW, Mark.DEAR]) == "now $$$"


def test_the_words_that_delexicalising_keeps():
    """Policies were trained on demonstrations that keep exactly these."""
    assert " ".join(sorted(MARK_WORDS - {"$", "$$", "$$$"})) == (
        "away bought brand brands buys carted chosen days details every fading fits had "
        "heavy hot known light liked likely likes loyal maybe month names new next none "
        "nothing now often old out poor queries regular rising seen short surely today "
        "top unmet user viewed warm week weeks"
    )
