"""What others did next, by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from qagent_mlx.memory.neighbours import NO_NEIGHBOURS, neighbours
from qagent_mlx.memory.statistics_cache import DayStatistics, Followers
from qagent_mlx.memory.user_state import Source

NAN = float("nan")


def vocabulary(*kinds, modifiers=None):
    """A query a kind, whose keys are in the order of their numbers."""
    count = len(kinds)
    return SimpleNamespace(
        keys=[f"q{i}" for i in range(count)],
        modifiers={"acme": 0},
        key_ranks=lambda ids: ids,
        kinds_and_modifiers=lambda: (np.array(kinds), np.array(modifiers or [-1] * count)),
    )


def state(*sources, wording=None, taste=None, typed=None):
    words = {"wording": wording or {"plain": 1.0}, "taste": taste or {}, "typed": typed or {}}
    return SimpleNamespace(sources=list(sources), **words)


def day(**followers):
    """Of each source, for ``:`` in whose key stands an underscore: (id, P, delay)."""
    return DayStatistics(
        None,
        {
            key.replace("_", ":"): Followers(
                *(np.array(column) for column in zip(*rows, strict=True))
            )
            for key, rows in followers.items()
        },
    )


PAST = (Source("c:tea", 0.5, 8.0), Source("q:cup", 1.0, 3.0))


def test_a_query_s_score_is_the_sum_over_sources_and_the_strongest_is_named():
    known = day(c_tea=[(0, 0.4, 4.0), (2, 0.1, 1.0)], q_cup=[(0, 0.5, 2.0), (1, 0.2, NAN)])
    found = neighbours([state(*PAST)], [known], vocabulary(0, 0, 0))
    assert found.ids.tolist() == [0, 1, 2] and found.moments.tolist() == [0] * 3
    assert found.scores == pytest.approx([0.3 * (0.2 + 0.5), 0.3 * 0.2, 0.3 * 0.05])
    assert found.sources.tolist() == ["q:cup", "q:cup", "c:tea"]
    expected = [math.log(3 / 2), NAN, math.log(8 / 1)]  # since then, against the usual time
    np.testing.assert_allclose(found.timing, expected, rtol=1e-12)


def test_the_usual_time_is_that_of_the_strongest_source_that_has_one():
    known = day(c_tea=[(0, 0.4, 4.0)], q_cup=[(0, 0.5, NAN)])
    found = neighbours([state(*PAST)], [known], vocabulary(0))
    assert found.sources.tolist() == ["q:cup"]
    assert found.timing == pytest.approx([math.log(3 / 4)])
    never = day(c_tea=[(0, 0.4, NAN)], q_cup=[(0, 0.5, NAN)])
    assert np.isnan(neighbours([state(*PAST)], [never], vocabulary(0)).timing).all()


def test_wording_that_fits_the_user_comes_first_and_takes_from_the_others():
    known = day(q_cup=[(0, 0.5, 2.0), (1, 0.5, 2.0), (2, 0.5, 2.0)])
    words = vocabulary(0, 1, 1, modifiers=[-1, 0, -1])  # plain, with the brand acme, with another
    user = state(PAST[1], wording={"brand": 1.0}, taste={"acme": 0.5}, typed={"acme": 0.25})
    found = neighbours([user], [known], words)
    fits = np.array([1.15 * (0.07 + 0.5 + 0.25), 1.15 * 0.07, 0.15 * 0.4])
    assert found.ids.tolist() == [1, 2, 0]
    assert found.scores == pytest.approx(0.45 * fits / fits.sum())


def test_each_moment_has_its_own():
    known = day(q_cup=[(0, 0.5, 2.0)], c_tea=[(1, 0.2, 2.0)])
    found = neighbours([state(PAST[0]), state(), state(PAST[1])], [known] * 3, vocabulary(0, 0))
    assert (found.moments.tolist(), found.ids.tolist()) == ([0, 2], [1, 0])
    assert neighbours([state(), state(Source("p:x", 1.0, 1.0))], [known] * 2, vocabulary(0)) is (
        NO_NEIGHBOURS
    )
    assert [len(column) for column in NO_NEIGHBOURS] == [0] * 5
