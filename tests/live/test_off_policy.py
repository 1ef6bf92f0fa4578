"""Off-policy estimates against a truth that a small simulated world knows."""

from datetime import datetime
from itertools import permutations

import numpy as np
import pytest

from qagent_mlx.live.off_policy import LoggedAnswer, estimate, propensities, shuffled

NOW = datetime(2026, 5, 1)
QUERIES = [f"q{n}" for n in range(5)]
WORTH = np.array([0.05, 0.3, 0.1, 0.2, 0.02])  # of the queries
SEEN = np.array([1.0, 0.7, 0.5, 0.3, 0.2])  # of the positions
OTHER = [1, 3, 2, 0, 4]  # the other system's order: by worth


def night(rng, answers, share, users=400):
    """Logged answers of a world in which a query is taken by its worth, where it is seen."""
    logged = []
    for n in range(answers):
        order = shuffled(5, rng) if rng.random() < share else list(range(5))
        rewards = (rng.random(5) < WORTH[order] * SEEN).astype(float)
        logged.append(
            LoggedAnswer(
                f"u{n % users}",
                NOW,
                tuple(QUERIES[rank] for rank in order),
                propensities(order, share),
                tuple(rewards),
            )
        )
    return logged


def truth(order):
    return float((WORTH[order] * SEEN).sum())


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_propensities_are_the_frequencies_of_the_shuffle(size):
    rng = np.random.default_rng(0)
    draws = np.array([shuffled(size, rng) for _ in range(20_000)])
    assert all(sorted(order) == list(range(size)) for order in draws[:50].tolist())
    seen = np.array([[np.mean(draws[:, p] == r) for r in range(size)] for p in range(size)])
    said = np.zeros((size, size))
    for rank in range(size):
        for position in range(size):
            order = list(range(size))
            order[position] = rank  # what is said of a place is of that place alone
            said[position, rank] = propensities(order, 1.0)[position]
    assert np.abs(seen - said).max() < 0.015
    assert said.sum(axis=1) == pytest.approx(np.ones(size))


def test_a_share_that_is_left_to_chance_mixes_with_the_rest():
    assert propensities(range(3), 0.0) == (1.0, 1.0, 1.0)
    for order in permutations(range(3)):
        for share in (0.1, 0.2):
            always = propensities(order, 1.0)
            mixed = propensities(order, share)
            for position, rank in enumerate(order):
                expected = share * always[position] + (1 - share) * (rank == position)
                assert mixed[position] == pytest.approx(expected)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    slate = [QUERIES[rank] for rank in OTHER]
    covered = {"ips": 0, "snips": 0, "dr": 0}
    widths = {name: [] for name in covered}
    for _ in range(40):
        logged = night(rng, 2000, 0.2)
        report = estimate(logged, [slate] * len(logged))
        for name in covered:
            found = getattr(report, name)
            covered[name] += found.lo <= truth(OTHER) <= found.hi
            widths[name].append(found.hi - found.lo)
    assert covered["ips"] >= 36 and covered["dr"] >= 36, covered  # of 200 runs 93 % did
    assert np.mean(widths["dr"]) < np.mean(widths["ips"])


def test_the_logging_system_itself_is_estimated_as_what_it_earned():
    logged = night(np.random.default_rng(2), 3000, 0.0)
    report = estimate(logged, [QUERIES] * len(logged))
    earned = np.mean([sum(answer.rewards) for answer in logged])
    for name in ("logged", "ips", "snips", "dr"):
        assert getattr(report, name).value == pytest.approx(earned)
    assert report.agreeing == 1 and report.explored == 0
    assert "left to chance" in report.assumption and report.effective == 15_000


def test_what_the_log_never_showed_says_nothing():
    logged = night(np.random.default_rng(3), 50, 0.0)
    report = estimate(logged, [["elsewhere"]] * len(logged))
    assert report.snips.value is None and report.ips.value == 0 and report.agreeing == 0
    assert estimate([], []).answers == 0


def test_what_could_not_have_been_shown_is_said():
    logged = night(np.random.default_rng(3), 500, 0.2)
    swapped = estimate(logged, [["q1", "q0", "q2", "q3", "q4"]] * len(logged))
    assert swapped.supported == 1 and not swapped.assumption
    new = estimate(logged, [["q0", "never shown", "q2", "nor this", "q3"]] * len(logged))
    assert new.supported == pytest.approx(0.6) and "40%" in new.assumption
    # A shorter row earns nothing in the last places, and that is known.
    assert estimate(logged, [["q0"]] * len(logged)).supported == 1
    fixed = night(np.random.default_rng(4), 100, 0.0)
    same_first = estimate(fixed, [["q0", "q2", "q1", "q3", "q4"]] * len(fixed))
    assert same_first.supported == same_first.agreeing == pytest.approx(0.6)


def test_what_stands_behind_the_shuffled_places_has_a_chance_only_there():
    order = [*range(5), 5, 6]
    answer = LoggedAnswer(
        "u", NOW, tuple(f"q{n}" for n in order), propensities(order, 0.2), (0,) * 7
    )
    late_first = ["q5", "q0", "q1", "q2", "q3", "q4", "q6"]
    report = estimate([answer] * 3, [late_first] * 3)
    assert report.supported == pytest.approx(5 / 7)  # q5 first and q4 sixth are out of reach
